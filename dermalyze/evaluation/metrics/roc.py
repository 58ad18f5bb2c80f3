"""ROC and precision-recall curves of many weightings at once, and the areas and points on them.

N images, R rows of weights, T thresholds.  A row of weights counts each image that often; a row of
ones gives the plain curve.  Where a row lacks the class or lacks others, results are NaN.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

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


def curves_of(scores: Floats, is_class: NDArray[np.bool_], weights: Floats) -> Curves:
    """Rank images by score: (N,), booleans (N,), weights (R, N) -> curves of R rows."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last of each tie
    drawn = weights[:, order]
    hits = np.cumsum(drawn * is_class[order], axis=1)
    false_alarms = np.cumsum(drawn, axis=1) - hits
    if len(ends) < len(scores):
        hits, false_alarms = hits[:, ends], false_alarms[:, ends]
    return Curves(hits=_from_zero(hits), false_alarms=_from_zero(false_alarms))


def area(scores: Floats, is_class: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve: (N,), booleans (N,), weights (R, N) -> (R,).

    It is the chance that an image of the class has a higher score than another image, ties
    counting a half (Hanley and McNeil, 1982).
    """
    own, others = scores[is_class], scores[~is_class]
    order = np.argsort(others, kind="stable")
    positive, negative = weights[:, is_class], weights[:, ~is_class][:, order]
    below = _from_zero(np.cumsum(negative, axis=1))  # (R, others + 1)
    left, right = (np.searchsorted(others[order], own, side) for side in ("left", "right"))
    doubled = below[:, left] + (below[:, right] if (left != right).any() else below[:, left])
    won = (doubled * positive).sum(axis=1) / 2
    return divided(won, positive.sum(axis=1) * below[:, -1])


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
    last = (curves.false_alarms <= allowed).sum(axis=1) - 1  # both ascend
    reached = np.take_along_axis(curves.hits, last[:, None], axis=1)[:, 0]
    return np.where(curves.negatives > 0, divided(reached, curves.positives), np.nan)


def specificity_at(curves: Curves, sensitivity: float) -> Floats:
    """Highest specificity of a threshold with at least this sensitivity: (R,), fractions."""
    needed = sensitivity * curves.positives[:, None] - _ROUNDING
    first = np.minimum((curves.hits < needed).sum(axis=1), curves.hits.shape[1] - 1)
    alarms = np.take_along_axis(curves.false_alarms, first[:, None], axis=1)[:, 0]
    reached = divided(curves.negatives - alarms, curves.negatives)
    return np.where(curves.positives > 0, reached, np.nan)


def divided(numerator: Floats, denominator: Floats, empty: float = np.nan) -> Floats:
    """Divide; `empty` where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    out = np.full(shape, empty)
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator > 0))


def _from_zero(sums: Floats) -> Floats:
    """Put a column of 0 in front: (R, T) -> (R, T + 1)."""
    return np.concatenate([np.zeros((len(sums), 1)), sums], axis=1)
