"""Answering only where the confidence is high enough.  N images, C classes."""

import numpy as np
from scipy.stats import beta

from dermalyze.evaluation.metrics import Counts, Floats
from serving.limits import Abstention

RISK = 0.1  # stated by default: share of wrong answers among those given
_CONFIDENCE = 0.95
_NEVER = 1.01


def fit_abstention(
    probs: Floats, targets: Counts, lesions: Counts, *, risk: float = RISK
) -> Abstention:
    """Find the lowest confidence from which on answers keep to a risk."""
    counts = np.bincount(lesions)
    weights = 1 / counts[lesions]
    confidence = probs.max(axis=1)
    wrong = probs.argmax(axis=1) != targets
    found, answered = _NEVER, 0.0
    for threshold in np.linspace(0.99, 0.2, 80):
        given = confidence >= threshold
        total, errors = weights[given].sum(), (weights * wrong)[given].sum()
        if total < 1:
            continue
        if beta.ppf(_CONFIDENCE, errors + 1, max(total - errors, 1e-9)) > risk:
            if found == _NEVER:
                continue
            break
        found, answered = float(threshold), float(total)
    return Abstention(
        risk=risk,
        min_confidence=found,
        coverage=answered / len(counts),
        num_lesions=len(counts),
    )
