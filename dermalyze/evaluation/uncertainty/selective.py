"""Answering only where the confidence is high enough: what it costs and what it gains.

Every lesion counts once, shared by those of its images that are answered.  N images, C classes, R
replicates.  Never imports torch.
"""

from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from scipy.stats import beta

from dermalyze.evaluation.metrics.classification import Counts, Floats
from serving.uncertainty import Abstention

RISK = 0.1  # stated: share of wrong answers among those given
CONFIDENCE = 0.95  # with which the stated risk is shown on validation lesions
_STARTS = (0.2, 0.4, 0.6, 0.8)  # shares of the lesions that are answered
_MIN_LESIONS = 50  # answered; a threshold that leaves fewer is no start
_THRESHOLDS = np.round(np.arange(0.99, 0.195, -0.01), 2)
_NEVER = 1.01  # a confidence that no answer has


@dataclass(frozen=True)
class _Step:
    """What answering from a threshold on comes to."""

    threshold: float
    answered: int  # lesions
    loss: float  # their summed shares of wrong answers

    @classmethod
    def of(cls, threshold: float, probs: Floats, targets: Counts, lesions: Counts) -> "_Step":
        given = probs.max(axis=1) >= threshold
        wrong = (probs.argmax(axis=1) != targets)[given].astype(np.float64)
        images = np.bincount(lesions[given])
        errors = np.bincount(lesions[given], wrong)
        answered = images > 0
        return cls(
            float(threshold),
            int(answered.sum()),
            float((errors[answered] / images[answered]).sum()),
        )

    def bound(self, chance: float) -> float:
        """Return what the risk exceeds with no more than this chance."""
        if self.loss >= self.answered:
            return 1.0
        return float(beta.ppf(1 - chance, self.loss + 1, self.answered - self.loss))


@dataclass(frozen=True)
class RiskCoverage:
    """Risk among the most confident answers, for each share of them."""

    coverage: list[float]  # (N,), ascending to 1
    risk: list[float]  # (N,)


def fit_abstention(
    probs: Floats, targets: Counts, lesions: Counts, *, risk: float = RISK
) -> Abstention:
    """Find the lowest confidence from which on answers keep to a risk.

    From each of four starting points thresholds are tried downwards until the first at which the
    exact binomial bound (Clopper & Pearson, 1934) exceeds the risk: fixed-sequence testing from
    several starts, which share the chance of error, so that the risk is exceeded with a chance of
    at most 1 - `CONFIDENCE` (Angelopoulos et al., "Learn then test", 2021, section 3.2; the bound
    is that of Geifman & El-Yaniv, "Selective classification for deep neural networks", 2017).  A
    start is where a share of the lesions is answered, which no label decides.  A lesion's loss is
    the share of its answered images that are wrong; the binomial is the widest distribution that a
    sum of such losses can have, so the bound errs on the safe side.

    Args:
        probs: calibrated, (N, C).
        targets: (N,).
        lesions: (N,), numbers from 0.
        risk: stated, a fraction.
    """
    steps = [_Step.of(threshold, probs, targets, lesions) for threshold in _THRESHOLDS]
    num_lesions = int(lesions.max()) + 1
    chance = (1 - CONFIDENCE) / len(_STARTS)
    kept: list[_Step] = []
    for share in _STARTS:
        wanted = max(share * num_lesions, _MIN_LESIONS)
        start = next((i for i, step in enumerate(steps) if step.answered >= wanted), len(steps))
        kept += takewhile(lambda step: step.bound(chance) <= risk, steps[start:])
    lowest = min(kept, key=lambda step: step.threshold, default=None)
    return Abstention(
        risk=risk,
        min_confidence=_NEVER if lowest is None else lowest.threshold,
        coverage=0.0 if lowest is None else lowest.answered / num_lesions,
        num_lesions=num_lesions,
    )


def risk_coverage(probs: Floats, targets: Counts, lesions: Counts) -> RiskCoverage:
    """Return the curve of El-Yaniv & Wiener, "On the foundations of noise-free selective
    classification" (2010), section 2, each lesion with weight 1.
    """
    order, wrong = _ordered(probs, targets)
    weights = (1 / np.bincount(lesions)[lesions])[order]
    total = np.cumsum(weights)
    return RiskCoverage((total / total[-1]).tolist(), (np.cumsum(weights * wrong) / total).tolist())


def area_under(probs: Floats, targets: Counts, weights: Floats) -> Floats:
    """Return the area under risk over coverage, weights (R, N) of the images: (R,).

    The mean risk over all coverages (Geifman et al., "Bias-reduced uncertainty estimation for deep
    neural classifiers", 2019, section 2); of an oracle it is the lowest that the accuracy allows.
    """
    order, wrong = _ordered(probs, targets)
    areas = []
    for row in weights:  # a replicate at a time: (R, N) twice over would be large
        own = row[order]
        total = np.cumsum(own)
        risk = np.divide(np.cumsum(own * wrong), total, out=np.zeros(len(own)), where=total > 0)
        areas.append(float((own * risk).sum() / total[-1]))
    return np.array(areas)


def _ordered(probs: Floats, targets: Counts) -> tuple[Counts, Floats]:
    """Return the images from the most to the least confident, and which of them are wrong."""
    order = np.argsort(-probs.max(axis=1), kind="stable")
    wrong = (probs.argmax(axis=1) != targets)[order].astype(np.float64)
    return order.astype(np.int64), wrong
