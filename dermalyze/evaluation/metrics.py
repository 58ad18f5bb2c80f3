"""What a set of logits is worth: accuracy, precision, sensitivity, F1, AUC, calibration.

N images, C classes, B bins.  Everything follows from logits `(N, C)` and targets `(N,)`; all of a
split is scored at once, because means over batches are other numbers.  Never imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from serving.errors import DataError
from serving.prediction import softmax

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
CALIBRATION_BINS = 15  # as Guo et al., "On Calibration of Modern Neural Networks" (2017)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBins:
    """Confidence against accuracy, bin by bin; a bin without images has NaN in both means.

    A bin holds the confidences above its lower edge and up to its upper edge; 0 is in the first.
    """

    edges: Floats  # (B + 1,), from 0 to 1
    confidence: Floats  # (B,), mean of the bin, fraction
    accuracy: Floats  # (B,), fraction
    count: Counts  # (B,), images


def score(
    logits: NDArray[np.floating], targets: Counts, class_names: Sequence[str]
) -> dict[str, float]:
    """Score logits (N, C) against targets (N,): every metric by its name, without the split.

    `loss` is the mean negative log-likelihood in nats, unweighted, whatever was trained with.
    The means `macro_...` run over the classes that occur in `targets`, so `macro_recall` is
    `balanced_accuracy`; the means `weighted_...` weigh them by their images.  `macro_auc` runs
    over the classes that occur and do not fill the split.  A class that is never predicted has
    precision 0.  What cannot be had is left out: a class without images has `support/...` alone.

    Raises:
        DataError: there is no image, or a logit is not a finite number.
    """
    probs = softmax(check_logits(logits, targets, class_names))  # (N, C)
    predicted = logits.argmax(axis=1)
    confusion = confusion_matrix(targets, predicted, len(class_names))
    support = confusion.sum(axis=1)  # (C,)
    hits = confusion.diagonal()
    precision = _ratio(hits, confusion.sum(axis=0))
    recall = _ratio(hits, support)
    f1 = _ratio(2 * hits, support + confusion.sum(axis=0))
    auc = one_vs_rest_auc(probs, targets)
    occurs = support > 0
    metrics = {
        "loss": _negative_log_likelihood(logits, targets),
        "accuracy": float(hits.sum() / len(targets)),
        "balanced_accuracy": float(recall[occurs].mean()),
    }
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[f"macro_{name}"] = float(values[occurs].mean())
        metrics[f"weighted_{name}"] = float((values * support).sum() / len(targets))
    if np.isfinite(auc).any():
        metrics["macro_auc"] = float(np.nanmean(auc))
    metrics["ece"] = expected_calibration_error(probs.max(axis=1), predicted == targets)
    for index, name in enumerate(class_names):
        if occurs[index]:
            metrics[f"precision/{name}"] = float(precision[index])
            metrics[f"recall/{name}"] = float(recall[index])
            metrics[f"f1/{name}"] = float(f1[index])
        if np.isfinite(auc[index]):
            metrics[f"auc/{name}"] = float(auc[index])
        metrics[f"support/{name}"] = float(support[index])
    return metrics


def check_logits(
    logits: NDArray[np.floating], targets: Counts, class_names: Sequence[str]
) -> NDArray[np.floating]:
    """Return `logits` if they can be scored.

    Raises:
        DataError: there is no image, or a logit is not a finite number.
    """
    if logits.shape != (len(targets), len(class_names)):  # a bug: broadcasting would hide it
        raise ValueError(
            f"logits {logits.shape} do not fit {len(targets)} targets, {len(class_names)} classes"
        )
    if len(targets) == 0:
        raise DataError("there is no image to score; expected at least one in the split")
    if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise DataError(
            f"the logits of {bad:,} of {len(targets):,} images are not finite numbers; "
            "train again with a lower training.lr or with training.use_amp=false"
        )
    return logits


def confusion_matrix(targets: Counts, predicted: Counts, num_classes: int) -> Counts:
    """Count images: (N,), (N,) -> int64 (C, C), true classes in rows, predicted in columns."""
    cells = np.bincount(targets * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def normalized_confusion_matrix(confusion: Counts) -> Floats:
    """Divide each row by its images: (C, C) -> fractions (C, C); empty rows stay 0."""
    return _ratio(confusion, confusion.sum(axis=1, keepdims=True))


def one_vs_rest_auc(probs: Floats, targets: Counts) -> Floats:
    """Area under each class's ROC curve: (N, C), (N,) -> (C,).

    It is the chance that an image of the class has a higher probability for it than another
    image, ties counting a half; NaN for a class that does not occur or fills the split.
    """
    is_class = targets[:, None] == np.arange(probs.shape[1])  # (N, C)
    positive = is_class.sum(axis=0).astype(np.float64)
    negative = len(targets) - positive
    rank_sum = (rankdata(probs, axis=0) * is_class).sum(axis=0)  # ties share their mean rank
    area = rank_sum - positive * (positive + 1) / 2
    pairs = positive * negative
    auc: Floats = np.full(probs.shape[1], np.nan)
    np.divide(area, pairs, out=auc, where=pairs > 0)
    return auc


def reliability_bins(
    confidences: Floats, correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> ReliabilityBins:
    """Sort images into bins of equal width by confidence; fractions (N,) and booleans (N,)."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Only the inner edges: 0 and 1 belong to the outer bins, and no image is lost.
    index = np.searchsorted(edges[1:-1], confidences, side="left")
    count = np.bincount(index, minlength=bins)
    means = [
        np.divide(
            np.bincount(index, weights=values, minlength=bins),
            count,
            out=np.full(bins, np.nan),
            where=count > 0,
        )
        for values in (confidences, correct)
    ]
    return ReliabilityBins(edges=edges, confidence=means[0], accuracy=means[1], count=count)


def expected_calibration_error(
    confidences: Floats, correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance of confidence and accuracy over the bins, weighted by images; a fraction."""
    table = reliability_bins(confidences, correct, bins)
    filled = table.count > 0
    distance = np.abs(table.confidence[filled] - table.accuracy[filled])
    return float((distance * table.count[filled]).sum() / table.count.sum())


def _shifted(logits: NDArray[np.floating]) -> Floats:
    """Put the largest logit of each row at 0, in float64, so that nothing overflows."""
    exact = logits.astype(np.float64)
    return np.asarray(exact - exact.max(axis=1, keepdims=True))


def _negative_log_likelihood(logits: NDArray[np.floating], targets: Counts) -> float:
    shifted = _shifted(logits)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sums - shifted[np.arange(len(targets)), targets]).mean())


def _ratio(numerator: Counts, denominator: Counts) -> Floats:
    """Divide counts; nothing by nothing is 0, as scikit-learn's `zero_division=0`."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.zeros(shape), where=denominator > 0)
