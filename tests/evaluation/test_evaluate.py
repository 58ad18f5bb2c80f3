"""The evaluation as a whole: what it rests on, what it never sees, which parts it leaves out."""

import json

import numpy as np
import pandas as pd
import pytest
from simulated import HAM10000_SHARES, predicted, renamed, simulate

from dermalyze.config.loading import config_from
from dermalyze.config.schema import CHAMPION_METRICS, Config, EvaluationConfig
from dermalyze.evaluation.evaluate import (
    Evaluation,
    check_settings,
    evaluate,
    seen_priors,
)
from dermalyze.evaluation.metrics.classification import replicated
from dermalyze.evaluation.metrics.clinical import decision_curve
from serving.errors import ArtifactError, ConfigError, DataError
from serving.ham10000_taxonomy import HAM10000

QUICK = EvaluationConfig(replicates=100)


@pytest.fixture(scope="module")
def test_images():
    return simulate(300, seed=0)


@pytest.fixture(scope="module")
def validation():
    return renamed(simulate(300, seed=1), "V")


@pytest.fixture(scope="module")
def evaluated(test_images, validation):
    return evaluate(predicted(test_images, validation), QUICK)


def test_an_evaluation_is_json_and_says_what_it_rests_on(evaluated, test_images):
    read = json.loads(evaluated.to_json())
    assert (read["num_images"], read["num_lesions"]) == (len(test_images), 300)
    assert (read["split"], read["level"], read["replicates"]) == ("test", 0.95, 100)
    assert "skin type" in read["subgroups"]["note"]
    assert read["calibration"]["calibrator"]["fitted_on"]["num_lesions"] == 300
    assert read["class_names"] == list(HAM10000.names)


def test_an_evaluation_reads_back_as_it_was(evaluated, test_images):
    assert Evaluation.from_json(evaluated.to_json()) == evaluated
    bare = evaluate(predicted(test_images), QUICK)
    assert Evaluation.from_json(bare.to_json()) == bare


def test_an_evaluation_of_an_older_version_is_of_ham10000(evaluated):
    values = json.loads(evaluated.to_json())
    for name in ("taxonomy", "group_by", "metrics", "confusion_matrix", "context"):
        del values[name]
    old = Evaluation.from_json(json.dumps(values))
    assert old.taxonomy == HAM10000
    assert old.group_by == "lesion"
    assert old.intervals == evaluated.intervals
    assert old.limits == evaluated.limits


@pytest.mark.parametrize("text", ["{}", "[1]", "nonsense", '{"intervals": 3}'])
def test_what_is_not_an_evaluation_is_refused(text):
    with pytest.raises(ArtifactError) as caught:
        Evaluation.from_json(text)
    expected = "this is not a judgement.json; expected what `dermalyze evaluate` wrote"
    assert str(caught.value) == expected


def test_the_calibrator_never_sees_what_is_evaluated(evaluated, validation):
    other = evaluate(predicted(simulate(200, seed=9, signal=0.1), validation), QUICK)
    ours, theirs = evaluated.calibration, other.calibration
    assert ours.calibrator == theirs.calibrator
    assert ours.before != theirs.before


def test_the_decision_curve_is_of_calibrated_probabilities(evaluated, test_images):
    curve = evaluated.decision_curve
    assert curve == decision_curve(evaluated.calibrated(test_images))
    assert curve != decision_curve(test_images)


def test_a_lesion_in_both_is_refused(test_images):
    with pytest.raises(DataError, match="is in both"):
        evaluate(predicted(test_images, test_images), QUICK)


def test_without_validation_there_is_no_calibrator(test_images):
    found = evaluate(predicted(test_images), QUICK)
    assert found.calibration is found.calibrated(test_images) is None
    assert "calibration" not in json.loads(found.to_json())


def test_correcting_the_prevalence_helps_where_the_classes_are_as_stated():
    equal = dict.fromkeys(HAM10000.names, 1 / 7)
    images = simulate(4000, seed=2, shares=HAM10000_SHARES, images=(1,))
    # A logit is 1.5 for its class plus noise of variance 1: times 1.5 it is a posterior where all
    # classes are equally common, as a balanced loss would teach.
    trained = images.with_logits(images.logits * 1.5)
    stated = ",".join(f"{name}={share}" for name, share in HAM10000_SHARES.items())
    for prevalence in (stated, "estimate"):
        settings = EvaluationConfig(replicates=100, prevalence=prevalence)
        priors = np.array(list(equal.values()))
        part = evaluate(predicted(trained), settings, priors).prevalence
        assert part.stated["nv"] == pytest.approx(0.67, abs=0.03)
        assert part.after["loss"] < part.before["loss"] - 0.1
        assert part.after["accuracy"] > part.before["accuracy"] + 0.05


def test_a_prevalence_without_known_training_shares_is_refused(test_images):
    with pytest.raises(ConfigError, match=r"evaluation\.prevalence needs"):
        evaluate(predicted(test_images), EvaluationConfig(replicates=100, prevalence="nv=1"))


def test_a_balanced_loss_sees_all_classes_equally_often():
    targets = np.array([0, 0, 0, 2])
    assert seen_priors(targets, 3).tolist() == [0.75, 0, 0.25]
    assert seen_priors(targets, 3, Config()).tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["loss.class_weights=none"], [0.75, 0, 0.25]),
        (["loss.class_weights=none", "training.use_weighted_sampling=true"], [0.5, 0, 0.5]),
        (["loss.class_weights=none", "loss.logit_adjustment=1"], [0.5, 0, 0.5]),
        # sqrt(3) and sqrt(1)
        (["loss.class_weights=none", "loss.logit_adjustment=0.5"], [0.6340, 0, 0.3660]),
        # Effective numbers for beta 0.5 are 1.75 and 1: 3 / 1.75 and 1 / 1.
        (["loss.class_weights=effective", "loss.effective_beta=0.5"], [0.6316, 0, 0.3684]),
    ],
)
def test_other_corrections_of_the_imbalance_see_classes_as_often_as_they_say(settings, expected):
    seen = seen_priors(np.array([0, 0, 0, 2]), 3, config_from({}, settings))
    assert seen.tolist() == pytest.approx(expected, abs=5e-5)


def test_what_would_fail_after_a_training_fails_before():
    rows = pd.DataFrame({"label": ["nv", "mel"], "lesion_id": ["a", "b"]})
    check_settings(EvaluationConfig(), rows, HAM10000)
    with pytest.raises(DataError, match=r"set evaluation\.calibrator to temperature"):
        check_settings(EvaluationConfig(calibrator="vector"), rows, HAM10000)
    with pytest.raises(ConfigError, match=r"evaluation\.prevalence"):
        check_settings(EvaluationConfig(prevalence="mole=0.5"), rows, HAM10000)


def test_every_metric_of_a_champion_is_one_that_is_computed(test_images):
    known = {
        name.partition("/")[0] for name in replicated(test_images, np.ones((1, len(test_images))))
    }
    assert set(CHAMPION_METRICS) <= known
    assert not set(CHAMPION_METRICS) & {"loss", "ece", "brier"}
