"""Drops, decisions and robustness, on predictions drawn from a known truth."""

import numpy as np
import pandas as pd
import pytest
from simulated import renamed, simulate
from sklearn.metrics import accuracy_score, recall_score

from dermalyze.evaluation.external import (
    COMMON,
    KNOWN,
    UNKNOWN,
    Side,
    at_prevalence,
    decisions_of,
    drops,
)
from dermalyze.evaluation.robustness import choose_images, measure_robustness
from dermalyze.evaluation.statistics.bootstrap import intervals
from dermalyze.evaluation.uncertainty.limits import fit_limits
from serving.errors import ConfigError
from serving.prediction import softmax

REPLICATES = 400


@pytest.fixture(scope="module")
def inside():
    return simulate(600, 1, signal=2.5)


@pytest.fixture(scope="module")
def outside():
    """A source with three of the seven classes, on which the model does worse."""
    found = renamed(simulate(500, 2, signal=1.2), "o")
    return found.take(np.isin(found.targets, [2, 4, 5]))


@pytest.fixture(scope="module")
def limits():
    return fit_limits(renamed(simulate(600, 3, signal=2.5), "v"))


def sides(inside, outside, limits=None, **more):
    return tuple(Side(scored=scored, limits=limits, **more) for scored in (inside, outside))


def mean_recall(scored):
    classes = np.unique(scored.targets)
    return recall_score(scored.targets, scored.predicted, labels=classes, average="macro")


def by_name(found):
    return {drop.metric: drop for drop in found}


def test_a_drop_is_over_the_classes_that_both_sources_have(inside, outside):
    found = by_name(drops(*sides(inside, outside), replicates=REPLICATES))
    same = inside.take(np.isin(inside.targets, [2, 4, 5]))
    ours, theirs = (mean_recall(s) for s in (same, outside))
    drop = found["balanced_accuracy"]
    assert drop.inside.estimate == pytest.approx(ours)
    assert drop.outside.estimate == pytest.approx(theirs)
    assert drop.drop.estimate == pytest.approx(ours - theirs)
    assert drop.drop.low > 0
    assert not {"recall/df", "auc/vasc"} & found.keys()


def test_a_drop_varies_as_two_independent_samples_do(inside, outside):
    """Paired draws would make it narrower or wider, by chance: variances of two lots add up."""
    for metric in ("accuracy", "malignant_auc"):
        drop = by_name(drops(*sides(inside, outside), replicates=2000))[metric]
        widths = [part.high - part.low for part in (drop.inside, drop.outside, drop.drop)]
        assert widths[2] == pytest.approx(np.hypot(*widths[:2]), rel=0.1)


def test_worse_outside_is_a_drop_above_0_whichever_way_a_metric_points(inside, outside, limits):
    found = by_name(drops(*sides(inside, outside, limits), replicates=REPLICATES))
    for name in ("accuracy", "loss", "brier", "answered_error", "set_size", "answered"):
        assert found[name].drop.estimate > 0, name
    assert found["ece"].drop.low is None  # resampling raises it


def test_a_source_like_its_own_shows_no_drop(inside):
    same = renamed(simulate(600, 9, signal=2.5), "s")
    found = by_name(drops(*sides(inside, same), replicates=REPLICATES))
    for name in ("accuracy", "malignant_auc", "loss"):
        assert found[name].drop.low < 0 < found[name].drop.high, name


def test_a_rare_class_leaves_the_mean_of_the_others_an_interval(inside):
    scarce = renamed(simulate(400, 5), "o")
    few = np.isin(scarce.targets, [2, 3, 4, 5])
    few &= (scarce.targets != 3) | (np.cumsum(scarce.targets == 3) <= 2)
    found = by_name(drops(*sides(inside, scarce.take(few)), replicates=REPLICATES))
    assert found["balanced_accuracy"].drop.low is None
    common = found[COMMON]
    chosen = [s.take(np.isin(s.targets, [2, 4, 5])) for s in (inside, scarce)]
    ours, theirs = (mean_recall(s) for s in chosen)
    assert common.drop.estimate == pytest.approx(ours - theirs)
    assert common.drop.low < common.drop.estimate < common.drop.high
    assert common.title == "balanced accuracy (3 classes with 10+ lesions)"


def test_without_its_own_images_there_is_no_drop_but_every_metric(outside):
    found = by_name(drops(None, Side(scored=outside, limits=None), replicates=REPLICATES))
    known = intervals(outside, replicates=REPLICATES)
    assert {(d.inside, d.drop) for d in found.values()} == {(None, None)}
    assert found["macro_auc"].outside.estimate == known["macro_auc"].estimate


def test_shares_of_the_limits_are_what_a_user_would_count(outside, limits):
    found = by_name(drops(None, Side(scored=outside, limits=limits), replicates=REPLICATES))
    probs = softmax(outside.logits, limits.temperature)
    answered = probs.max(axis=1) >= limits.abstention.min_confidence
    shares = 1 / np.bincount(outside.lesions)[outside.lesions]  # each lesion counts once
    wrong = outside.predicted != outside.targets
    assert found["answered"].outside.estimate == pytest.approx(np.average(answered, weights=shares))
    assert found["answered_error"].outside.estimate == pytest.approx(
        np.average(wrong[answered], weights=shares[answered])
    )
    malignant = np.isin(outside.targets, [0, 1, 4])
    referral = limits.referral
    referred = probs[:, [0, 1, 4]].sum(axis=1) >= referral.min_probs[referral.levels.index(0.95)]
    assert found["referral_sensitivity"].outside.estimate == pytest.approx(
        np.average(referred[malignant], weights=shares[malignant])
    )
    assert found["referral_specificity"].outside.estimate == pytest.approx(
        np.average(~referred[~malignant], weights=shares[~malignant])
    )


def test_at_another_prevalence_images_and_probabilities_are_reweighted(inside, outside):
    trained = np.full(7, 1 / 7)
    both = sides(inside, outside, trained=trained)
    found = at_prevalence("bkl=0.1,mel=0.1,nv=0.8", *both, replicates=REPLICATES)
    assert found.source == "given"
    stated = np.array([0, 0, 0.1, 0, 0.1, 0.8, 0])
    for side, part in ((inside, "inside"), (outside, "outside")):
        side = side.take(np.isin(side.targets, [2, 4, 5]))
        predicted = (softmax(side.logits) * stated).argmax(axis=1)
        weights = (stated / np.maximum(np.bincount(side.targets, minlength=7), 1))[side.targets]
        expected = accuracy_score(side.targets, predicted, sample_weight=weights)
        shown = getattr(by_name(found.drops)["accuracy"], part)
        assert shown.estimate == pytest.approx(expected)


def test_a_prevalence_from_the_labels_is_marked_so(inside, outside):
    both = sides(inside, outside, trained=np.full(7, 1 / 7))
    found = at_prevalence("labels", *both, replicates=REPLICATES)
    assert found.source == "labels"
    assert found.stated["nv"] == pytest.approx((outside.targets == 5).mean())


def test_a_prevalence_needs_that_of_training(inside, outside):
    with pytest.raises(ConfigError) as error:
        at_prevalence("labels", *sides(inside, outside))
    assert str(error.value) == (
        "--prevalence needs the class shares used in training, which the model file does not "
        "contain; pass --run-id, or keep the file in the folder of its run"
    )


def test_decisions_are_counted_by_label_and_apart_for_classes_that_the_model_lacks():
    rows = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(6)],
            "lesion_id": [f"l{i}" for i in range(6)],
            "their_label": ["mel", "mel", "nv", "scc", "scc", "scc"],
            "decision": ["answer", "uncertain", "answer", "out_of_scope", "answer", "out_of_scope"],
        }
    )
    found = decisions_of(rows, {"mel": "mel", "nv": "nv", "scc": ""}, replicates=REPLICATES)
    assert [(d.label, d.class_name, d.num_images) for d in found] == [
        ("mel", "mel", 2), ("nv", "nv", 1), ("scc", "", 3), (KNOWN, KNOWN, 3), (UNKNOWN, "", 3)
    ]  # fmt: skip
    assert [d.out_of_scope.estimate for d in found] == pytest.approx([0, 0, 2 / 3, 0, 2 / 3])
    assert found[3].answered == pytest.approx(2 / 3)


def test_robustness_shows_what_a_model_looks_at():
    """One that tells classes by color alone fails without color and nowhere else so much."""
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], 12)
    colors = np.array([(200, 120, 120), (120, 120, 200)])[targets]
    pixels = (colors[:, None, None] + rng.normal(0, 4, (24, 16, 16, 1))).astype(np.uint8)

    def answer(images):
        redness = images[..., 0].mean((1, 2)) - images[..., 2].mean((1, 2))
        return np.stack([redness, -redness], axis=1), redness > 50

    found = measure_robustness(pixels, targets, answer)
    assert (found.clean, found.clean_out_of_scope, found.num_images) == (1.0, 0.5, 24)
    assert len(found.balanced_accuracy) == 15
    assert {len(values) for values in found.balanced_accuracy.values()} == {5}
    assert found.balanced_accuracy["desaturate"][4] == 0.5
    assert found.out_of_scope["desaturate"][4] == 0.0
    assert found.balanced_accuracy["defocus_blur"] == (1.0,) * 5
    assert found.mean(0) == pytest.approx(
        np.mean([values[0] for values in found.balanced_accuracy.values()])
    )


def test_images_to_corrupt_are_drawn_from_each_class_alike():
    targets = np.repeat([0, 1, 2], [500, 100, 4])
    rows = choose_images(targets)
    assert np.bincount(targets[rows]).tolist() == [30, 30, 4]
    np.testing.assert_array_equal(rows, choose_images(targets))
