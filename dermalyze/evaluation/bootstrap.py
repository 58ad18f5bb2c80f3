"""95 % intervals by resampling lesions: images of one lesion are not independent.

N images, C classes, L lesions, R replicates.  A replicate draws L lesions with replacement, so an
image counts as often as its lesion was drawn; every metric is computed for all replicates at once
from these weights.  Davison and Hinkley, "Bootstrap Methods and their Application" (1997), 3.8.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dermalyze.evaluation.metrics import CALIBRATION_BINS, Counts, Floats
from dermalyze.evaluation.scored import Scored

REPLICATES = 2000
LEVEL = 0.95
MIN_LESIONS = 10  # fewer say nothing about how the next lesions would do
_CHUNK = 250  # replicates at once; bounds memory


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and how far it may be trusted; without bounds where they cannot be had."""

    estimate: float
    low: float | None
    high: float | None
    reason: str = ""  # why there are no bounds


def intervals(
    scored: Scored, *, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Interval]:
    """Return every metric of `replicated` with its interval, by name."""
    once = replicated(scored, np.ones((1, len(scored))))
    drawn = replicated(scored, lesion_weights(scored.lesions, replicates, seed))
    return {
        name: interval_of(float(value[0]), drawn[name], lesions_behind(scored, name))
        for name, value in once.items()
        if np.isfinite(value[0])
    }


def lesion_weights(lesions: Counts, replicates: int, seed: int) -> Floats:
    """Draw lesions with replacement: numbers (N,) -> how often each image counts, (R, N)."""
    num_lesions = int(lesions.max()) + 1
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_lesions, np.full(num_lesions, 1 / num_lesions), size=replicates)
    return counts[:, lesions].astype(np.float64)


def interval_of(
    estimate: float, values: Floats, num_lesions: int, level: float = LEVEL
) -> Interval:
    """Take the bounds from the replicates' quantiles; (R,), NaN where a replicate has no value."""
    if num_lesions < MIN_LESIONS:
        reason = f"rests on {num_lesions} lesions, fewer than {MIN_LESIONS}"
        return Interval(estimate=estimate, low=None, high=None, reason=reason)
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high))


def lesions_behind(scored: Scored, name: str) -> int:
    """Say how many lesions a metric rests on: those of its class, or of the rarest class."""
    per_class = [
        len(np.unique(scored.lesions[scored.targets == target]))
        for target in range(len(scored.class_names))
    ]
    _, _, class_name = name.partition("/")
    if class_name in scored.class_names:
        return per_class[scored.class_names.index(class_name)]
    return scored.num_lesions


def replicated(scored: Scored, weights: Floats) -> Mapping[str, Floats]:
    """Compute the metrics of `metrics.score` for each row of weights (R, N): name -> (R,).

    A metric that a replicate has not, such as the AUC of a class that was not drawn, is NaN there;
    means over classes run over those that it has.
    """
    parts = [
        _replicated(scored, weights[start : start + _CHUNK])
        for start in range(0, len(weights), _CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def weighted_auc(probs: Floats, is_class: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve of each row of weights: (N,), 0 or 1 (N,), (R, N) -> (R,)."""
    order = np.argsort(probs, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(probs[order]) != 0))
    drawn, positive = weights[:, order], is_class[order]
    hits = np.add.reduceat(drawn * positive, starts, axis=1)
    others = np.add.reduceat(drawn * (1 - positive), starts, axis=1)
    below = np.cumsum(others, axis=1) - others / 2  # ties count a half
    return _divided((hits * below).sum(axis=1), hits.sum(axis=1) * others.sum(axis=1))


def _replicated(scored: Scored, weights: Floats) -> dict[str, Floats]:
    num_classes = len(scored.class_names)
    cells = np.eye(num_classes**2)[scored.targets * num_classes + scored.predicted]
    confusion = (weights @ cells).reshape(-1, num_classes, num_classes)  # (R, C, C)
    total = weights.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    support, claimed = confusion.sum(axis=2), confusion.sum(axis=1)
    recall = _divided(hits, support)
    precision = np.where(support > 0, _divided(hits, claimed, empty=0.0), np.nan)
    f1 = np.where(support > 0, _divided(2 * hits, support + claimed, empty=0.0), np.nan)
    is_class = np.eye(num_classes)[scored.targets]  # (N, C)
    auc = np.stack(
        [weighted_auc(scored.probs[:, c], is_class[:, c], weights) for c in range(num_classes)],
        axis=1,
    )
    true_probs = scored.probs[np.arange(len(scored)), scored.targets]
    nll = -np.log(np.maximum(true_probs, np.finfo(np.float64).tiny))
    values = {
        "loss": weights @ nll / total,
        "accuracy": hits.sum(axis=1) / total,
        "balanced_accuracy": _mean(recall),
        "macro_precision": _mean(precision),
        "macro_f1": _mean(f1),
        "macro_auc": _mean(auc),
        "ece": _calibration_error(scored, weights, total),
    }
    for name, matrix in (("precision", precision), ("recall", recall), ("f1", f1), ("auc", auc)):
        for c, class_name in enumerate(scored.class_names):
            values[f"{name}/{class_name}"] = matrix[:, c]
    return values


def _calibration_error(scored: Scored, weights: Floats, total: Floats) -> Floats:
    confidence = scored.probs.max(axis=1)
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)[1:-1]
    bins = np.eye(CALIBRATION_BINS)[np.searchsorted(edges, confidence, side="left")]  # (N, B)
    gap = (confidence - (scored.predicted == scored.targets))[:, None] * bins
    return np.asarray(np.abs(weights @ gap).sum(axis=1) / total)


def _divided(numerator: Floats, denominator: Floats, empty: float = np.nan) -> Floats:
    out = np.full(numerator.shape, empty)
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator > 0))


def _mean(values: Floats) -> Floats:
    """Mean over the classes that a replicate has: (R, C) -> (R,)."""
    known = np.isfinite(values)
    return _divided(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))
