"""Malignant against benign over all thresholds: the ROC curve and net benefit.

N images.  The score of an image is the sum of its malignant classes' probabilities.  Never imports
torch.
"""

from dataclasses import dataclass

import numpy as np

from dermalyze.evaluation.metrics.classification import Answers
from dermalyze.evaluation.metrics.roc import curves_of

_THRESHOLDS = np.arange(1, 61) / 100  # beyond 0.6 nobody would wait for more certainty


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """Points of a ROC curve, from the strictest threshold to the laxest; fractions."""

    false_positive_rate: list[float]
    sensitivity: list[float]


@dataclass(frozen=True, kw_only=True)
class DecisionCurve:
    """Net benefit per image over the threshold: of the model, and of calling all malignant.

    Calling none malignant has net benefit 0.
    """

    thresholds: list[float]
    model: list[float]
    all: list[float]


def malignant_roc(scored: Answers) -> RocCurve | None:
    """Return the ROC curve of malignant against benign; None if one of them is absent."""
    is_malignant = scored.is_malignant
    if is_malignant.all() or not is_malignant.any():
        return None
    curves = curves_of(scored.malignancy, is_malignant, np.ones((1, len(scored))))
    return RocCurve(
        false_positive_rate=(curves.false_alarms[0] / curves.negatives[0]).tolist(),
        sensitivity=(curves.hits[0] / curves.positives[0]).tolist(),
    )


def decision_curve(scored: Answers) -> DecisionCurve | None:
    """Weigh finds against false alarms at each threshold; None without malignant or benign images.

    Net benefit = (true positives - false positives * t / (1 - t)) / N.  Vickers and Elkin,
    "Decision curve analysis", Medical Decision Making 26 (2006).
    """
    is_malignant = scored.is_malignant
    if is_malignant.all() or not is_malignant.any():
        return None
    called = (scored.malignancy[None, :] >= _THRESHOLDS[:, None]).astype(np.float64)  # (T, N)
    odds = _THRESHOLDS / (1 - _THRESHOLDS)
    finds, alarms = called @ is_malignant, called @ ~is_malignant
    share = is_malignant.mean()
    return DecisionCurve(
        thresholds=_THRESHOLDS.tolist(),
        model=((finds - alarms * odds) / len(scored)).tolist(),
        all=(share - (1 - share) * odds).tolist(),
    )
