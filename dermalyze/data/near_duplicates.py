"""Images that show one photograph: of thumbnails, whatever their brightness, contrast and turn.

N is the number of images, S the side of a thumbnail.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dermalyze.data.pixel_store.store import Pixels

# Correlation of two grey 32 x 32 thumbnails.  On HAM10000 every pair above it is one photograph
# twice; the nearest pair of different lesions, two small spots in one vignette, has 0.987.
NEAR_DUPLICATE_CORRELATION = 0.99
_COARSE_CORRELATION = 0.98  # of their 16 x 16 halves, which are four times as quick to compare
_BLOCK = 1024  # images compared at once with all others; bounds memory to N * 4 KB

Pairs = tuple[tuple[str, str, float], ...]


def near_duplicates(image_ids: Sequence[str], thumbnails: Pixels) -> Pairs:
    """Return pairs of image ids that show one photograph, with their correlation.

    Brightness and contrast do not matter, nor do mirroring and quarter turns.  Equal thumbnails
    are among the pairs; images without any contrast are never.

    Args:
        image_ids: of the thumbnails, in order.
        thumbnails: uint8 (N, 32, 32).
    """
    size = len(thumbnails)
    grey = thumbnails.astype(np.float32)
    halves = _halved(grey)
    fine, coarse = _normalized(grey), _normalized(halves)
    best: dict[tuple[int, int], float] = {}
    for turn in range(8):
        turned_fine = _normalized(_turned(grey, turn))
        turned_coarse = _normalized(_turned(halves, turn))
        for start in range(0, size, _BLOCK):
            block = coarse[start : start + _BLOCK] @ turned_coarse[start:].T
            hits = np.flatnonzero(block > _COARSE_CORRELATION)
            for hit in hits.tolist():
                i, j = start + hit // (size - start), start + hit % (size - start)
                if i < j:
                    correlation = float(fine[i] @ turned_fine[j])
                    if correlation > max(NEAR_DUPLICATE_CORRELATION, best.get((i, j), 0.0)):
                        best[i, j] = correlation
    return tuple((image_ids[i], image_ids[j], best[i, j]) for i, j in sorted(best))


def near_copies(thumbnails: Pixels, known: Pixels) -> NDArray[np.int64]:
    """Say which known image each image shows as well, by its position; -1: none.  (N,)

    Args:
        thumbnails: uint8 (N, 32, 32).
        known: uint8 (M, 32, 32), as `near_duplicates` takes them.
    """
    grey, others = thumbnails.astype(np.float32), known.astype(np.float32)
    fine, found = _normalized(others), np.full(len(grey), -1, np.int64)
    coarse, best = _normalized(_halved(others)), np.full(len(grey), NEAR_DUPLICATE_CORRELATION)
    for turn in range(8):
        turned = _turned(grey, turn)
        own, small = _normalized(turned), _normalized(_halved(turned))
        for start in range(0, len(grey), _BLOCK):
            block = small[start : start + _BLOCK] @ coarse.T
            for i, j in np.argwhere(block > _COARSE_CORRELATION).tolist():
                correlation = float(own[start + i] @ fine[j])
                if correlation > best[start + i]:
                    best[start + i], found[start + i] = correlation, j
    return found


def _halved(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average squares of four pixels: (N, S, S) -> (N, S / 2, S / 2)."""
    side = images.shape[1] // 2
    halves: NDArray[np.float32] = images.reshape(len(images), side, 2, side, 2).mean((2, 4))
    return halves


def _turned(images: NDArray[np.float32], turn: int) -> NDArray[np.float32]:
    """Apply one of the eight ways to lay a square on itself: (N, S, S) -> (N, S, S)."""
    turned: NDArray[np.float32] = np.rot90(images, turn % 4, axes=(1, 2))
    return turned[:, :, ::-1] if turn >= 4 else turned


def _normalized(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and length 1: (N, S, S) -> (N, S * S); zeros where there is no contrast."""
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    visible = length >= images.shape[1]  # a standard deviation of one grey level
    normalized: NDArray[np.float32] = np.zeros_like(flat)
    np.divide(flat, length, out=normalized, where=visible)
    return normalized
