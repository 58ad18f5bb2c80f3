"""Limits fitted on one half of drawn lesions, judged on the other."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import simulate

from dermalyze.evaluation.report.captions import limits_sentences
from dermalyze.evaluation.report.text import referral_sentences
from dermalyze.evaluation.scores import scored_of
from dermalyze.evaluation.uncertainty.limits import check_limits, fit_limits
from serving.prediction import softmax

REPLICATES = 300


def study(num_lesions, seed):
    """Drawn answers with scope scores, and photographs of which one in fifty is poor."""
    scored = simulate(num_lesions, seed, signal=2.5)
    rng = np.random.default_rng(seed)
    scores = rng.gamma(3, 1, scored.num_lesions)[scored.lesions] + rng.gamma(1, 0.1, len(scored))
    poor = (rng.random(scored.num_lesions) < 0.02)[scored.lesions]
    table = scored.table.assign(scope_score=scores, photo_problem=poor.astype(float))
    return scored_of(table, scored.taxonomy)


VALIDATION, TEST = study(1500, 0), study(1200, 1)
LIMITS = fit_limits(VALIDATION)
CHECKED = check_limits(TEST, LIMITS, replicates=REPLICATES)


def test_coverage_is_that_of_the_lesions_computed_one_by_one():
    probs = softmax(TEST.logits, LIMITS.temperature)
    sets = LIMITS.prediction_sets.members(probs, 0.9)
    for target, name in enumerate(TEST.class_names):
        own = TEST.targets == target
        shares = [
            sets[own & (TEST.lesions == lesion), target].mean()
            for lesion in np.unique(TEST.lesions[own])
        ]
        found = CHECKED.prediction_sets.classes[name]
        assert found.num_lesions == len(shares)
        assert found.coverage.estimate == pytest.approx(np.mean(shares))
    assert sum(CHECKED.prediction_sets.sizes) == pytest.approx(1)
    covered = sets[np.arange(len(TEST)), TEST.targets]
    shares = [covered[TEST.lesions == lesion].mean() for lesion in range(TEST.num_lesions)]
    assert CHECKED.prediction_sets.coverage.estimate == pytest.approx(np.mean(shares))
    mean = np.dot(CHECKED.prediction_sets.sizes, np.arange(1, 8))
    assert CHECKED.prediction_sets.mean_size == pytest.approx(mean)


def test_promises_are_kept_on_the_other_half():
    sets = CHECKED.prediction_sets
    for name, found in sets.classes.items():
        if found.num_lesions >= 100:  # five standard errors of 100 lesions below the level
            assert found.coverage.estimate > sets.level - 5 * np.sqrt(0.09 / 100), name
            assert found.coverage.high > sets.level - 0.03, name
    poor = check_limits(TEST.with_logits(np.roll(TEST.logits, 1, axis=1)), LIMITS, replicates=50)
    kept = [found.coverage.high > 0.87 for found in poor.prediction_sets.classes.values()]
    assert not all(kept)  # what another model says is not covered
    abstention = CHECKED.abstention
    assert abstention.risk.low < abstention.stated_risk
    assert 0.1 < abstention.coverage.estimate < 1
    alarms = CHECKED.scope.false_alarm_rate
    assert alarms.low < 0.05 < alarms.high + 0.01
    assert CHECKED.scope.fitted_false_alarm_rate == pytest.approx(0.05, abs=0.002)


def test_what_is_answered_is_as_often_wrong_as_is_said():
    probs = softmax(TEST.logits, LIMITS.temperature)
    given = probs.max(axis=1) >= LIMITS.abstention.min_confidence
    counts = np.bincount(TEST.lesions)
    weights = given / counts[TEST.lesions]
    wrong = probs.argmax(axis=1) != TEST.targets
    expected = (weights * wrong).sum() / weights.sum()
    assert CHECKED.abstention.risk.estimate == pytest.approx(expected)


def test_alarms_are_raised_by_the_score_and_by_the_photograph():
    table = TEST.table
    outside = (table["scope_score"] > LIMITS.scope.max_score) | (table["photo_problem"] > 0)
    expected = outside.groupby(table["lesion_id"]).mean().mean()  # each lesion counts once
    assert CHECKED.scope.false_alarm_rate.estimate == pytest.approx(expected)


def test_the_same_validation_table_gives_the_same_limits():
    assert fit_limits(study(1500, 0)) == LIMITS


def test_without_scope_scores_nothing_is_said_of_scope():
    plain = simulate(300, 2)
    limits = fit_limits(plain)
    assert limits.scope is None
    assert check_limits(simulate(300, 3), limits, replicates=REPLICATES).scope is None


def test_the_report_says_what_it_rests_on():
    found = CHECKED.prediction_sets.classes
    assert found.keys() == set(TEST.class_names)
    assert found["nv"].calibration_lesions == LIMITS.prediction_sets.num_lesions[5]
    sentences = limits_sentences(CHECKED, "lesion")
    assert any("Error rate among answered lesions: " in sentence for sentence in sentences)
    assert any("out of scope" in sentence for sentence in sentences)
    answered = CHECKED.abstention.coverage.estimate
    assert limits_sentences(CHECKED, "lesion", answered) == sentences
    few = limits_sentences(CHECKED, "lesion", answered + 0.001)
    assert "Error rate among answered lesions: not answered." in few


def test_a_referral_finds_and_spares_as_many_lesions_as_one_by_one():
    malignancy = softmax(TEST.logits, LIMITS.temperature)[:, TEST.malignant].sum(axis=1)
    for found in CHECKED.referral.levels:
        lowest = LIMITS.referral.min_probs[LIMITS.referral.column(found.level)]
        for rows, right, interval in (
            (TEST.is_malignant, malignancy >= lowest, found.sensitivity),
            (~TEST.is_malignant, malignancy < lowest, found.specificity),
        ):
            lesions = np.unique(TEST.lesions[rows])
            shares = [right[rows & (TEST.lesions == lesion)].mean() for lesion in lesions]
            assert interval.estimate == pytest.approx(np.mean(shares))
            assert interval.low <= interval.estimate <= interval.high
        assert found.sensitivity.high > found.level
    assert [found.level for found in CHECKED.referral.levels] == [0.8, 0.85, 0.9, 0.95, 0.98]
    assert "99% of malignant lesions: it takes 299 " in CHECKED.referral.lacking


def test_a_flag_is_of_use_where_it_spares_three_in_ten_benign_lesions():
    check = CHECKED.referral
    at = check.at(0.95)
    for specificity, useful in ((0.3, True), (0.299, False)):
        one = replace(at, specificity=replace(at.specificity, estimate=specificity))
        assert replace(check, levels=[one]).is_useful is useful
    assert not replace(check, levels=[]).is_useful
    said = referral_sentences(replace(check, levels=[one], lacking="no threshold"), "lesion")
    assert said[1].startswith("At 95% the flag is of little use: its specificity here is 0.299 (")
    assert said[1].endswith("); of use means at least 0.300.")
    assert said[2] == "No threshold."


@pytest.mark.parametrize("malignant", [(), TEST.class_names])
def test_without_malignant_and_other_classes_there_is_no_referral(malignant):
    one_kind = replace(VALIDATION, taxonomy=replace(VALIDATION.taxonomy, malignant=malignant))
    assert fit_limits(one_kind).referral is None
