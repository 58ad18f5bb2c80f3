"""Who becomes champion, on a real sqlite registry with real predictions."""

from dataclasses import replace

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from simulated import THREE, simulate

from dermalyze.config.schema import TrackingConfig
from dermalyze.evaluation.predictions import predictions_table, write_predictions
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.noninferiority import (
    Rule,
    compare_with_champion,
    require_metric,
)
from dermalyze.tracking.registry import Candidate, promote, reference_version, register
from serving.errors import ConfigError, TrackingError
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import Taxonomy

RULE = Rule(metric="accuracy", margin=0.02, calibration_margin=0.02, must_be_better=True)
BY_HAND = Rule(metric="accuracy", margin=0.02, calibration_margin=0.02, must_be_better=False)


def predictions(quality: float, *, sharpness: float = 1.0) -> Scored:
    """Return answers for the same 600 lesions; more `quality`, more of them right.

    Noise has variance 1, so logits times `quality` are calibrated; `sharpness` spoils it.
    """
    images = simulate(600, seed=3, shares=dict.fromkeys(HAM10000.names, 1 / 7), signal=0.0)
    logits = (images.logits + quality * np.eye(7)[images.targets]) * quality * sharpness
    return scored_of(predictions_table(images.table, logits, HAM10000), HAM10000)


WORSE, SAME, BETTER = (predictions(quality) for quality in (1.6, 2.0, 2.6))


def candidate(**changes):
    values = {
        "model_uri": "models:/m-1",
        "run_id": "r",
        "test_split": "split-a",
        "demo_data": False,
        "parity": "differs by 1e-6",
        "description": "a model",
        "predictions": SAME,
    }
    return Candidate(**{**values, **changes})


def logged(store, predictions, **changes):
    """Log a model from code and its predictions, as the program does."""
    code, table = store / "model.py", store / "predictions.csv"
    code.write_text(
        "import mlflow\n"
        "class Echo(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return model_input\n"
        "mlflow.models.set_model(Echo())\n"
    )
    write_predictions(table, predictions.table)
    with mlflow.start_run() as run:
        info = mlflow.pyfunc.log_model(
            name="model", python_model=str(code), pip_requirements=["numpy"]
        )
        mlflow.log_artifact(str(table), "evaluation")
    values = {"model_uri": info.model_uri, "run_id": run.info.run_id, "predictions": predictions}
    return candidate(**{**values, **changes})


def test_a_clearly_better_model_is_promoted_with_its_numbers():
    decision = compare_with_champion(BETTER, SAME, RULE, "version 3")
    assert decision.promoted
    assert "against version 3, accuracy is" in decision.reason
    gained = np.mean(BETTER.predicted == BETTER.targets) - np.mean(SAME.predicted == SAME.targets)
    assert decision.numbers["difference"] == pytest.approx(gained)
    assert 0 < decision.numbers["bound"] < gained


def test_a_worse_model_is_not():
    decision = compare_with_champion(WORSE, SAME, RULE, "version 3")
    assert not decision.promoted
    assert "may be worse" in decision.reason


def test_an_equal_model_is_promoted_by_hand_alone():
    automatic = compare_with_champion(SAME, SAME, RULE, "version 3")
    assert not automatic.promoted
    assert automatic.reason.endswith("its estimate is not higher")
    assert compare_with_champion(SAME, SAME, BY_HAND, "version 3").promoted


def test_a_model_that_is_right_as_often_but_worse_calibrated_is_not():
    overconfident = predictions(2.0, sharpness=6.0)
    decision = compare_with_champion(overconfident, SAME, BY_HAND, "version 3")
    assert decision.numbers["difference"] == 0
    assert not decision.promoted
    assert decision.numbers["calibration_bound"] > 0.02


def test_few_lesions_prove_nothing():
    few = [
        simulate(25, seed=seed, shares=THREE).with_logits(logits)
        for seed, logits in ((0, simulate(25, seed=0, shares=THREE).logits * k) for k in (1, 1.01))
    ]
    rule = Rule(
        metric="balanced_accuracy", margin=0.02, calibration_margin=0.02, must_be_better=False
    )
    decision = compare_with_champion(few[0], few[1], rule, "version 3")
    assert not decision.promoted
    assert "lesions" in decision.reason


def test_other_images_are_not_compared():
    half = SAME.take(np.arange(len(SAME) // 2))
    decision = compare_with_champion(half, SAME, RULE, "version 3")
    assert not decision.promoted
    assert decision.reason.startswith("not compared: the test sets differ")


def test_aliases_follow_the_newest_and_the_best(store):
    client = MlflowClient()
    first = register("lesions", logged(store, SAME), RULE)
    worse = register("lesions", logged(store, WORSE), RULE)
    better = logged(store, BETTER, description="the best so far")
    best = register("lesions", better, RULE)
    again = register("lesions", better, RULE)  # a resumed run registers nothing twice
    assert [r.version for r in (first, worse, best, again)] == ["1", "2", "3", "3"]
    assert [r.is_champion for r in (first, worse, best, again)] == [True, False, True, True]
    assert again.reason == best.reason
    assert str(client.get_model_version_by_alias("lesions", "champion").version) == "3"
    assert str(client.get_model_version_by_alias("lesions", "challenger").version) == "3"
    refused = client.get_model_version("lesions", "2")
    assert refused.tags["dermalyze.champion_reason"] == worse.reason
    assert float(refused.tags["dermalyze.promotion.difference"]) < 0
    assert refused.tags["dermalyze.promotion.margin"] == "0.02"
    promoted = client.get_model_version("lesions", "3")
    assert promoted.description.startswith("the best so far")
    assert f"promoted: {best.reason}" in promoted.description


def test_without_proven_parity_nobody_becomes_champion(store):
    registered = register("unproven", logged(store, SAME, parity=""), RULE)
    assert not registered.is_champion
    assert "has not passed the parity check" in registered.reason


def test_another_test_split_is_not_compared(store):
    register("split", logged(store, SAME), RULE)
    other = register("split", logged(store, BETTER, test_split="split-b"), RULE)
    assert not other.is_champion
    assert other.reason == "not compared: version 1 was evaluated on another test split"


def test_real_data_replaces_a_demo_champion_and_never_the_reverse(store):
    demo = {"demo_data": True, "test_split": "demo"}
    register("drawn", logged(store, BETTER, **demo), RULE)
    assert register("drawn", logged(store, WORSE), RULE).is_champion
    assert not register("drawn", logged(store, BETTER, **demo), RULE).is_champion


def test_the_reference_model_gives_way_to_a_model_trained_here(store):
    packed = {"predictions": None, "test_split": "", "reference": "0f"}
    first = register("packed", replace(logged(store, SAME), **packed), RULE)
    demo = register("packed", logged(store, BETTER, demo_data=True), RULE)
    own = register("packed", logged(store, WORSE), RULE)
    late = register("packed", replace(logged(store, SAME), **packed), RULE)
    assert [r.is_champion for r in (first, demo, own, late)] == [True, False, True, False]
    assert own.reason == "version 1 is the reference model, which gives way to any other"
    assert late.reason == "version 3 was trained here, and this is the reference model"
    assert reference_version("packed", "0f") in (first.version, late.version)
    assert reference_version("packed", "other") == reference_version("absent", "0f") == ""
    assert promote("packed", first.version, BY_HAND, anyway=True).is_champion


def test_by_hand_the_rule_holds_unless_it_is_overruled_in_writing(store):
    client = MlflowClient()
    register("hand", logged(store, SAME), RULE)
    register("hand", logged(store, WORSE, description="a weaker one"), RULE)
    refused = promote("hand", "2", BY_HAND, anyway=False)
    assert not refused.is_champion
    assert str(client.get_model_version_by_alias("hand", "champion").version) == "1"
    forced = promote("hand", "2", BY_HAND, anyway=True)
    assert forced.is_champion
    assert str(client.get_model_version_by_alias("hand", "champion").version) == "2"
    version = client.get_model_version("hand", "2")
    assert version.tags["dermalyze.champion_reason"].startswith(
        "promoted by hand although the rule refused: "
    )
    assert version.description.startswith("a weaker one")
    assert version.description.count("Promotion to champion.") == 1
    with pytest.raises(TrackingError, match="is already the champion"):
        promote("hand", "2", BY_HAND, anyway=False)


def test_a_version_that_is_not_there_is_one_sentence(store):
    with pytest.raises(TrackingError, match=r"^the registry refuses the model absent: [^\n]+$"):
        promote("absent", "7", BY_HAND, anyway=False)


def test_a_name_that_the_registry_refuses_is_one_sentence(store):
    with pytest.raises(TrackingError, match=r"^the registry refuses the model a/b: [^\n]+$"):
        register("a/b", candidate(), RULE)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("test/recall", "test/recall/ and one of mel, nv_flat"),
        ("test/recall/typo", "test/recall/ and one of mel, nv_flat"),
        ("test/accuracy/mel", "test/accuracy"),
        (
            "test/malignant_auc",
            "test/balanced_accuracy or another metric without malignant_, since none of these "
            "classes is known to be malignant",
        ),
    ],
)
def test_a_champion_metric_that_these_classes_do_not_have_is_refused(metric, expected):
    taxonomy = Taxonomy(names=("mel", "nv/flat"))
    with pytest.raises(ConfigError) as caught:
        require_metric(metric, taxonomy)
    message = f"tracking.champion_metric must be {expected}, got {metric!r}"
    assert str(caught.value) == message
    assert TrackingConfig(champion_metric=metric)  # which the settings alone cannot know


@pytest.mark.parametrize("metric", ["balanced_accuracy", "recall/mel", "auc/nv", "malignant_auc"])
def test_a_champion_metric_of_ham10000_is_accepted(metric):
    require_metric(f"test/{metric}", HAM10000)
