"""The eight flips and quarter turns of a square image, and their way back.  N images, side S."""

import torch
from torch import Tensor

NUM_VIEWS = 8  # the symmetries of a square


def views_of(images: Tensor) -> Tensor:
    """Lay all views of a batch behind each other: (N, C, S, S) -> (8 N, C, S, S).

    View k of image i is row k N + i; view 0 is the image itself.
    """
    turned = images.transpose(2, 3)
    return torch.cat([_flipped(part, k) for part in (images, turned) for k in range(4)])


def upright(views: Tensor) -> Tensor:
    """Turn maps of all views back: (8, N, C, h, h) -> (8, N, C, h, h)."""
    return torch.stack(
        [_flipped(views[k], k) for k in range(4)]
        + [_flipped(views[4 + k], k).transpose(2, 3) for k in range(4)]
    )


def _flipped(images: Tensor, k: int) -> Tensor:
    """Mirror: 0 not at all, 1 left and right, 2 top and bottom, 3 both; each is its own inverse."""
    axes = [axis for bit, axis in ((1, 3), (2, 2)) if k & bit]
    return images.flip(axes) if axes else images
