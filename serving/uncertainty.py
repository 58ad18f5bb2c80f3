"""What a model knows of its limits: prediction sets, abstention, scope, referral; in the spec.

All of it was fitted on validation images, by lesion.  N images, C classes, L levels.  Never
imports torch.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from serving.errors import ArtifactError, ConfigError

DEFAULT_LEVEL = 0.9  # coverage of a prediction set
LEVELS = tuple(percent / 100 for percent in range(80, 100))
DEFAULT_SENSITIVITY = 0.95  # of the referral flag
_TOLERANCE = 1e-9  # of a level: 0.83 may have been computed


class SpecPart:
    """A part of the spec that is a JSON object of its own; its fields are numbers and tuples."""

    @classmethod
    def from_json(cls, name: str, values: Any) -> Self:
        """Read what `dataclasses.asdict` gave; `name` is that of the part.

        Raises:
            ArtifactError: it has other fields, or values that cannot be.
        """
        fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        if not isinstance(values, dict) or sorted(values) != sorted(fields):
            raise ArtifactError(
                f"the model's spec has another {name} than this program reads, expected an object "
                f"with {', '.join(fields)}; export the model again"
            )
        try:
            return cls(**{key: _tuples(value) for key, value in values.items()})
        except (TypeError, ValueError) as error:  # values that cannot even be compared
            raise ArtifactError(
                f"the model's spec has a {name} with values of another type; export the model again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class PredictionSets(SpecPart):
    """Class-conditional conformal sets: how probable a class must be to be in the set."""

    levels: tuple[float, ...]  # coverage, ascending, fractions
    min_probs: tuple[tuple[float, ...], ...]  # (C, L); 0: in every set, for lack of lesions
    num_lesions: tuple[int, ...]  # (C,), what each class's thresholds rest on

    def __post_init__(self) -> None:
        """Refuse what no predictor could use."""
        require_part(
            len(self.levels) > 0
            and all(is_number(level) and 0 < level < 1 for level in self.levels)
            and list(self.levels) == sorted(set(self.levels)),
            "prediction_sets.levels",
            "ascending fractions",
            self.levels,
        )
        require_part(
            len(self.min_probs) == len(self.num_lesions) >= 2
            and all(
                isinstance(row, tuple)
                and len(row) == len(self.levels)
                and all(is_number(value) and 0 <= value <= 1 for value in row)
                and list(row) == sorted(row, reverse=True)
                for row in self.min_probs
            ),
            "prediction_sets.min_probs",
            "one row per class, with probabilities that fall from level to level",
            self.min_probs,
        )
        require_part(
            all(type(count) is int and count >= 0 for count in self.num_lesions),
            "prediction_sets.num_lesions",
            "a number of lesions per class",
            self.num_lesions,
        )

    def column(self, level: float) -> int:
        """Return the position of the lowest stored level that is not below `level`.

        Raises:
            ConfigError: there is none, or `level` is below all.
        """
        low, high = self.levels[0], self.levels[-1]
        if not (is_number(level) and low - _TOLERANCE <= level <= high + _TOLERANCE):
            raise ConfigError(
                f"the level of prediction sets must be from {low:g} to {high:g}, got {level!r}"
            )
        return int(np.searchsorted(np.array(self.levels), level - _TOLERANCE))

    def members(self, probs: NDArray[np.floating], level: float) -> NDArray[np.bool_]:
        """Say which classes are in the set of each image: (N, C) -> bool (N, C).

        The most probable class always is: that can only raise the coverage.
        """
        lowest = np.array(self.min_probs)[:, self.column(level)]
        members = np.asarray(probs >= lowest)
        members[np.arange(len(probs)), probs.argmax(axis=1)] = True
        return members

    def unsupported(self, level: float) -> NDArray[np.bool_]:
        """Say which classes have too few calibration lesions to be left out of a set: bool (C,)."""
        return np.asarray(np.array(self.min_probs)[:, self.column(level)] == 0)


@dataclass(frozen=True, kw_only=True)
class Abstention(SpecPart):
    """From which confidence on an answer is given."""

    risk: float  # stated: share of wrong answers among those given, fraction
    min_confidence: float  # 0..1; above 1: the risk could not be shown at any confidence
    coverage: float  # share of the validation lesions that were answered, fraction
    num_lesions: int  # of the validation split

    def __post_init__(self) -> None:
        """Refuse what no predictor could use."""
        for name, high in (("risk", 1.0), ("min_confidence", 2.0), ("coverage", 1.0)):
            value = getattr(self, name)
            require_part(
                is_number(value) and 0 <= value <= high,
                f"abstention.{name}",
                f"a number from 0 to {high:g}",
                value,
            )
        require_part(
            type(self.num_lesions) is int and self.num_lesions >= 0,
            "abstention.num_lesions",
            "a number of lesions",
            self.num_lesions,
        )


@dataclass(frozen=True, kw_only=True)
class Scope(SpecPart):
    """From which score on an image is unlike those that the model was judged on."""

    kind: str  # how the graph computes the score
    max_score: float  # a higher one is out of scope
    false_alarm_rate: float  # share of the validation lesions beyond it, photograph checks included
    num_lesions: int  # of the validation split

    def __post_init__(self) -> None:
        """Refuse what no predictor could use."""
        require_part(
            isinstance(self.kind, str) and self.kind != "", "scope.kind", "a name", self.kind
        )
        require_part(is_number(self.max_score), "scope.max_score", "a number", self.max_score)
        require_part(
            is_number(self.false_alarm_rate) and 0 <= self.false_alarm_rate <= 1,
            "scope.false_alarm_rate",
            "a number from 0 to 1",
            self.false_alarm_rate,
        )
        require_part(
            type(self.num_lesions) is int and self.num_lesions >= 0,
            "scope.num_lesions",
            "a number of lesions",
            self.num_lesions,
        )


@dataclass(frozen=True, kw_only=True)
class Referral(SpecPart):
    """From which malignant probability on a lesion is to be referred, for each sensitivity.

    A level is absent if there were too few lesions to show it.
    """

    levels: tuple[float, ...]  # sensitivity, ascending, fractions of `LEVELS`
    min_probs: tuple[float, ...]  # (L,), of the malignant classes together
    specificities: tuple[float, ...]  # (L,), on the same lesions: the price
    confidence: float  # with which each sensitivity was shown
    num_malignant: int  # lesions
    num_benign: int

    def __post_init__(self) -> None:
        """Refuse what no predictor could use."""
        require_part(
            all(is_number(level) and 0 < level < 1 for level in self.levels)
            and list(self.levels) == sorted(set(self.levels)),
            "referral.levels",
            "ascending fractions",
            self.levels,
        )
        for name in ("min_probs", "specificities"):
            values = getattr(self, name)
            require_part(
                len(values) == len(self.levels)
                and all(is_number(value) and 0 <= value <= 1 for value in values)
                and list(values) == sorted(values, reverse=True),
                f"referral.{name}",
                "a fraction per level, none above the one before",
                values,
            )
        require_part(
            is_number(self.confidence) and 0 < self.confidence < 1,
            "referral.confidence",
            "a fraction",
            self.confidence,
        )
        for name in ("num_malignant", "num_benign"):
            count = getattr(self, name)
            require_part(
                type(count) is int and count >= 0, f"referral.{name}", "a number of lesions", count
            )

    def column(self, sensitivity: float) -> int | None:
        """Return the position of the lowest stored level that is not below `sensitivity`.

        None: so high a sensitivity could not be shown; `lacking` says why.

        Raises:
            ConfigError: it is outside what any model may be asked.
        """
        low, high = LEVELS[0], LEVELS[-1]
        if not (is_number(sensitivity) and low - _TOLERANCE <= sensitivity <= high + _TOLERANCE):
            raise ConfigError(
                f"the sensitivity of the referral must be from {low:g} to {high:g}, "
                f"got {sensitivity!r}"
            )
        column = int(np.searchsorted(np.array(self.levels), sensitivity - _TOLERANCE))
        return column if column < len(self.levels) else None

    def lacking(self, sensitivity: float) -> str:
        """Say why there is no threshold for a sensitivity: none missed would not show it."""
        level = next(level for level in LEVELS if level >= sensitivity - _TOLERANCE)
        needed = math.ceil(math.log(1 - self.confidence) / math.log(level) - _TOLERANCE)
        return (
            f"no threshold is known to find {level:.0%} of malignant lesions: it takes {needed} "
            f"malignant validation lesions and a benign one, there were {self.num_malignant} and "
            f"{self.num_benign}"
        )


def require_part(ok: bool, name: str, expected: str, value: object) -> None:
    """Raise the one message shape of a spec that cannot be used, unless `ok`."""
    if not ok:
        raise ArtifactError(
            f"the model's spec has {name} {shown(value)}, expected {expected}; "
            "export the model again"
        )


def is_number(value: object) -> bool:
    """Say whether a value is a finite number, and no bool."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def shown(value: object) -> str:
    """Return a value as a message shows it: on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
