"""Seconds of training until the validation images are told apart well enough, ours and by hand.

Both sides start from the packaged EfficientNet-Lite0 and see the same images in as many epochs.
Ours adds what our settings offer: growing images, an average of the weights.  Its seconds include
decoding the images once; the hand-written loop decodes them in every epoch.  Between two epochs
the moment is interpolated.

    python -m benchmarks.time_to_accuracy [--data-dir auto] [--target 0.9] [--float32]

--float32 stands for a machine without bf16.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterator

import torch

from benchmarks import baseline
from benchmarks.report import Figure, publish
from benchmarks.sample import PREPARED, take
from dermalyze.config.loading import config_from
from dermalyze.evaluation.metrics.classification import score
from dermalyze.models.classifier import build_classifier
from dermalyze.training.device import choose_device, set_determinism
from dermalyze.training.loop import fit
from dermalyze.training.state import new_state

METRIC = "macro_auc"
OURS = ("training.first_scale=0.5", "training.ema_decay=0.99")


def moment(epochs: Iterator[tuple[float, float]], target: float, before: float = 0.0) -> float:
    """Return the seconds at which the metric reaches the target; infinite: it never does."""
    seconds, last = before, 0.0
    for taken, value in epochs:
        print(f"  after {seconds + taken:.0f} s: {value:.4f}", flush=True)
        if value >= target:
            return seconds + taken * (target - last) / (value - last)
        seconds, last = seconds + taken, value
    return float("inf")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data-dir", default="auto", help="a folder, demo or auto")
    options.add_argument("--images", type=int, default=3000, help="to train with")
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--target", type=float, default=0.9, help=f"validation {METRIC}")
    options.add_argument("--float32", action="store_true")
    chosen = options.parse_args()
    settings = {
        "data": {"image_size": 128, "resize_filter": "bicubic"},
        "model": {"name": "tf_efficientnet_lite0"},
        "training": {"epochs": chosen.epochs, "use_amp": not chosen.float32},
    }
    plain, own = config_from(settings), config_from(settings, OURS)
    sample = take(chosen.data_dir, own, chosen.images, 1000)
    data = sample.data
    shutil.rmtree(PREPARED)
    started = time.perf_counter()
    take(chosen.data_dir, own, chosen.images, 1000)
    share = (len(data.train) + len(data.val)) / len(data.targets)
    decoding = (time.perf_counter() - started) * share  # of the images that are used
    set_determinism(deterministic=False)
    torch.manual_seed(own.training.seed)
    device = choose_device(own.training)
    classifier, _ = build_classifier(own.model, own.data.image_size, len(data.class_names))
    print(f"ours, {device.precision}, decoding {decoding:.1f} s")
    fitted = fit(new_state(classifier, own.training, device), data, own, device)
    ours = moment(
        ((epoch.metrics["epoch_seconds"], epoch.metrics[f"val/{METRIC}"]) for epoch in fitted),
        chosen.target,
        decoding,
    )
    print("by hand, float32")
    by_hand = baseline.train(
        plain, sample.files(data.train), sample.files(data.val), os.cpu_count() or 1
    )
    theirs = moment(
        (
            (seconds, score(logits, data.targets[data.val], data.class_names)[METRIC])
            for seconds, logits in by_hand
        ),
        chosen.target,
    )
    figure = Figure(
        what=f"validation {METRIC} {chosen.target:g}, EfficientNet-Lite0 at 128 px",
        ours=ours,
        baseline=theirs,
        unit="s",
        against="the hand-written loop",
        ratio=ours / theirs,
        goal="<= 0.5",
    )
    publish(
        "time_to_accuracy",
        [figure],
        precision=device.precision,
        images=len(data.train),
        epochs=chosen.epochs,
        settings=OURS,
    )


if __name__ == "__main__":
    main()
