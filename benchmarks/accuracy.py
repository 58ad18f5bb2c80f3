"""Macro AUC on validation images after the same short training, ours and the baseline's, by seed.

python -m benchmarks.accuracy --plugin FILE [--data-dir auto] [--seeds 3] [--images 1200]
"""

import os

import numpy as np
import torch

from benchmarks import baseline
from benchmarks.report import Figure, publish
from benchmarks.sample import take
from benchmarks.settings import SMALL, config_of, parser
from dermalyze.evaluation.metrics.classification import score
from dermalyze.models.classifier import build_classifier
from dermalyze.training.device import choose_device, set_determinism
from dermalyze.training.loop import fit
from dermalyze.training.state import new_state
from serving.ham10000_taxonomy import HAM10000

METRIC = "macro_auc"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--images", type=int, default=1200, help="to train with")
    options.add_argument("--epochs", type=int, default=2)
    chosen = options.parse_args()
    found: dict[str, list[float]] = {"ours": [], "baseline": []}
    for seed in range(chosen.seeds):
        config = config_of(
            SMALL,
            chosen.plugin,
            f"training.epochs={chosen.epochs}",
            f"training.seed={seed}",
        )
        sample = take(chosen.data_dir, config, chosen.images, 1000)
        data = sample.data
        set_determinism(deterministic=False)
        device = choose_device(config.training)
        torch.manual_seed(seed)
        classifier, _ = build_classifier(config.model, config.data.image_size, len(HAM10000.names))
        *_, last = fit(new_state(classifier, config.training, device), data, config, device)
        found["ours"].append(last.metrics[f"val/{METRIC}"])
        *_, (_, logits) = baseline.train(
            config, sample.files(data.train), sample.files(data.val), os.cpu_count() or 1
        )
        found["baseline"].append(score(logits, data.targets[data.val], HAM10000.names)[METRIC])
        print(f"seed {seed}:", {side: round(values[-1], 4) for side, values in found.items()})
    means = {side: float(np.mean(values)) for side, values in found.items()}
    spread = max(float(np.ptp(values)) for values in found.values())
    figures = [
        Figure(
            what=f"macro AUC, mean of {chosen.seeds} seeds",
            ours=means["ours"],
            baseline=means["baseline"],
            unit="",
            against="baseline, float32; ratio: distance of the means by the seeds' spread",
            ratio=abs(means["ours"] - means["baseline"]) / spread,
            goal="<= 1.0",
        )
    ]
    publish("accuracy", figures, seeds=found, epochs=chosen.epochs, images=chosen.images)


if __name__ == "__main__":
    main()
