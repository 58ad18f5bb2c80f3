"""Comparisons against cases worked by hand, against brute force, and against a known truth."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.stats import binom
from simulated import THREE, simulate

from dermalyze.evaluation.metrics.classification import replicated
from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.report.figures import forest, save_png
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.bootstrap import lesion_weights
from dermalyze.evaluation.statistics.comparison import Comparison, compare, noninferior, table
from dermalyze.evaluation.statistics.paired_tests import mcnemar, paired
from serving.errors import DataError
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import DISCLAIMER


def answered(lesions: list[str], right: list[bool]) -> Scored:
    """Nevi of the given lesions, answered rightly or as melanoma."""
    rows = pd.DataFrame({"image_id": [f"i{n}" for n in range(len(lesions))], "lesion_id": lesions})
    rows["label"], rows["age"] = "nv", 50.0
    rows[["dx_type", "sex", "localization"]] = ["histo", "male", "back"]
    answers = [HAM10000.names.index("nv" if good else "mel") for good in right]
    logits = 3.0 * np.eye(len(HAM10000.names))[answers]
    return scored_of(predictions_table(rows, logits, HAM10000), HAM10000)


def changed(scored: Scored, amount: float, seed: int = 0, better: float = 0.0) -> Scored:
    """Return the answers of another model: with noise by lesion, and `better` at the truth."""
    num_classes = len(scored.class_names)
    noise = np.random.default_rng(seed).normal(size=(scored.num_lesions, num_classes))
    truth = np.eye(num_classes)[scored.targets]
    return scored.with_logits(scored.logits + amount * noise[scored.lesions] + better * truth)


def shuffled(scored: Scored, **facts: object) -> Scored:
    """Return the same predictions from a table in another order, with other facts."""
    rows = np.random.default_rng(0).permutation(len(scored))
    return scored_of(scored.table.assign(**facts).iloc[rows], scored.taxonomy)


@pytest.fixture(scope="module")
def three_runs() -> Comparison:
    reference = simulate(400, seed=0)
    return compare(
        ["first", "worse", "better"],
        [reference, changed(reference, 1.0), changed(reference, 0.2, better=0.6)],
        replicates=200,
    )


def test_predictions_in_another_order_are_the_same_predictions():
    a = simulate(60, seed=0)
    ours, theirs = paired(a, shuffled(a))
    assert ours is a
    np.testing.assert_array_equal(theirs.logits, a.logits)
    np.testing.assert_array_equal(theirs.lesions, a.lesions)
    assert theirs.table["image_id"].tolist() == a.table["image_id"].tolist()


def test_calibrated_logits_stay_with_their_images():
    a = simulate(60, seed=0)
    calibrated = shuffled(a)
    calibrated = calibrated.with_logits(calibrated.logits / 2)
    np.testing.assert_array_equal(paired(a, calibrated)[1].logits, a.logits / 2)


def test_another_test_set_is_refused_with_what_differs():
    a = answered(["x", "y", "z"], [True] * 3)
    part = a.take(np.array([1, 2]))
    with pytest.raises(DataError) as caught:
        paired(part, a)
    assert str(caught.value) == (
        "the test sets differ: 1 image only in the second, such as 'i0', and 2 in both; compare "
        "runs with the same test split"
    )
    with pytest.raises(DataError, match="1 image only in the first, such as 'i0', and 2 in both"):
        paired(a, part)
    with pytest.raises(DataError) as caught:
        paired(a.take(np.array([0, 1])), part)
    assert str(caught.value) == (
        "the test sets differ: 1 image only in the first, such as 'i0' and 1 image only in the "
        "second, such as 'i2', and 1 in both; compare runs with the same test split"
    )


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", ["nv", "mel", "mel"], "2 images with another label, such as 'i1' with 'nv' and"),
        ("lesion_id", ["x", "y", "y"], "1 image with another lesion id, such as 'i2' with 'z' and"),
    ],
)
def test_other_facts_of_the_same_images_are_refused(column, values, message):
    a = answered(["x", "y", "z"], [True] * 3)
    with pytest.raises(DataError, match="the test sets differ: " + message):
        paired(a, shuffled(a, **{column: values}))


def test_other_classes_are_refused():
    with pytest.raises(DataError, match=r"^the classes differ: bkl, mel, nv and akiec, bcc, "):
        paired(simulate(20, seed=0, shares=THREE), simulate(20, seed=0))


def test_the_message_names_the_run_that_does_not_fit():
    a, b = simulate(30, seed=0), simulate(31, seed=1)
    with pytest.raises(DataError, match=r"^third cannot be compared with first: the test sets"):
        compare(["first", "second", "third"], [a, a, b], replicates=10)


def test_one_run_alone_is_not_compared():
    with pytest.raises(DataError, match=r"^there is nothing to compare first with; expected two"):
        compare(["first"], [simulate(30, seed=0)])


def test_a_difference_is_that_of_the_drawn_images():
    a = simulate(150, seed=0, shares=THREE)
    b = changed(a, 1.0)
    (found,) = compare(["a", "b"], [a, b], replicates=100, seed=5, metrics=["macro_auc"]).versus
    weights = lesion_weights(a.lesions, 100, 5)
    drawn = replicated(b, weights)["macro_auc"] - replicated(a, weights)["macro_auc"]
    (difference,) = found.differences
    assert difference.difference == pytest.approx(difference.estimate_b - difference.estimate_a)
    assert (difference.low, difference.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_swapped_runs_have_negative_differences():
    a = simulate(300, seed=0)
    b = changed(a, 1.0)
    (there,) = compare(["a", "b"], [a, b], replicates=100).versus
    (back,) = compare(["b", "a"], [b, a], replicates=100).versus
    assert there.mcnemar.only_other == back.mcnemar.only_reference > 0
    assert there.mcnemar.lesion_p_value == pytest.approx(back.mcnemar.lesion_p_value)
    for one, other in zip(there.differences, back.differences, strict=True):
        assert (one.estimate_a, one.estimate_b) == (other.estimate_b, other.estimate_a)
        assert one.difference == pytest.approx(-other.difference, abs=1e-15)
        if one.low is not None:
            assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_a_run_does_not_differ_from_itself():
    a = simulate(200, seed=0)
    (found,) = compare(["a", "again"], [a, a], replicates=100).versus
    assert found.mcnemar.p_value == found.mcnemar.lesion_p_value == 1
    assert not found.mcnemar.finding
    for difference in found.differences:
        assert difference.difference == 0
        assert difference.low is None
        assert difference.reason


def test_a_planted_difference_is_found(three_runs):
    worse, better = three_runs.versus
    assert worse.mcnemar.finding
    assert better.mcnemar.finding
    by_name = {found.metric: found for found in better.differences}
    assert by_name["accuracy"].low > 0
    assert by_name["loss"].high < 0


def test_mcnemar_is_as_worked_by_hand():
    # the reference alone is right on 1, the other alone on 5: 2 * (1 + 6) / 2 ** 6
    reference = answered([f"l{i}" for i in range(8)], [True] + [False] * 5 + [True, False])
    other = answered([f"l{i}" for i in range(8)], [False] + [True] * 5 + [True, False])
    found = mcnemar(reference, other)
    assert (found.only_reference, found.only_other) == (1, 5)
    assert found.p_value == pytest.approx(14 / 64)
    assert found.lesion_p_value == pytest.approx(14 / 64)  # each lesion has one image


def test_the_test_by_lesion_is_that_of_all_signs():
    lesions = list("aaabbbccdddde")
    reference = answered(lesions, [False] * 12 + [True])
    other = answered(lesions, [True] * 3 + [True, False, True] + [True] * 2 + [True] * 4 + [False])
    leads = [3, 2, 2, 4, -1]  # images right, of one model less those of the other
    sums = [
        abs(np.dot(signs, np.abs(leads))) for signs in itertools.product([-1, 1], repeat=len(leads))
    ]
    expected = np.mean(np.array(sums) >= abs(sum(leads)))
    found = mcnemar(reference, other)
    assert found.lesion_p_value == pytest.approx(expected)
    assert found.p_value < 0.05 < found.lesion_p_value  # 12 images are no 12 patients


def test_several_runs_are_corrected_for():
    lesions = [f"l{n}" for n in range(6)]
    reference = answered(lesions, [True] + [False] * 5)
    models = [reference, answered(lesions, [False] + [True] * 5)]  # 14 / 64, as above
    models.append(answered(lesions, [True] * 5 + [False]))  # 2 / 2 ** 4
    found = compare(["a", "b", "c"], models, replicates=10, metrics=["accuracy"])
    tests = [versus.mcnemar for versus in found.versus]
    assert [test.lesion_p_value for test in tests] == pytest.approx([14 / 64, 2 / 16])
    assert [test.lesion_p_adjusted for test in tests] == pytest.approx([4 / 16, 4 / 16])


def test_what_cannot_be_had_says_so():
    a, b = answered(list("ab"), [True, True]), answered(list("ab"), [True, False])
    (found,) = compare(["a", "b"], [a, b], replicates=10, metrics=["recall/mel"]).versus
    (difference,) = found.differences
    assert difference.estimate_a is difference.difference is difference.low is None
    assert difference.reason == "not defined: 0 lesions of mel"


def test_the_dictionary_is_json(three_runs):
    value = json.loads(json.dumps(three_runs.to_dict(), allow_nan=False))
    assert value["reference"] == "first"
    assert value["level"] == 0.95
    assert [versus["name"] for versus in value["versus"]] == ["worse", "better"]
    assert [entry["metric"] for entry in value["versus"][0]["differences"]] == [
        *("balanced_accuracy", "accuracy", "macro_f1", "macro_auc", "mcc", "recall/mel"),
        *("malignant_auc", "malignant_sensitivity", "malignant_specificity", "loss", "brier"),
    ]


def test_the_table_says_what_it_rests_on_and_aligns(three_runs):
    lines = table(three_runs).split("\n")
    assert lines[0] == (
        f"reference first; {three_runs.num_images:,} images of 400 lesions; 95% intervals from 200 "
        "bootstrap samples of lesions"
    )
    assert "worse - first" in lines
    assert "better - first" in lines
    accuracy = next(line for line in lines if line.startswith("accuracy "))
    found = three_runs.versus[0].differences[1]
    assert accuracy.split() == [
        "accuracy",
        f"{found.estimate_a:.3f}",
        f"{found.estimate_b:.3f}",
        f"{found.difference:+.3f}",
        f"{found.low:+.3f}",
        "to",
        f"{found.high:+.3f}",
    ]
    header = next(line for line in lines if "difference " in line)
    for title, value in (("reference", found.estimate_a), ("run", found.estimate_b)):
        assert header.index(title) + len(title) == accuracy.index(f"{value:.3f}") + 5
    assert sum("McNemar p" in line and "by lesion p" in line for line in lines) == 2


def test_a_worse_candidate_is_not_noninferior():
    reference = simulate(500, seed=0, shares=THREE)
    worse = changed(reference, 1.5)
    for metric, higher in (("balanced_accuracy", True), ("macro_auc", True), ("loss", False)):
        found = noninferior(worse, reference, metric, margin=0.02, replicates=300)
        assert not found.holds
        assert (found.difference < -0.02) == higher
        assert found.sentence.endswith("may be worse")
        back = noninferior(reference, worse, metric, margin=0.02, replicates=300)
        assert back.holds
        assert back.sentence.endswith(": not worse")


def test_an_equal_candidate_needs_enough_data():
    held = {}
    for size in (10, 1000):  # of ten answers one is right of this model alone, one of that
        lesions = [f"l{n}" for n in range(10 * size)]
        reference = answered(lesions, [True, False, *[True] * 6, *[False] * 2] * size)
        equal = answered(lesions, [False, True, *[True] * 6, *[False] * 2] * size)
        held[size] = noninferior(equal, reference, "accuracy", margin=0.02, replicates=300)
        assert held[size].difference == 0
    # the standard error is the root of 0.2 / N; normal 5 % quantile -1.645
    assert held[10].bound == pytest.approx(-1.645 * np.sqrt(0.2 / 100), rel=0.2)
    assert not held[10].holds
    assert held[1000].bound == pytest.approx(-1.645 * np.sqrt(0.2 / 10_000), rel=0.2)
    assert held[1000].holds


def test_a_class_of_few_lesions_shows_nothing():
    reference = simulate(300, seed=0)
    found = noninferior(
        changed(reference, 0.2, better=3.0),
        reference,
        "balanced_accuracy",
        margin=0.5,
        replicates=100,
    )
    assert found.difference > 0
    assert found.bound == -np.inf
    assert not found.holds
    assert "no lower 95% bound: only 5 lesions" in found.sentence


def test_the_same_model_is_no_worse_than_itself():
    reference = simulate(200, seed=0, shares=THREE)
    found = noninferior(reference, reference, "brier", margin=0.01, replicates=50)
    assert found.holds
    assert found.sentence == "brier is the same (upper 95% bound 0.000, margin 0.010): not worse"


def test_the_bound_is_the_one_sided_quantile():
    reference = simulate(200, seed=0, shares=THREE)
    candidate = changed(reference, 0.5)
    weights = lesion_weights(reference.lesions, 400, 0)
    ours, theirs = (replicated(scored, weights) for scored in (candidate, reference))
    for metric, share in (("accuracy", 0.05), ("brier", 0.95)):  # of brier, less is better
        found = noninferior(candidate, reference, metric, margin=0.01, replicates=400)
        drawn = ours[metric] - theirs[metric]
        assert found.bound == pytest.approx(np.quantile(drawn, share))


def test_an_unknown_metric_is_refused_with_those_that_are_known():
    a = simulate(20, seed=0)
    with pytest.raises(DataError) as caught:
        noninferior(a, a, "auroc", margin=0.01, replicates=10)
    message = str(caught.value)
    assert message.startswith("there is no metric 'auroc'; expected one of loss, accuracy, ")
    assert "recall/<class>" in message
    assert "malignant_auc" in message


def test_a_metric_that_cannot_be_had_is_refused():
    a = answered(list("ab"), [True, True])
    with pytest.raises(DataError, match=r"^recall/mel not defined: 0 lesions of mel; choose"):
        noninferior(a, a, "recall/mel", margin=0.01, replicates=10)


def test_the_forest_plot_is_a_whole_png_with_words(tmp_path, three_runs, monkeypatch):
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: (save(figure, *a, **k), saved.append(figure))
    )
    save_png(tmp_path / "forest.png", forest(three_runs))
    with Image.open(tmp_path / "forest.png") as image:
        image.load()
        assert image.format == "PNG"
        assert 600 <= image.width <= 1000  # fits MLflow's artifact view
    assert [path.name for path in tmp_path.iterdir()] == ["forest.png"]
    texts = {text.get_text() for text in saved[0].findobj(Text)}
    assert {"balanced accuracy", "sensitivity for mel", "worse", "better", DISCLAIMER} <= texts
    assert any("400 lesions" in text for text in texts)


def test_the_forest_plot_draws_what_has_no_interval(tmp_path):
    a, b = answered(list("ab"), [True, True]), answered(list("ab"), [True, False])
    save_png(tmp_path / "forest.png", forest(compare(["a", "b"], [a, b], replicates=10)))
    assert (tmp_path / "forest.png").stat().st_size > 10_000


TRUTH = ("accuracy", "balanced_accuracy", "loss", "brier")


def of_two_models(num_lesions: int, seed: int) -> tuple[Scored, Scored]:
    """Draw one data set and the answers of two models of which the second is a bit worse."""
    a = simulate(num_lesions, seed=seed, shares=THREE)
    return a, changed(a, 0.7, seed=seed + 10**6)


@pytest.fixture(scope="module")
def studies():
    """Compare the models on 600 data sets of 400 lesions; the truth is that of 300,000."""
    everything = of_two_models(300_000, seed=10**7)
    once = [replicated(scored, np.ones((1, len(scored)))) for scored in everything]
    truth = {name: float(once[1][name][0] - once[0][name][0]) for name in TRUTH}
    found = []
    for seed in range(600):
        a, b = of_two_models(400, seed)
        found.append(compare(["a", "b"], [a, b], replicates=500, metrics=TRUTH))
    return truth, found


@pytest.mark.slow
def test_95_percent_intervals_of_differences_hold_the_truth_95_times_in_100(studies):
    truth, found = studies
    for row, name in enumerate(TRUTH):
        differences = [comparison.versus[0].differences[row] for comparison in found]
        held = np.mean([entry.low <= truth[name] <= entry.high for entry in differences])
        assert 0.93 <= held <= 0.97, (name, held)


@pytest.mark.slow
def test_equal_models_differ_by_lesion_as_seldom_as_promised_and_by_image_too_often():
    p_values = []
    for seed in range(500):
        a = simulate(150, seed=seed, shares=THREE)
        one, other = changed(a, 1.0, seed=2 * seed), changed(a, 1.0, seed=2 * seed + 1)
        found = mcnemar(one, other)
        p_values.append((found.p_value, found.lesion_p_value))
    by_image, by_lesion = (np.array(p_values) < 0.05).sum(axis=0)
    limit = binom.ppf(0.999, 500, 0.05)
    assert by_lesion <= limit < by_image
