"""From which malignant probability on a lesion is to be referred.  N images."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from dermalyze.evaluation.metrics.classification import Counts, Floats
from dermalyze.evaluation.uncertainty.out_of_distribution import lesion_shares
from serving.uncertainty import LEVELS, Referral

CONFIDENCE = 0.95  # with which a sensitivity is shown on validation lesions
_DIGITS = 6  # of a share; rounded, shares of the same sum stay in order


def fit_referral(malignancy: Floats, is_malignant: NDArray[np.bool_], lesions: Counts) -> Referral:
    """Find for each sensitivity the highest threshold that keeps it.

    A malignant lesion is found if each of its photographs is flagged: then so is the mean of any of
    them.  The threshold is the largest order statistic of the lesions' lowest probabilities for
    which the exact one-sided bound (Clopper & Pearson, 1934) of the share of missed lesions is
    within what the sensitivity allows.  Of an order statistic that bound is exact although the same
    lesions choose the threshold: it is the tolerance limit of Wilks, "Determination of sample sizes
    for setting tolerance limits" (1941).

    Args:
        malignancy: calibrated probability of the malignant classes together, (N,).
        is_malignant: (N,).
        lesions: (N,), numbers from 0.
    """
    found, numbers = np.unique(lesions[is_malignant], return_inverse=True)
    worst = np.full(len(found), np.inf)
    np.minimum.at(worst, numbers, malignancy[is_malignant])
    worst.sort()
    _, benign = np.unique(lesions[~is_malignant], return_inverse=True)
    shares = lesion_shares(benign) if len(benign) else np.zeros(0)
    missed = np.arange(len(found))
    bounds = beta.ppf(CONFIDENCE, missed + 1, len(found) - missed)  # of the share of the missed
    levels, min_probs, specificities = [], [], []
    for level in LEVELS:
        allowed = int((bounds <= 1 - level + 1e-12).sum())  # lesions missed, and one more
        if allowed and len(benign):
            lowest = min(1.0, float(worst[allowed - 1]))
            below = malignancy[~is_malignant] < lowest
            levels.append(level)
            min_probs.append(lowest)
            specificities.append(min(1.0, round(float(shares @ below), _DIGITS)))
    return Referral(
        levels=tuple(levels),
        min_probs=tuple(min_probs),
        specificities=tuple(specificities),
        confidence=CONFIDENCE,
        num_malignant=len(found),
        num_benign=len(np.unique(benign)),
    )
