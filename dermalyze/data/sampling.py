"""The order in which images are seen, as a function of seed and epoch, and batches of it.

Nothing here has a state: an interrupted epoch is gone on with by asking for the same order again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
MAX_REPEATS = 5.0  # of an image of a rare source


@dataclass(frozen=True, kw_only=True)
class Share:
    """The images of a batch that one of several processes works on."""

    rows: Rows  # their numbers in the batch, (n,); for mixing, those of their partners follow
    total: int  # images in the batch


def seed_of(seed: int, epoch: int, step: int = 0) -> int:
    """Return a seed for one step of one epoch, unlike those of its neighbours."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)[0] >> 1)


def draw_weights(
    targets: Rows, sources: Rows | None, *, classes_equally: bool
) -> NDArray[np.float64] | None:
    """Return how often each image is drawn, in relation to the others: (n,); None: equally often.

    Args:
        targets: class indices, (n,).
        sources: of each image, (n,).  Each class is drawn from each of its sources equally often,
            but no image `MAX_REPEATS` times as often as without them; a class keeps its share as
            far as that allows.  None: sources do not matter.
        classes_equally: draw each class equally often.
    """
    if sources is None and not classes_equally:
        return None
    counts = np.bincount(targets)
    weights = np.ones(len(targets))
    if sources is not None:
        _, pairs, of_pair = np.unique(
            np.stack([targets, sources]), axis=1, return_inverse=True, return_counts=True
        )
        first = np.unique(pairs, return_index=True)[1]
        num_sources = np.bincount(targets[first], minlength=len(counts))  # of each class
        even = counts[targets] / (num_sources[targets] * of_pair[pairs])
        weights = np.minimum(even, MAX_REPEATS)
    return weights / counts[targets] if classes_equally else weights


def epoch_order(rows: Rows, weights: NDArray[np.float64] | None, *, seed: int, epoch: int) -> Rows:
    """Return the rows of one epoch in order: int64 (n,) -> int64 (n,).

    Args:
        rows: row numbers of the training images in the pixel store, (n,).
        weights: of `draw_weights`, (n,), to draw with replacement; None: shuffle.
        seed: the run's seed.
        epoch: from 1.
    """
    generator = np.random.default_rng(seed_of(seed, epoch))
    if weights is None:
        return generator.permutation(rows)
    return generator.choice(rows, size=len(rows), replace=True, p=weights / weights.sum())


def batches_of(order: Rows, batch_size: int) -> Iterator[Rows]:
    """Cut an order into batches; a last batch of one image is left out, as batch norm needs two."""
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if len(batch) > 1:
            yield batch


def num_batches(num_images: int, batch_size: int) -> int:
    """Count what `batches_of` yields."""
    whole, rest = divmod(num_images, batch_size)
    return whole + (rest > 1)
