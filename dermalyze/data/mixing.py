"""MixUp and CutMix of whole batches, on the device that trains; N images of H x W pixels.

A batch is mixed with itself in another order, all of it in the same share.  What is drawn depends
on the seed alone, on the CPU, so that no device is waited for.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dermalyze.config.schema import AugmentationConfig
from dermalyze.data.sampling import Rows, Share


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Which image each one is mixed with, and how much of itself is left.

    Of several processes, each has images that are only partners behind its own N.
    """

    partners: Tensor  # row numbers in the batch, int64 (N,); on the device
    share: float  # of the image itself, 0..1; its partner has the rest
    box: tuple[slice, slice] | None = None  # the rows and columns of CutMix; None: MixUp

    def blend(self, values: Tensor) -> Tensor:
        """Mix numbers of each image, such as its metadata, in place: float (N, ...)."""
        own = values[: len(self.partners)]
        return own.lerp_(values[self.partners], 1 - self.share)  # keeps channels-last, and fast

    def images(self, images: Tensor) -> Tensor:
        """Mix images in place: float32 (N, 3, H, W)."""
        if self.box is None:
            return self.blend(images)
        part = images[:, :, *self.box]
        own = part[: len(self.partners)]
        own.copy_(part.index_select(0, self.partners))
        return images[: len(self.partners)]

    def main_targets(self, targets: Tensor) -> Tensor:
        """Return the class that has the larger share of each image: int64 (N,) -> (N,)."""
        own = targets[: len(self.partners)]
        return own if self.share >= 0.5 else targets.index_select(0, self.partners)


def partners_of(num: int, config: AugmentationConfig, seed: int) -> Rows:
    """Return which image each one of a batch of `num` is mixed with by `draw_mix`: (N,)."""
    mix = draw_mix(torch.empty(num, 3, 1, 1), config, seed)
    return mix.partners.numpy()


def draw_mix(
    images: Tensor, config: AugmentationConfig, seed: int, share: Share | None = None
) -> Mix:
    """Draw how to mix a batch (N, 3, H, W), where `config.mixes`.

    MixUp is Zhang et al. 2018: the share is drawn from Beta(alpha, alpha).  CutMix is Yun et al.
    2019: a box with the image's proportions and 1 - share of its area, around a point drawn
    anywhere and cut off at the border, comes from the partner; the share is then that of the area.

    Args:
        images: to be mixed.
        config: how.
        seed: decides.
        share: which images of a batch these are: those to mix, then their partners; None: all.
    """
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(config, f"{kind}_alpha")]
    generator = np.random.default_rng(seed)
    kind = kinds[generator.integers(len(kinds))]
    alpha = getattr(config, f"{kind}_alpha")
    weight = float(generator.beta(alpha, alpha))
    partners = torch.from_numpy(generator.permutation(share.total if share else len(images)))
    if share is not None:
        partners = torch.arange(len(images) // 2, len(images))
    if images.is_cuda:
        partners = partners.pin_memory()
    partners = partners.to(images.device, non_blocking=True)
    if kind == "mixup":
        return Mix(partners=partners, share=weight)
    height, width = images.shape[2:]
    rows, columns = (
        _part_of(side, math.sqrt(1 - weight), generator.random()) for side in (height, width)
    )
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mix(partners=partners, share=1 - area / (height * width), box=(rows, columns))


def _part_of(side: int, fraction: float, center: float) -> slice:
    """Return the pixels of a side (pixels) within `fraction` of it around `center` (0..1)."""
    length, middle = int(side * fraction), int(side * center)
    start = middle - length // 2
    return slice(max(start, 0), min(start + length, side))
