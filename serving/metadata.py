"""What is known of a patient and a site beside the image: age, sex, place on the body.

N images, K numbers of each.  Never imports torch or pandas.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import MetadataError, listed
from serving.uncertainty import SpecPart, is_number, require_part

# All that a model may know beside the image.  What is not known before the diagnosis, such as how
# it was confirmed or whether it was biopsied, is never among them: it would give the label away.
COLUMNS = ("age", "sex", "localization")
MAX_AGE = 120  # years; nobody is older
# What people, spreadsheets (a formula that failed), pandas, R and databases write for a value that
# is not known, in small letters.
MISSING = frozenset(
    [
        *(
            "",
            "-",
            "--",
            "\u2013",
            "\u2014",
            ".",
            "?",
            "\\n",
            "(null)",
            "<na>",
            "-nan",
            "n.a",
            "n.a.",
        ),
        *(
            "n/a",
            "na",
            "nan",
            "nat",
            "nil",
            "none",
            "null",
            "unk",
            "unknown",
            "undefined",
            "missing",
        ),
        *("not available", "not known", "not recorded", "not reported", "not specified"),
        *("#n/a", "#n/a n/a", "#na", "#value!", "#ref!", "#div/0!", "#name?", "#null!", "#num!"),
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    ]
)
# Possessive: else a long row of digits that is no number takes time with its square.
_NUMBER = re.compile(r"[+-]?+(\d++\.?+\d*+|\.\d++)(e[+-]?+\d++)?+", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class MetadataFields(SpecPart):
    """How metadata becomes numbers: scaled age and whether it is known, then one column per word.

    What the training images did not record, the model does not take.
    """

    age_mean: float | None  # years, of the training images; None: none of them had an age
    age_std: float  # years
    sexes: tuple[str, ...]  # in small letters
    localizations: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what no predictor could use."""
        require_part(
            self.age_mean is None or (is_number(self.age_mean) and self.age_mean >= 0),
            "metadata.age_mean",
            "a number of 0 or more, or null",
            self.age_mean,
        )
        require_part(
            is_number(self.age_std) and self.age_std > 0,
            "metadata.age_std",
            "a number above 0",
            self.age_std,
        )
        for name in ("sexes", "localizations"):
            words = getattr(self, name)
            require_part(
                all(_is_word(word) for word in words) and len(set(words)) == len(words),
                f"metadata.{name}",
                "different words in small letters",
                words,
            )

    @property
    def width(self) -> int:
        """K."""
        return 2 + len(self.sexes) + len(self.localizations)

    @property
    def parts(self) -> tuple[slice, ...]:
        """The columns of age, sex and localization."""
        middle = 2 + len(self.sexes)
        return slice(0, 2), slice(2, middle), slice(middle, self.width)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of `COLUMNS` that the model takes."""
        takes = {
            "age": self.age_mean is not None,
            "sex": bool(self.sexes),
            "localization": bool(self.localizations),
        }
        return tuple(name for name in COLUMNS if takes[name])


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What is known of one image; None, NaN and the words of `MISSING`: not known.

    Raises:
        MetadataError: a value is of another type, or an age that nobody has.
    """

    age: float | None = None  # years
    sex: str | None = None
    localization: str | None = None

    def __post_init__(self) -> None:
        """Keep each value in its one form: a number, a word in small letters, or None."""
        object.__setattr__(self, "age", age_of(self.age))
        for name in ("sex", "localization"):
            object.__setattr__(self, name, _word(name, getattr(self, name)))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Metadata":
        """Take facts under the names of `COLUMNS`, as JSON, CSV or a data frame hold them.

        Raises:
            MetadataError: as the constructor.
        """
        return cls(**{name: values.get(name) for name in COLUMNS})

    def known_to(self, fields: MetadataFields) -> "Metadata":
        """Return the same without what `fields` has no column for."""
        return Metadata(
            age=None if fields.age_mean is None else self.age,
            sex=self.sex if self.sex in fields.sexes else None,
            localization=self.localization if self.localization in fields.localizations else None,
        )


def encode(items: Sequence[Metadata | None], fields: MetadataFields) -> NDArray[np.float32]:
    """Turn metadata of N images into float32 (N, K); nothing known is all zeros.

    Raises:
        MetadataError: a word is not among those of the model.
    """
    encoded = np.zeros((len(items), fields.width), np.float32)
    for row, item in zip(encoded, items, strict=True):
        if item is None:
            continue
        for name in COLUMNS:
            if getattr(item, name) is not None and name not in fields.columns:
                raise MetadataError(f"this model does not take the {name}; leave it out")
        if item.age is not None and fields.age_mean is not None:
            row[:2] = (item.age - fields.age_mean) / fields.age_std, 1
        start = 2
        for name, words in (("sex", fields.sexes), ("localization", fields.localizations)):
            word = getattr(item, name)
            if word is not None:
                if word not in words:
                    raise MetadataError(
                        f"the {name} is unknown to this model, expected one of "
                        f"{listed(words, 30)}, or unknown"
                    )
                row[start + words.index(word)] = 1
            start += len(words)
    return encoded


def is_missing(value: Any) -> bool:
    """Say whether a cell of a table, or a value of JSON, means that nothing is known."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def age_of(value: Any) -> float | None:
    """Return an age in years, given as a number or as text; None: not known.

    Raises:
        MetadataError: it is something else, or nobody is that old.
    """
    if is_missing(value):
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)  # float alone takes more than numbers, such as 4_5
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_AGE:
        raise MetadataError(f"an age must be a number of years from 0 to {MAX_AGE}")
    return float(value)


def word_of(text: Any) -> str | None:
    """Return a word of a table in the one form that it has everywhere; None: not known."""
    return None if is_missing(text) else str(text).strip().lower()


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value == word_of(value)


def _word(name: str, value: Any) -> str | None:
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise MetadataError(f"the {name} must be text, got {type(value).__name__}")
    return word_of(value)
