"""A timm backbone by name: its pretrained weights, and what its features look like.

N images, F features, h x w places of the final feature map, E early features.
"""

import difflib
import logging
import math
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermalyze.models import torchvision_operators  # noqa: F401  isort: skip  before timm

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dermalyze.config.schema import ModelConfig
from dermalyze.models.plugins import load_plugins
from serving.errors import ConfigError
from serving.spec import RESIZE_FILTERS

HUB_TIMEOUT_SECONDS = 5.0
WEIGHTS_NAME = "model.safetensors"
_PACKAGED = Path(__file__).parent / "weights"  # timm name -> backbone, without a classifier
_NUM_EARLY = 3  # levels of features: down to an eighth of the image's sides in most networks

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a backbone's first weights came from."""

    source: str  # `none`, or the name or file that the weights were read from
    reason: str = ""  # why there are none although they were wanted


class Backbone(nn.Module):
    """A timm model without its classifier: float32 (N, 3, H, W) in 0..1 -> (N, F, h, w)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, image_size: int) -> None:
        super().__init__()
        self.network = network
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
            (images - self.mean) / self.std
        )
        return self._as_map(features)

    def with_early(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the final feature map, and what the first layers saw: (N, F, h, w), (N, E).

        The latter are the means over all places of the first three of timm's feature levels; of a
        network that does not give them, those of the final map.
        """
        if not hasattr(self.network, "forward_intermediates"):
            features = self(images)
            return features, features.mean((2, 3))
        final, levels = self.network.forward_intermediates(  # type: ignore[operator]
            (images - self.mean) / self.std,
            indices=list(range(_NUM_EARLY)),
            norm=False,
            output_fmt="NCHW",
        )
        return self._as_map(final), torch.cat([level.mean((2, 3)) for level in levels], 1)

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


def build_backbone(config: ModelConfig, image_size: int) -> tuple[Backbone, Weights]:
    """Build the backbone that `config` names, with the weights that can be had.

    Raises:
        ConfigError: the name is unknown, a plug-in cannot be imported, weights that were asked
            for by name cannot be had, or the model cannot take images of this size.
    """
    load_plugins(config.plugins)
    name = config.timm_name
    network, weights = _create_pretrained(config, name, image_size)
    try:
        return Backbone(network, image_size), weights
    except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"model.name {name} cannot be a backbone for images of {image_size} x {image_size}; "
            "try another data.image_size or model.name"
        ) from error


def resize_filter_of(config: ModelConfig) -> str:
    """Return the resize filter that the backbone was pretrained with."""
    load_plugins(config.plugins)
    settings = timm.get_pretrained_cfg(config.timm_name, allow_unregistered=True)
    if settings is not None:
        found = settings.interpolation
    else:  # a plug-in's model says so itself
        network = _create(config.timm_name, 0, pretrained=False)
        found = (getattr(network, "pretrained_cfg", None) or {}).get("interpolation", "bicubic")
    return found if found in RESIZE_FILTERS else "bicubic"


def _create(name: str, image_size: int, *, pretrained: bool, file: Path | None = None) -> nn.Module:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see timm.list_models()"
        raise ConfigError(f"model.name {name!r} is no timm model{hint}")
    arguments: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
    if file is not None:
        arguments["pretrained_cfg_overlay"] = {"file": str(file)}
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if settings is not None and settings.fixed_input_size and image_size:
        arguments["img_size"] = image_size
    network: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    return network


def _create_pretrained(
    config: ModelConfig, name: str, image_size: int
) -> tuple[nn.Module, Weights]:
    wanted = config.pretrained
    if wanted is False:
        return _create(name, image_size, pretrained=False), Weights(source="none")
    if isinstance(wanted, str) and wanted != "auto":
        network = _create(name, image_size, pretrained=False)
        load_safetensors(network, Path(wanted))
        return network, Weights(source=wanted)
    packaged = _PACKAGED / f"{name}.safetensors"
    if packaged.is_file():
        network = _create(name, image_size, pretrained=False)
        load_safetensors(network, packaged)
        return network, Weights(source=f"{name}, in this package")
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    file: Path | None = None
    if settings is None:  # a plug-in's model knows where its weights are
        try:
            return _create(name, image_size, pretrained=True), Weights(source=name)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = f"its plug-in cannot load them: {error}".splitlines()[0]
    elif not settings.hf_hub_id:
        reason = "timm has none for it"
    else:
        file, reason = _hub_file(str(settings.hf_hub_id))
    if file is not None:
        try:
            return _create(name, image_size, pretrained=True, file=file), Weights(source=name)
        except (OSError, RuntimeError, SafetensorError):
            reason = f"the file in the cache, {file}, is damaged; delete it"
    if wanted is True:
        raise ConfigError(
            f"no pretrained weights for {name}: {reason}; "
            "set model.pretrained to auto, false or a .safetensors file"
        )
    return _create(name, image_size, pretrained=False), Weights(source="none", reason=reason)


def _hub_file(repository: str) -> tuple[Path | None, str]:
    """Return the weights from the local cache or the hub, else the reason why not."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    cached = huggingface_hub.try_to_load_from_cache(repository, WEIGHTS_NAME)
    if isinstance(cached, str):
        return Path(cached), ""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None, "they are not in the local cache and HF_HUB_OFFLINE is set"
    # One short question first: the hub's own client would retry for a minute.
    url = huggingface_hub.hf_hub_url(repository, WEIGHTS_NAME)
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS):
            pass
        log.info("fetching the weights of %s", repository)
        return Path(huggingface_hub.hf_hub_download(repository, WEIGHTS_NAME)), ""
    except urllib.error.HTTPError as error:
        return None, f"the weight hub answers {error.code} for {repository}"
    except (OSError, HfHubHTTPError):
        return None, "the weight hub cannot be reached"


def load_safetensors(network: nn.Module, path: Path) -> None:
    """Fill a backbone from a .safetensors file; classifier weights in it are left out."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without an end
            raise SafetensorError("not a file")
        weights = load_file(path)
    except FileNotFoundError as error:
        raise ConfigError(f"model.pretrained names {path}, and there is no such file") from error
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model.pretrained names {path}, which is no safetensors file") from error
    own = network.state_dict()
    misfits = [k for k, v in weights.items() if k in own and own[k].shape != v.shape]
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    if missing or misfits:
        raise ConfigError(
            f"{path} does not fit the backbone: {len(missing)} weights missing, "
            f"{len(misfits)} of another shape; for which model.name was it written?"
        )
    network.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)
