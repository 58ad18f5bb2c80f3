"""YAML file and `KEY=VALUE` overrides -> `Config`, and back.

A key has the same dotted name in the file, on the command line, in an error and on a run's page.
Never imports torch.
"""

import dataclasses
import difflib
import logging
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dermalyze.config.schema import Config
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
    config = _build(Config, merged, "")
    assert isinstance(config, Config)
    return config


def flatten(config: Config) -> dict[str, Any]:
    """Return every setting under its dotted name, in the order of definition."""
    flat: dict[str, Any] = {}

    def walk(values: dict[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = list(value) if isinstance(value, tuple) else value

    walk(dataclasses.asdict(config), "")
    return flat


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


def _build(kind: type, values: dict[Any, Any], prefix: str) -> object:
    """Make the dataclass `kind` from `values`; `prefix` is the dotted name so far."""
    hints = typing.get_type_hints(kind)
    arguments: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in POINTLESS:
            raise ConfigError(f"{name} has no meaning here: {POINTLESS[name]}; leave it out")
        if key not in hints:
            raise ConfigError(f"unknown setting {name}{_suggestion(name)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if not isinstance(value, dict):
                raise ConfigError(f"{name} must be a section of settings, got {value!r}")
            arguments[key] = _build(hint, value, name + ".")
        else:
            arguments[key] = _convert(name, hint, value)
    return kind(**arguments)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error that names the closest known name; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _suggestion(name: str) -> str:
    known = list(flatten(Config()))
    last = name.rsplit(".", 1)[-1]
    elsewhere = [key for key in known if key.rsplit(".", 1)[-1] == last]  # in another section
    return did_you_mean(name, known) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")


def _convert(name: str, hint: Any, value: object) -> object:
    """Check the type of one value; int becomes float, a list becomes a tuple, nothing else."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) and value else value
        if isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items):
            return tuple(items)
        raise ConfigError(f"{name} must be a list of texts, got {value!r}")
    for kind in allowed:
        if kind is float and type(value) in (int, float):
            number = float(value)  # type: ignore[arg-type]
            if math.isfinite(number):
                return number
        elif type(value) is kind:
            return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    expected = " or ".join(words[kind] for kind in allowed)
    hint_text = ""
    if float in allowed and isinstance(value, str):
        try:
            hint_text = f" (YAML reads {value} as text; write {float(value)!r})"
        except ValueError:
            hint_text = ""
    raise ConfigError(f"{name} must be {expected}, got {value!r}{hint_text}")
