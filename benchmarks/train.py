"""Epochs of training and validation on a CPU: ours, the hand-written baseline's and the limit.

The limit is the bare step: forward, backward, clipping and optimizer on one batch in memory, in
our precision and layout, as often as the epoch has steps; and the bare forward pass for validation.
The three take turns, so that a busy neighbor slows all of them.

    python -m benchmarks.train [--data-dir auto] [--plugin FILE] [--rounds 3]
"""

import os
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import baseline
from benchmarks.report import Figure, publish
from benchmarks.sample import Sample, take
from benchmarks.settings import LARGE, SMALL, config_of, parser
from dermalyze.config.schema import Config
from dermalyze.data.sampling import num_batches
from dermalyze.models.classifier import build_classifier, to_images
from dermalyze.training.device import Device, choose_device, set_determinism
from dermalyze.training.loop import fit, training_network
from dermalyze.training.state import TrainingState, new_state
from serving.ham10000_taxonomy import HAM10000

# Images of an epoch, and goals: times the baseline, share of the limit.
PLANS = {LARGE: (160, 48, ">= 2.0", ">= 0.95"), SMALL: (960, 192, ">= 2.2", ">= 0.90")}


def timed(epochs: Iterator[object]) -> float:
    """Return the seconds of the next epoch."""
    started = time.perf_counter()
    next(epochs)
    return time.perf_counter() - started


def bare(state: TrainingState, config: Config, device: Device, sample: Sample) -> float:
    """Return the seconds of an epoch's steps and validation on one resident batch each."""
    rows = sample.data.train[: config.training.batch_size]
    images = to_images(torch.from_numpy(sample.data.store.batch(rows)))
    targets = torch.from_numpy(sample.data.targets[rows])
    network = training_network(state.classifier, config, device)
    state.classifier.train()
    started = time.perf_counter()
    for _ in range(num_batches(len(sample.data.train), config.training.batch_size)):
        with device.autocast():
            logits = network(images)
        loss = F.cross_entropy(logits.float(), targets)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(state.classifier.parameters(), config.training.max_grad_norm)
        state.optimizer.step()
    state.classifier.eval()
    with torch.inference_mode(), device.autocast():
        for start in range(0, len(sample.data.val), config.training.batch_size):
            state.classifier(images[: len(sample.data.val) - start])
    return time.perf_counter() - started


def compare(name: str, config: Config, sample: Sample, rounds: int) -> list[Figure]:
    """Run one warm-up epoch and `rounds` timed ones of each side, in turn."""
    set_determinism(deterministic=False)
    device = choose_device(config.training)
    side = config.data.image_size
    state, other = (
        new_state(build_classifier(config.model, side, len(HAM10000))[0], config.training, device)
        for _ in range(2)
    )
    data = sample.data
    ours = fit(state, data, config, device)
    theirs = baseline.train(
        config, sample.files(data.train), sample.files(data.val), os.cpu_count() or 1
    )
    sides = {
        "baseline": lambda: timed(theirs),
        "ours": lambda: timed(ours),
        "bare": lambda: bare(other, config, device, sample),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, measure in sides.items():
            value = measure()
            if number:
                seconds[side].append(value)
            print(f"{name}  {side:<8} {value:6.1f} s{'' if number else '  (warm-up)'}", flush=True)
    images = len(data.train) + len(data.val)
    rate = {side: images / float(np.median(values)) for side, values in seconds.items()}
    _, _, faster, share = PLANS[name]
    what = f"{name}, epoch with validation ({device.precision})"
    return [
        Figure(
            what=what,
            ours=rate["ours"],
            baseline=rate[side],
            unit="images/s",
            against=against,
            ratio=rate["ours"] / rate[side],
            goal=goal,
        )
        for side, against, goal in (
            ("baseline", "baseline, float32", faster),
            ("bare", "bare step", share),
        )
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", choices=list(PLANS), help="one of the two networks")
    options.add_argument("--images", type=int, help="training images of an epoch")
    chosen = options.parse_args()
    figures = []
    for name, (num_train, num_val, *_) in PLANS.items():
        if chosen.only in (None, name):
            config = config_of(name, chosen.plugin, f"training.epochs={chosen.rounds + 1}")
            sample = take(chosen.data_dir, config, chosen.images or num_train, num_val)
            figures += compare(name, config, sample, chosen.rounds)
    publish("train", figures, plans=PLANS)


if __name__ == "__main__":
    main()
