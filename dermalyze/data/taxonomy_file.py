"""`taxonomy.yaml` beside the data: what its owner says of the classes and of the data set."""

import dataclasses
import unicodedata
from pathlib import Path

import yaml

from dermalyze.config.loading import read_yaml
from dermalyze.config.schema import did_you_mean
from serving.errors import ConfigError
from serving.taxonomy import Taxonomy

TAXONOMY_FILE = "taxonomy.yaml"
_TEXTS = ("title", "license", "citation")
_KEYS = (*_TEXTS, "order", "descriptions", "malignant", "not_recorded")


def with_taxonomy_file(taxonomy: Taxonomy, path: Path) -> Taxonomy:
    """Return the taxonomy that a reader made with what the file says in place of its own.

    Raises:
        ConfigError: the file cannot be read, has an unknown key or a value of another kind, or
            names a class that the data does not have.
    """
    # The loader that makes no number of a class `1` and no truth value of a class `no`.
    content = read_yaml(path, str(path), yaml.BaseLoader)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must have keys and values, such as `malignant: [mel]`")
    for key in content:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS) or f"; expected {', '.join(_KEYS)}"
            raise ConfigError(f"{path} has the unknown key {key!r}{hint}")
    texts: dict[str, str] = {key: content[key] for key in _TEXTS if key in content}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(f"{path} has a list or mapping as {key}; expected text")
    not_recorded = taxonomy.not_recorded
    if "not_recorded" in content:
        not_recorded = tuple(_texts(path, "not_recorded", content["not_recorded"]))
    names = taxonomy.names
    if "order" in content:
        names = _classes(path, "order", content["order"], taxonomy)
        if missing := [name for name in taxonomy.names if name not in names]:
            raise ConfigError(f"{path} lacks {missing[0]!r} in order; expected each class once")
    malignant = taxonomy.malignant
    if "malignant" in content:
        malignant = _classes(path, "malignant", content["malignant"], taxonomy)
    descriptions = dict(zip(taxonomy.names, taxonomy.descriptions, strict=True))
    if "descriptions" in content:
        told = content["descriptions"]
        if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
            raise ConfigError(f"{path} must have a text for each class as descriptions")
        known = _classes(path, "descriptions", list(told), taxonomy)
        descriptions |= dict(zip(known, told.values(), strict=True))
    return dataclasses.replace(
        taxonomy,
        names=names,
        descriptions=tuple(descriptions[name] for name in names),
        malignant=tuple(name for name in names if name in malignant),
        not_recorded=not_recorded,
        **texts,
    )


def _texts(path: Path, key: str, value: object) -> list[str]:
    items = [value] if isinstance(value, str) and value else value or []
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"{path} must have a list of strings as {key}, such as [a, b]")
    return items


def _classes(path: Path, key: str, value: object, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return names of classes as the data has them."""
    names = [unicodedata.normalize("NFC", text) for text in _texts(path, key, value)]
    for name in names:
        if name not in taxonomy.names:
            hint = did_you_mean(name, taxonomy.names) or f"; it has {', '.join(taxonomy.names)}"
            raise ConfigError(
                f"{path} has {name!r} in {key}, which is not a class of the data{hint}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"{path} has {name!r} twice in {key}; expected each class once")
    return tuple(names)
