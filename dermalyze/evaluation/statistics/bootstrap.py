"""95 % intervals by resampling lesions: images of one lesion are not independent.

N images, L lesions, R replicates.  A replicate draws L lesions with replacement, so an image counts
as often as its lesion was drawn; every metric is computed for all replicates at once from these
weights.  Where images are grouped by patient, patients are drawn instead.  Davison and Hinkley,
"Bootstrap Methods and their Application" (1997), 3.8.

If all answers are right, or all wrong, resampling shows no spread.  A share of lesions then has the
exact interval of Clopper and Pearson, Biometrika 26 (1934).
"""

from dataclasses import dataclass, replace

import numpy as np

from dermalyze.evaluation.metrics.classification import (
    MIN_SENSITIVITY,
    Counts,
    Floats,
    plain,
    replicated,
)
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.text import things

REPLICATES = 2000
LEVEL = 0.95
MIN_LESIONS = 10  # fewer say nothing about how the next lesions would do
MIN_LESIONS_ELSEWHERE = 15  # of a class in another source, to be part of the mean over its classes
CLASS_MEANS = (
    "balanced_accuracy",
    "macro_precision",
    "macro_f1",
    "macro_auc",
    "macro_average_precision",
)
SHARES = ("accuracy", "recall", "malignant_sensitivity", "malignant_specificity")  # right or wrong
# Intervals at 95 % held the truth in 0 to 88 % of studies, the fewer the better calibrated.
_ROUNDING = 1e-9  # of a mean of equal shares
RAISED = "resampling increases it, so the bounds would be too high"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and how far it may be trusted; without bounds where there are none."""

    estimate: float
    low: float | None
    high: float | None
    reason: str = ""  # why there are no bounds


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The lesions that a metric rests on."""

    num_lesions: int
    group: str = ""  # a class, malignant or benign; empty: all
    unit: str = "lesion"  # or patient, or image
    is_share: bool = False  # the metric is the share of them for which something holds

    def in_words(self) -> str:
        """Say how many lesions, and of what."""
        return things(self.num_lesions, self.unit) + (f" of {self.group}" if self.group else "")


def intervals(
    scored: Scored,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    min_sensitivity: float = MIN_SENSITIVITY,
) -> dict[str, Interval]:
    """Return every metric of `replicated` that is defined with its interval, by name."""
    weights = lesion_weights(scored.lesions, replicates, seed)
    drawn = replicated(scored, weights, min_sensitivity)
    found = {
        name: interval_of(value, drawn[name], rests_on(scored, name))
        for name, value in plain(scored, min_sensitivity).items()
        if np.isfinite(value)
    }
    return {
        name: replace(interval, low=None, high=None, reason=RAISED) if name == "ece" else interval
        for name, interval in found.items()
    }


def balanced_accuracy_elsewhere(
    scored: Scored, replicates: int
) -> tuple[tuple[str, ...], Interval | None]:
    """Return the mean sensitivity of the classes that have enough lesions, and their names.

    Lesions are counted even where images or patients are drawn.  None: no class has enough.
    """
    lesions = scored.table["lesion_id"].groupby(scored.targets).nunique()
    chosen = lesions.index[lesions >= MIN_LESIONS_ELSEWHERE].to_numpy()
    names = tuple(scored.class_names[target] for target in chosen)
    if not names:
        return names, None
    kept = scored.take(np.isin(scored.targets, chosen))
    weights = lesion_weights(kept.lesions, replicates, 0)
    name = "balanced_accuracy"
    estimate, drawn = (
        replicated(kept, rows, with_curves=False)[name]
        for rows in (np.ones((1, len(kept))), weights)
    )
    return names, interval_of(float(estimate[0]), drawn, rests_on(kept, name))


def lesion_weights(lesions: Counts, replicates: int, seed: int) -> Floats:
    """Draw lesions with replacement: numbers (N,) -> how often each image counts, (R, N)."""
    num_lesions = int(lesions.max()) + 1
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_lesions, np.full(num_lesions, 1 / num_lesions), size=replicates)
    return counts[:, lesions].astype(np.float64)


def interval_of(estimate: float, values: Floats, basis: Basis, level: float = LEVEL) -> Interval:
    """Take the bounds from the replicates' quantiles; (R,), NaN where a replicate has no value."""
    if basis.num_lesions < MIN_LESIONS:
        reason = f"only {basis.in_words()}, fewer than {MIN_LESIONS}"
        return Interval(estimate=estimate, low=None, high=None, reason=reason)
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    if high - low < _ROUNDING and basis.is_share and min(estimate, 1 - estimate) < _ROUNDING:
        reach = 1 - tail ** (1 / basis.num_lesions)
        low, high = (0.0, reach) if estimate < 0.5 else (1 - reach, 1.0)
    elif high - low < _ROUNDING:
        reason = f"{basis.in_words()} with the same result, so resampling shows no variation"
        return Interval(estimate=estimate, low=None, high=None, reason=reason)
    return Interval(estimate=estimate, low=float(low), high=float(high))


def rests_on(scored: Scored, name: str) -> Basis:
    """Say which lesions a metric stands or falls with: of its class, or of the rarest class.

    A mean over classes is no surer than its rarest class, which counts as much as any other.
    """
    own = {
        key: (name, len(np.unique(scored.lesions[scored.targets == target])))
        for target, (key, name) in enumerate(
            zip(scored.taxonomy.keys, scored.class_names, strict=True)
        )
    }
    stem, _, key = name.partition("/")
    if key in own:
        class_name, number = own[key]
        return Basis(
            num_lesions=number, group=class_name, unit=scored.group_by, is_share=stem in SHARES
        )
    if stem in CLASS_MEANS:
        present = [(number, class_name) for class_name, number in own.values() if number]
        number, rarest = min(present, key=lambda found: found[0])
        return Basis(num_lesions=number, group=rarest, unit=scored.group_by)
    if stem.startswith("malignant_"):
        sides = (("malignant", scored.is_malignant), ("benign", ~scored.is_malignant))
        numbers = [(len(np.unique(scored.lesions[rows])), side) for side, rows in sides]
        number, rarer = min(numbers, key=lambda found: found[0])
        return Basis(num_lesions=number, group=rarer, unit=scored.group_by, is_share=stem in SHARES)
    return Basis(num_lesions=scored.num_lesions, unit=scored.group_by, is_share=stem in SHARES)
