"""Expected values come from scikit-learn, or are worked out by hand."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from dermalyze.evaluation.metrics.roc import (
    area,
    average_precision,
    curves_of,
    partial_area,
    sensitivity_at,
    specificity_at,
)

EXACT = 1e-12


def drawn(seed: int, *, ties: bool):
    """60 scores, their classes, and 5 rows of counts of which the first is all ones."""
    rng = np.random.default_rng(seed)
    is_class = rng.random(60) < 0.3
    scores = rng.normal(size=60) + is_class
    weights = np.concatenate([np.ones((1, 60)), rng.multinomial(60, np.full(60, 1 / 60), 4)])
    return (np.round(scores) if ties else scores), is_class, weights.astype(float)


def each_row(seed: int, ties: bool):
    """Yield the row's number and scores and classes with each image as often as it counts."""
    scores, is_class, weights = drawn(seed, ties=ties)
    for row, counts in enumerate(weights.astype(int)):
        yield row, np.repeat(scores, counts), np.repeat(is_class, counts)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_weighted_areas_are_those_of_repeated_images(seed, ties):
    curves = curves_of(*drawn(seed, ties=ties))
    for row, scores, is_class in each_row(seed, ties):
        assert area(*drawn(seed, ties=ties))[row] == pytest.approx(
            sklearn_metrics.roc_auc_score(is_class, scores), abs=EXACT
        )
        assert average_precision(curves)[row] == pytest.approx(
            sklearn_metrics.average_precision_score(is_class, scores), abs=EXACT
        )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("min_sensitivity", [0.0, 0.5, 0.8, 0.95])
def test_the_partial_area_is_scikit_learns_seen_from_the_other_side(min_sensitivity, ties):
    # Classes and scores turned round: sensitivity above s is a false positive rate below 1 - s.
    widest = 1 - min_sensitivity
    values = partial_area(curves_of(*drawn(3, ties=ties)), min_sensitivity)
    for row, scores, is_class in each_row(3, ties):
        index = sklearn_metrics.roc_auc_score(1 - is_class, -scores, max_fpr=widest)
        if widest < 1:  # undo McClish's standardization
            least, most = widest**2 / 2, widest
            index = (least + (2 * index - 1) * (most - least)) / widest
        assert values[row] == pytest.approx(index, abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("point", [0.5, 0.9, 0.95])
def test_operating_points_are_the_best_of_scikit_learns_curve(point, ties):
    curves = curves_of(*drawn(4, ties=ties))
    for row, scores, is_class in each_row(4, ties):
        alarms, hits, _ = sklearn_metrics.roc_curve(is_class, scores, drop_intermediate=False)
        best_sensitivity = hits[1 - alarms >= point - 1e-9].max()
        best_specificity = (1 - alarms)[hits >= point - 1e-9].max()
        assert sensitivity_at(curves, point)[row] == pytest.approx(best_sensitivity, abs=EXACT)
        assert specificity_at(curves, point)[row] == pytest.approx(best_specificity, abs=EXACT)


def test_ten_negatives_of_which_one_may_be_an_alarm():
    # By hand: scores fall from left to right; + is of the class.
    marks = "+-+-+--------"
    is_class = np.array([mark == "+" for mark in marks])
    curves = curves_of(-np.arange(13.0), is_class, np.ones((1, 13)))
    assert curves.positives[0] == 3
    assert sensitivity_at(curves, 0.90)[0] == pytest.approx(2 / 3)  # +-+ : 1 of 10 is an alarm
    assert sensitivity_at(curves, 0.95)[0] == pytest.approx(1 / 3)
    assert specificity_at(curves, 0.90)[0] == pytest.approx(8 / 10)


@pytest.mark.parametrize("value", [False, True])
def test_a_row_without_the_class_or_without_others_has_no_value(value):
    ranked = np.arange(4.0), np.full(4, value), np.ones((1, 4))
    curves = curves_of(*ranked)
    assert np.isnan(area(*ranked)[0])
    assert np.isnan(partial_area(curves, 0.8)[0])
    assert np.isnan(sensitivity_at(curves, 0.9)[0])
    assert np.isnan(specificity_at(curves, 0.9)[0])
