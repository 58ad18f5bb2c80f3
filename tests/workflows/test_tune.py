"""Studies on drawn data: trials, pruning, kills, several processes, and what is told."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from PIL import Image

from dermalyze.cli.main import main
from dermalyze.cli.streams import log_lines
from dermalyze.config.loading import load_config, to_yaml
from dermalyze.config.schema import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TrackingConfig,
    TrainingConfig,
    flatten,
)
from dermalyze.config.search_space import read_search
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.workflows import tune as tuning
from dermalyze.workflows.train import TrainingInterruptedError, resume
from dermalyze.workflows.tune import StudyOptions, tune
from serving.errors import ConfigError, TrackingError, TrainingError

ROOT = Path(__file__).parents[2]
CONFIG = Config(
    data=DataConfig(image_size=32, val_size=0.25),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=3, batch_size=16, fast_mode=False, device="cpu"),
    evaluation=EvaluationConfig(replicates=100),
    tracking=TrackingConfig(experiment="tune"),
)
# The first trial that draws the first rate, far too high, is trial 6: one that can be pruned.
SEARCH = ("training.lr=1e-1,1e-4,1e-3", "augmentation.rotation=0..1")


def options(name, num_trials, search=SEARCH, storage="sqlite:///study.db"):
    searched = read_search(search, CONFIG)
    return StudyOptions(search=searched, num_trials=num_trials, storage=storage, name=name)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("data") / "demo", num_images=70)


@pytest.fixture(scope="module")
def whole(store, demo):
    """A study without an interruption."""
    return tune(CONFIG, demo, options("whole", 7))


def trials(name):
    return optuna.load_study(study_name=name, storage="sqlite:///study.db").get_trials()


def states(name):
    return [trial.state.name for trial in trials(name)]


def run_of(run_id):
    return MlflowClient().get_run(run_id)


def all_experiments():
    return [found.experiment_id for found in MlflowClient().search_experiments()]


def runs_below(run_id):
    client = MlflowClient()
    found = client.search_runs(
        [run_of(run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    return {int(run.data.tags["dermalyze.trial"]): run for run in found}


def artifact(run_id, name=""):
    return Path(run_of(run_id).info.artifact_uri.removeprefix("file://")) / name


def history(run_id):
    return json.loads(artifact(run_id, "training_history.json").read_text())


@pytest.mark.slow
def test_a_trial_is_validated_but_not_tested_exported_or_registered(whole):
    below = runs_below(whole.run_id)
    assert sorted(below) == list(range(7))
    for run in below.values():
        assert run.info.status == "FINISHED"
        assert not [name for name in run.data.metrics if "test" in name]
        assert "val/loss" in run.data.metrics
        names = {path.name for path in artifact(run.info.run_id).iterdir()}
        assert not {name for name in names if name.endswith((".pt", ".onnx"))}
        assert "evaluation" not in names
    assert MlflowClient().search_registered_models() == []
    assert not list(Path(".dermalyze/runs").iterdir())


@pytest.mark.slow
def test_the_run_of_a_study_holds_the_best_settings_the_trials_and_the_plots(whole):
    below, parent = runs_below(whole.run_id), run_of(whole.run_id)
    assert parent.info.status == "FINISHED"
    best = {number: min(entry["val/loss"] for entry in history(run.info.run_id))
            for number, run in below.items()}  # fmt: skip
    complete = [
        n for n, run in below.items() if run.data.tags["dermalyze.trial_state"] == "complete"
    ]
    winner = below[min(complete, key=best.get)]
    assert whole.best_run_id == winner.info.run_id
    assert parent.data.metrics["tune/value"] == best[int(winner.data.tags["dermalyze.trial"])]
    assert artifact(whole.run_id, "best.yaml").read_text() == whole.best_config
    found = flatten(load_config(artifact(whole.run_id, "best.yaml")))
    assert found.pop("data.resize_filter") == "auto"  # which a trial has found out
    params = winner.data.params
    assert {name: str(value) for name, value in found.items()} == {n: params[n] for n in found}
    table = pd.read_csv(artifact(whole.run_id, "trials.csv"))
    assert table["value"].tolist() == pytest.approx([best[number] for number in range(7)])
    assert table["training.lr"].astype(str).tolist() == [
        below[number].data.params["training.lr"] for number in range(7)
    ]
    for name in ("tuning_history.png", "importance.png"):
        with Image.open(artifact(whole.run_id, name)) as image:
            image.load()


@pytest.mark.slow
def test_a_trial_worse_than_the_median_of_its_epoch_is_pruned_and_only_such_a_one(whole):
    histories = {
        number: history(run.info.run_id) for number, run in runs_below(whole.run_id).items()
    }
    assert len(histories[6]) == 2
    for number, entries in histories.items():
        earlier = [histories[n] for n in range(number) if len(histories[n]) == 3]
        if len(earlier) < 5:
            assert len(entries) == 3
            continue
        median = statistics.median(other[1]["val/loss"] for other in earlier)
        is_worse = min(entry["val/loss"] for entry in entries[:2]) > median
        assert (len(entries) == 2) == is_worse


# Searches, and is killed when a line begins with a text.
DRIVER = """
import os, pathlib, signal, sys
from test_tune import CONFIG, log_lines, options, tune

data, name, num_trials, text = sys.argv[1:]
lines = []

def kill(line):
    lines.append(line)
    if text in "\\n".join(lines):
        os.kill(os.getpid(), signal.SIGKILL)

with log_lines(kill):
    tune(CONFIG, pathlib.Path(data), options(name, int(num_trials)))
"""


def environment(store):
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    uri = f"sqlite:///{store}/mlflow.db"
    return dict(os.environ, PYTHONPATH=path, MLFLOW_TRACKING_URI=uri)


def kill_at(store, demo, name, num_trials, text):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, demo, name, str(num_trials), text],
        cwd=store, env=environment(store), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
def test_killed_in_a_trial_the_same_command_keeps_what_is_done_and_tries_that_one_again(
    store, demo
):
    kill_at(store, demo, "killed", 2, "trial 1: ")
    assert states("killed") == ["COMPLETE", "RUNNING"]
    before = [trial.user_attrs["run_id"] for trial in trials("killed")]
    said = []
    with log_lines(said.append):
        result = tune(CONFIG, demo, options("killed", 2))
    assert "warning: trial 1 was interrupted; its settings are tried again" in said
    assert states("killed") == ["COMPLETE", "FAIL", "COMPLETE"]
    first, second, third = trials("killed")
    assert [first.user_attrs["run_id"], second.user_attrs["run_id"]] == before
    assert third.params == second.params
    below = runs_below(result.run_id)
    statuses = ["FINISHED", "FAILED", "FINISHED"]
    assert [below[number].info.status for number in sorted(below)] == statuses
    assert run_of(result.run_id).info.status == "FINISHED"
    assert not list(Path(".dermalyze/runs").iterdir())


# A process of the study that is killed before its trial has a run, or a heartbeat.
KILLED = """
import os, signal, optuna

optuna.load_study(study_name="stopped", storage="sqlite:///study.db").ask()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_two_processes_share_the_trials_of_one_study_and_its_run(store, demo):
    (store / "c.yaml").write_text(to_yaml(CONFIG))
    words = ["tune", "--data-dir", demo, "--config", "c.yaml", "--trials", "4",
             "--storage", "sqlite:///new.db", "--study", "both"]  # fmt: skip
    for text in SEARCH:
        words += ["--search", text]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dermalyze", *map(str, words)],
            cwd=store, env=environment(store), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    study = optuna.load_study(study_name="both", storage="sqlite:///new.db")
    done = study.get_trials()
    assert {trial.state.name for trial in done} <= {"COMPLETE", "PRUNED"}
    assert 4 <= len(done) <= 5  # both may begin the last one
    below = runs_below(study.user_attrs["run_id"])
    assert sorted(below) == [trial.number for trial in done]
    held = {json.loads(run.data.tags["dermalyze.held_by"])["process"] for run in below.values()}
    assert held == {process.pid for process in processes}
    assert len({str(trial.params) for trial in done}) == len(done)
    assert run_of(study.user_attrs["run_id"]).info.status == "FINISHED"
    assert artifact(study.user_attrs["run_id"], "best.yaml").read_text() in [o for o, _ in outputs]


@pytest.mark.slow
def test_stopped_with_ctrl_c_it_is_one_line_and_the_same_call_continues(store, demo, monkeypatch):
    def stop_in_the_second_trial(line):
        said.append(line)
        if line.startswith("epoch 1/3") and any(told.startswith("trial 1: ") for told in said):
            os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    with pytest.raises(TrainingInterruptedError) as caught, log_lines(stop_in_the_second_trial):
        tune(CONFIG, demo, options("stopped", 2))
    assert str(caught.value) == "stopped; the same command continues study stopped"
    run_id = trials("stopped")[1].user_attrs["run_id"]
    parent = run_of(run_id).data.tags["mlflow.parentRunId"]
    assert [run_of(stopped).info.status for stopped in (run_id, parent)] == ["KILLED", "KILLED"]
    assert tune(CONFIG, demo, options("stopped", 2)).run_id == parent
    assert states("stopped") == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials("stopped")[2].params == trials("stopped")[1].params
    assert run_of(parent).info.status == "FINISHED"
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=store, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert states("stopped") == ["COMPLETE", "FAIL", "COMPLETE", "RUNNING"]
    with log_lines(said.append):
        tune(CONFIG, demo, options("stopped", 3))  # it may still work
    assert said[-1] == (
        f"warning: trials that other processes still work on: 1; the last one ends run {parent}"
    )
    monkeypatch.setattr(tuning, "STALE_SECONDS", 1)
    time.sleep(2)
    tune(CONFIG, demo, options("stopped", 3))
    assert states("stopped") == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert run_of(parent).info.status == "FINISHED"


@pytest.mark.slow
def test_no_run_of_a_study_is_resumed_as_a_training(whole):
    for run_id in (whole.run_id, whole.best_run_id):
        MlflowClient().set_terminated(run_id, "KILLED")
        with pytest.raises(TrackingError) as refused:
            resume(run_id)
        MlflowClient().set_terminated(run_id, "FINISHED")
        assert str(refused.value) == (
            f"run {run_id} belongs to study whole, which only `dermalyze tune` continues; repeat "
            "the command that started it"
        )


@pytest.mark.slow
def test_settings_that_exclude_each_other_fail_one_trial_and_not_the_study(store, demo):
    search = ("augmentation.affine_scale_min=0.9,1.05", "augmentation.affine_scale_max=1.0,1.2")
    tune(CONFIG, demo, options("excluding", 4, search))
    failed = [trial for trial in trials("excluding") if trial.state.name == "FAIL"]
    assert len(trials("excluding")) == 4
    assert {trial.user_attrs["error"] for trial in failed} == {
        "augmentation.affine_scale_min must be at most augmentation.affine_scale_max (1.0), got "
        "1.05"
    }


@pytest.mark.slow
def test_a_study_is_not_continued_with_other_settings_or_another_search(whole, demo):
    other = Config(**{**vars(CONFIG), "training": TrainingConfig(epochs=4, device="cpu")})
    for config, search, message in [
        (other, SEARCH, "study whole began with training.epochs 3, and the command has 4"),
        (
            CONFIG,
            (SEARCH[0], "augmentation.rotation=0..0.5"),
            "study whole began with --search augmentation.rotation '0..1', and the command has "
            "'0..0.5'",
        ),
    ]:
        with pytest.raises(TrainingError) as caught:
            tune(config, demo, options("whole", 7, search))
        assert str(caught.value) == f"{message}; undo that, or pass another --study"


def test_an_unknown_metric_and_a_wrong_storage_are_one_sentence_and_no_run(store, demo):
    odd = Config(**{**vars(CONFIG), "training": TrainingConfig(monitor="val/macro_ucs")})
    before = len(MlflowClient().search_runs(all_experiments()))
    with pytest.raises(ConfigError) as caught:
        tune(odd, demo, options("odd", 1))
    assert str(caught.value).startswith(
        "training.monitor must be a metric that is logged, got 'val/macro_ucs'; known: val/loss, "
    )
    for storage, reason in {
        "study.db": "Could not parse SQLAlchemy URL from given URL string",
        "sqlite:////nowhere/study.db": "(sqlite3.OperationalError) unable to open database file",
        "nosuch://user:secret@host/name": "Can't load plugin: sqlalchemy.dialects:nosuch",
    }.items():
        with pytest.raises(TrackingError) as wrong:
            tune(CONFIG, demo, options("odd", 1, storage=storage))
        shown = storage.replace("secret", "***")
        assert str(wrong.value) == (
            f"cannot use the study in {shown}: {reason}; expected a database that can be reached, "
            "such as sqlite:///study.db; the same command continues"
        )
    with pytest.raises(ConfigError) as same:
        tune(CONFIG, demo, options("odd", 1, storage=f"sqlite:///{store}/mlflow.db"))
    assert str(same.value) == (
        "--storage must be another database than that of the tracking store, got "
        f"'sqlite:///{store}/mlflow.db'; pass one such as sqlite:///study.db"
    )
    assert len(MlflowClient().search_runs(all_experiments())) == before


def test_a_wrong_search_is_one_sentence_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["tune", "--data-dir", "demo", "--search", "training.lrr=1e-4..1e-3"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert result.stderr == "Error: unknown setting training.lrr; did you mean training.lr?\n"
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_one_sentence_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['optuna'] = None; from dermalyze.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "tune", "--search", "training.lr=1e-4..1e-3"],
        cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "Error: dermalyze tune needs Optuna, which is not installed; run `pip install "
        "'dermalyze[train,tune]'`\n"
    )
