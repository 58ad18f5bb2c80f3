"""How unlike the known images: a distance, and a limit that holds on new ones."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from dermalyze.evaluation.uncertainty import out_of_distribution as module
from dermalyze.evaluation.uncertainty.out_of_distribution import (
    FALSE_ALARM_RATE,
    cross_fitted,
    fit_max_score,
    fit_scope,
    lesion_shares,
)
from dermalyze.models.out_of_distribution import ScopeScore


def features(num, seed, shift=0.0):
    """Correlated features of very different scales: (num, 12)."""
    mixing = np.random.default_rng(99).normal(size=(12, 12)) * np.geomspace(0.01, 100, 12)
    return np.random.default_rng(seed).normal(shift, 1, (num, 12)) @ mixing


def test_without_shrinkage_it_is_scipys_mahalanobis_distance(monkeypatch):
    monkeypatch.setattr(module, "SHRINKAGE", 0.0)
    known, others = features(400, 0), features(5, 1)
    fit = fit_scope(known, np.arange(400))
    inverse = np.linalg.inv(np.cov(known.T, bias=True))
    expected = [mahalanobis(row, known.mean(axis=0), inverse) ** 2 / 12 for row in others]
    np.testing.assert_allclose(fit.scores(others), expected, rtol=1e-3)


def test_what_is_unlike_scores_higher():
    fit = fit_scope(features(400, 0), np.arange(400))
    inside, outside = fit.scores(features(200, 1)), fit.scores(features(200, 2, shift=3))
    assert np.median(outside) > 3 * np.quantile(inside, 0.95)


def test_the_network_computes_the_same_score():
    known, others = features(300, 0).astype(np.float32), features(50, 1).astype(np.float32)
    fit = fit_scope(known, np.arange(300))
    score = ScopeScore(torch.from_numpy(fit.mean), torch.from_numpy(fit.projection))
    found = score(torch.from_numpy(others)).numpy()
    np.testing.assert_allclose(found, fit.scores(others), rtol=1e-3)
    again = ScopeScore.of_state(score.state_dict())
    np.testing.assert_array_equal(again(torch.from_numpy(others)).numpy(), found)


def test_a_dead_channel_and_few_lesions_do_no_harm():
    known = features(20, 0)
    known[:, 3] = 0.0
    scores = fit_scope(known, np.arange(20)).scores(features(10, 1))
    assert np.isfinite(scores).all()


def test_the_limit_of_cross_fitted_scores_holds_on_new_images():
    rates = {"cross-fitted": [], "in-sample": []}
    for seed in range(30):
        known, new = features(150, seed), features(2000, 1000 + seed)
        lesions = np.arange(150)
        fit, none = fit_scope(known, lesions), np.zeros(150, bool)
        for name, scores in (
            ("cross-fitted", cross_fitted(known, lesions)),
            ("in-sample", fit.scores(known)),
        ):
            limit = fit_max_score(scores, none, lesions).max_score
            rates[name].append((fit.scores(new) > limit).mean())
    assert np.mean(rates["cross-fitted"]) == pytest.approx(FALSE_ALARM_RATE, abs=0.012)
    assert np.mean(rates["in-sample"]) > np.mean(rates["cross-fitted"]) + 0.01


def test_no_image_is_scored_by_a_fit_that_saw_its_lesion():
    # A lesion far away from all others, ten images of it: only a fit without it finds it far.
    known = features(60, 0)
    known[:10] += 500 * np.abs(known).max()
    lesions = np.r_[np.zeros(10, np.int64), np.arange(1, 51)]
    scores = cross_fitted(known, lesions)
    assert scores[:10].min() > 100 * np.median(scores[10:])


def test_poor_photographs_count_to_the_false_alarms():
    scores = np.arange(100.0)
    problems = np.zeros(100, bool)
    problems[:3] = True  # three that the score does not find
    found = fit_max_score(scores, problems, np.arange(100))
    assert (scores > found.max_score).sum() == 2
    assert found.false_alarm_rate == pytest.approx(0.05)
    problems[:10] = True
    found = fit_max_score(scores, problems, np.arange(100))
    assert (scores > found.max_score).sum() == 0  # they alone are too many already


def test_each_lesion_counts_once():
    np.testing.assert_allclose(lesion_shares(np.array([0, 0, 0, 1])), [1 / 6] * 3 + [1 / 2])
    # Half the lesions have one image with a high score, the other half ten with low ones.
    lesions = np.r_[np.arange(50), np.repeat(np.arange(50, 100), 10)]
    scores = np.r_[np.arange(1000.0, 1050), np.arange(500.0)]
    found = fit_max_score(scores, np.zeros(550, bool), lesions)
    assert (scores > found.max_score).sum() == 5  # five of a hundred lesions, not of 550 images
