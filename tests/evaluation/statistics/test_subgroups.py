"""Subgroups: biases that were planted, their absence, and cases worked by hand."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, hypergeom
from simulated import THREE, simulate
from sklearn import metrics as sklearn_metrics

from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.multiple_testing import holm
from dermalyze.evaluation.statistics.subgroups import evaluate_subgroups, groups_of
from serving.taxonomy import Taxonomy

FAST = {"replicates": 50, "permutations": 199}


def with_facts(scored: Scored, **facts: object) -> Scored:
    """Return the same images with other facts, such as `sex`: one value, or (N,)."""
    table = scored.table.assign(**facts)
    return replace(scored, table=table)


def answered(rows: list[tuple[str, str, str, str]]) -> Scored:
    """Images given as lesion, label, answer and sex."""
    lesions, labels, answers, sexes = zip(*rows, strict=True)
    names = tuple(sorted({*labels, *answers, "mel", "nv"}))
    taxonomy = Taxonomy(names=names)
    table = pd.DataFrame({"lesion_id": lesions, "label": labels, "sex": sexes})
    table["image_id"] = [f"image{number}" for number in range(len(rows))]
    table[["dx_type", "localization", "age"]] = ["histo", "back", 50.0]
    logits = 3.0 * np.eye(len(names))[[names.index(answer) for answer in answers]]
    return scored_of(predictions_table(table, logits, taxonomy), taxonomy)


def gap_of(scored: Scored, attribute: str = "sex", **settings: object):
    judged = evaluate_subgroups(scored, **{**FAST, **settings})
    return next((gap for gap in judged.gaps if gap.attribute == attribute), None)


def plant(scored: Scored, sex: str, label: str, share: float) -> Scored:
    """Answer a share of one sex's lesions of one class wrongly."""
    target = scored.class_names.index(label)
    hit = (scored.table["sex"] == sex).to_numpy() & (scored.targets == target)
    unlucky = np.random.default_rng(0).random(scored.num_lesions)[scored.lesions] < share
    return scored.with_logits(
        np.where(
            (hit & unlucky)[:, None], -10 * np.eye(len(scored.class_names))[target], scored.logits
        )
    )


def test_a_planted_bias_is_found_and_named():
    scored = plant(simulate(500, seed=0, shares=THREE), "female", "mel", 0.8)
    judged = evaluate_subgroups(scored, replicates=200, permutations=999)
    (found,) = [gap for gap in judged.gaps if gap.finding]
    assert (found.attribute, found.highest, found.lowest) == ("sex", "male", "female")
    assert found.classes == ("bkl", "mel", "nv")
    assert 0 < found.low < found.difference < found.high
    assert found.p_value == 1 / 1000  # as small as 999 permutations can show
    assert found.p_adjusted == pytest.approx(4 / 1000)


def test_a_gap_is_the_mean_difference_of_sensitivities():
    scored = simulate(300, seed=3, shares=THREE)
    means = {}
    for sex in ("female", "male"):
        rows = (scored.table["sex"] == sex).to_numpy()
        means[sex] = sklearn_metrics.recall_score(
            scored.targets[rows], scored.predicted[rows], average="macro"
        )
    found = gap_of(scored)
    assert found.highest == max(means, key=means.get)
    assert found.highest_value == pytest.approx(max(means.values()))
    assert found.lowest_value == pytest.approx(min(means.values()))
    assert found.difference == pytest.approx(abs(means["female"] - means["male"]))


def test_an_easy_class_that_is_common_in_one_group_is_no_bias():
    """Men have mostly nevi, which the model always knows; women mostly melanomas, half known."""
    findings = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = []
        for lesion in range(300):
            sex = ("male", "female")[lesion % 2]
            label = "nv" if rng.random() < (0.85 if sex == "male" else 0.15) else "mel"
            answer = "nv" if label == "nv" or rng.random() < 0.5 else "mel"
            rows.append((f"lesion{lesion}", label, answer, sex))
        scored = answered(rows)
        judged = evaluate_subgroups(scored, **FAST)
        male, female = (
            next(group for group in judged.groups if group.group == sex).intervals["accuracy"]
            for sex in ("male", "female")
        )
        assert male.low > female.high  # the plain accuracies lie far apart
        findings += judged.gaps[0].finding
    assert findings <= binom.ppf(0.999, 40, 0.05)


def test_a_class_that_one_group_lacks_does_not_count():
    rows = [(f"f{i}", "nv", "nv", "female") for i in range(40)]
    rows += [(f"m{i}", "nv", "nv", "male") for i in range(40)]
    rows += [(f"a{i}", "mel", "nv", "male") for i in range(40)]  # all wrong, men only
    rows += [(f"b{i}", "mel", "nv", "female") for i in range(9)]  # too few lesions to count
    found = gap_of(answered(rows))
    assert found.classes == ("nv",)
    assert found.difference == 0
    assert not found.finding


def test_groups_that_share_no_class_are_not_compared():
    rows = [(f"f{i}", "nv", "nv", "female") for i in range(40)]
    rows += [(f"m{i}", "mel", "nv", "male") for i in range(40)]
    assert gap_of(answered(rows)) is None


def test_the_p_value_is_that_of_fishers_exact_test():
    """With one class, two groups and one image a lesion, shuffling is drawing without return."""
    rows = [(f"f{i}", "nv", "nv" if i < 9 else "mel", "female") for i in range(15)]
    rows += [(f"m{i}", "nv", "nv" if i < 18 else "mel", "male") for i in range(20)]
    found = gap_of(answered(rows), permutations=20_000, min_images=15)
    # 27 right of 35; 18 of 20 against 9 of 15: as far apart or further, either way
    men_right = np.arange(12, 21)
    as_far = np.abs(men_right / 20 - (27 - men_right) / 15) >= 0.3 - 1e-9
    expected = hypergeom(35, 27, 20).pmf(men_right)[as_far].sum()
    assert found.difference == pytest.approx(0.3)
    assert found.p_value == pytest.approx(expected, abs=0.01)


def test_images_of_a_lesion_are_shuffled_together():
    """Ten copies of each image are no more evidence than one."""
    rows = [(f"f{i}", "nv", "nv" if i < 9 else "mel", "female") for i in range(15)]
    rows += [(f"m{i}", "nv", "nv" if i < 18 else "mel", "male") for i in range(20)]
    once = gap_of(answered(rows), permutations=2000, min_images=15)
    copied = gap_of(answered(rows * 10), permutations=2000, min_images=15)
    assert copied.p_value == once.p_value
    assert (copied.low, copied.high) == (once.low, once.high)


def test_a_lesion_belongs_to_the_group_of_its_first_known_image():
    scored = answered([("a", "nv", "nv", ""), ("a", "nv", "nv", "male"), ("b", "nv", "nv", "")])
    assert groups_of(scored, "sex").tolist() == ["male", "male", "unknown"]
    older = with_facts(scored, age=[44.0, 46.0, 50.0])
    assert groups_of(older, "age").tolist() == ["30-44", "30-44", "45-59"]


def test_age_bands_have_their_edges():
    rows = [(f"lesion{i}", "nv", "nv", "male") for i in range(11)]
    ages = [0.0, 29.0, 30.0, 44.0, 45.0, 59.0, 60.0, 74.0, 75.0, 85.0, np.nan]
    assert groups_of(with_facts(answered(rows), age=ages), "age").tolist() == [
        *["under 30"] * 2,
        *["30-44"] * 2,
        *["45-59"] * 2,
        *["60-74"] * 2,
        *["75 and over"] * 2,
        "unknown",
    ]


def test_groups_stand_in_the_order_of_age_or_of_their_names_and_unknown_last():
    scored = answered([(f"lesion{i}", "nv", "nv", "male") for i in range(4)])
    scored = with_facts(
        scored, age=[80.0, np.nan, 20.0, 50.0], localization=["upper extremity", "", "foot", "ear"]
    )
    groups = evaluate_subgroups(scored, **FAST).groups
    assert [group.group for group in groups if group.attribute in ("age", "localization")] == [
        *["under 30", "45-59", "75 and over", "unknown"],
        *["ear", "foot", "upper extremity", "unknown"],
    ]


def test_unknown_is_shown_and_never_part_of_a_gap():
    rows = [(f"f{i}", "nv", "nv", "female") for i in range(40)]
    rows += [(f"m{i}", "nv", "nv", "male") for i in range(40)]
    rows += [(f"u{i}", "nv", "mel", ("", "unknown")[i % 2]) for i in range(40)]  # all wrong
    judged = evaluate_subgroups(answered(rows), **FAST)
    of_sex = [group for group in judged.groups if group.attribute == "sex"]
    assert [group.group for group in of_sex] == ["female", "male", "unknown"]
    assert (of_sex[2].num_images, of_sex[2].intervals["accuracy"].estimate) == (40, 0)
    assert (of_sex[2].claimed, of_sex[2].reason) == (False, "sex is not recorded for these images")
    (gap,) = [gap for gap in judged.gaps if gap.attribute == "sex"]
    assert {gap.highest, gap.lowest} == {"female", "male"}
    assert gap.difference == 0


@pytest.mark.parametrize(
    ("num_lesions", "copies", "reason"),
    [(29, 1, "29 images, fewer than 30"), (9, 5, "9 lesions, fewer than 10")],
)
def test_nothing_is_claimed_of_a_small_group(num_lesions, copies, reason):
    rows = [(f"f{i}", "nv", "mel", "female") for i in range(num_lesions)] * copies  # all wrong
    rows += [(f"m{i}", "nv", "nv", "male") for i in range(40)]
    judged = evaluate_subgroups(answered(rows), **FAST)
    female = judged.groups[0]
    assert (female.group, female.claimed, female.reason) == ("female", False, reason)
    assert female.intervals["accuracy"].low is None
    assert female.intervals["accuracy"].reason == reason
    assert all(gap.attribute != "sex" for gap in judged.gaps)


def test_a_group_has_the_metrics_of_its_images():
    scored = simulate(250, seed=1, shares=THREE)
    scored = scored.with_logits(np.round(scored.logits))  # ties
    for group in evaluate_subgroups(scored, **FAST).groups[:2]:
        rows = (scored.table["sex"] == group.group).to_numpy()
        targets, predicted = scored.targets[rows], scored.predicted[rows]
        malignant, called = targets == 1, predicted == 1  # mel
        expected = {
            "accuracy": np.mean(targets == predicted),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(targets, predicted),
            "macro_auc": sklearn_metrics.roc_auc_score(
                targets, scored.probs[rows], multi_class="ovr"
            ),
            "malignant_sensitivity": np.mean(called[malignant]),
            "malignant_specificity": np.mean(~called[~malignant]),
        }
        assert group.num_images == rows.sum()
        assert group.num_lesions == len(np.unique(scored.lesions[rows]))
        assert set(group.intervals) == set(expected)
        for name, value in expected.items():
            interval = group.intervals[name]
            assert interval.estimate == pytest.approx(value), name
            assert interval.low < value < interval.high, name


def test_what_a_group_has_not_is_left_out():
    rows = [(f"{sex}{i}", "nv", "nv", sex) for sex in ("female", "male") for i in range(40)]
    judged = evaluate_subgroups(answered([*rows, ("x", "mel", "nv", "")]), **FAST)
    assert "malignant_sensitivity" not in judged.groups[0].intervals
    assert "macro_auc" not in judged.groups[0].intervals
    json.dumps(asdict(judged), allow_nan=False)


def test_the_same_seed_gives_the_same_judgement():
    scored = simulate(100, seed=0, shares=THREE)
    assert evaluate_subgroups(scored, **FAST) == evaluate_subgroups(scored, **FAST)
    one, other = evaluate_subgroups(scored, **FAST), evaluate_subgroups(scored, **FAST, seed=1)
    assert one.groups != other.groups
    assert [gap.p_value for gap in one.gaps] != [gap.p_value for gap in other.gaps]


def test_the_note_says_that_skin_type_is_not_known():
    note = evaluate_subgroups(simulate(20, seed=0), **FAST).note
    assert "HAM10000 does not record skin type" in note


def test_holm_corrects_as_by_hand():
    # sorted 0.01 * 4, 0.02 * 3, 0.03 * 2 (not below 0.06), 0.9 * 1
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.slow
def test_without_a_bias_findings_are_as_rare_as_promised():
    studies = 400
    wrong = 0
    for seed in range(studies):
        judged = evaluate_subgroups(
            simulate(200, seed=seed, shares=THREE), replicates=10, permutations=199, seed=seed
        )
        assert len(judged.gaps) >= 3
        wrong += any(gap.finding for gap in judged.gaps)
    assert wrong <= binom.ppf(0.999, studies, 0.05)


@pytest.mark.slow
def test_the_p_value_of_one_attribute_is_as_often_small_as_it_says():
    p_values = np.array(
        [
            gap_of(simulate(200, seed=seed, shares=THREE), replicates=10, seed=seed).p_value
            for seed in range(400)
        ]
    )
    for level in (0.05, 0.2, 0.5):
        low, high = binom.ppf([0.001, 0.999], len(p_values), level)
        assert low <= (p_values <= level).sum() <= high


def test_groups_are_compared_where_the_last_class_does_not_occur():
    shares = {"mel": 0.4, "nv": 0.6, "vasc": 0.0}
    found = evaluate_subgroups(
        simulate(300, seed=0, shares=shares), replicates=100, permutations=100
    )
    assert [gap.attribute for gap in found.gaps] == ["sex", "age", "localization", "dx_type"]
