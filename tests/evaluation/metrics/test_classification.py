"""C = 7 classes; expected values come from scikit-learn or are worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from dermalyze.evaluation.metrics.calibration import expected_calibration_error
from dermalyze.evaluation.metrics.classification import (
    confusion_matrix,
    normalized_confusion_matrix,
    reliability_bins,
    score,
)
from dermalyze.evaluation.metrics.roc import area
from serving.errors import DataError
from serving.ham10000_taxonomy import HAM10000
from serving.prediction import softmax

C = len(HAM10000.names)
METRICS = ("precision", "recall", "f1")
EXACT = 1e-12  # both sides are float64 sums of at most a few hundred terms


@st.composite
def scored_images(draw):
    """Logits with many ties, and targets in which classes may be absent or stand alone."""
    n = draw(st.integers(1, 60))
    classes = draw(st.lists(st.integers(0, C - 1), min_size=1, max_size=C, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = rng.choice(classes, n)
    steps = draw(st.sampled_from([1, 3, 1000]))  # 1: most logits are equal
    logits = np.round(rng.normal(size=(n, C)) * steps) / steps + np.eye(C)[targets]
    return logits.astype(np.float32), targets


def spread_images(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    targets = rng.choice(C, n, p=np.array([327, 514, 1099, 115, 1113, 6705, 142]) / 10015)
    return (rng.normal(size=(n, C)) + 2 * np.eye(C)[targets]).astype(np.float32), targets


@settings(max_examples=150, deadline=None)
@given(scored_images())
def test_every_number_is_scikit_learns(images):
    logits, targets = images
    metrics = score(logits, targets, HAM10000.names)
    predicted, probs = logits.argmax(axis=1), softmax(logits)
    present = np.unique(targets)
    balanced = np.bincount(targets, minlength=C)[targets] ** -1.0  # each class weighs the same
    expected = {
        "loss": sklearn_metrics.log_loss(targets, probs, labels=range(C)),
        "balanced_loss": sklearn_metrics.log_loss(
            targets, probs, labels=range(C), sample_weight=balanced
        ),
        "accuracy": sklearn_metrics.accuracy_score(targets, predicted),
    }
    for average in ("macro", "weighted"):
        values = sklearn_metrics.precision_recall_fscore_support(
            targets, predicted, labels=present, average=average, zero_division=0
        )
        for name, value in zip(METRICS, values, strict=False):
            expected[f"{average}_{name}"] = value
    expected["balanced_accuracy"] = expected["macro_recall"]
    values = sklearn_metrics.precision_recall_fscore_support(
        targets, predicted, labels=range(C), average=None, zero_division=0
    )
    aucs = []
    for index, name in enumerate(HAM10000.names):
        expected[f"support/{name}"] = values[3][index]
        if index in present:
            expected[f"precision/{name}"] = values[0][index]
            expected[f"recall/{name}"] = values[1][index]
            expected[f"f1/{name}"] = values[2][index]
        if index in present and len(present) > 1:
            aucs.append(sklearn_metrics.roc_auc_score(targets == index, probs[:, index]))
            expected[f"auc/{name}"] = aucs[-1]
    if aucs:
        expected["macro_auc"] = np.mean(aucs)
    del metrics["ece"]  # scikit-learn has none; by hand below
    assert metrics == pytest.approx(expected, abs=EXACT, rel=EXACT)


def test_balanced_accuracy_and_auc_of_a_whole_split_are_scikit_learns():
    logits, targets = spread_images(1500)
    metrics = score(logits, targets, HAM10000.names)
    predicted, probs = logits.argmax(axis=1), softmax(logits)
    assert metrics["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(targets, predicted), abs=EXACT
    )
    assert metrics["macro_auc"] == pytest.approx(
        sklearn_metrics.roc_auc_score(targets, probs, multi_class="ovr"), abs=EXACT
    )
    np.testing.assert_array_equal(
        confusion_matrix(targets, predicted, C),
        sklearn_metrics.confusion_matrix(targets, predicted, labels=range(C)),
    )


@settings(max_examples=50, deadline=None)
@given(scored_images(), st.randoms(use_true_random=False), st.floats(-50, 50))
def test_neither_order_nor_a_shift_of_the_logits_changes_the_score(images, random, shift):
    logits, targets = images[0].astype(np.float64), images[1]
    order = np.array(random.sample(range(len(targets)), len(targets)))
    # Powers of two keep the shift exact, and with it every tie.
    shifted = logits + 2.0 ** round(shift / 10)
    shuffled = score(shifted[order], targets[order], HAM10000.names)
    assert shuffled == pytest.approx(score(logits, targets, HAM10000.names), abs=1e-9)


def test_what_cannot_be_had_is_left_out():
    nv = HAM10000.names.index("nv")
    metrics = score(np.eye(C)[[nv, 0]], np.array([nv, nv]), HAM10000.names)
    assert set(metrics) == {
        "loss",
        "balanced_loss",
        "accuracy",
        "balanced_accuracy",
        *(f"{kind}_{name}" for kind in ("macro", "weighted") for name in METRICS),
        "ece",
        *(f"{name}/nv" for name in METRICS),
        *(f"support/{name}" for name in HAM10000.names),
    }
    assert metrics["recall/nv"] == 0.5
    assert metrics["support/akiec"] == 0.0


def test_a_class_that_is_never_predicted_has_precision_and_f1_0():
    metrics = score(np.eye(C)[[5, 5, 5]], np.array([5, 5, 4]), HAM10000.names)
    assert metrics["precision/mel"] == 0.0
    assert metrics["f1/mel"] == 0.0
    assert metrics["macro_precision"] == pytest.approx((2 / 3 + 0) / 2)


def test_the_score_holds_the_calibration_error():
    logits = np.full((10, C), -1000.0)
    logits[:, 5] = 0.0  # always sure of nv, right nine times of ten
    metrics = score(logits, np.array([5] * 9 + [4]), HAM10000.names)
    assert metrics["ece"] == pytest.approx(0.1)


def test_every_value_is_a_finite_float():
    for n in (1, 2, 40):
        values = score(*spread_images(n), HAM10000.names).values()
        assert all(type(value) is float and math.isfinite(value) for value in values)


def test_huge_logits_overflow_nothing():
    logits = np.array([[3e38, -3e38, 0, 0, 0, 0, 0], [0, 80, -80, 0, 0, 0, 0]], np.float32)
    metrics = score(logits, np.array([0, 0]), HAM10000.names)
    assert metrics["loss"] == pytest.approx(40.0)  # (0 + 80) / 2
    np.testing.assert_allclose(softmax(logits).sum(axis=1), 1, atol=EXACT)


def test_logits_that_are_not_finite_are_refused_in_one_sentence():
    logits = np.zeros((1200, C), np.float32)
    logits[3, 2], logits[3, 4], logits[7, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError) as caught:
        score(logits, np.zeros(1200, np.int64), HAM10000.names)
    assert str(caught.value) == (
        "the logits of 2 of 1,200 images are not finite numbers; "
        "train again with a lower training.lr or with training.use_amp=false"
    )


def test_no_image_at_all_is_refused_in_one_sentence():
    with pytest.raises(DataError) as caught:
        score(np.zeros((0, C)), np.zeros(0, np.int64), HAM10000.names)
    assert str(caught.value) == "there is no image to score; expected at least one in the split"


@pytest.mark.parametrize("shape", [(1, C), (3, C - 1)])
def test_logits_are_never_broadcast(shape):
    with pytest.raises(ValueError, match="do not fit 3 targets, 7 classes"):
        score(np.zeros(shape), np.zeros(3, np.int64), HAM10000.names)


def test_rows_of_the_confusion_matrix_are_true_classes():
    confusion = confusion_matrix(np.array([0, 0, 0, 2]), np.array([0, 1, 1, 2]), 3)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_a_row_without_images_stays_0_when_normalized():
    shares = normalized_confusion_matrix(np.array([[1, 3, 0], [0, 0, 0], [0, 0, 2]]))
    assert shares.tolist() == [[0.25, 0.75, 0], [0, 0, 0], [0, 0, 1]]


def test_auc_counts_a_tie_as_a_half():
    probs = np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]])
    # Class 0 against class 1, the pairs of images: (0, 1) tied, (2, 1) won.
    of_first = np.array([True, False, True])
    assert area(probs[:, 0], of_first, np.ones((1, 3))) == 0.75
    assert area(probs[:, 1], ~of_first, np.ones((1, 3))) == 0.75


def test_calibration_error_worked_out_by_hand():
    confidences = np.array([0.95, 0.85, 0.85, 0.35, 1.0, 0.0])
    correct = np.array([True, True, False, False, True, True])
    # Ten bins: (0.9, 1.0] holds 0.95 and 1.0, mean 0.975, all right: off by 0.025, two images;
    # (0.8, 0.9] mean 0.85, half right: 0.35, two images; (0.3, 0.4] 0.35, one image;
    # [0.0, 0.1] says 0 and is right: 1.0, one image.
    expected = (2 * 0.025 + 2 * 0.35 + 1 * 0.35 + 1 * 1.0) / 6
    assert expected_calibration_error(confidences, correct, bins=10) == pytest.approx(expected)


@pytest.mark.parametrize(("confidence", "place"), [(0.0, 0), (0.5, 1), (0.50001, 2), (1.0, 3)])
def test_every_confidence_counts_and_an_upper_edge_belongs_to_its_bin(confidence, place):
    table = reliability_bins(np.array([confidence]), np.array([True]), bins=4)
    assert table.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert table.count.tolist() == [int(index == place) for index in range(4)]
    assert table.confidence[place] == confidence
    assert np.isnan(np.delete(table.accuracy, place)).all()


def test_sure_and_always_wrong_is_an_error_of_1():
    """Confidence 1.0 lies on the last edge, where naive bins lose it."""
    assert expected_calibration_error(np.ones(9), np.zeros(9, bool)) == 1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_no_image_is_lost_between_the_bins(images):
    confidences = np.array([confidence for confidence, _ in images])
    correct = np.array([right for _, right in images])
    table = reliability_bins(confidences, correct)
    filled = table.count > 0
    assert table.count.sum() == len(images)
    right = (table.accuracy[filled] * table.count[filled]).sum()
    assert right == pytest.approx(correct.sum())
    assert 0 <= expected_calibration_error(confidences, correct) <= 1
