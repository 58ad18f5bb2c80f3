"""What MLflow is told, against a real sqlite store."""

import contextlib
import json
import sqlite3
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

from dermalyze.cli.main import main
from dermalyze.config.schema import TrackingConfig
from dermalyze.tracking import (
    add_to_run,
    artifact_names,
    children_of,
    fetch,
    local_artifacts,
    open_run,
    opened,
    require_run,
    require_unfinished,
    stored_run,
    tags_of,
)
from dermalyze.tracking.outbox import Outbox
from dermalyze.workflows.finish import sync
from serving.errors import TrackingError

CONFIG = TrackingConfig(experiment="lesions")


def status(run_id):
    return MlflowClient().get_run(run_id).info.status


def stop(run):
    run.status = "KILLED"
    raise ValueError("stopped")


def log_one_epoch_and_stop(run):
    run.log_params({"training.lr": 0.1})
    run.log_epoch(1, {"train/loss": 0.5})
    raise KeyboardInterrupt


def test_a_run_holds_params_metrics_files_tags_and_datasets(store):
    rows = pd.DataFrame({"image_id": ["a"], "label": ["nv"], "lesion_id": ["l"]})
    (store / "note.txt").write_text("hello")
    with open_run(CONFIG) as run:
        run.log_params({"training.lr": 0.1})
        run.log_epoch(1, {"train/loss": 0.5})
        run.log_file(store / "note.txt")
        run.set_tags({"kind": "test"})
        run.log_split(rows, split="val", name="HAM10000", source="here", digest="d" * 64)
    data = MlflowClient().get_run(run.run_id)
    assert status(run.run_id) == "FINISHED"
    assert data.data.params == {"training.lr": "0.1"}
    load = {name for name in data.data.metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/disk_usage_percentage"} < load
    assert data.data.metrics.keys() - load == {"train/loss"}
    assert data.data.metrics["train/loss"] == 0.5
    assert data.data.tags["kind"] == "test"
    assert "diagnosis" in data.data.tags["dermalyze.disclaimer"]
    (dataset,) = data.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("HAM10000-val", "d" * 36)
    assert dataset.tags[0].value == "validation"
    assert fetch(run.run_id, "note.txt", store / "copy").read_text() == "hello"
    experiment = MlflowClient().get_experiment(data.info.experiment_id)
    assert experiment.name == "lesions"


def test_a_run_that_fails_is_failed_and_one_that_is_stopped_is_killed(store):
    with pytest.raises(ValueError, match="broken"), open_run(CONFIG) as failed:
        raise ValueError("broken")
    with pytest.raises(KeyboardInterrupt), open_run(CONFIG) as killed:
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="stopped"), open_run(CONFIG) as stopped:
        stop(stopped)
    found = [status(run.run_id) for run in (failed, killed, stopped)]
    assert found == ["FAILED", "KILLED", "KILLED"]


def test_a_resumed_run_is_the_same_run_and_logs_nothing_twice(store):
    with pytest.raises(KeyboardInterrupt), open_run(CONFIG) as run:
        log_one_epoch_and_stop(run)
    params, _ = require_unfinished(run.run_id)
    assert params == {"training.lr": "0.1"}
    with open_run(CONFIG, resume=run.run_id) as again:
        again.log_params({"training.lr": 0.2, "new": 1})  # what was logged never changes
        again.log_epoch(1, {"train/loss": 0.5})
        again.log_epoch(2, {"train/loss": 0.4})
    assert again.run_id == run.run_id
    history = MlflowClient().get_metric_history(run.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.4)]
    assert require_run(run.run_id) == {"training.lr": "0.1", "new": "1"}
    with pytest.raises(TrackingError) as caught:
        require_unfinished(run.run_id)
    assert str(caught.value) == f"run {run.run_id} is already finished"


def test_a_run_of_mlflow_run_is_used_and_keeps_its_experiment(store, monkeypatch):
    # `mlflow run` starts a fresh process, in which no experiment is active.
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    project_run = MlflowClient().create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", project_run.info.run_id)
    with open_run(TrackingConfig()) as run:
        pass
    assert run.run_id == project_run.info.run_id


def test_another_experiment_than_that_of_mlflow_run_gets_a_run_of_its_own(store, monkeypatch):
    client = MlflowClient()
    project_run = client.create_run("0", tags={"mlflow.project.entryPoint": "main"})
    monkeypatch.setenv("MLFLOW_RUN_ID", project_run.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    with open_run(TrackingConfig(experiment="elsewhere")) as run:
        pass
    made = client.get_run(run.run_id)
    assert client.get_experiment(made.info.experiment_id).name == "elsewhere"
    assert made.data.tags["mlflow.project.entryPoint"] == "main"
    pointer = client.get_run(project_run.info.run_id)
    assert pointer.data.tags["dermalyze.run_id"] == run.run_id
    assert pointer.info.status == "FINISHED"


def test_runs_below_a_run_are_known_by_a_tag_and_are_in_its_experiment(store):
    with open_run(CONFIG) as parent:
        parent.log_params({"folds": 2})
        with open_run(TrackingConfig(), parent=parent.run_id, tags={"fold": "1"}) as first:
            first.log_params({"fold": 1})
        with (
            pytest.raises(KeyboardInterrupt),
            open_run(CONFIG, parent=parent.run_id, tags={"fold": "2"}) as second,
        ):
            raise KeyboardInterrupt
        parent.log_params({"again": "the parent's"})
    with open_run(TrackingConfig(experiment="other"), tags={"fold": "3"}):  # below no run
        pass
    with open_run(CONFIG, parent=parent.run_id) as without_tag:
        pass
    expected = {"1": (first.run_id, True), "2": (second.run_id, False)}
    assert children_of(parent.run_id, "fold") == expected
    assert require_run(parent.run_id) == {"folds": "2", "again": "the parent's"}
    assert tags_of(second.run_id)["mlflow.parentRunId"] == parent.run_id
    runs = [MlflowClient().get_run(run.run_id).info for run in (parent, first, without_tag)]
    assert len({run.experiment_id for run in runs}) == 1
    with open_run(CONFIG, parent=parent.run_id, resume=second.run_id) as again:
        pass
    assert (again.run_id, again.resumed) == (second.run_id, True)
    assert children_of(parent.run_id, "fold")["2"] == (second.run_id, True)
    MlflowClient().delete_run(first.run_id)
    assert list(children_of(parent.run_id, "fold")) == ["2"]


def test_a_run_below_another_is_not_the_one_that_mlflow_run_made(store, monkeypatch):
    with open_run(CONFIG) as parent:
        pass
    project_run = MlflowClient().create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", project_run.info.run_id)
    with open_run(CONFIG, parent=parent.run_id, tags={"fold": "1"}) as child:
        pass
    assert child.run_id != project_run.info.run_id
    assert children_of(parent.run_id, "fold") == {"1": (child.run_id, True)}


def test_an_unknown_run_and_a_missing_artifact_are_one_sentence_each(store):
    unknown = "0" * 32
    with pytest.raises(TrackingError) as caught:
        require_run(unknown)
    assert str(caught.value) == (
        f"no run '{unknown}' in sqlite:///{store}/mlflow.db; see `mlflow ui` for its run ids"
    )
    (store / "note.txt").write_text("hello")
    with open_run(CONFIG) as run:
        run.log_file(store / "note.txt")  # or the store would not have a folder of its files
    with pytest.raises(TrackingError) as caught, opened(run.run_id) as found:
        found.file("checkpoint_best.pt")
    assert str(caught.value) == (
        f"run {run.run_id} has no checkpoint_best.pt; did its training finish? see `mlflow ui`"
    )


def test_files_and_metrics_can_be_added_to_a_run_that_has_ended(store):
    with open_run(CONFIG) as run:
        pass
    folder = store / "evaluation"
    folder.mkdir()
    (folder / "evaluation_metrics.json").write_text("{}")
    found = stored_run(run.run_id, store / "copy")
    add_to_run(found, folder, "evaluation", {"test/accuracy": 0.5})
    assert MlflowClient().get_run(run.run_id).data.metrics == {"test/accuracy": 0.5}
    add_to_run(found, folder, "", {})
    assert fetch(run.run_id, "evaluation_metrics.json", store / "copy").read_text() == "{}"
    copy = fetch(run.run_id, "evaluation/evaluation_metrics.json", store / "copy")
    assert copy.read_text() == "{}"


def test_files_that_were_left_behind_when_the_project_was_moved_are_named(store):
    (store / "note.txt").write_text("hello")
    with open_run(CONFIG) as run:
        run.log_file(store / "note.txt")
    folder = local_artifacts(run.run_id)
    (store / "mlruns").rename(store / "moved")
    try:
        with pytest.raises(TrackingError) as caught:
            fetch(run.run_id, "note.txt", store / "copy")
    finally:
        (store / "moved").rename(store / "mlruns")
    assert str(caught.value) == (
        f"the files of run {run.run_id} belong in {folder}, which does not exist; if the project "
        "was moved, move it back or make that folder a link to the new one"
    )
    assert artifact_names(run.run_id) == {"note.txt"}


def test_a_database_that_another_program_has_locked_is_one_sentence(store):
    uri = f"sqlite:///{store}/./mlflow.db"  # which this process has not used yet
    mlflow.set_tracking_uri(uri)
    try:
        with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            settings = TrackingConfig(timeout_seconds=2)
            with pytest.raises(TrackingError) as caught, open_run(settings):
                pass
    finally:
        mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    assert str(caught.value) == (
        f"cannot open the database: the tracking store {uri} is locked by another program; check "
        "that it runs, and MLFLOW_TRACKING_URI"
    )


def test_a_run_is_opened_where_the_variables_of_mlflow_say_unless_an_option_does(
    store, monkeypatch
):
    def experiment_of(**settings):
        with open_run(TrackingConfig(**settings)) as run:
            pass
        info = MlflowClient().get_run(run.run_id).info
        return MlflowClient().get_experiment(info.experiment_id).name

    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    assert experiment_of() == "dermalyze"
    by_id = MlflowClient().create_experiment("by its id")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", by_id)
    assert experiment_of() == "by its id"
    assert experiment_of(experiment="dermalyze") == "dermalyze"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by its name")
    assert experiment_of() == "by its name"
    assert experiment_of(experiment="chosen") == "chosen"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "777")
    with pytest.raises(TrackingError) as caught, open_run(TrackingConfig()):
        pass
    assert str(caught.value) == (
        f"MLFLOW_EXPERIMENT_ID must be the id of an experiment in sqlite:///{store}/mlflow.db, got "
        "'777'; see `mlflow experiments search`"
    )


def test_what_the_store_will_never_take_is_put_aside_and_the_rest_is_delivered(store, caplog):
    with open_run(TrackingConfig()) as run:
        run.set_tags({"no such!key": "a"})
        run.set_tags({"fine": "b"})
    kept = Path(f".dermalyze/runs/{run.run_id}/outbox.refused.jsonl")
    (entry,) = map(json.loads, kept.read_text().splitlines())
    assert entry["tags"] == {"no such!key": "a"}
    (line,) = caplog.messages
    assert line.startswith('cannot deliver tags: Invalid value "no such!key"')
    assert line.endswith(f"; what the tracking store refuses is kept in {kept}")
    found = MlflowClient().get_run(run.run_id)
    assert (found.data.tags["fine"], found.info.status) == ("b", "FINISHED")


def log_a_param_and_stop(run):
    run.log_params({"a": 1})
    raise KeyboardInterrupt


def stop_after_tags(**tags):
    def log(run):
        for name, value in tags.items():
            run.set_tags({name: value})
        run.outbox.add(run.run_id, "complete")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(TrackingConfig()) as run:
        log(run)
    return run.run_id, Path(f".dermalyze/runs/{run.run_id}")


@pytest.mark.parametrize("damage", [b'{"kind": "ta', b"\xff\xfe\x00", b"null", b'{"kind": "tags"}'])
def test_an_entry_that_was_damaged_is_put_aside_and_its_run_is_not_called_finished(
    store, caplog, damage
):
    run_id, folder = stop_after_tags(first="a", second="b")
    (folder / "outbox.delivered").unlink()
    lines = (folder / "outbox.jsonl").read_bytes().split(b"\n")
    lines[0] = damage
    (folder / "outbox.jsonl").write_bytes(b"\n".join(lines))
    for _ in range(2):
        assert sync(run_id) == (
            f"run {run_id} is delivered up to its last epoch; continue with `dermalyze train "
            f"--resume {run_id}`"
        )
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "an entry of the outbox is damaged; what the tracking store refuses is kept in "
        f"{folder}/outbox.refused.jsonl"
    ]
    assert tags_of(run_id)["second"] == "b"
    with open_run(TrackingConfig(), resume=run_id) as again:
        again.set_tags({"first": "a"})
    assert status(run_id) == "FINISHED"


def test_a_note_of_more_entries_than_there_are_loses_none(store):
    run_id, folder = stop_after_tags(first="a")
    (folder / "outbox.delivered").write_text("99")
    outbox = Outbox(folder)
    outbox.close()
    entry = {"kind": "tags", "run": run_id, "time": 0, "tags": {"later": "b"}}
    with (folder / "outbox.jsonl").open("a") as file:  # as a killed program leaves it
        file.write(json.dumps(entry) + "\n")
    sync(run_id)
    assert tags_of(run_id)["later"] == "b"


def test_a_run_that_is_kept_in_another_folder_is_not_called_delivered(store, monkeypatch, tmp_path):
    run_id, _ = stop_after_tags()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError) as caught:
        sync(run_id)
    assert str(caught.value) == (
        f"run {run_id} is not finished, and {tmp_path}/.dermalyze/runs holds nothing of it; run "
        "this in the folder that it was trained in"
    )


def test_an_entry_that_was_cut_off_is_dropped_and_those_before_it_are_delivered(store):
    with pytest.raises(KeyboardInterrupt), open_run(TrackingConfig()) as run:
        log_a_param_and_stop(run)
    folder = Path(f".dermalyze/runs/{run.run_id}")
    with (folder / "outbox.jsonl").open("a") as file:
        file.write('{"kind": "tags", "run": "' + run.run_id)  # as a full disk leaves it
    (folder / "outbox.delivered").unlink()  # so that all is delivered once more
    with open_run(TrackingConfig(), resume=run.run_id) as again:
        again.log_epoch(1, {"train/loss": 0.5})
    found = MlflowClient().get_run(run.run_id)
    assert (found.data.params, found.info.status) == ({"a": "1"}, "FINISHED")


@pytest.fixture
def left_behind(store, monkeypatch):
    """A finished run of `mlflow run`, whose folder a kill has left; its outbox, without the note.

    The run that `mlflow run` made only points to it.
    """
    monkeypatch.setenv("MLFLOW_RUN_ID", MlflowClient().create_run("0").info.run_id)
    with open_run(TrackingConfig(experiment="elsewhere")) as run:
        run.log_params({"a": 1})
        (store / f"{run.run_id}.jsonl").hardlink_to(run.folder / "outbox.jsonl")
    run.folder.mkdir()
    (run.folder / "checkpoint_latest.pt").write_bytes(b"weights")
    (store / f"{run.run_id}.jsonl").rename(run.folder / "outbox.jsonl")
    return run


FINISHED = {
    "train --resume": "Error: run {} is already finished\n",
    "sync": "run {} has nothing left to deliver\n",
}


@pytest.mark.parametrize("command", FINISHED)
@pytest.mark.parametrize("left", [0, 2, 3])
def test_what_a_kill_at_the_very_end_of_a_run_has_left_is_removed(left_behind, command, left):
    """Two entries are left before the run of `mlflow run` ends, and one more before the note."""
    run, client = left_behind, MlflowClient()
    entries = (run.folder / "outbox.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in entries[-3:]]
    assert [(entry["kind"], entry.get("status")) for entry in last] == [
        ("status", "FINISHED"), ("status", "FINISHED"), ("complete", None)
    ]  # fmt: skip
    (run.folder / "outbox.delivered").write_text(str(len(entries) - left))
    if left:  # as the kill left it
        client.update_run(run.project_run_id, status="RUNNING")
    result = CliRunner().invoke(main, [*command.split(), run.run_id])
    assert result.output == FINISHED[command].format(run.run_id)
    assert not run.folder.exists()
    assert [status(name) for name in (run.run_id, run.project_run_id)] == ["FINISHED"] * 2


def test_what_this_machine_did_not_deliver_of_a_run_that_another_one_finished_stays(left_behind):
    run = left_behind
    entries = (run.folder / "outbox.jsonl").read_text().replace("FINISHED", "KILLED").splitlines()
    (run.folder / "outbox.jsonl").write_text("\n".join(entries) + "\n")
    (run.folder / "outbox.delivered").write_text(str(len(entries) - 3))
    for command, sentence in FINISHED.items():
        result = CliRunner().invoke(main, [*command.split(), run.run_id])
        assert result.output == sentence.format(run.run_id)
    assert (run.folder / "checkpoint_latest.pt").read_bytes() == b"weights"
    assert status(run.run_id) == "FINISHED"
