"""Calibration errors against scikit-learn, worked by hand, and against their own identities."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from dermalyze.evaluation.metrics.calibration import (
    adaptive_calibration_error,
    brier_parts,
    calibration_errors,
    classwise_calibration_error,
)
from dermalyze.evaluation.metrics.classification import CALIBRATION_BINS
from serving.prediction import softmax

EXACT = 1e-12  # sums of some thousand float64 terms, each at most 1


def drawn(num_images: int, seed: int, *, classes: int = 7, decimals: int = 16):
    """Draw logits, with many ties if there are few decimals, and targets, classes missing."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(num_images, classes)) * 2, decimals)
    targets = np.where(rng.random(num_images) < 0.5, logits.argmax(axis=1), 0)
    targets[targets == classes - 1] = 0  # the last class never occurs
    return logits, targets


def two_classes(second):
    """Probabilities of the second class -> of both, (N, 2)."""
    return np.column_stack([1 - np.asarray(second), second])


@pytest.mark.parametrize("seed", range(5))
def test_likelihood_and_brier_score_are_scikit_learns(seed):
    logits, targets = drawn(300, seed)
    errors = calibration_errors(logits, targets)
    probs = softmax(logits)
    nll = sklearn_metrics.log_loss(targets, probs, labels=range(7))
    brier = sklearn_metrics.brier_score_loss(targets, probs, labels=range(7), scale_by_half=False)
    assert errors.nll == pytest.approx(nll, abs=EXACT)
    assert errors.brier == pytest.approx(brier, abs=EXACT)


def test_likelihood_of_a_hopeless_answer_is_finite():
    errors = calibration_errors(np.array([[2000.0, 0.0]]), np.array([1]))
    assert errors.nll == 2000


@pytest.mark.parametrize("decimals", [16, 1, 0])
@pytest.mark.parametrize("num_images", [1, 2, 40, 2000])
def test_the_parts_add_up_to_the_brier_score(num_images, decimals):
    errors = calibration_errors(*drawn(num_images, seed=num_images, decimals=decimals))
    total = errors.reliability - errors.resolution + errors.uncertainty
    assert total == pytest.approx(errors.brier, abs=EXACT)


def test_the_parts_are_murphys_where_a_bin_holds_one_probability():
    # Second class: bin of 0.9 with 1 of 2, bin of 0.2 with 0 of 2; it makes up 1 in 4.
    #   reliability 1/2 (0.9 - 0.5)^2 + 1/2 (0.2 - 0)^2 = 0.1
    #   resolution 1/2 (0.5 - 0.25)^2 + 1/2 (0 - 0.25)^2 = 0.0625
    #   uncertainty 1/4 * 3/4 = 0.1875
    # The first class mirrors it, so the sums are twice that.
    parts = brier_parts(two_classes([0.9, 0.9, 0.2, 0.2]), np.array([1, 0, 0, 0]))
    assert parts == pytest.approx((0.2, 0.125, 0.375), abs=EXACT)


def test_what_varies_within_a_bin_counts_as_resolution():
    # Second class: one bin (9/15 to 10/15) of mean 0.63 and frequency 1/2.
    #   reliability 0.13^2 = 0.0169; between bins there is no resolution
    #   variance within 0.02^2 = 0.0004; covariance within (0.02 * 0.5 + 0.02 * 0.5) / 2 = 0.01
    #   resolution -0.0004 + 2 * 0.01 = 0.0196
    # The first class mirrors it, so the sums are twice that.
    parts = brier_parts(two_classes([0.61, 0.65]), np.array([0, 1]))
    assert parts == pytest.approx((0.0338, 0.0392, 0.5), abs=EXACT)


def test_probabilities_that_come_true_have_hardly_any_error():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50_000, 4)) * 2
    chances = softmax(logits).cumsum(axis=1)
    targets = (rng.random((50_000, 1)) > chances).sum(axis=1)
    right = calibration_errors(logits, targets)
    overconfident = calibration_errors(logits * 2, targets)
    # A bin's frequency is off by sqrt(p (1 - p) / n), 0.01 for a bin of a fifteenth of the images.
    assert max(right.ece, right.adaptive_ece, right.classwise_ece) < 0.01
    assert right.reliability < 4 * CALIBRATION_BINS * 0.25 / 50_000  # that variance in every bin
    assert min(overconfident.ece, overconfident.adaptive_ece) > 0.08
    assert min(overconfident.classwise_ece, overconfident.reliability) > 0.02


def test_adaptive_bins_hold_equal_numbers_of_images():
    # Two bins of two: |0.43 - 1/2| and |0.685 - 1/2|, each of half the images.  Bins of equal
    # width would part them after the third.
    confidences = np.array([0.45, 0.41, 0.9, 0.47])
    correct = np.array([True, False, True, False])
    error = adaptive_calibration_error(confidences, correct, bins=2)
    assert error == pytest.approx((0.07 + 0.185) / 2, abs=EXACT)


def test_the_adaptive_error_is_that_of_scikit_learns_quantile_bins():
    rng = np.random.default_rng(1)
    confidences = rng.random(40 * CALIBRATION_BINS) ** 2  # bins of equal width differ
    correct = rng.random(len(confidences)) < confidences
    accuracy, confidence = calibration_curve(
        correct, confidences, n_bins=CALIBRATION_BINS, strategy="quantile"
    )
    expected = np.abs(accuracy - confidence).mean()  # all bins have 40 images
    error = adaptive_calibration_error(confidences, correct)
    assert error == pytest.approx(expected, abs=EXACT)


def test_images_of_equal_confidence_share_an_adaptive_bin_whatever_their_order():
    # Ranks 0, 1, 1, 1 of 4: the first bin takes all that starts below rank 2, so all four.
    confidences = np.array([0.4, 0.8, 0.8, 0.8])
    correct = np.array([True, True, True, False])
    for order in ([0, 1, 2, 3], [3, 0, 2, 1], [2, 3, 1, 0]):
        error = adaptive_calibration_error(confidences[order], correct[order], bins=2)
        assert error == pytest.approx(abs(0.7 - 0.75), abs=EXACT)


def test_the_classwise_error_is_the_mean_over_classes_of_scikit_learns_curve():
    logits, targets = drawn(500, seed=3)
    probs = softmax(logits)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    expected = []
    for target in range(7):
        share, prob = calibration_curve(
            targets == target, probs[:, target], n_bins=CALIBRATION_BINS
        )
        count = np.histogram(probs[:, target], edges)[0]
        expected.append(np.abs(share - prob) @ count[count > 0] / 500)
    error = classwise_calibration_error(probs, targets)
    assert error == pytest.approx(np.mean(expected), abs=EXACT)


def test_the_classwise_error_counts_a_class_that_never_occurs():
    # Classes: |0.5 - 1|, |0.3 - 0| and |0.2 - 0|, each in one bin.
    error = classwise_calibration_error(np.array([[0.5, 0.3, 0.2]]), np.array([0]))
    assert error == pytest.approx(1 / 3, abs=EXACT)
