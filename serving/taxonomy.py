"""The classes that a model tells apart, and what is known of the data set that they come from."""

import re
import unicodedata
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from serving.errors import ArtifactError

DISCLAIMER = "For education and research only. This is not a medical device and not a diagnosis."
MAX_KEY_LENGTH = 60  # characters of a class name in a metric key or a file name


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """Classes in the order of the logits.  A reader of data makes it; data and models carry it.

    Raises:
        ArtifactError: fewer than two names, an empty or repeated name, or another type.
    """

    names: tuple[str, ...]  # any Unicode, as the data has them
    descriptions: tuple[str, ...] = ()  # one per name, or none at all
    malignant: tuple[str, ...] = ()  # some of the names; empty: nothing is known of malignancy
    title: str = ""  # of the data set
    license: str = ""
    citation: str = ""
    not_recorded: tuple[str, ...] = ()  # what the data set does not record, such as "skin type"

    def __post_init__(self) -> None:
        """Refuse what no model could use."""
        for name in ("names", "descriptions", "malignant", "not_recorded"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not all(
                isinstance(value, str) for value in values
            ):
                raise ArtifactError(f"taxonomy.{name} must be a list of strings")
            object.__setattr__(self, name, tuple(values))
        for name in ("title", "license", "citation"):
            if not isinstance(getattr(self, name), str):
                raise ArtifactError(f"taxonomy.{name} must be text")
        for text in (*self.names, *self.descriptions, self.title, self.license, self.citation):
            try:
                text.encode()
            except (
                UnicodeEncodeError
            ) as error:  # half a character, of a file name that is not UTF-8
                raise ArtifactError(f"taxonomy has {text!r}, which is not Unicode text") from error
        if len(self.names) < 2 or not all(name.strip() for name in self.names):
            raise ArtifactError("taxonomy.names must have two or more names, none of them empty")
        if repeated := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ArtifactError(f"taxonomy.names has {repeated[0]!r} more than once")
        if self.descriptions and len(self.descriptions) != len(self.names):
            raise ArtifactError("taxonomy.descriptions must have one text per name, or none")
        if unknown := [name for name in self.malignant if name not in self.names]:
            raise ArtifactError(f"taxonomy.malignant has {unknown[0]!r}, which is not a class")
        if not self.descriptions:
            object.__setattr__(self, "descriptions", ("",) * len(self.names))

    def __len__(self) -> int:
        """Return the number of classes, C."""
        return len(self.names)

    def description(self, name: str) -> str:
        """Return what a class is in words; empty where nothing is known."""
        return self.descriptions[self.names.index(name)]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """One per name: the name in metric keys and file names, where few characters are allowed.

        Letters and digits of any script, `_`, `-`, `.` and inner spaces stay; others become `_`.
        Names that would be the same get a number.  A plain name is its own key.
        """
        keys: list[str] = []
        for name in self.names:
            key = _key(name)
            number, unique = 1, key
            while unique.casefold() in {other.casefold() for other in keys}:
                number += 1
                unique = f"{key}_{number}"
            keys.append(unique)
        return tuple(keys)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Taxonomy":
        """Read what `to_dict` gave.

        Raises:
            ArtifactError: it is not an object with these fields, or has values that cannot be.
        """
        known = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or "names" not in values:
            raise ArtifactError("a taxonomy must be an object with names")
        if unknown := sorted(map(str, values.keys() - known)):
            raise ArtifactError(
                f"a taxonomy has no field {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )
        return cls(**values)


def _key(name: str) -> str:
    key = re.sub(r"[^\w.\- ]", "_", unicodedata.normalize("NFC", name))[:MAX_KEY_LENGTH].strip()
    return key if key.strip(".") else key.replace(".", "_") or "_"
