"""What probabilities are worth: likelihood, Brier score and its parts, calibration errors.

N images, C classes, B bins.  Never imports torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from dermalyze.evaluation.metrics.classification import (
    CALIBRATION_BINS,
    Counts,
    Floats,
    calibration_error,
    negative_log_likelihoods,
    reliability_bins,
    squared_errors,
)
from serving.prediction import softmax


@dataclass(frozen=True, kw_only=True)
class CalibrationErrors:
    """How far probabilities are from what happens; lower is better but for `resolution`.

    `brier` is `reliability - resolution + uncertainty`, exactly; `brier_parts` says how.
    """

    nll: float  # nats an image
    brier: float  # 0 to 2
    reliability: float  # what wrong probabilities cost
    resolution: float  # what telling images apart gains
    uncertainty: float  # what naming the class shares for every image costs
    ece: float  # fraction, as the ones below
    adaptive_ece: float
    classwise_ece: float


def calibration_errors(logits: NDArray[np.floating], targets: Counts) -> CalibrationErrors:
    """Judge the probabilities that logits (N, C) stand for against targets (N,); N > 0.

    The Brier score sums the squared errors of all classes (Brier, "Verification of Forecasts
    Expressed in Terms of Probability", 1950), so it is 0 at best and 2 at worst.
    """
    probs = softmax(logits)
    confidence, correct = probs.max(axis=1), logits.argmax(axis=1) == targets
    reliability, resolution, uncertainty = brier_parts(probs, targets)
    return CalibrationErrors(
        nll=float(negative_log_likelihoods(logits, targets).mean()),
        brier=float(squared_errors(probs, targets).mean()),
        reliability=reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        ece=expected_calibration_error(confidence, correct),
        adaptive_ece=adaptive_calibration_error(confidence, correct),
        classwise_ece=classwise_calibration_error(probs, targets),
    )


def expected_calibration_error(
    confidences: Floats, correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance of confidence and accuracy over bins of equal width; a fraction."""
    return float(calibration_error(confidences, correct, np.ones((1, len(correct))), bins)[0])


def brier_parts(
    probs: Floats, targets: Counts, bins: int = CALIBRATION_BINS
) -> tuple[float, float, float]:
    """Take the Brier score apart: (N, C), (N,) -> reliability, resolution, uncertainty.

    Each class is judged against the rest in bins of equal width of its probability, and the parts
    are summed over the classes (Murphy, "A New Vector Partition of the Probability Score", 1973).
    Murphy's parts add up only if the probabilities of a bin are equal, so the resolution here is
    the generalized one of Stephenson et al., "Two Extra Components in the Brier Score
    Decomposition" (2008): less the variance within bins, plus twice the covariance with what
    happened.  With it, `reliability - resolution + uncertainty` is the Brier score.
    """
    reliability = resolution = uncertainty = 0.0
    for target in range(probs.shape[1]):
        prob, happened = probs[:, target], targets == target  # (N,), (N,)
        table = reliability_bins(prob, happened, bins)
        filled = table.count > 0
        share = table.count[filled] / len(targets)
        mean, frequency = table.confidence[filled], table.accuracy[filled]
        overall = happened.mean()
        variance = (prob**2).mean() - share @ mean**2
        covariance = (prob * happened).mean() - share @ (mean * frequency)
        reliability += float(share @ (mean - frequency) ** 2)
        resolution += float(share @ (frequency - overall) ** 2 - variance + 2 * covariance)
        uncertainty += float(overall * (1 - overall))
    return reliability, resolution, uncertainty


def adaptive_calibration_error(
    confidences: Floats, correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance of confidence and accuracy over bins of equal numbers of images; a fraction.

    The bins are those of Nixon et al., "Measuring Calibration in Deep Learning" (2019); like the
    plain error, and unlike theirs, it is about the predicted class.  Images of equal confidence
    share a bin, the lowest that any of them would have, so their order makes no difference.
    """
    lower = rankdata(confidences, method="min").astype(np.int64) - 1  # how many are below
    index = lower * bins // len(confidences)
    gaps = np.bincount(index, weights=confidences - correct)
    return float(np.abs(gaps).sum() / len(confidences))


def classwise_calibration_error(
    probs: Floats, targets: Counts, bins: int = CALIBRATION_BINS
) -> float:
    """Mean over the classes of the calibration error of a class's probability; a fraction.

    (N, C), (N,).  Kull et al., "Beyond temperature scaling" (2019): bins of equal width,
    in each the mean probability against the share of images that are of the class.  A class that
    does not occur counts as well.
    """
    errors = [
        expected_calibration_error(probs[:, target], targets == target, bins)
        for target in range(probs.shape[1])
    ]
    return float(np.mean(errors))
