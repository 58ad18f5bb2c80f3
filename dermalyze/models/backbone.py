"""A timm backbone by name: its pretrained weights, and what its features look like.

N images, F features, h x w places of the final feature map, E early features.
"""

import logging
import math
from typing import Any

from dermalyze.models import torchvision_operators  # noqa: F401  isort: skip  before timm

import timm
import torch
from torch import Tensor, nn

from dermalyze.config.schema import ModelConfig
from dermalyze.models.plugins import load_plugins
from dermalyze.models.pretrained import Weights, create, create_pretrained
from serving.errors import ConfigError
from serving.spec import RESIZE_FILTERS

_NUM_EARLY = 3  # levels of features: down to an eighth of the image's sides in most networks

log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A timm model without its classifier: float32 (N, 3, H, W) in 0..1 -> (N, F, h, w)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, image_size: int, color_constancy: str = "none") -> None:
        super().__init__()
        self.network = network
        self.color_constancy = color_constancy
        settings: dict[str, Any] = getattr(network, "pretrained_cfg", {}) or {}
        for name in ("mean", "std"):
            value = torch.tensor(settings.get(name) or (0.5, 0.5, 0.5), dtype=torch.float32)
            self.register_buffer(name, value.view(1, 3, 1, 1))
        training = network.training
        with torch.no_grad():
            features = self.eval()(torch.zeros(1, 3, image_size, image_size))
        self.train(training)
        self.num_features = int(features.shape[1])

    def forward(self, images: Tensor) -> Tensor:
        """Normalize and compute the final feature map."""
        features: Tensor = self.network.forward_features(  # type: ignore[operator]
            self._normalize(images)
        )
        return self._as_map(features)

    def with_early(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the final feature map, and what the first layers saw: (N, F, h, w), (N, E).

        The latter are the means over all places of the first three of timm's feature levels; of a
        network that does not give them, those of the final map.
        """
        final, levels = self.with_levels(images, list(range(_NUM_EARLY)))
        return final, torch.cat([level.mean((2, 3)) for level in levels], 1)

    def with_levels(self, images: Tensor, indices: int | list[int]) -> tuple[Tensor, list[Tensor]]:
        """Compute the final feature map, and some of timm's feature levels, finest first.

        Args:
            images: float32 (N, 3, H, W) in 0..1.
            indices: of the levels; a number: as many of the last. A network that does not give
                them has one, its final map.
        """
        if not hasattr(self.network, "forward_intermediates"):
            features = self(images)
            return features, [features]
        final, levels = self.network.forward_intermediates(  # type: ignore[operator]
            self._normalize(images), indices=indices, norm=False, output_fmt="NCHW"
        )
        return self._as_map(final), levels

    def _normalize(self, images: Tensor) -> Tensor:
        """Take away the light's color, then what the pretraining took away."""
        if self.color_constancy != "none":
            images = images * _gains(images, self.color_constancy)
        return (images - self.mean) / self.std

    def _as_map(self, features: Tensor) -> Tensor:
        """Bring what timm calls features into the form (N, F, h, w)."""
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        if features.ndim == 3:  # a transformer's tokens: (N, places, F) -> (N, F, h, w)
            prefix = getattr(self.network, "num_prefix_tokens", 0)
            features = features[:, prefix:].transpose(1, 2)
            side = math.isqrt(features.shape[2])  # of square images the places are a square too
            height = side if side * side == features.shape[2] else features.shape[2]
            features = features.reshape(*features.shape[:2], height, -1)
        return features


def _gains(images: Tensor, color_constancy: str) -> Tensor:
    """Factors that make the estimated light grey, as bright as before: (N, 3, 1, 1).

    Shades of gray takes the light for the Minkowski mean of order 6 of each channel (Finlayson &
    Trezzi 2004), max-RGB for its largest value (Land 1977).
    """
    if color_constancy == "max_rgb":
        light = images.amax((2, 3), keepdim=True)
    else:
        light = images.pow(6).mean((2, 3), keepdim=True).pow(1 / 6)
    light = light.clamp(min=1e-3)  # of a black image nothing is known
    return light.mean(1, keepdim=True) / light


def build_backbone(config: ModelConfig, image_size: int) -> tuple[Backbone, Weights]:
    """Build the backbone that `config` names, with the weights that can be had.

    Raises:
        ConfigError: the name is unknown, a plug-in cannot be imported, weights that were asked
            for by name cannot be had, or the model cannot take images of this size.
    """
    load_plugins(config.plugins)
    name = config.timm_name
    network, weights = create_pretrained(config, name, image_size)
    try:
        return Backbone(network, image_size, config.color_constancy), weights
    except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"model.name {name} cannot be a backbone for images of {image_size} x {image_size}; "
            "try another data.image_size or model.name"
        ) from error


def takes_any_size(config: ModelConfig) -> bool:
    """Say whether the backbone takes images of other sizes than the one it was created for."""
    settings = timm.get_pretrained_cfg(config.timm_name, allow_unregistered=True)
    return settings is None or not settings.fixed_input_size


def resize_filter_of(config: ModelConfig) -> str:
    """Return the resize filter that the backbone was pretrained with."""
    load_plugins(config.plugins)
    settings = timm.get_pretrained_cfg(config.timm_name, allow_unregistered=True)
    if settings is not None:
        found = settings.interpolation
    else:  # a plug-in's model says so itself
        network = create(config.timm_name, 0, pretrained=False)
        found = (getattr(network, "pretrained_cfg", None) or {}).get("interpolation", "bicubic")
    return found if found in RESIZE_FILTERS else "bicubic"
