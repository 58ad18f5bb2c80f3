"""How one entry of the outbox reaches the tracking store.

Delivering an entry twice leaves the store as delivering it once: a kill may fall between a
delivery and the note that it is done.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from serving.atomic_write import whole_file
from serving.errors import TrackingError

MODEL_URI_TAG = "dermalyze.model_uri"
DAMAGED = "damaged"  # the kind of an entry that cannot be read any more
_BATCH = 100  # as many params or tags as MLflow takes at once; it takes more metrics

Entry = dict[str, Any]  # "kind", "run" (its id), "time" (ms since 1970), and what the kind needs
Item = TypeVar("Item")


def deliver(entry: Entry, work: Path) -> None:
    """Send one entry; `work` holds the folders of the runs, which paths are relative to.

    Raises:
        TrackingError: a file to send is gone, or the entry is damaged.
    """
    client, run_id = MlflowClient(), entry["run"]
    match entry["kind"]:
        case "params":
            for params in _batches([Param(*pair) for pair in entry["params"].items()]):
                client.log_batch(run_id, params=params)
        case "tags":
            for tags in _batches([RunTag(*pair) for pair in entry["tags"].items()]):
                client.log_batch(run_id, tags=tags)
        case "metrics":
            for metrics in _batches(_metrics(entry)):
                client.log_batch(run_id, metrics=metrics)
        case "dataset":
            context = [InputTag("mlflow.data.context", entry["context"])]
            client.log_inputs(run_id, [DatasetInput(Dataset(**entry["dataset"]), context)])
        case "file":
            _log_file(client, entry, work / entry["path"])
        case "model":
            _log_model(client, entry, work / entry["path"])
        case "status":
            _set_status(client, entry, work)
        case "complete":
            pass  # for `dermalyze sync` to know
        case kind if kind == DAMAGED:
            raise TrackingError("an entry of the outbox is damaged")
        case kind:
            raise TrackingError(f"unknown kind of entry {kind!r}; update Dermalyze")


def size_of(entry: Entry, work: Path) -> int:
    """Return how many bytes of files belong to an entry."""
    if "path" not in entry:
        return 0
    path = work / entry["path"]
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))


def _metrics(entry: Mapping[str, Any], model_id: str | None = None) -> list[Metric]:
    return [
        Metric(name, value, entry["time"], entry.get("step", 0), model_id=model_id)
        for name, value in entry["metrics"].items()
    ]


def _log_file(client: MlflowClient, entry: Entry, path: Path) -> None:
    if not path.exists():
        raise TrackingError(f"{path} is gone")
    log = client.log_artifacts if path.is_dir() else client.log_artifact
    log(entry["run"], str(path), entry["folder"] or None)


def _log_model(client: MlflowClient, entry: Entry, path: Path) -> None:
    """Make the one LoggedModel of a run, or take the one that was left by a kill."""
    run_id = entry["run"]
    run = client.get_run(run_id)
    there = run.info.experiment_id
    model = _only_model(client, there, run_id) or client.create_logged_model(
        there, name="model", source_run_id=run_id, params=run.data.params
    )
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    saved = Model.load(str(path))
    saved.run_id, saved.model_id, saved.model_uuid = run_id, model.model_id, model.model_id
    saved.artifact_path = model.artifact_location
    with whole_file(path / "MLmodel") as partial:  # a kill leaves the old one, to be sent again
        saved.save(str(partial))
    client.log_model_artifacts(model.model_id, str(path))
    for metrics in _batches(_metrics(entry, model.model_id)):
        client.log_batch(run_id, metrics=metrics)
    client.finalize_logged_model(model.model_id, "READY")
    client.set_tag(run_id, MODEL_URI_TAG, f"models:/{model.model_id}")


def _only_model(client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel | None:
    """Return the oldest LoggedModel of a run, and delete the others."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    models = sorted(found, key=lambda model: model.creation_timestamp)
    for model in models[1:]:
        client.delete_logged_model(model.model_id)
    return models[0] if models else None


def _set_status(client: MlflowClient, entry: Entry, work: Path) -> None:
    """Set the status of a run; of one below another that has finished, nothing is kept here."""
    if entry["status"] in ("RUNNING", "SCHEDULED"):
        client.update_run(entry["run"], status=entry["status"])
        return
    client.set_terminated(entry["run"], entry["status"], entry["time"])
    if entry.get("clear"):
        shutil.rmtree(work / entry["run"], ignore_errors=True)


def save_model(path: Path, run_id: str, arguments: Mapping[str, Any]) -> None:
    """Save a pyfunc model, given the arguments of `mlflow.pyfunc.log_model` but for its name."""
    shutil.rmtree(path, ignore_errors=True)
    mlflow.pyfunc.save_model(str(path), mlflow_model=Model(run_id=run_id), **arguments)
    for cache in list(path.rglob("__pycache__")):
        shutil.rmtree(cache)
