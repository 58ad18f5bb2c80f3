"""What medicine asks of a classifier: malignant against benign, operating points, net benefit.

N images, C classes, R rows of weights.  Malignant are akiec, bcc and mel; the score of an image is
the sum of their probabilities.  Never imports torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermalyze.evaluation.curves import (
    Curves,
    area,
    average_precision,
    curves_of,
    divided,
    partial_area,
    sensitivity_at,
    specificity_at,
)
from dermalyze.evaluation.metrics import Floats
from dermalyze.evaluation.scored import Scored
from serving.taxonomy import MALIGNANT

MIN_SENSITIVITY = 0.8  # what a screening must reach; as the ISIC 2024 challenge has it
_POINTS = (90, 95)  # percent
_THRESHOLDS = np.arange(1, 61) / 100  # beyond 0.6 nobody would wait for more certainty


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """Points of a ROC curve, from the strictest threshold to the laxest; fractions."""

    false_positive_rate: list[float]
    sensitivity: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DecisionCurve:
    """Net benefit an image over the threshold: of the model, and of calling all malignant.

    Calling none malignant has net benefit 0.
    """

    thresholds: list[float]
    model: list[float]
    all: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def clinical_metrics(
    scored: Scored,
    weights: Floats,
    confusion: Floats,
    min_sensitivity: float,
    *,
    with_curves: bool,
) -> dict[str, Floats]:
    """Compute the clinical metrics of each row of weights (R, N): name -> (R,).

    Args:
        scored: the images.
        weights: how often each counts.
        confusion: (R, C, C), true classes in rows, of the same weights.
        min_sensitivity: above which `malignant_partial_auc` looks.
        with_curves: false leaves out what takes the ROC curve.
    """
    is_malignant, score = malignant(scored)
    truth = is_malignant.astype(np.float64)
    called = weights * malignant_classes(scored)[scored.predicted]
    positives = weights @ truth
    negatives = weights.sum(axis=1) - positives
    of_curve = {}
    if with_curves:
        curves = curves_of(score, truth, weights)
        of_curve = {
            "auc": area(curves),
            "partial_auc": partial_area(curves, min_sensitivity),
            **_points(curves),
        }
    true_vectors = np.eye(len(scored.class_names))[scored.targets]  # (N, C)
    return {
        **_agreement(confusion),
        "brier": weights @ ((scored.probs - true_vectors) ** 2).sum(axis=1) / weights.sum(axis=1),
        "malignant_sensitivity": divided(called @ truth, positives),
        "malignant_specificity": divided(negatives - called @ (1 - truth), negatives),
        **{f"malignant_{name}": value for name, value in of_curve.items()},
    }


def class_metrics(curves: Curves) -> dict[str, Floats]:
    """Compute from a class's curves what is said of each class: name -> (R,)."""
    return {
        "auc": area(curves),
        "average_precision": average_precision(curves),
        **_points(curves),
    }


def malignant_classes(scored: Scored) -> NDArray[np.bool_]:
    """Say which classes are malignant: (C,)."""
    return np.array([name in MALIGNANT for name in scored.class_names])


def malignant(scored: Scored) -> tuple[NDArray[np.bool_], Floats]:
    """Return which images are malignant, (N,), and their scores, (N,) from 0 to 1."""
    classes = malignant_classes(scored)
    return classes[scored.targets], scored.probs[:, classes].sum(axis=1)


def malignant_roc(scored: Scored) -> RocCurve | None:
    """Return the ROC curve of malignant against benign; None if one of them is absent."""
    is_malignant, score = malignant(scored)
    if is_malignant.all() or not is_malignant.any():
        return None
    curves = curves_of(score, is_malignant.astype(np.float64), np.ones((1, len(scored))))
    return RocCurve(
        false_positive_rate=(curves.false_alarms[0] / curves.negatives[0]).tolist(),
        sensitivity=(curves.hits[0] / curves.positives[0]).tolist(),
    )


def decision_curve(scored: Scored) -> DecisionCurve | None:
    """Weigh finds against false alarms at each threshold; None without malignant or benign images.

    Net benefit = (true positives - false positives * t / (1 - t)) / N.  Vickers and Elkin,
    "Decision curve analysis", Medical Decision Making 26 (2006).
    """
    is_malignant, score = malignant(scored)
    if is_malignant.all() or not is_malignant.any():
        return None
    called = (score[None, :] >= _THRESHOLDS[:, None]).astype(np.float64)  # (T, N)
    odds = _THRESHOLDS / (1 - _THRESHOLDS)
    finds, alarms = called @ is_malignant, called @ ~is_malignant
    share = is_malignant.mean()
    return DecisionCurve(
        thresholds=_THRESHOLDS.tolist(),
        model=((finds - alarms * odds) / len(scored)).tolist(),
        all=(share - (1 - share) * odds).tolist(),
    )


def _points(curves: Curves) -> dict[str, Floats]:
    values = {}
    for percent in _POINTS:
        values[f"sensitivity_at_{percent}_specificity"] = sensitivity_at(curves, percent / 100)
        values[f"specificity_at_{percent}_sensitivity"] = specificity_at(curves, percent / 100)
    return values


def _agreement(confusion: Floats) -> dict[str, Floats]:
    """Cohen's kappa (1960) and Matthews' coefficient for many classes (Gorodkin 2004)."""
    truth, answers = confusion.sum(axis=2), confusion.sum(axis=1)  # (R, C)
    total = truth.sum(axis=1)
    hits = np.trace(confusion, axis1=1, axis2=2)
    by_chance = (truth * answers).sum(axis=1)
    kappa = divided(total * hits - by_chance, total**2 - by_chance)
    spread = (total**2 - (truth**2).sum(axis=1)) * (total**2 - (answers**2).sum(axis=1))
    # One answer for everything is worth nothing, as scikit-learn has it.
    mcc = divided(total * hits - by_chance, np.sqrt(spread), empty=0.0)
    return {"cohen_kappa": kappa, "mcc": mcc}
