"""Runs that are killed at exact points end as if nothing had happened; damage is told."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

from dermalyze.cli.main import main
from dermalyze.cli.streams import log_lines
from dermalyze.config.loading import to_yaml
from dermalyze.config.schema import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TrainingConfig,
)
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.tracking import open_run
from dermalyze.workflows.report import report_run
from dermalyze.workflows.run_fingerprint import Began
from dermalyze.workflows.run_lock import lock
from dermalyze.workflows.train import resume, warn_of_place
from serving.errors import ArtifactError, DataError, TrackingError, TrainingError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORK = Path(".dermalyze/runs")
CONFIG = Config(
    data=DataConfig(image_size=32, val_size=0.25),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=2, batch_size=16, lr=3e-3, fast_mode=False, device="cpu"),
    evaluation=EvaluationConfig(replicates=100),
)
# Trains, and is killed when a function is called for the n-th time.
DRIVER = """
import importlib, os, pathlib, signal, sys
from test_killed import CONFIG
from dermalyze.workflows.train import train

module, name, calls, data = sys.argv[1:]
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
real, left = getattr(owner, last), int(calls)

def kill(*arguments, **named):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)

setattr(owner, last, kill)
train(CONFIG, pathlib.Path(data))
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("data") / "demo", num_images=70)


def kill_at(store, demo, point, calls, **variables):
    """Train until `point`, "module:function", is called for the n-th time; return the run."""
    before = run_ids()
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        MLFLOW_TRACKING_URI=f"sqlite:///{store}/mlflow.db",
        **variables,
    )
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *point.split(":"), str(calls), demo],
        cwd=store,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    (run_id,) = run_ids() - before or [variables.get("MLFLOW_RUN_ID")]
    assert status(run_id) == "RUNNING"
    return run_id


def run_ids():
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_id for run in client.search_runs(experiments)}


def status(run_id):
    return MlflowClient().get_run(run_id).info.status


def artifacts(run_id):
    return Path(MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("file://"))


def require_complete(run_id):
    """Check that the artifacts of a finished run hold both epochs, and tell which one is best."""
    folder = artifacts(run_id)
    assert status(run_id) == "FINISHED"
    history = json.loads((folder / "training_history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    latest, best = (
        torch.load(folder / f"checkpoint_{name}.pt", weights_only=True)["training"]
        for name in ("latest", "best")
    )
    assert latest["epoch"] == 2
    losses = [entry[CONFIG.training.monitor] for entry in history]
    assert best["epoch"] == latest["best_epoch"] == 1 + losses.index(min(losses))
    for name in ("val/loss", "train/loss"):
        logged = MlflowClient().get_metric_history(run_id, name)
        assert [(metric.step, metric.value) for metric in logged] == [
            (entry["epoch"], entry[name]) for entry in history
        ]
    with_curves = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "test_split.csv", "training_curves.png"} <= with_curves
    return best["epoch"]


def test_killed_before_the_last_epoch_is_uploaded_the_run_ends_with_all_epochs(
    store, demo, tmp_path
):
    run_id = kill_at(store, demo, "dermalyze.workflows.train:log_progress", 2)
    said = []
    with log_lines(said.append):
        resume(run_id)
    assert f"resumed run {run_id} after 2 epochs and 0 steps" in said
    best = require_complete(run_id)
    report_run(run_id, output=tmp_path)
    card = (tmp_path / "model_card.md").read_text()
    assert f"\nEpoch {best}: " in card
    assert card == (artifacts(run_id) / "evaluation" / "model_card.md").read_text()


@pytest.fixture(scope="module")
def in_evaluation(store, demo):
    """A run that was killed in its evaluation, after all epochs."""
    return kill_at(store, demo, "dermalyze.workflows.finish:write_evaluation", 1)


@contextlib.contextmanager
def changed(path, change):
    """Change a file within the block."""
    before = path.read_bytes()
    path.write_bytes(change(before))
    try:
        yield
    finally:
        path.write_bytes(before)


def refusal(run_id, kind=TrainingError):
    with pytest.raises(kind) as caught:
        resume(run_id)
    assert status(run_id) == "RUNNING"  # as it was
    return str(caught.value)


def test_a_run_is_not_resumed_with_what_it_did_not_begin_with(store, demo, in_evaluation):
    run_id, folder = in_evaluation, WORK / in_evaluation
    before = MlflowClient().get_run(run_id).data
    with changed(folder / "config.yaml", lambda text: text.replace(b"0.003", b"0.004")):
        assert refusal(run_id) == (
            f"{folder}/config.yaml has training.lr 0.004, and the run began with 0.003; undo that, "
            "or train a new run"
        )
    rows = len(pd.read_csv(folder / "train_split.csv"))
    with changed(folder / "train_split.csv", lambda text: b"".join(text.splitlines(True)[:-5])):
        assert refusal(run_id, DataError) == (
            f"train_split.csv has {rows - 5} images, and the run began with {rows}; undo that, or "
            "train a new run"
        )
    pixels = next((demo / "prepared").glob("pixels-*/pixels.npy"))
    with changed(pixels, lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]):
        assert refusal(run_id, DataError).startswith(
            f"the pixels of 1 of 70 images in {pixels.parent} are damaged, among them "
        )
    sums = pixels.with_name("sums.npy")
    with (
        changed(pixels, lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]),
        changed(sums, lambda data: data),
    ):
        sums.unlink()  # as somebody who has put other pixels there
        assert refusal(run_id, DataError) == (
            f"the pixels in {pixels.parent} are not those that the run began with; they were "
            "changed, or decoded by another version of Pillow"
        )
    with lock(run_id, "the run"):  # held by this process, and so also by another one
        code = "import sys; from dermalyze.cli.main import main; main(sys.argv[1:])"
        environment = dict(
            os.environ, PYTHONPATH=str(ROOT), MLFLOW_TRACKING_URI=f"sqlite:///{store}/mlflow.db"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "train", "--resume", run_id],
            cwd=store, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: run {run_id} is in use by process {os.getpid()} on ")
    assert done.stderr.count("\n") == 1
    after = MlflowClient().get_run(run_id).data
    assert (after.tags, after.params, after.metrics) == (before.tags, before.params, before.metrics)


def test_of_damaged_files_the_copies_among_the_artifacts_are_used(store, demo, in_evaluation):
    run_id, folder = in_evaluation, WORK / in_evaluation
    names = ("config.yaml", "val_split.csv", "checkpoint_latest.pt", "checkpoint_best.pt")
    for name in names:  # which may not have been uploaded before the kill
        shutil.copy(folder / name, artifacts(run_id) / name)
    latest = folder / "checkpoint_latest.pt"
    latest.write_bytes(latest.read_bytes()[:-1000])
    for name in ("config.yaml", "val_split.csv", "checkpoint_best.pt"):
        (folder / name).write_bytes(b"")
    (folder / "training_history.json").write_bytes(b"[")
    kept = artifacts(run_id) / "config.yaml"  # of a machine that had more
    text = kept.read_text().replace("device: cpu", "device: mps")
    text = text.replace("prepared: auto", "prepared: /nowhere/prepared")
    kept.write_text(text.replace("pretrained: false", "pretrained: /nowhere/w.safetensors"))
    said = []
    with log_lines(said.append):
        resume(run_id)
    for name in names:
        assert (
            f"warning: {folder / name} cannot be used; {name} among the artifacts of run {run_id} "
            "is used instead"
        ) in said
    assert "warning: training.device mps is not available here; auto is used" in said
    assert "warning: data.prepared /nowhere/prepared does not exist here; auto is used" in said
    assert f"resumed run {run_id} after 2 epochs and 0 steps" in said
    require_complete(run_id)


def test_killed_in_the_export_the_run_ends_on_another_machine(store, demo, in_evaluation):
    run_id = kill_at(store, demo, "dermalyze.export.onnx:export_onnx", 1)
    shutil.rmtree(".dermalyze")
    latest = artifacts(run_id) / "checkpoint_latest.pt"
    foreign = (artifacts(in_evaluation) / "checkpoint_latest.pt").read_bytes()
    with changed(latest, lambda data: data[:-1000]), pytest.raises(ArtifactError):
        resume(run_id)
    with changed(latest, lambda _: foreign), pytest.raises(TrainingError) as caught:
        resume(run_id)
    assert str(caught.value) == (
        f"checkpoint_latest.pt among the artifacts of run {run_id} belongs to run {in_evaluation}, "
        f"not to run {run_id}; restore the right file, or delete it if there is another copy"
    )
    resume(run_id)
    best = require_complete(run_id)
    assert f"\nEpoch {best}: " in (artifacts(run_id) / "evaluation/model_card.md").read_text()


def test_killed_before_anything_was_logged_it_starts_again_as_the_same_run(store, demo):
    project_run = MlflowClient().create_run("0").info.run_id  # as `mlflow run` makes it
    points = {
        kill_at(store, demo, "dermalyze.tracking:TrackedRun.log_params", 1): "new",
        kill_at(
            store, demo, "dermalyze.workflows.train:prepare_for", 1, MLFLOW_RUN_ID=project_run
        ): "of mlflow run",
    }
    assert project_run in points
    for run_id in points:
        shutil.rmtree(".dermalyze", ignore_errors=True)
        said = []
        with log_lines(said.append):
            resume(run_id)
        assert f"run {run_id} had saved no checkpoint; it starts again with epoch 1" in said
        require_complete(run_id)


def test_a_run_of_mlflow_run_that_was_killed_before_the_training_began_starts_again(store, demo):
    (store / "tiny.yaml").write_text(to_yaml(CONFIG))
    tags = {"mlflow.project.entryPoint": "main"}
    run_id = MlflowClient().create_run("0", tags=tags).info.run_id
    given = {"size": "auto", "data_dir": shlex.quote(str(demo)), "config": "tiny.yaml"}
    for name, value in given.items():
        MlflowClient().log_param(run_id, name, value)
    before = run_ids()
    result = CliRunner().invoke(main, ["train", "--resume", run_id])
    assert result.exit_code == 0, result.output
    assert f"run {run_id} was killed before it began; it starts again\n" in result.stderr
    require_complete(run_id)
    assert run_ids() == before


def test_a_run_of_which_nothing_is_known_is_one_sentence(store):
    run_id = MlflowClient().create_run("0").info.run_id
    assert refusal(run_id, TrackingError) == (
        f"the settings of run {run_id} are unknown, because it was killed before it began; "
        "train a new run"
    )


def test_a_moved_project_is_told_before_training_and_is_not_trained_again(
    store, demo, tmp_path, monkeypatch
):
    began = Began(config=CONFIG, data_dir=demo, demo_data=True)
    with (
        pytest.raises(KeyboardInterrupt),
        open_run(CONFIG.tracking, tags=began.tags()) as run,
    ):
        log_an_epoch_and_stop(run)
    place, said = artifacts(run.run_id).parents[1], []
    place.mkdir(parents=True, exist_ok=True)  # as the first file makes it
    monkeypatch.chdir(tmp_path)
    with log_lines(said.append):
        warn_of_place(run)
    place.rename(tmp_path / "moved")
    try:
        with log_lines(said.append):
            warn_of_place(run)
        with pytest.raises(TrackingError) as caught:
            resume(run.run_id)
    finally:
        (tmp_path / "moved").rename(place)
    assert said == [
        f"warning: the files of this run go to {place}{missing}, not below this folder: MLflow "
        "chose the place when the experiment was created; for another one pass --experiment with "
        "a new name"
        for missing in ("", ", which does not exist")
    ]
    assert str(caught.value) == (
        f"the files of run {run.run_id} belong in {artifacts(run.run_id)}, which does not exist; "
        "if the project was moved, move it back or make that folder a link to the new one"
    )


def log_an_epoch_and_stop(run):
    run.log_epoch(1, {"train/loss": 1.0})
    raise KeyboardInterrupt
