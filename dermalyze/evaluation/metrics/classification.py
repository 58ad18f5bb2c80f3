"""What answers are worth: every metric, once, for one set of images or for many drawings of them.

N images, C classes, R rows of weights, B bins.  A row of weights says how often each image counts;
a row of ones gives the plain metric.  All of a split is scored at once, because means over batches
are other numbers.  Never imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dermalyze.evaluation.metrics.roc import (
    Curves,
    area,
    average_precision,
    curves_of,
    divided,
    partial_area,
    sensitivity_at,
    specificity_at,
)
from dermalyze.evaluation.metrics.roc import Floats as Floats
from serving.errors import DataError
from serving.prediction import softmax
from serving.taxonomy import Taxonomy

Counts = NDArray[np.int64]
CALIBRATION_BINS = 15  # as Guo et al., "On Calibration of Modern Neural Networks" (2017)
MIN_SENSITIVITY = 0.8  # what a screening must reach; as the ISIC 2024 challenge has it
OF_CLASSES = ("precision", "recall", "f1")
SCORED = (  # what `score` gives, before the slash
    *("loss", "balanced_loss", "accuracy", "balanced_accuracy", "macro_precision", "macro_recall"),
    *("macro_f1", "macro_auc", "ece", *OF_CLASSES, "auc"),
)
_POINTS = (90, 95)  # percent
_CHUNK = 250  # replicates at once; bounds memory


@dataclass(frozen=True)
class Answers:
    """The logits of N images and what is true of them."""

    logits: NDArray[np.floating]  # (N, C)
    targets: Counts  # (N,), class indices
    taxonomy: Taxonomy

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.taxonomy.names

    @cached_property
    def probs(self) -> Floats:
        """Softmax of the logits: (N, C), rows sum to 1."""
        return softmax(self.logits)

    @cached_property
    def predicted(self) -> Counts:
        """The class of the largest logit: int64 (N,)."""
        return np.asarray(self.logits.argmax(axis=1), np.int64)

    @cached_property
    def malignant(self) -> NDArray[np.bool_]:
        """Which classes are malignant: (C,); none where nothing is known of malignancy."""
        return np.array([name in self.taxonomy.malignant for name in self.class_names])

    @property
    def is_malignant(self) -> NDArray[np.bool_]:
        """Which images are malignant: (N,)."""
        return self.malignant[self.targets]

    @property
    def malignancy(self) -> Floats:
        """The sum of the malignant classes' probabilities: (N,), 0 to 1."""
        return np.asarray(self.probs[:, self.malignant].sum(axis=1))


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
    """Score logits (N, C) against targets (N,): the metrics of an epoch, without the split.

    `loss` is the mean negative log-likelihood in nats, unweighted, whatever was trained with;
    `balanced_loss` is the mean over the classes of their mean losses.  The means `macro_...` run
    over the classes that occur in `targets`, so `macro_recall` is `balanced_accuracy`; the means
    `weighted_...` weigh them by their images.  `macro_auc` runs over the classes that occur and
    do not fill the split.  A class that is never predicted has precision 0.  What is not defined
    is left out: a class without images has `support/...` alone.

    Raises:
        DataError: there is no image, or a logit is not a finite number.
    """
    taxonomy = Taxonomy(names=tuple(class_names))
    answers = Answers(check_logits(logits, targets, class_names), targets, taxonomy)
    values = {name: value[0] for name, value in replicated(answers, _ones(answers)).items()}
    values["macro_recall"] = values["balanced_accuracy"]
    found = {
        name: float(value)
        for name, value in values.items()
        if name.partition("/")[0] in SCORED and np.isfinite(value)
    }
    support = np.bincount(targets, minlength=len(taxonomy))
    for name in OF_CLASSES:
        by_class = np.array([found.get(f"{name}/{key}", 0.0) for key in taxonomy.keys])
        found[f"weighted_{name}"] = float((by_class * support).sum() / len(targets))
    return found | {
        f"support/{key}": float(count) for key, count in zip(taxonomy.keys, support, strict=True)
    }


def replicated(
    answers: Answers,
    weights: Floats,
    min_sensitivity: float = MIN_SENSITIVITY,
    *,
    with_curves: bool = True,
) -> dict[str, Floats]:
    """Compute every metric for each row of weights (R, N): name -> (R,).

    A metric that a row lacks, such as the AUC of a class that was not drawn, is NaN there; means
    over classes run over those that it has.  What is about malignancy is left out where nothing is
    known of it.  Without the metrics that `needs_curves` names it takes a tenth of the time.

    Args:
        answers: of the images.
        weights: how often each counts.
        min_sensitivity: above which `malignant_partial_auc` looks.
        with_curves: false leaves out what takes curves.
    """
    parts = [
        _of_chunk(answers, weights[start : start + _CHUNK], min_sensitivity, with_curves)
        for start in range(0, len(weights), _CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def plain(answers: Answers, min_sensitivity: float = MIN_SENSITIVITY) -> dict[str, float]:
    """Compute every metric of the images themselves; NaN where it is not defined."""
    values = replicated(answers, _ones(answers), min_sensitivity)
    return {name: float(value[0]) for name, value in values.items()}


def needs_curves(name: str) -> bool:
    """Say whether a metric takes ROC or precision-recall curves, which cost most of the time."""
    return "auc" in name or "average_precision" in name or "_at_" in name


def basics(answers: Answers, weights: Floats) -> dict[str, Floats]:
    """Compute the metrics that groups are compared by, for each row of weights: name -> (R,)."""
    confusion = weighted_confusion(answers, weights)
    hits, support = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    areas = [
        area(answers.probs[:, target], answers.targets == target, weights)
        for target in np.unique(answers.targets)
    ]
    return {
        "accuracy": divided(hits.sum(axis=1), support.sum(axis=1)),
        "balanced_accuracy": mean_of_classes(divided(hits, support)),
        "macro_auc": mean_of_classes(np.stack(areas, axis=1)),
        **_malignant_rates(answers, confusion),
    }


def commonest_malignant(answers: Answers) -> str | None:
    """Return the key of the malignant class with most images; None: no image is malignant."""
    support = np.bincount(answers.targets, minlength=len(answers.taxonomy)) * answers.malignant
    return answers.taxonomy.keys[int(support.argmax())] if support.any() else None


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


def weighted_confusion(answers: Answers, weights: Floats) -> Floats:
    """Sum weights (R, N): (R, C, C), true classes in rows, predicted in columns."""
    num_classes, num_images = len(answers.taxonomy), len(answers)
    cells = answers.targets * num_classes + answers.predicted
    sorted_in = csr_array(
        (np.ones(num_images), (cells, np.arange(num_images))), (num_classes**2, num_images)
    )
    return np.asarray((sorted_in @ weights.T).T).reshape(-1, num_classes, num_classes)


def normalized_confusion_matrix(confusion: Counts) -> Floats:
    """Divide each row by its images: (C, C) -> fractions (C, C); empty rows stay 0."""
    exact = confusion.astype(np.float64)
    return divided(exact, exact.sum(axis=1, keepdims=True), empty=0.0)


def reliability_bins(
    confidences: Floats, correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> ReliabilityBins:
    """Sort images into bins of equal width by confidence; fractions (N,) and booleans (N,)."""
    index = _bin_of(confidences, bins)
    count = np.bincount(index, minlength=bins)
    sums = (np.bincount(index, values, minlength=bins) for values in (confidences, correct))
    confidence, accuracy = (
        divided(total.astype(np.float64), count.astype(np.float64)) for total in sums
    )
    edges = np.linspace(0.0, 1.0, bins + 1)
    return ReliabilityBins(edges=edges, confidence=confidence, accuracy=accuracy, count=count)


def calibration_error(
    confidences: Floats, correct: NDArray[np.bool_], weights: Floats, bins: int = CALIBRATION_BINS
) -> Floats:
    """Mean distance of confidence and accuracy over bins of equal width, weighted: (R,).

    Fractions (N,), booleans (N,), weights (R, N).
    """
    in_bin = np.eye(bins)[_bin_of(confidences, bins)]  # (N, B)
    gaps = weights @ ((confidences - correct)[:, None] * in_bin)
    return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def negative_log_likelihoods(logits: NDArray[np.floating], targets: Counts) -> Floats:
    """Return that of each image, in nats: (N, C), (N,) -> (N,)."""
    exact = logits.astype(np.float64)
    shifted = exact - exact.max(axis=1, keepdims=True)  # so that nothing overflows
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return np.asarray(log_sums - shifted[np.arange(len(targets)), targets])


def squared_errors(probs: Floats, targets: Counts) -> Floats:
    """Return each image's Brier score, summed over the classes: (N, C), (N,) -> (N,), 0 to 2."""
    return np.asarray(((probs - np.eye(probs.shape[1])[targets]) ** 2).sum(axis=1))


def mean_of_classes(values: Floats) -> Floats:
    """Mean over the classes that a row has: (R, C) -> (R,)."""
    known = np.isfinite(values)
    return divided(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _of_chunk(
    answers: Answers, weights: Floats, min_sensitivity: float, with_curves: bool
) -> dict[str, Floats]:
    confusion = weighted_confusion(answers, weights)
    total = weights.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    support, claimed = confusion.sum(axis=2), confusion.sum(axis=1)
    recall = divided(hits, support)
    precision = np.where(support > 0, divided(hits, claimed, empty=0.0), np.nan)
    f1 = np.where(support > 0, divided(2 * hits, support + claimed, empty=0.0), np.nan)
    by_class = {"precision": precision, "recall": recall, "f1": f1}  # each (R, C)
    means = {
        "balanced_accuracy": mean_of_classes(recall),
        "macro_precision": mean_of_classes(precision),
        "macro_f1": mean_of_classes(f1),
    }
    losses = negative_log_likelihoods(answers.logits, answers.targets)
    of_class = np.eye(len(answers.taxonomy))[answers.targets]  # (N, C)
    means["balanced_loss"] = mean_of_classes(
        divided(weights @ (losses[:, None] * of_class), support)
    )
    malignancy = _malignant_rates(answers, confusion)
    if with_curves:
        of_classes = [
            _of_ranking(answers.probs[:, target], answers.targets == target, weights)
            for target in range(len(answers.taxonomy))
        ]
        for name in of_classes[0]:
            by_class[name] = np.stack([values[name] for values in of_classes], axis=1)
        means["macro_auc"] = mean_of_classes(by_class["auc"])
        means["macro_average_precision"] = mean_of_classes(by_class["average_precision"])
        if malignancy:
            ranked = answers.malignancy, answers.is_malignant
            curves = curves_of(*ranked, weights)
            of_curve = {
                "auc": area(*ranked, weights),
                "partial_auc": partial_area(curves, min_sensitivity),
                **_at_points(curves),
            }
            malignancy |= {f"malignant_{name}": value for name, value in of_curve.items()}
    return {
        # Summed as `mean` does, so that the validation loss of an epoch is the same to the bit.
        "loss": (weights * losses).sum(axis=1) / total,
        "accuracy": hits.sum(axis=1) / total,
        **means,
        "ece": calibration_error(
            answers.probs.max(axis=1), answers.predicted == answers.targets, weights
        ),
        **_agreement(confusion),
        "brier": weights @ squared_errors(answers.probs, answers.targets) / total,
        **malignancy,
        **{
            f"{name}/{key}": values[:, target]
            for name, values in by_class.items()
            for target, key in enumerate(answers.taxonomy.keys)
        },
    }


def _of_ranking(scores: Floats, is_class: NDArray[np.bool_], weights: Floats) -> dict[str, Floats]:
    """Compute what is said of the ranking by a class's probability: name -> (R,)."""
    curves = curves_of(scores, is_class, weights)
    return {
        "auc": area(scores, is_class, weights),
        "average_precision": average_precision(curves),
        **_at_points(curves),
    }


def _at_points(curves: Curves) -> dict[str, Floats]:
    values = {}
    for percent in _POINTS:
        values[f"sensitivity_at_{percent}_specificity"] = sensitivity_at(curves, percent / 100)
        values[f"specificity_at_{percent}_sensitivity"] = specificity_at(curves, percent / 100)
    return values


def _malignant_rates(answers: Answers, confusion: Floats) -> dict[str, Floats]:
    """Say how often malignant and benign images are called so; empty: nothing is known of it."""
    malignant = answers.malignant
    if not malignant.any():
        return {}
    called = confusion[:, :, malignant].sum(axis=2)  # (R, C), called malignant
    support = confusion.sum(axis=2)
    benign = support[:, ~malignant].sum(axis=1)
    return {
        "malignant_sensitivity": divided(
            called[:, malignant].sum(axis=1), support[:, malignant].sum(axis=1)
        ),
        "malignant_specificity": divided(benign - called[:, ~malignant].sum(axis=1), benign),
    }


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


def _bin_of(confidences: Floats, bins: int) -> NDArray[np.intp]:
    """Return each image's bin; only inner edges, since 0 and 1 belong to the outer bins."""
    return np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidences, side="left")


def _ones(answers: Answers) -> Floats:
    return np.ones((1, len(answers)))
