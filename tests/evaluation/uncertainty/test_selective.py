"""Answering only where the confidence is high enough."""

import numpy as np
import pytest
from sklearn.metrics import auc

from dermalyze.evaluation.uncertainty.selective import area_under, fit_abstention, risk_coverage


def answers(confidence, wrong):
    """Two classes: the first is answered with this confidence, and is wrong or not."""
    confidence = np.asarray(confidence, float)
    return np.stack([confidence, 1 - confidence], axis=1), np.asarray(wrong, np.int64)


def calibrated(num, seed):
    """Answers that are as often right as they are confident."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, num)
    return answers(confidence, rng.uniform(size=num) > confidence)


def test_the_curve_done_by_hand():
    probs, targets = answers([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1])
    curve = risk_coverage(probs, targets, np.arange(4))
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 2 / 4])
    area = area_under(probs, targets, np.ones((1, 4)))
    np.testing.assert_allclose(area, [(0 + 1 / 2 + 1 / 3 + 2 / 4) / 4])


def test_a_lesion_counts_once_however_many_images_it_has():
    probs, targets = answers([0.9, 0.9, 0.9, 0.7], [1, 1, 1, 0])
    curve = risk_coverage(probs, targets, np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(curve.coverage[2:], [0.5, 1])
    np.testing.assert_allclose(curve.risk[2:], [1, 0.5])


def test_the_area_is_that_under_the_curve():
    probs, targets = calibrated(4000, 0)
    curve = risk_coverage(probs, targets, np.arange(4000))
    area = area_under(probs, targets, np.ones((1, 4000)))[0]
    assert area == pytest.approx(auc(curve.coverage, curve.risk), abs=1e-3)
    # The risk at coverage c of uniform confidence is c / 4 (by hand), and its mean 1 / 8.
    assert area == pytest.approx(1 / 8, abs=0.02)


def test_a_replicate_that_draws_a_lesion_twice_counts_it_twice():
    probs, targets = answers([0.9, 0.8], [1, 0])
    twice = area_under(probs, targets, np.array([[2.0, 1.0]]))[0]
    spelled_out = answers([0.9, 0.9, 0.8], [1, 1, 0])
    assert twice == pytest.approx(area_under(*spelled_out, np.ones((1, 3)))[0])


def test_the_stated_risk_is_kept_in_19_of_20_studies():
    # Calibrated answers at or above t are wrong with (1 - t) / 2 on average: 10 % at 0.8.
    thresholds = [
        fit_abstention(*calibrated(1500, seed), np.arange(1500), risk=0.1).min_confidence
        for seed in range(400)
    ]
    exceeded = np.mean((1 - np.array(thresholds)) / 2 > 0.1 + 1e-9)
    assert exceeded <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.median(thresholds) < 0.9  # and it is not kept by answering next to nothing


def test_images_of_one_lesion_are_no_independent_proof():
    probs, targets = calibrated(60, 1)
    repeated = np.repeat(np.arange(60), 10)
    one = fit_abstention(probs, targets, np.arange(60), risk=0.1)
    ten = fit_abstention(probs[repeated], targets[repeated], repeated, risk=0.1)
    assert (one.min_confidence, one.coverage) == (ten.min_confidence, ten.coverage)


def test_where_nothing_keeps_to_the_risk_nothing_is_answered():
    probs, targets = answers(np.full(300, 0.95), np.arange(300) % 2)
    found = fit_abstention(probs, targets, np.arange(300), risk=0.1)
    assert (found.min_confidence, found.coverage, found.num_lesions) == (1.01, 0.0, 300)


def test_where_all_answers_are_right_all_are_given():
    probs, targets = answers(np.linspace(0.5, 1, 300), np.zeros(300))
    found = fit_abstention(probs, targets, np.arange(300), risk=0.1)
    assert found.min_confidence <= 0.5
    assert found.coverage == 1.0


def test_few_lesions_prove_nothing():
    probs, targets = answers(np.full(40, 0.99), np.zeros(40))
    assert fit_abstention(probs, targets, np.arange(40), risk=0.1).min_confidence == 1.01
