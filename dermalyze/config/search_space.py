"""`KEY=VALUES` texts -> the settings that `dermalyze tune` varies, checked before anything starts.

Never imports torch or Optuna.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import yaml

from dermalyze.config.loading import config_from
from dermalyze.config.schema import Config, flatten
from serving.errors import ConfigError

Value = bool | int | float | str
_SYNTAX = "KEY=LOW..HIGH, KEY=LOW..HIGH,log or KEY=A,B,..."
_DATA = (
    "allow_problems", "corrections", "group_by", "group_column", "image_column", "label_column",
    "leave_out", "splits", "test_size", "val_size",
)  # fmt: skip
_REASONS = {  # settings that cannot be searched, or sections of them -> why
    **dict.fromkeys(
        ("training.seed", *(f"data.{name}" for name in _DATA)),
        "the trials would not be validated on the same images",
    ),
    **dict.fromkeys(
        ("training.monitor", "training.monitor_mode"), "it is what the trials are compared by"
    ),
    **dict.fromkeys(
        ("tracking", "evaluation", "data.prepared", "training.device", "training.num_workers"),
        "it does not change what a trial learns",
    ),
    "model.plugins": "it is code, not a value",
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """One setting that is varied: a range of numbers, or some values."""

    key: str
    text: str  # the values as the user wrote them
    low: float = 0  # of a range
    high: float = 0
    is_whole: bool = False  # a range of whole numbers
    log: bool = False  # drawn evenly by the logarithm
    choices: tuple[Value, ...] = ()  # empty: a range

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values which, if they are allowed, all are."""
        return self.choices or (self.low, self.high)


def read_search(texts: Sequence[str], config: Config) -> tuple[Search, ...]:
    """Parse the settings to vary; several may be in one text, with spaces between them.

    Raises:
        ConfigError: a setting does not exist or cannot be searched, or a value is not allowed
            beside the others of `config`.
    """
    found = [_parsed(word, config) for text in texts for word in text.split()]
    if not found:
        raise ConfigError(f"--search names no setting; it takes {_SYNTAX}")
    keys = [search.key for search in found]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--search names {key} twice; put all of its values into one")
    return tuple(found)


def _parsed(text: str, config: Config) -> Search:
    key, separator, values = text.partition("=")
    if not (key and separator and values):
        raise ConfigError(f"--search takes {_SYNTAX}, got {text!r}")
    for name in (key, key.partition(".")[0]):
        if name in _REASONS:
            raise ConfigError(
                f"--search cannot vary {key}: {_REASONS[name]}; set it with --set {key}=VALUE"
            )
    default = flatten(config).get(key)
    is_number = type(default) in (int, float)
    if is_number and ".." in values:
        search = _range(key, values, is_whole=type(default) is int)
    else:
        choices = tuple(_value(choice, default) for choice in values.split(","))
        search = Search(key=key, text=values, choices=choices)
    for value in search.ends:
        config_from(asdict(config), values={key: value})
    if len(set(search.ends)) < max(2, len(search.ends)):
        raise ConfigError(
            f"--search {key} needs at least two values, each of them once, got {values!r}; for "
            f"a single one use --set {key}=VALUE"
        )
    return search


def _range(key: str, values: str, *, is_whole: bool) -> Search:
    ends, comma, log = values.partition(",")
    kind = int if is_whole else float
    try:
        low, high = (kind(end) for end in ends.split(".."))
    except ValueError:
        low = high = math.nan
    if (comma and log != "log") or not low <= high or not math.isfinite(high - low):
        numbers = "whole numbers" if is_whole else "numbers"
        raise ConfigError(
            f"--search {key} takes LOW..HIGH or LOW..HIGH,log with two {numbers}, the lower one "
            f"first, got {values!r}"
        )
    if log and low <= 0:
        raise ConfigError(
            f"--search {key} with log needs a range above 0, got {values!r}; leave out log, or "
            "begin above 0"
        )
    return Search(key=key, text=values, low=low, high=high, is_whole=is_whole, log=bool(log))


def _value(text: str, default: object) -> Value:
    """Return what a text means for a setting; the schema refuses what does not fit."""
    try:
        if type(default) in (int, float):
            return int(text) if type(default) is int else float(text)
        value = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text
    return value if isinstance(value, bool | int | float) else text
