"""Who becomes champion, on a real sqlite registry."""

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from dermalyze.registry import Candidate, judge, register
from serving.errors import TrackingError

METRIC = "test/balanced_accuracy"


def candidate(**changes):
    values = {
        "model_uri": "models:/m-1",
        "run_id": "r",
        "metric": METRIC,
        "value": 0.7,
        "test_split": "split-a",
        "demo_data": False,
        "description": "a model",
    }
    return Candidate(**{**values, **changes})


def champion(**changes):
    values = {
        "version": "3",
        "dermalyze.test_split": "split-a",
        "dermalyze.metric": METRIC,
        "dermalyze.value": "0.65",
        "dermalyze.demo_data": "false",
    }
    return {**values, **changes}


def test_the_first_model_is_champion():
    assert judge(candidate(), None) == (True, "first champion, with test/balanced_accuracy 0.7000")


def test_a_better_one_on_the_same_split_replaces_the_champion():
    assert judge(candidate(), champion()) == (
        True,
        "test/balanced_accuracy 0.7000 is better than 0.6500 of version 3 on the same test split",
    )


def test_an_equal_or_worse_one_does_not():
    assert judge(candidate(value=0.65), champion()) == (
        False,
        "test/balanced_accuracy 0.6500 is not better than 0.6500 of version 3 "
        "on the same test split",
    )


def test_a_better_one_on_another_split_is_not_compared():
    assert judge(candidate(value=0.99, test_split="split-b"), champion()) == (
        False,
        "not compared: version 3 was judged on another test split",
    )


def test_a_champion_judged_by_another_metric_is_not_compared():
    assert judge(candidate(metric="test/macro_auc", value=0.99), champion()) == (
        False,
        "not compared: version 3 was judged by test/balanced_accuracy, not test/macro_auc",
    )


def test_real_data_replaces_a_demo_champion_and_never_the_reverse():
    demo = champion(**{"dermalyze.demo_data": "true", "dermalyze.test_split": "demo"})
    assert judge(candidate(value=0.1), demo)[0] is True
    assert judge(candidate(value=0.99, demo_data=True, test_split="demo"), champion())[0] is False


def logged(store, value, run_name):
    """Log a model from code, as the program does, and return its address and run."""
    code = store / "model.py"
    code.write_text(
        "import mlflow\n"
        "class Echo(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return model_input\n"
        "mlflow.models.set_model(Echo())\n"
    )
    with mlflow.start_run(run_name=run_name) as run:
        info = mlflow.pyfunc.log_model(
            name="model", python_model=str(code), pip_requirements=["numpy"]
        )
    return candidate(model_uri=info.model_uri, run_id=run.info.run_id, value=value)


def test_aliases_follow_the_newest_and_the_best(store):
    client = MlflowClient()
    first = register("lesions", logged(store, 0.6, "first"))
    worse = register("lesions", logged(store, 0.5, "worse"))
    better = logged(store, 0.8, "better")
    best = register("lesions", better)
    again = register("lesions", better)  # a resumed run registers nothing twice
    assert [r.version for r in (first, worse, best, again)] == ["1", "2", "3", "3"]
    assert [r.is_champion for r in (first, worse, best, again)] == [True, False, True, True]
    assert again.reason == best.reason
    assert str(client.get_model_version_by_alias("lesions", "champion").version) == "3"
    assert str(client.get_model_version_by_alias("lesions", "challenger").version) == "3"
    refused = client.get_model_version("lesions", "2")
    assert refused.tags["dermalyze.champion_reason"] == worse.reason
    assert refused.description == "a model"


def test_a_name_that_the_registry_refuses_is_one_sentence(store):
    with pytest.raises(TrackingError, match=r"^cannot register the model a/b: [^\n]+$"):
        register("a/b", candidate())
