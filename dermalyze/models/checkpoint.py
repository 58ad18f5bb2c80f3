"""Checkpoints: one .pt file with weights, spec and model settings, for going on in PyTorch.

Only tensors, numbers, text, lists and mappings are in it, so that `torch.load(weights_only=True)`
opens it; a pickle that holds anything else is refused.
"""

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dermalyze.config.loading import config_from
from dermalyze.config.schema import ModelConfig
from dermalyze.models.classifier import Classifier, build_classifier
from dermalyze.models.ensemble import Member
from dermalyze.models.heads import AcrnnHead
from dermalyze.models.out_of_distribution import ScopeScore
from dermalyze.models.plugins import with_named_plugins
from serving.atomic_write import whole_file
from serving.errors import ArtifactError, ConfigError
from serving.os_errors import cannot_write
from serving.spec import ModelSpec

FORMAT = "dermalyze-checkpoint"
FORMAT_VERSION = 1
_PARTS = {"spec": str, "model": str, "weights": dict, "training": dict}


def save_checkpoint(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
    spec: ModelSpec,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file to write.
        weights: a `Classifier`'s state dict.
        config: the settings that build the same network again.
        spec: the contract of the weights.
        more: as far as there are any, `training`, the state to continue from, made of tensors,
            numbers, text, lists and mappings only, and `scope`, a `ScopeScore`'s state dict.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec": spec.to_json(),
        "model": json.dumps(dataclasses.asdict(config)),
        "weights": dict(weights),
        "training": {},
        "scope": {},
        **{name: dict(part) for name, part in (more or {}).items()},
    }
    with whole_file(path) as partial:
        try:
            with partial.open("wb") as file:  # by itself, torch would not say why it cannot write
                torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise cannot_write(path, error.__context__) from error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        ArtifactError: the file is missing, damaged, foreign or of another version.
    """
    if not path.is_file():
        raise ArtifactError(f"no checkpoint at {path}; train one with `dermalyze train`")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign files raise half a dozen types
        raise ArtifactError(
            f"{path} is not a checkpoint of dermalyze, or is damaged; train or download it again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"{path} was not written by `dermalyze train`; expected a checkpoint")
    if content.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has checkpoint version {content.get('format_version')!r}, this program reads "
            f"{FORMAT_VERSION}; update dermalyze"
        )
    for name, kind in _PARTS.items():
        if not isinstance(content.get(name), kind):
            raise ArtifactError(
                f"{path} lacks its part {name!r}, which every checkpoint has; use another copy, or "
                "train again"
            )
    return content


def is_trained(pretrained: bool | str) -> bool:
    """Say whether `model.pretrained` names a trained network, as opposed to a backbone."""
    name = str(pretrained)
    return name == "reference" or name.startswith("run:") or name.endswith(".pt")


def backbone_name(content: dict[str, Any]) -> str:
    """Return timm's name of the backbone of a checkpoint."""
    values = json.loads(content["model"])
    return config_from({"model": {**values, "pretrained": False}}).model.timm_name


def start_from(
    classifier: Classifier, content: dict[str, Any], name: str, class_names: Sequence[str]
) -> str:
    """Give a network a trained one's backbone, and its head if that answers for the same classes.

    Args:
        classifier: the new network.
        content: of a checkpoint.
        name: timm's name of the new network's backbone.
        class_names: of the new network's answers.

    Returns:
        What was taken, in words.

    Raises:
        ConfigError: the backbones are different.
    """
    weights, spec = content["weights"], ModelSpec.from_json(content["spec"])
    known = {key: value.shape for key, value in classifier.state_dict().items()}
    backbone = {key: value for key, value in weights.items() if key.startswith("backbone.")}
    of_head = {key: value for key, value in weights.items() if key.startswith("head.")}
    own = {key for key in known if key.startswith("backbone.")}
    if backbone.keys() != own or any(known[key] != value.shape for key, value in backbone.items()):
        raise ConfigError(
            f"model.pretrained names a trained {backbone_name(content)}, and model.name is {name}; "
            "leave model.name out, or name another file"
        )
    same_head = spec.taxonomy.names == tuple(class_names) and of_head.keys() == known.keys() - own
    same_head = same_head and all(known[key] == value.shape for key, value in of_head.items())
    classifier.load_state_dict(backbone | of_head if same_head else backbone, strict=same_head)
    return "backbone and head" if same_head else "backbone; the head is new"


def load_member(path: Path) -> tuple[Member, ModelSpec]:
    """Build the network of a checkpoint, and its scope where it has one, on the CPU.

    Raises:
        ArtifactError: the file cannot be used, or needs a plug-in that the user has not named.
    """
    content = load_checkpoint(path)
    try:
        spec = ModelSpec.from_json(content["spec"])
        values = json.loads(content["model"])
        values["pretrained"] = False
        config = with_named_plugins(config_from({"model": values}).model)
        classifier, _ = build_classifier(
            config, spec.input_size[0], len(spec.taxonomy), spec.metadata
        )
        classifier.load_state_dict(content["weights"])
        scope = ScopeScore.of_state(content["scope"]) if spec.scope is not None else None
    except ConfigError as error:
        raise ArtifactError(f"the network of {path} cannot be built: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"the weights in {path} do not fit the network that it describes; train it again"
        ) from error
    kind = "attention_evidence" if isinstance(classifier.head, AcrnnHead) else "grad_cam"
    member = Member(classifier, scope)
    return member.eval(), dataclasses.replace(spec, saliency=kind)
