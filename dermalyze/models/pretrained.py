"""Pretrained weights of a timm network: in this package, in a file, in the cache, on the hub."""

import difflib
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermalyze.models import torchvision_operators  # noqa: F401  isort: skip  before timm

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dermalyze.config.schema import ModelConfig
from serving.errors import ConfigError

log = logging.getLogger(__name__)

HUB_TIMEOUT_SECONDS = 5.0
WEIGHTS_NAME = "model.safetensors"
_PACKAGED = Path(__file__).parent / "weights"  # timm name -> backbone, without a classifier


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a backbone's first weights came from."""

    source: str  # `none`, or the name or file that the weights were read from
    reason: str = ""  # why there are none although they were wanted


def create(name: str, image_size: int, *, pretrained: bool, file: Path | None = None) -> nn.Module:
    """Create a timm network without its classifier; image_size 0: the network's own.

    Raises:
        ConfigError: timm has no network of this name.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see timm.list_models()"
        raise ConfigError(f"model.name {name!r} is not a timm model{hint}")
    arguments: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
    if file is not None:
        arguments["pretrained_cfg_overlay"] = {"file": str(file)}
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if settings is not None and settings.fixed_input_size and image_size:
        arguments["img_size"] = image_size
    network: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    return network


def create_pretrained(config: ModelConfig, name: str, image_size: int) -> tuple[nn.Module, Weights]:
    """Create a network with the pretrained weights that `config` asks for, if available.

    Raises:
        ConfigError: weights that were asked for by name are not available.
    """
    wanted = config.pretrained
    if wanted is False:
        return create(name, image_size, pretrained=False), Weights(source="none")
    if isinstance(wanted, str) and wanted != "auto":
        network = create(name, image_size, pretrained=False)
        load_safetensors(network, Path(wanted))
        return network, Weights(source=wanted)
    packaged = _PACKAGED / f"{name}.safetensors"
    if packaged.is_file():
        network = create(name, image_size, pretrained=False)
        load_safetensors(network, packaged)
        return network, Weights(source=f"{name}, in this package")
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    file: Path | None = None
    if settings is None:  # a plug-in's model knows where its weights are
        try:
            return create(name, image_size, pretrained=True), Weights(source=name)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = f"its plug-in cannot load them: {error}".splitlines()[0]
    elif not settings.hf_hub_id:
        reason = "timm has none for it"
    else:
        file, reason = _hub_file(str(settings.hf_hub_id))
    if file is not None:
        try:
            return create(name, image_size, pretrained=True, file=file), Weights(source=name)
        except (OSError, RuntimeError, SafetensorError):
            reason = f"the file in the cache, {file}, is damaged; delete it"
    if wanted is True:
        raise ConfigError(
            f"no pretrained weights for {name}: {reason}; "
            "set model.pretrained to auto, false or a .safetensors file"
        )
    return create(name, image_size, pretrained=False), Weights(source="none", reason=reason)


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
        raise ConfigError(f"model.pretrained is {path}, which is not a safetensors file") from error
    own = network.state_dict()
    misfits = [k for k, v in weights.items() if k in own and own[k].shape != v.shape]
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    if missing or misfits:
        raise ConfigError(
            f"{path} does not fit the backbone: {len(missing)} weights missing, "
            f"{len(misfits)} of another shape; for which model.name was it written?"
        )
    network.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)
