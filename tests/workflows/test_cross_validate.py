"""Folds on drawn data: dealt, trained, stopped, killed, gone on with and judged together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from dermalyze.cli.streams import log_lines
from dermalyze.config.schema import Config, DataConfig, ModelConfig, TrackingConfig, TrainingConfig
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.tracking import children_of, open_run, tags_of
from dermalyze.workflows.cross_validate import out_of_fold, resume_folds, train_folds
from dermalyze.workflows.export import export_runs
from dermalyze.workflows.run_context import FOLD_TAG, Here
from dermalyze.workflows.train import TrainingInterruptedError
from serving import Predictor
from serving.errors import ArtifactError, ConfigError, DataError, TrackingError, TrainingError
from serving.ham10000_taxonomy import HAM10000

CONFIG = Config(
    data=DataConfig(image_size=32, val_size=0.25),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=2, batch_size=16, lr=3e-3, fast_mode=False, device="cpu"),
    tracking=TrackingConfig(experiment="folds"),
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("data") / "demo", num_images=70)


@pytest.fixture(scope="module")
def whole(store, demo):
    """Two folds without an interruption."""
    return train_folds(CONFIG, demo, 2)


def artifact(run_id, name):
    run = MlflowClient().get_run(run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / name


def status(run_id):
    return MlflowClient().get_run(run_id).info.status


def predictions(run_id):
    return pd.read_csv(artifact(run_id, "evaluation/predictions.csv"))


def labels(demo):
    return pd.read_csv(demo / "prepared" / "labels.csv")


@pytest.mark.slow
def test_every_image_is_judged_once_by_the_model_of_its_fold(whole, demo):
    together = predictions(whole.run_id)
    assert together["image_id"].tolist() == labels(demo)["image_id"].tolist()
    apart = pd.concat([predictions(run_id) for run_id in whole.fold_run_ids])
    apart = apart.sort_values("image_id", ignore_index=True)
    pd.testing.assert_frame_equal(together, apart)


@pytest.mark.slow
def test_no_fold_learns_from_a_lesion_that_it_is_tested_on(whole, demo):
    tested = []
    for run_id in whole.fold_run_ids:
        train, val, test = (
            set(pd.read_csv(artifact(run_id, f"{split}_split.csv"))["lesion_id"])
            for split in ("train", "val", "test")
        )
        assert not train & val | train & test | val & test
        tested += sorted(test)
    assert sorted(tested) == sorted(set(labels(demo)["lesion_id"]))


@pytest.mark.slow
def test_the_folds_stand_below_one_run_that_holds_what_they_come_to(whole):
    below = children_of(whole.run_id, FOLD_TAG)
    assert below == {
        str(number): (run_id, True) for number, run_id in enumerate(whole.fold_run_ids, start=1)
    }
    run = MlflowClient().get_run(whole.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["dermalyze.folds"] == run.data.params["folds"] == "2"
    assert run.data.tags["dermalyze.demo_data"] == "true"
    assert "2 models, not one" in run.data.tags["dermalyze.warnings"]
    assert artifact(whole.run_id, "config.yaml").is_file()
    table = predictions(whole.run_id)
    expected = {
        "test/accuracy": accuracy_score(table["label"], table["predicted"]),
        "test/balanced_accuracy": balanced_accuracy_score(table["label"], table["predicted"]),
    }
    assert {name: run.data.metrics[name] for name in expected} == pytest.approx(expected)
    assert whole.metrics["test/accuracy"] == run.data.metrics["test/accuracy"]
    assert MlflowClient().search_registered_models() == []
    assert not list(Path(".dermalyze/runs").iterdir())


@pytest.mark.slow
def test_stopped_in_the_second_fold_they_go_on_there_and_end_alike(whole, demo):
    said = []

    def stop_in_the_second_fold(line):
        said.append(line)
        if line.startswith("epoch 1/2") and any("fold 2 of 2" in told for told in said):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterruptedError) as caught, log_lines(stop_in_the_second_fold):
        train_folds(CONFIG, demo, 2)
    run_id = said[[line.endswith("continues") for line in said].index(True)].split()[1].rstrip(":")
    assert str(caught.value) == (
        f"stopped in fold 2 of 2; continue with `dermalyze train --resume {run_id}`"
    )
    below = children_of(run_id, FOLD_TAG)
    assert [is_finished for _, is_finished in below.values()] == [True, False]
    assert (status(run_id), status(below["2"][0])) == ("KILLED", "KILLED")
    first = MlflowClient().get_run(below["1"][0]).info
    again = []
    with log_lines(again.append):
        result = resume_folds(run_id)
    assert MlflowClient().get_run(below["1"][0]).info.end_time == first.end_time
    assert result.fold_run_ids == tuple(fold for fold, _ in below.values())
    assert [line.split("  ")[0] for line in again if line.startswith("epoch")] == ["epoch 2/2"]
    assert status(run_id) == "FINISHED"
    pd.testing.assert_frame_equal(predictions(run_id), predictions(whole.run_id))
    assert result.metrics == whole.metrics


DRIVER = """
import os, pathlib, signal, sys
from test_cross_validate import CONFIG, log_lines, train_folds

def kill(line):
    print(line, flush=True)
    if line.startswith("fold 1 of 2: run"):
        os.kill(os.getpid(), signal.SIGKILL)

with log_lines(kill):
    train_folds(CONFIG, pathlib.Path(sys.argv[1]), 2)
"""


@pytest.mark.slow
def test_killed_before_the_first_step_they_go_on_in_the_same_runs(whole, demo, store):
    root = Path(__file__).parents[2]
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(root), str(Path(__file__).parent)]),
        MLFLOW_TRACKING_URI=f"sqlite:///{store}/mlflow.db",
    )
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, demo],
        cwd=store,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    first, second = done.stdout.splitlines()[-2:]
    run_id, fold_run_id = first.split()[1].rstrip(":"), second.split()[-1]
    assert status(run_id) == "RUNNING"
    result = resume_folds(run_id, Here(data_dir=demo))
    assert result.fold_run_ids[0] == fold_run_id
    assert len(children_of(run_id, FOLD_TAG)) == 2
    pd.testing.assert_frame_equal(predictions(run_id), predictions(whole.run_id))


@pytest.mark.slow
def test_folds_that_have_ended_well_are_not_resumed(whole):
    with pytest.raises(TrackingError) as caught:
        resume_folds(whole.run_id)
    assert str(caught.value) == (f"run {whole.run_id} is already finished")


def test_a_run_without_folds_is_not_resumed_as_folds(store):
    with pytest.raises(KeyboardInterrupt), open_run(CONFIG.tracking) as run:
        raise KeyboardInterrupt
    with pytest.raises(TrackingError) as caught:
        resume_folds(run.run_id)
    assert "dermalyze.folds" not in tags_of(run.run_id)
    assert str(caught.value) == (
        f"run {run.run_id} was not trained in folds; continue with "
        f"`dermalyze train --resume {run.run_id}`"
    )


@pytest.mark.parametrize(
    ("folds", "data", "message"),
    [
        (1, {}, "folds must be from 2 to 20, got 1"),
        (21, {}, "folds must be from 2 to 20, got 21"),
        (5, {"splits": "mine"}, "data.splits must be auto to train folds, got 'mine'"),
        (
            5,
            {"group_by": "none"},
            "data.group_by must be lesion or patient to train folds, got 'none'",
        ),
    ],
)
def test_folds_that_make_no_sense_are_refused_before_anything_is_read(
    tmp_path, folds, data, message
):
    with pytest.raises(ConfigError) as caught:
        train_folds(Config(data=DataConfig(**data)), tmp_path / "none", folds)
    assert str(caught.value) == message


def test_more_folds_than_lesions_of_a_class_leave_no_run_behind(store, demo):
    before = len(MlflowClient().search_experiments())
    with pytest.raises(DataError) as caught:
        train_folds(CONFIG, demo, 20)
    assert "and fold 1, fold 2, fold 3" in str(caught.value)
    assert len(MlflowClient().search_experiments()) == before


def table_of(*image_ids):
    """Answers in which the logits say which image they are of."""
    table = pd.DataFrame({"image_id": image_ids})
    for place, name in enumerate(HAM10000.names):
        table[f"logit_{name}"] = [100.0 * int(i.removeprefix("i")) + place for i in image_ids]
    return table


def test_answers_of_folds_are_put_together_by_image():
    manifest = pd.DataFrame({"image_id": ["i2", "i0", "i1"]})
    table = out_of_fold(manifest, [table_of("i0"), table_of("i1", "i2")])
    assert table["image_id"].tolist() == ["i2", "i0", "i1"]
    assert table["logit_akiec"].tolist() == [200.0, 0.0, 100.0]


@pytest.mark.parametrize(
    ("second", "numbers"),
    [(["i1"], "2 images in 2 answers"), (["i1", "i2", "i0"], "3 images in 4 answers")],
)
def test_an_image_without_an_answer_or_with_two_is_refused(second, numbers):
    manifest = pd.DataFrame({"image_id": ["i0", "i1", "i2"]})
    with pytest.raises(TrainingError) as caught:
        out_of_fold(manifest, [table_of("i0"), table_of(*second)])
    assert str(caught.value) == (
        f"the folds evaluated {numbers}, expected one answer for each of 3; train the folds again"
    )


@pytest.mark.slow
def test_a_run_of_folds_becomes_one_file_that_was_calibrated_out_of_fold(whole, tmp_path):
    path = tmp_path / "folds.onnx"
    said = export_runs([whole.run_id], path, tta=False, precision="float32")
    assert said.startswith("2 networks; differs from PyTorch by at most ")
    spec = Predictor(path).spec
    assert spec.member_run_ids == whole.fold_run_ids
    assert spec.calibrated_on.startswith("out of fold, one network each: 70 images of ")
    lesions = predictions(whole.run_id).groupby("label")["lesion_id"].nunique()
    assert spec.prediction_sets.num_lesions == tuple(lesions[list(HAM10000.names)])


@pytest.mark.slow
def test_folds_and_another_run_are_no_ensemble(whole, tmp_path):
    ids = [whole.run_id, whole.fold_run_ids[0]]
    with pytest.raises(ArtifactError) as caught:
        export_runs(ids, tmp_path / "m.onnx", tta=False, precision="float32")
    assert str(caught.value) == (
        "a cross-validation run is already an ensemble; pass it alone, or pass other runs"
    )


@pytest.mark.slow
def test_folds_have_no_image_to_prove_int8_on(whole, demo, tmp_path):
    here = Here(data_dir=demo)
    with pytest.raises(DataError) as caught:
        export_runs([whole.run_id], tmp_path / "m.onnx", tta=False, precision="int8", here=here)
    assert str(caught.value).startswith(
        "int8 needs validation images that none of these runs was trained on"
    )
