"""YAML file and `KEY=VALUE` overrides -> `Config`, and back.

A key has the same dotted name in the file, on the command line, in an error and on a run's page.
Never imports torch.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dermalyze.config.schema import Config, flatten
from serving.errors import ConfigError
from serving.os_errors import read_bounded

# Keys of other programs that mean nothing here, with the sentence that says why.
POINTLESS = {
    "training.prefetch_factor": "nothing is decoded during training, so nothing is prefetched",
    "training.persistent_workers": "nothing is decoded during training, so no worker persists",
}
_MAX_BYTES = 2**20  # of a config; all settings take a hundredth of it
# Settings of older versions -> today's name, and what each value is there.
RENAMED: dict[str, tuple[str, dict[object, object]]] = {
    "data.lesion_aware": ("data.group_by", {True: "lesion", False: "none"}),
}
logger = logging.getLogger(__name__)


def load_config(
    path: Path, overrides: Sequence[str] = (), values: Mapping[str, object] | None = None
) -> Config:
    """Read a YAML file, then apply overrides, the last one winning.

    Args:
        path: the YAML file.
        overrides: texts of the form `KEY=VALUE`, VALUE being YAML.
        values: settings by dotted name, already parsed.

    Raises:
        ConfigError: the file cannot be read, or a key or a value is wrong.
    """
    content = read_yaml(path, f"the config file {path}", yaml.SafeLoader)
    return config_from(content if content is not None else {}, overrides, values)


def read_yaml(
    path: Path, what: str, loader: type[yaml.SafeLoader] | type[yaml.BaseLoader]
) -> object:
    """Return the content of a YAML file; `what` is what it is called in an error.

    Raises:
        ConfigError: it cannot be read, or is not YAML.
    """
    try:
        text = read_bounded(path, _MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {error.strerror or 'no such file'}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8 text") from error
    try:
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{what} is not YAML{where}") from error


def setting_names(content: object, prefix: str = "") -> list[str]:
    """Return the dotted names, as of today, of the settings that nested mappings give values to."""
    if not isinstance(content, dict):
        name = prefix.removesuffix(".")
        return [RENAMED[name][0] if name in RENAMED else name]
    return [
        name for key, value in content.items() for name in setting_names(value, f"{prefix}{key}.")
    ]


def config_from(
    content: object,
    overrides: Sequence[str] = (),
    values: Mapping[str, object] | None = None,
) -> Config:
    """Build a `Config` from nested mappings, settings by dotted name and `KEY=VALUE` texts."""
    if not isinstance(content, dict):
        raise ConfigError(f"a config must be a mapping of sections, got {content!r}")
    merged = _copy(content)
    for old, (new, _) in RENAMED.items():
        section, _, name = old.partition(".")
        if isinstance(merged.get(section), dict) and name in merged[section]:
            value = merged[section].pop(name)
            if new.partition(".")[2] in merged[section]:
                raise ConfigError(f"{old} is an older form of {new}; leave it out")
            _put(merged, old, value)
    for key, value in (values or {}).items():
        _put(merged, key, value)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set takes KEY=VALUE, got {override!r}")
        _put(merged, key.strip(), _parse(key.strip(), text))
    for name in setting_names(merged):
        if name in POINTLESS:
            raise ConfigError(f"{name} has no meaning here: {POINTLESS[name]}; leave it out")
    return Config(**{str(name): section for name, section in merged.items()})


def to_yaml(config: Config) -> str:
    """Write the whole config as YAML that `load_config` reads back unchanged."""
    nested: dict[str, Any] = {}
    for key, value in flatten(config).items():
        _put(nested, key, value)
    return yaml.safe_dump(nested, sort_keys=False)


def _copy(values: dict[Any, Any]) -> dict[Any, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in values.items()}


def _put(values: dict[Any, Any], key: str, value: object) -> None:
    if key in RENAMED:
        key, value = _renamed(key, value)
    *sections, name = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{section} must be a section of settings, got {inner!r}")
        values = inner
    values[name] = value


def _renamed(old: str, value: object) -> tuple[str, object]:
    """Return the name and value that an older setting has today, with a line unless it is usual."""
    new, meanings = RENAMED[old]
    if type(value) is not bool:
        raise ConfigError(f"{old} must be true or false, got {value!r}")
    if meanings[value] != flatten(Config())[new]:
        logger.warning(f"{old} {str(value).lower()} is deprecated; write {new} {meanings[value]}")
    return new, meanings[value]


def _parse(key: str, text: str) -> object:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key} has a value that is not YAML: {text!r}") from error
    return "" if value is None else value
