"""The order in which images are seen, as a function of seed and epoch, and batches of it.

Nothing here has a state: an interrupted epoch is gone on with by asking for the same order again.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def seed_of(seed: int, epoch: int, step: int = 0) -> int:
    """Return a seed for one step of one epoch, unlike those of its neighbours."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)[0] >> 1)


def epoch_order(
    rows: Rows, targets: Rows, *, seed: int, epoch: int, weighted_sampling: bool
) -> Rows:
    """Return the rows of one epoch in order: int64 (n,) -> int64 (n,).

    Args:
        rows: row numbers of the training images in the pixel store, (n,).
        targets: their class indices, (n,).
        seed: the run's seed.
        epoch: from 1.
        weighted_sampling: draw with replacement, each class equally often, instead of shuffling.
    """
    generator = np.random.default_rng(seed_of(seed, epoch))
    if not weighted_sampling:
        return generator.permutation(rows)
    counts = np.bincount(targets)
    weights = 1.0 / counts[targets]
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
