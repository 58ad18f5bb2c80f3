"""How much worse a model becomes as photographs get worse: 15 corruptions at five strengths.

N images of H x W pixels, C classes.  Never imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermalyze.data.corruptions import CORRUPTIONS, STRENGTHS
from dermalyze.evaluation.metrics.classification import Counts, Floats, mean_of_classes
from dermalyze.evaluation.metrics.roc import divided

IMAGES_PER_CLASS = 30  # rarer classes have all of theirs; 75 corruptions of all images take hours
Pixels = NDArray[np.uint8]
# uint8 (N, H, W, 3) -> logits (N, C), and whether the model calls each image out of scope (N,)
Answer = Callable[[Pixels], tuple[NDArray[np.floating], NDArray[np.bool_]]]


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Balanced accuracy, and share called out of scope, of each corruption by strength."""

    num_images: int
    clean: float  # balanced accuracy of the same images as they are
    clean_out_of_scope: float
    strengths: tuple[int, ...]
    balanced_accuracy: dict[str, tuple[float, ...]]  # by name of the corruption
    out_of_scope: dict[str, tuple[float, ...]]

    def mean(self, strength: int) -> float:
        """Return the mean balanced accuracy of all corruptions at the position of a strength."""
        return float(np.mean([values[strength] for values in self.balanced_accuracy.values()]))


def choose_images(targets: Counts, seed: int = 0) -> Counts:
    """Return the rows of some images of each class, drawn at random: (N,) -> (M,), ascending."""
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(targets == target))[:IMAGES_PER_CLASS]
        for target in np.unique(targets)
    ]
    return np.sort(np.concatenate(chosen))


def measure_robustness(pixels: Pixels, targets: Counts, answer: Answer) -> Robustness:
    """Corrupt images, always alike, and let the model answer.

    Args:
        pixels: uint8 (N, H, W, 3), as the network takes them.
        targets: (N,).
        answer: the model.
    """

    def measured(images: Pixels) -> tuple[float, float]:
        logits, out_of_scope = answer(images)
        right = logits.argmax(axis=1) == targets
        classes = np.unique(targets)
        of_class = (targets[None] == classes[:, None]).astype(np.float64)  # (classes, N)
        recall: Floats = divided(of_class @ right, of_class.sum(axis=1))
        return float(mean_of_classes(recall[None])[0]), float(out_of_scope.mean())

    clean, clean_out_of_scope = measured(pixels)
    found = {
        name: [
            measured(np.stack([corrupt(image, strength, rng) for image in pixels]))
            for strength, rng in ((s, np.random.default_rng([s, len(name)])) for s in STRENGTHS)
        ]
        for name, corrupt in CORRUPTIONS.items()
    }
    return Robustness(
        num_images=len(pixels),
        clean=clean,
        clean_out_of_scope=clean_out_of_scope,
        strengths=STRENGTHS,
        balanced_accuracy={name: tuple(one for one, _ in row) for name, row in found.items()},
        out_of_scope={name: tuple(two for _, two in row) for name, row in found.items()},
    )
