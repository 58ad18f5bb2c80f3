"""Intervals against scikit-learn, against drawing by hand, and against a known truth."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from simulated import THREE, simulate
from sklearn import metrics as sklearn_metrics

from dermalyze.evaluation.metrics.classification import replicated, score
from dermalyze.evaluation.statistics.bootstrap import (
    Basis,
    balanced_accuracy_elsewhere,
    interval_of,
    intervals,
    lesion_weights,
)


def test_every_estimate_is_the_metric_of_the_images():
    scored = simulate(200, seed=0)
    metrics = score(scored.logits, scored.targets, scored.class_names)
    found = intervals(scored, replicates=100)
    compared = [name for name in found if name in metrics]
    assert len(compared) > 30
    for name in compared:
        assert found[name].estimate == pytest.approx(metrics[name], abs=1e-12), name


def test_a_replicate_is_the_metric_of_the_drawn_images():
    scored = simulate(60, seed=2, shares=THREE)
    weights = lesion_weights(scored.lesions, 5, seed=3)
    values = replicated(scored, weights)
    for row, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(len(scored)), counts)
        targets, probs = scored.targets[rows], scored.probs[rows]
        expected = {
            "accuracy": np.mean(scored.predicted[rows] == targets),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(
                targets, scored.predicted[rows]
            ),
            "macro_auc": sklearn_metrics.roc_auc_score(targets, probs, multi_class="ovr"),
            "loss": sklearn_metrics.log_loss(targets, probs),
            "mcc": sklearn_metrics.matthews_corrcoef(targets, scored.predicted[rows]),
        }
        for name, value in expected.items():
            assert values[name][row] == pytest.approx(value, abs=1e-12), name


def test_balanced_accuracy_elsewhere_is_that_of_the_classes_with_fifteen_lesions():
    scored = simulate(260, seed=4)
    lesions = {
        name: len(np.unique(scored.lesions[scored.targets == target]))
        for target, name in enumerate(scored.class_names)
    }
    for name, number in (("mel", 15), ("bkl", 14)):  # cut to the limit, and below it
        target = scored.class_names.index(name)
        surplus = np.unique(scored.lesions[scored.targets == target])[number:]
        scored = scored.take(~np.isin(scored.lesions, surplus))
        lesions[name] = number
    expected = tuple(name for name in scored.class_names if lesions[name] >= 15)
    assert "mel" in expected
    assert "bkl" not in expected
    classes, found = balanced_accuracy_elsewhere(scored, 200)
    assert classes == expected
    recalls = sklearn_metrics.recall_score(
        scored.targets,
        scored.predicted,
        labels=[scored.class_names.index(name) for name in expected],
        average=None,
    )
    assert found.estimate == pytest.approx(np.mean(recalls), abs=1e-12)
    assert found.low < found.estimate < found.high
    assert scored.num_lesions < len(scored)  # counted by lesion where images are drawn
    by_image = replace(scored, lesions=np.arange(len(scored)), group_by="image")
    assert balanced_accuracy_elsewhere(by_image, 200)[0] == expected


def test_without_a_class_of_fifteen_lesions_there_is_no_balanced_accuracy_elsewhere():
    scored = simulate(14, seed=0)
    assert balanced_accuracy_elsewhere(scored, 100) == ((), None)


def test_images_of_a_lesion_are_drawn_together():
    lesions = np.array([0, 1, 1, 2, 2, 2])
    weights = lesion_weights(lesions, 500, seed=0)
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()  # three lesions are drawn
    assert weights[:, 0].std() > 0


def test_the_same_seed_gives_the_same_intervals():
    scored = simulate(80, seed=0)
    assert intervals(scored, replicates=100) == intervals(scored, replicates=100)
    assert intervals(scored, replicates=100) != intervals(scored, replicates=100, seed=1)


def test_a_class_of_few_lesions_has_a_number_and_a_reason_instead_of_bounds():
    shares = {"bkl": 0.49, "mel": 0.02, "nv": 0.49}
    scored = simulate(150, seed=1, shares=shares)
    of_mel = len(np.unique(scored.lesions[scored.targets == 1]))
    assert 0 < of_mel < 10
    found = intervals(scored, replicates=100)
    for name in ("recall/mel", "balanced_accuracy", "macro_auc", "malignant_auc"):
        assert found[name].low is None
        assert found[name].high is None
        assert f"only {of_mel} lesions of " in found[name].reason
    for name in ("accuracy", "recall/nv"):
        assert found[name].low < found[name].estimate < found[name].high
        assert found[name].reason == ""


def test_shares_of_lesions_that_are_all_alike_have_an_exact_interval():
    scored = simulate(100, seed=0, shares=THREE, signal=50)  # every answer is right
    number = len(np.unique(scored.lesions[scored.targets == 1]))
    found = intervals(scored, replicates=100)
    exact = scipy.stats.binomtest(number, number).proportion_ci(0.95, method="exact")
    recall = found["recall/mel"]
    assert (recall.low, recall.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert (recall.estimate, recall.reason) == (1, "")
    assert found["accuracy"].low == pytest.approx(0.025 ** (1 / 100), abs=1e-12)
    never = replace(scored, logits=np.roll(scored.logits, 1, axis=1))  # every answer is wrong
    recall = intervals(never, replicates=100)["recall/mel"]
    assert (recall.low, recall.high) == pytest.approx((0, 1 - exact.low), abs=1e-12)


def test_rounding_of_shares_is_no_spread():
    rounded = 1 - np.array([0, 1, 2] * 100) * 1.1e-16  # as sums of shares are
    found = interval_of(float(rounded[1]), rounded, Basis(num_lesions=20, is_share=True))
    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 20)), 1)
    found = interval_of(float(rounded[1]), rounded, Basis(num_lesions=20))
    assert found.reason == "20 lesions with the same result, so resampling shows no variation"


def test_means_and_areas_without_spread_have_a_reason_instead_of_bounds():
    scored = simulate(100, seed=0, shares=THREE, signal=50)
    for name in ("balanced_accuracy", "macro_auc", "f1/mel"):
        found = intervals(scored, replicates=100)[name]
        assert (found.estimate, found.low, found.high) == (1, None, None)
        assert "the same result" in found.reason


def test_a_class_without_images_is_left_out():
    scored = simulate(50, seed=0, shares={"mel": 0.0, "nv": 0.5, "bkl": 0.5})
    found = intervals(scored, replicates=100)
    assert "recall/mel" not in found
    assert "recall/nv" in found


NAMES = ("accuracy", "balanced_accuracy", "macro_auc", "recall/mel", "malignant_auc", "mcc")


@pytest.fixture(scope="module")
def truth():
    """What 100,000 lesions show."""
    population = simulate(100_000, seed=10**6, shares=THREE)
    return replicated(population, np.ones((1, len(population))))


def coverage(truth, *, studies: int, replicates: int, by_image: bool) -> dict[str, float]:
    """Return how often intervals from 400 lesions hold the truth."""
    hits = dict.fromkeys(NAMES, 0)
    for seed in range(studies):
        study = simulate(400, seed=seed, shares=THREE)
        if by_image:
            each = np.arange(len(study))
            study = replace(study, lesions=each)
        found = intervals(study, replicates=replicates, seed=seed)
        for name in NAMES:
            hits[name] += found[name].low <= truth[name][0] <= found[name].high
    return {name: count / studies for name, count in hits.items()}


@pytest.mark.slow
def test_95_percent_intervals_hold_the_truth_95_times_in_100(truth):
    shares = coverage(truth, studies=500, replicates=1000, by_image=False)
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


@pytest.mark.slow
def test_drawing_images_instead_of_lesions_would_be_too_narrow(truth):
    shares = coverage(truth, studies=100, replicates=300, by_image=True)
    assert all(share < 0.9 for share in shares.values()), shares
