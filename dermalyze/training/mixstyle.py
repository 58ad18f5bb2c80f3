"""Mixing of feature statistics between images in training (Zhou et al. 2021, MixStyle).

N images, C channels of a feature map.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dermalyze.models.backbone import Backbone
from serving.errors import ConfigError

_NUM_LEVELS = 2  # timm's first feature levels, where style is more than content
_ALPHA = 0.1  # of the beta distribution: mostly near one image's own statistics or the other's


@contextlib.contextmanager
def mixed_styles(backbone: Backbone, probability: float) -> Iterator[None]:
    """Within the block, mix the statistics of a batch's early features, in some batches.

    All chance comes from torch's own generator, which each step seeds.
    """
    levels = _levels(backbone)
    hooks = []
    if backbone.training and torch.rand(()) < probability:
        hooks = [level.register_forward_hook(_mix) for level in levels]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _levels(backbone: Backbone) -> list[nn.Module]:
    infos = getattr(backbone.network, "feature_info", None) or []
    names = [info["module"] for info in infos][:_NUM_LEVELS]
    if not names:
        raise ConfigError(
            "training.mixstyle needs a model whose feature levels timm names; "
            "set it to 0, or choose another model.name"
        )
    return [backbone.network.get_submodule(name) for name in names]


def _mix(_: nn.Module, __: Any, features: Tensor) -> Tensor:
    """Give each image a mean and a deviation between its own and another image's: (N, C, H, W)."""
    num = len(features)
    share = torch.distributions.Beta(_ALPHA, _ALPHA).sample((num, 1, 1, 1)).to(features.device)
    other = torch.randperm(num).to(features.device)
    exact = features.float()
    variance, mean = torch.var_mean(exact.detach(), (2, 3), correction=0, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    new_mean = torch.lerp(mean[other], mean, share)
    new_deviation = torch.lerp(deviation[other], deviation, share)
    factor = new_deviation / deviation
    return (exact * factor + (new_mean - mean * factor)).to(features.dtype)
