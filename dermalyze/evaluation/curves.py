"""ROC and precision-recall curves of many weightings at once, and the areas and points on them.

N images, R rows of weights, T thresholds.  A row of weights counts each image that often; a row of
ones gives the plain curve.  Where a row lacks the class or lacks others, results are NaN.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermalyze.evaluation.metrics import Floats

_ROUNDING = 1e-9  # of a count of images, which comes from sums and products of floats


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What is called positive from the strictest threshold to the laxest, a curve a row.

    Images of equal score pass a threshold together.
    """

    hits: Floats  # (R, T + 1), positives above the threshold; the first column is 0
    false_alarms: Floats  # (R, T + 1), others above the threshold; the first column is 0

    @property
    def positives(self) -> Floats:
        """All of the class: (R,)."""
        return self.hits[:, -1]

    @property
    def negatives(self) -> Floats:
        """All others: (R,)."""
        return self.false_alarms[:, -1]


def curves_of(scores: Floats, is_class: Floats, weights: Floats) -> Curves:
    """Rank images by score: (N,), 0 or 1 (N,), weights (R, N) -> curves of R rows."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    drawn, positive = weights[:, order], is_class[order]
    of_class = drawn * positive
    return Curves(hits=_passed(of_class, starts), false_alarms=_passed(drawn - of_class, starts))


def area(curves: Curves) -> Floats:
    """Area under the ROC curve, (R,): ties count a half.  Hanley and McNeil (1982)."""
    steps = np.diff(curves.false_alarms, axis=1)
    below = (steps * (curves.hits[:, 1:] + curves.hits[:, :-1])).sum(axis=1) / 2
    return divided(below, curves.positives * curves.negatives)


def partial_area(curves: Curves, min_sensitivity: float) -> Floats:
    """Mean specificity over the sensitivities from `min_sensitivity` to 1: (R,), 0 to 1.

    It is the area right of the ROC curve and above that sensitivity, divided by its largest value:
    the partial area index of Jiang, Metz and Nishikawa, Radiology 201 (1996).  Guessing gives
    (1 - min_sensitivity) / 2.
    """
    height = divided(curves.hits, curves.positives[:, None])
    width = divided(curves.false_alarms, curves.negatives[:, None])
    low, high = height[:, :-1], height[:, 1:]
    start = np.maximum(low, min_sensitivity)
    share = divided(start - low, high - low, empty=0.0)  # of the segment that lies too low
    entry = width[:, :-1] + share * (width[:, 1:] - width[:, :-1])
    strips = np.maximum(high - start, 0.0) * (1 - (entry + width[:, 1:]) / 2)
    return np.asarray(strips.sum(axis=1) / (1 - min_sensitivity))


def average_precision(curves: Curves) -> Floats:
    """Precision averaged over the steps of sensitivity, not interpolated: (R,)."""
    hits, found = curves.hits[:, 1:], curves.hits[:, 1:] + curves.false_alarms[:, 1:]
    steps = np.diff(curves.hits, axis=1)
    return divided((steps * divided(hits, found, empty=0.0)).sum(axis=1), curves.positives)


def sensitivity_at(curves: Curves, specificity: float) -> Floats:
    """Highest sensitivity of a threshold with at least this specificity: (R,), fractions."""
    allowed = (1 - specificity) * curves.negatives[:, None] + _ROUNDING
    reached = np.where(curves.false_alarms <= allowed, curves.hits, 0.0).max(axis=1)
    return np.where(curves.negatives > 0, divided(reached, curves.positives), np.nan)


def specificity_at(curves: Curves, sensitivity: float) -> Floats:
    """Highest specificity of a threshold with at least this sensitivity: (R,), fractions."""
    needed = sensitivity * curves.positives[:, None] - _ROUNDING
    alarms = np.where(curves.hits >= needed, curves.false_alarms, np.inf).min(axis=1)
    reached = divided(curves.negatives - alarms, curves.negatives)
    return np.where(curves.positives > 0, reached, np.nan)


def divided(numerator: Floats, denominator: Floats, empty: float = np.nan) -> Floats:
    """Divide; `empty` where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    out = np.full(shape, empty)
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator > 0))


def _passed(weights: Floats, starts: NDArray[np.intp]) -> Floats:
    """Sum sorted weights (R, N) up to the end of each group of ties: (R, T + 1)."""
    sums = np.cumsum(np.add.reduceat(weights, starts, axis=1), axis=1)
    return np.concatenate([np.zeros((len(weights), 1)), sums], axis=1)
