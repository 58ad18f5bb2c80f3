"""95 % intervals by resampling lesions: images of one lesion are not independent.

N images, C classes, L lesions, R replicates.  A replicate draws L lesions with replacement, so an
image counts as often as its lesion was drawn; every metric is computed for all replicates at once
from these weights.  Davison and Hinkley, "Bootstrap Methods and their Application" (1997), 3.8.
"""

from dataclasses import dataclass, replace

import numpy as np

from dermalyze.evaluation.clinical import (
    MIN_SENSITIVITY,
    class_metrics,
    clinical_metrics,
    malignant,
)
from dermalyze.evaluation.curves import curves_of, divided
from dermalyze.evaluation.metrics import CALIBRATION_BINS, Counts, Floats
from dermalyze.evaluation.scored import Scored
from dermalyze.evaluation.words import things

REPLICATES = 2000
LEVEL = 0.95
MIN_LESIONS = 10  # fewer say nothing about how the next lesions would do
CLASS_MEANS = (
    "balanced_accuracy",
    "macro_precision",
    "macro_f1",
    "macro_auc",
    "macro_average_precision",
)
# Intervals at 95 % held the truth in 0 to 88 % of studies, the fewer the better calibrated.
RAISED = "drawing lesions anew raises it, so that bounds would lie too high"
_CHUNK = 250  # replicates at once; bounds memory


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and how far it may be trusted; without bounds where they cannot be had."""

    estimate: float
    low: float | None
    high: float | None
    reason: str = ""  # why there are no bounds


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The lesions that a metric rests on."""

    num_lesions: int
    group: str = ""  # a class, malignant or benign; empty: all

    def in_words(self) -> str:
        """Say how many lesions, and of what."""
        return things(self.num_lesions, "lesion") + (f" of {self.group}" if self.group else "")


def intervals(
    scored: Scored,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    min_sensitivity: float = MIN_SENSITIVITY,
) -> dict[str, Interval]:
    """Return every metric of `replicated` that can be had with its interval, by name."""
    once = replicated(scored, np.ones((1, len(scored))), min_sensitivity)
    weights = lesion_weights(scored.lesions, replicates, seed)
    drawn = replicated(scored, weights, min_sensitivity)
    found = {
        name: interval_of(float(value[0]), drawn[name], rests_on(scored, name))
        for name, value in once.items()
        if np.isfinite(value[0])
    }
    return {
        name: replace(interval, low=None, high=None, reason=RAISED) if name == "ece" else interval
        for name, interval in found.items()
    }


def lesion_weights(lesions: Counts, replicates: int, seed: int) -> Floats:
    """Draw lesions with replacement: numbers (N,) -> how often each image counts, (R, N)."""
    num_lesions = int(lesions.max()) + 1
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_lesions, np.full(num_lesions, 1 / num_lesions), size=replicates)
    return counts[:, lesions].astype(np.float64)


def interval_of(estimate: float, values: Floats, basis: Basis, level: float = LEVEL) -> Interval:
    """Take the bounds from the replicates' quantiles; (R,), NaN where a replicate has no value."""
    if basis.num_lesions < MIN_LESIONS:
        reason = f"rests on {basis.in_words()}, fewer than {MIN_LESIONS}"
        return Interval(estimate=estimate, low=None, high=None, reason=reason)
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    if low == high:
        reason = f"{basis.in_words()} that are all alike in it; drawing them shows no spread"
        return Interval(estimate=estimate, low=None, high=None, reason=reason)
    return Interval(estimate=estimate, low=float(low), high=float(high))


def rests_on(scored: Scored, name: str) -> Basis:
    """Say which lesions a metric stands or falls with: of its class, or of the rarest class.

    A mean over classes is no surer than its rarest class, which counts as much as any other.
    """
    of_class = {
        class_name: len(np.unique(scored.lesions[scored.targets == target]))
        for target, class_name in enumerate(scored.class_names)
    }
    stem, _, class_name = name.partition("/")
    if class_name in of_class:
        return Basis(num_lesions=of_class[class_name], group=class_name)
    if stem in CLASS_MEANS:
        present = {name: number for name, number in of_class.items() if number}
        rarest = min(present, key=lambda class_name: present[class_name])
        return Basis(num_lesions=present[rarest], group=rarest)
    if stem.startswith("malignant_"):
        is_malignant, _ = malignant(scored)
        sides = {"malignant": is_malignant, "benign": ~is_malignant}
        numbers = {side: len(np.unique(scored.lesions[rows])) for side, rows in sides.items()}
        rarer = min(numbers, key=lambda side: numbers[side])
        return Basis(num_lesions=numbers[rarer], group=rarer)
    return Basis(num_lesions=scored.num_lesions)


def replicated(
    scored: Scored,
    weights: Floats,
    min_sensitivity: float = MIN_SENSITIVITY,
    *,
    with_curves: bool = True,
) -> dict[str, Floats]:
    """Compute every metric for each row of weights (R, N): name -> (R,).

    They are those of `metrics.score` and of `clinical`.  Without those that `needs_curves` names it
    takes a tenth of the time.

    A metric that a replicate has not, such as the AUC of a class that was not drawn, is NaN there;
    means over classes run over those that it has.
    """
    parts = [
        _replicated(scored, weights[start : start + _CHUNK], min_sensitivity, with_curves)
        for start in range(0, len(weights), _CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def needs_curves(name: str) -> bool:
    """Say whether a metric takes ROC or precision-recall curves, which cost most of the time."""
    return "auc" in name or "average_precision" in name or "_at_" in name


def _replicated(
    scored: Scored, weights: Floats, min_sensitivity: float, with_curves: bool
) -> dict[str, Floats]:
    num_classes = len(scored.class_names)
    cells = np.eye(num_classes**2)[scored.targets * num_classes + scored.predicted]
    confusion = (weights @ cells).reshape(-1, num_classes, num_classes)  # (R, C, C)
    total = weights.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    support, claimed = confusion.sum(axis=2), confusion.sum(axis=1)
    recall = divided(hits, support)
    precision = np.where(support > 0, divided(hits, claimed, empty=0.0), np.nan)
    f1 = np.where(support > 0, divided(2 * hits, support + claimed, empty=0.0), np.nan)
    by_class = {"precision": precision, "recall": recall, "f1": f1}  # each (R, C)
    is_class = np.eye(num_classes)[scored.targets]  # (N, C)
    means = {
        "balanced_accuracy": _mean(recall),
        "macro_precision": _mean(precision),
        "macro_f1": _mean(f1),
    }
    if with_curves:
        of_classes = [
            class_metrics(curves_of(scored.probs[:, c], is_class[:, c], weights))
            for c in range(num_classes)
        ]
        for name in of_classes[0]:
            by_class[name] = np.stack([values[name] for values in of_classes], axis=1)
        means["macro_auc"] = _mean(by_class["auc"])
        means["macro_average_precision"] = _mean(by_class["average_precision"])
    true_probs = scored.probs[np.arange(len(scored)), scored.targets]
    nll = -np.log(np.maximum(true_probs, np.finfo(np.float64).tiny))
    return {
        "loss": weights @ nll / total,
        "accuracy": hits.sum(axis=1) / total,
        **means,
        "ece": _calibration_error(scored, weights, total),
        **clinical_metrics(scored, weights, confusion, min_sensitivity, with_curves=with_curves),
        **{
            f"{name}/{class_name}": values[:, c]
            for name, values in by_class.items()
            for c, class_name in enumerate(scored.class_names)
        },
    }


def _calibration_error(scored: Scored, weights: Floats, total: Floats) -> Floats:
    confidence = scored.probs.max(axis=1)
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)[1:-1]
    bins = np.eye(CALIBRATION_BINS)[np.searchsorted(edges, confidence, side="left")]  # (N, B)
    gap = (confidence - (scored.predicted == scored.targets))[:, None] * bins
    return np.asarray(np.abs(weights @ gap).sum(axis=1) / total)


def _mean(values: Floats) -> Floats:
    """Mean over the classes that a replicate has: (R, C) -> (R,)."""
    known = np.isfinite(values)
    return divided(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))
