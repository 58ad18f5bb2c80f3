"""How often answers are right, estimated from their probabilities alone: no label is needed.

If a model says 0.8 and is calibrated, 80 % of such answers are right, whatever the images.  It is
the confidence-based performance estimation of Kull and others that NannyML has published
(https://nannyml.readthedocs.io, "CBPE").  N answers, C classes, R replicates.  Never imports torch.
"""

from dataclasses import dataclass

import numpy as np

from dermalyze.evaluation.metrics.classification import Floats
from dermalyze.evaluation.statistics.bootstrap import LEVEL, Interval

_REPLICATES = 500
_MIN_ANSWERS = 30
_MIN_EXPECTED = 5.0  # answers that belong to a class, for it to count in the mean over classes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What would be measured if all diagnoses were known, should the model be calibrated."""

    num_answers: int
    accuracy: Interval
    balanced_accuracy: Interval
    classes: tuple[int, ...]  # those that are expected often enough to be in the mean
    confusion: list[list[float]]  # (C, C), expected number of answers: true class, predicted class


def estimate_performance(probs: Floats, *, seed: int = 0) -> Estimate | None:
    """Estimate from calibrated probabilities (N, C); None: there are too few.

    The intervals hold what is measured on these very answers in 95 % of all cases: in each
    replicate the true classes are drawn from the probabilities.
    """
    num_answers, num_classes = probs.shape
    if num_answers < _MIN_ANSWERS:
        return None
    predicted = probs.argmax(axis=1)
    confusion = np.zeros((num_classes, num_classes))
    np.add.at(confusion.T, predicted, probs)
    classes = np.flatnonzero(confusion.sum(axis=1) >= _MIN_EXPECTED)
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(probs, axis=1)[:, :-1]
    accuracy, balanced = np.empty(_REPLICATES), np.empty(_REPLICATES)
    for i in range(_REPLICATES):
        true = (rng.random((num_answers, 1)) > bounds).sum(axis=1)
        right = true == predicted
        counts = np.bincount(true, minlength=num_classes)[classes]
        hits = np.bincount(true[right], minlength=num_classes)[classes]
        accuracy[i] = right.mean()
        balanced[i] = np.mean(hits[counts > 0] / counts[counts > 0])
    tail = (1 - LEVEL) / 2

    def interval(values: Floats) -> Interval:
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(estimate=float(values.mean()), low=float(low), high=float(high))

    return Estimate(
        num_answers=num_answers,
        accuracy=interval(accuracy),
        balanced_accuracy=interval(balanced),
        classes=tuple(classes.tolist()),
        confusion=confusion.tolist(),
    )
