"""Limits fitted on one half of drawn lesions, judged on the other."""

import numpy as np
import pytest
from simulated import simulate

from dermalyze.evaluation.limits import fit_limits
from dermalyze.evaluation.limits_judged import judge_limits
from dermalyze.evaluation.report_limits import known_limits
from dermalyze.evaluation.scored import scored_of
from serving.prediction import softmax

REPLICATES = 300


def study(num_lesions, seed):
    """Drawn answers with scope scores, and photographs of which one in fifty is poor."""
    scored = simulate(num_lesions, seed, signal=2.5)
    rng = np.random.default_rng(seed)
    scores = rng.gamma(3, 1, scored.num_lesions)[scored.lesions] + rng.gamma(1, 0.1, len(scored))
    poor = (rng.random(scored.num_lesions) < 0.02)[scored.lesions]
    return scored_of(scored.table.assign(scope_score=scores, photo_problem=poor.astype(float)))


VALIDATION, TEST = study(1500, 0), study(1200, 1)
LIMITS = fit_limits(VALIDATION)
JUDGED = judge_limits(TEST, LIMITS, replicates=REPLICATES)


def test_coverage_is_that_of_the_lesions_computed_one_by_one():
    probs = softmax(TEST.logits, LIMITS.temperature)
    sets = LIMITS.prediction_sets.members(probs, 0.9)
    for target, name in enumerate(TEST.class_names):
        own = TEST.targets == target
        shares = [
            sets[own & (TEST.lesions == lesion), target].mean()
            for lesion in np.unique(TEST.lesions[own])
        ]
        found = JUDGED["prediction_sets"]["classes"][name]
        assert found["num_lesions"] == len(shares)
        assert found["coverage"]["estimate"] == pytest.approx(np.mean(shares))
    assert sum(JUDGED["prediction_sets"]["sizes"]) == pytest.approx(1)
    mean = np.dot(JUDGED["prediction_sets"]["sizes"], np.arange(1, 8))
    assert JUDGED["prediction_sets"]["mean_size"] == pytest.approx(mean)


def test_promises_are_kept_on_the_other_half():
    sets = JUDGED["prediction_sets"]
    for name, found in sets["classes"].items():
        coverage = found["coverage"]
        if found["num_lesions"] >= 100:
            assert coverage["high"] > sets["level"] - 0.03, name
    abstention = JUDGED["abstention"]
    assert abstention["risk"]["low"] < abstention["stated_risk"]
    assert 0.1 < abstention["coverage"]["estimate"] < 1
    alarms = JUDGED["scope"]["false_alarm_rate"]
    assert alarms["low"] < 0.05 < alarms["high"] + 0.01
    assert JUDGED["scope"]["fitted_false_alarm_rate"] == pytest.approx(0.05, abs=0.002)


def test_what_is_answered_is_as_often_wrong_as_is_said():
    probs = softmax(TEST.logits, LIMITS.temperature)
    given = probs.max(axis=1) >= LIMITS.abstention.min_confidence
    counts = np.bincount(TEST.lesions)
    weights = given / counts[TEST.lesions]
    wrong = probs.argmax(axis=1) != TEST.targets
    expected = (weights * wrong).sum() / weights.sum()
    assert JUDGED["abstention"]["risk"]["estimate"] == pytest.approx(expected)


def test_alarms_are_raised_by_the_score_and_by_the_photograph():
    table = TEST.table
    outside = (table["scope_score"] > LIMITS.scope.max_score) | (table["photo_problem"] > 0)
    expected = outside.groupby(table["lesion_id"]).mean().mean()  # each lesion counts once
    assert JUDGED["scope"]["false_alarm_rate"]["estimate"] == pytest.approx(expected)


def test_the_same_validation_table_gives_the_same_limits():
    assert fit_limits(study(1500, 0)) == LIMITS


def test_without_scope_scores_nothing_is_said_of_scope():
    plain = simulate(300, 2)
    limits = fit_limits(plain)
    assert limits.scope is None
    assert "scope" not in judge_limits(simulate(300, 3), limits, replicates=REPLICATES)


def test_the_report_says_each_class_with_what_it_rests_on():
    known = known_limits({"limits": JUDGED})
    rows = {row["name"]: row for row in known["classes"]}
    assert rows.keys() == set(TEST.class_names)
    assert rows["nv"]["calibration_lesions"] == LIMITS.prediction_sets.num_lesions[5]
    assert any("Of these answers" in sentence for sentence in known["sentences"])
    assert any("out of scope" in sentence for sentence in known["sentences"])
    assert known_limits({}) is None
