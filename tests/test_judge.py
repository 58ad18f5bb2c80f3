"""The judgement as a whole: what it rests on, what it never sees, what it says of missing parts."""

import json

import numpy as np
import pandas as pd
import pytest
from simulated import HAM10000_SHARES, simulate

from dermalyze.config import CHAMPION_METRICS, EvaluationConfig
from dermalyze.evaluation.bootstrap import replicated
from dermalyze.evaluation.clinical import decision_curve
from dermalyze.evaluation.judge import check_settings, judge, seen_priors, write_judgement
from dermalyze.evaluation.scored import scored_of
from serving.errors import ConfigError, DataError
from serving.taxonomy import CLASS_NAMES

QUICK = EvaluationConfig(replicates=100)


def renamed(scored, prefix):
    """The same answers for other images of other lesions."""
    table = scored.table.assign(
        image_id=prefix + scored.table["image_id"], lesion_id=prefix + scored.table["lesion_id"]
    )
    return scored_of(table, scored.class_names)


@pytest.fixture(scope="module")
def test_images():
    return simulate(300, seed=0)


@pytest.fixture(scope="module")
def validation():
    return renamed(simulate(300, seed=1), "V")


@pytest.fixture(scope="module")
def judged(test_images, validation):
    return judge(test_images, validation, QUICK, split="test")


def test_a_judgement_is_json_and_says_what_it_rests_on(judged, test_images, tmp_path):
    write_judgement(tmp_path, judged.judgement)
    read = json.loads((tmp_path / "judgement.json").read_text())
    assert (read["num_images"], read["num_lesions"]) == (len(test_images), 300)
    assert (read["split"], read["level"], read["replicates"]) == ("test", 0.95, 100)
    assert "skin type" in read["subgroups"]["note"]
    assert read["calibration"]["calibrator"]["fitted_on"]["num_lesions"] == 300


def test_the_calibrator_never_sees_what_is_judged(judged, validation):
    other = judge(simulate(200, seed=9, signal=0.1), validation, QUICK, split="test")
    ours, theirs = (j.judgement["calibration"] for j in (judged, other))
    assert ours["calibrator"] == theirs["calibrator"]
    assert ours["before"] != theirs["before"]


def test_the_decision_curve_is_of_calibrated_probabilities(judged, test_images):
    curve = judged.judgement["decision_curve"]
    assert curve == decision_curve(judged.calibrated).to_dict()
    assert curve != decision_curve(test_images).to_dict()


def test_a_lesion_in_both_is_refused(test_images):
    with pytest.raises(DataError, match="stands in both"):
        judge(test_images, test_images, QUICK, split="test")


def test_without_validation_there_is_no_calibrator(test_images):
    judged = judge(test_images, None, QUICK, split="images")
    assert "calibration" not in judged.judgement
    assert judged.calibrated is None


def test_correcting_the_prevalence_helps_where_the_classes_are_as_stated():
    equal = dict.fromkeys(CLASS_NAMES, 1 / 7)
    images = simulate(4000, seed=2, shares=HAM10000_SHARES, images=(1,))
    # A logit is 1.5 for its class plus noise of variance 1: times 1.5 it is a posterior where all
    # classes are equally common, as a balanced loss would teach.
    trained = images.with_logits(images.logits * 1.5)
    stated = ",".join(f"{name}={share}" for name, share in HAM10000_SHARES.items())
    for prevalence in (stated, "estimate"):
        settings = EvaluationConfig(replicates=100, prevalence=prevalence)
        priors = np.array(list(equal.values()))
        found = judge(trained, None, settings, split="test", trained_priors=priors)
        part = found.judgement["prevalence"]
        assert part["stated"]["nv"] == pytest.approx(0.67, abs=0.03)
        assert part["after"]["loss"] < part["before"]["loss"] - 0.1
        assert part["after"]["accuracy"] > part["before"]["accuracy"] + 0.05


def test_a_prevalence_without_known_training_shares_is_refused(test_images):
    with pytest.raises(ConfigError, match=r"evaluation\.prevalence needs"):
        judge(test_images, None, EvaluationConfig(replicates=100, prevalence="nv=1"), split="x")


def test_a_balanced_loss_sees_all_classes_equally_often():
    targets = np.array([0, 0, 0, 2])
    assert seen_priors(targets, 3, balanced=False).tolist() == [0.75, 0, 0.25]
    assert seen_priors(targets, 3, balanced=True).tolist() == [0.5, 0, 0.5]


def test_what_would_fail_after_a_training_fails_before():
    rows = pd.DataFrame({"label": ["nv", "mel"], "lesion_id": ["a", "b"]})
    check_settings(EvaluationConfig(), rows, CLASS_NAMES)
    with pytest.raises(DataError, match=r"set evaluation\.calibrator to temperature"):
        check_settings(EvaluationConfig(calibrator="vector"), rows, CLASS_NAMES)
    with pytest.raises(ConfigError, match=r"evaluation\.prevalence"):
        check_settings(EvaluationConfig(prevalence="mole=0.5"), rows, CLASS_NAMES)


def test_every_metric_of_a_champion_is_one_that_is_computed(test_images):
    known = {
        name.partition("/")[0] for name in replicated(test_images, np.ones((1, len(test_images))))
    }
    assert set(CHAMPION_METRICS) <= known
    assert not set(CHAMPION_METRICS) & {"loss", "ece", "brier"}
