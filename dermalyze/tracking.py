"""Everything that MLflow needs to be told; nobody else of the training half imports it.

Nothing is sent anywhere but to the tracking server that the user names; MLflow's own telemetry
is switched off.
"""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import pandas as pd
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from dermalyze.config import TrackingConfig
from serving.errors import TrackingError
from serving.taxonomy import DISCLAIMER

DEFAULT_STORE = "sqlite:///mlflow.db"
EVERY_EPOCH = "train/loss"  # a metric that each logged epoch has

for _name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(kw_only=True)
class TrackedRun:
    """One MLflow run, open for writing."""

    run_id: str
    resumed: bool
    status: str = "FINISHED"  # what the run ends as, unless an exception says otherwise
    _epochs_logged: set[int] = field(default_factory=set)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings that are not logged yet; what was logged once never changes."""
        known = mlflow.get_run(self.run_id).data.params
        new = {name: value for name, value in params.items() if name not in known}
        mlflow.log_params(new)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one epoch, once, whatever interruption came between."""
        if epoch not in self._epochs_logged:
            mlflow.log_metrics(dict(metrics), step=epoch)
            self._epochs_logged.add(epoch)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log final metrics."""
        mlflow.log_metrics(dict(metrics))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file, or all files of a folder, below `folder`."""
        if path.is_dir():
            mlflow.log_artifacts(str(path), folder or None)
        else:
            mlflow.log_artifact(str(path), folder or None)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        mlflow.set_tags(dict(tags))

    def tag(self, name: str) -> str:
        """Return a tag of the run, or an empty text."""
        return str(mlflow.get_run(self.run_id).data.tags.get(name, ""))

    def log_model(self, arguments: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
        """Log a pyfunc model with its metrics, and return its address."""
        with _quiet("mlflow.models.model", "mlflow.pyfunc"):
            info = mlflow.pyfunc.log_model(name="model", **arguments)
        assert info.model_id is not None  # MLflow 3 gives every model an id
        mlflow.log_metrics(dict(metrics), model_id=info.model_id)
        return str(info.model_uri)

    def log_split(
        self, rows: pd.DataFrame, *, split: str, name: str, source: str, digest: str
    ) -> None:
        """Log one split as a dataset input; `digest` names its content."""
        contexts = {"train": "training", "val": "validation", "test": "testing"}
        with warnings.catch_warnings():  # a folder on disk fits two of MLflow's kinds of source
            warnings.simplefilter("ignore", UserWarning)
            dataset = mlflow.data.from_pandas(  # type: ignore[attr-defined]
                rows, source=source, targets="label", name=f"{name}-{split}", digest=digest[:36]
            )
        mlflow.log_input(dataset, context=contexts[split])


def use_store() -> str:
    """Use the user's tracking store, or a local database, and return its address."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(DEFAULT_STORE)
    return mlflow.get_tracking_uri()


@contextlib.contextmanager
def open_run(
    config: TrackingConfig,
    *,
    name: str = "",
    resume: str = "",
    parent: str = "",
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """Open a new run, the one that `mlflow run` made, or an old one that goes on.

    `name` is what the run is called in lists; without it MLflow invents a name.  With `parent`, the
    id of another run, it is shown below that one, in its experiment.  `tags` are there from the
    run's first moment.

    The run ends as FINISHED, as FAILED after an exception, as KILLED after Ctrl-C.

    Raises:
        TrackingError: the run to resume does not exist, or the tracking server does not answer.
    """
    use_store()
    try:
        run, project_run_id = _start(config, resume, parent, dict(tags or {}))
    except MlflowException as error:
        raise TrackingError(first_line("cannot open a run", error)) from error
    tracked = TrackedRun(run_id=run.info.run_id, resumed=bool(resume))
    if resume:
        steps = MlflowClient().get_metric_history(resume, EVERY_EPOCH)
        tracked._epochs_logged.update(metric.step for metric in steps)
    mlflow.set_tag("dermalyze.disclaimer", DISCLAIMER)
    if name:
        mlflow.set_tag("mlflow.runName", name)
    try:
        yield tracked
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt) or tracked.status == "KILLED"
        tracked.status = "KILLED" if stopped else "FAILED"
        raise
    finally:
        mlflow.end_run(tracked.status)
        if project_run_id:
            MlflowClient().set_terminated(project_run_id, tracked.status)


def _start(
    config: TrackingConfig, resume: str, parent: str, tags: dict[str, str]
) -> tuple[MlflowRun, str]:
    """Start the run; the second value is a run of `mlflow run` that only points to it, or ''."""
    if resume or parent:
        os.environ.pop("MLFLOW_RUN_ID", None)
    if resume:
        if resume not in _known_run_id(resume):
            raise TrackingError(f"no run {resume} in {mlflow.get_tracking_uri()}")
        # MLflow refuses a run of another experiment than that which is active.
        there = MlflowClient().get_run(resume).info.experiment_id
        mlflow.set_experiment(experiment_id=there)
        return mlflow.start_run(run_id=resume, nested=bool(parent), tags=tags), ""
    if parent:
        there = MlflowClient().get_run(parent).info.experiment_id
        return mlflow.start_run(
            experiment_id=there, parent_run_id=parent, nested=True, tags=tags
        ), ""
    given = os.environ.get("MLFLOW_RUN_ID", "")
    if not given:
        mlflow.set_experiment(config.experiment)
        return mlflow.start_run(tags=tags), ""
    # `mlflow run` has made a run already, in an experiment of its own choice.
    client = MlflowClient()
    own = client.get_run(given)
    there = client.get_experiment(own.info.experiment_id).name
    if config.experiment in (there, TrackingConfig().experiment):
        return mlflow.start_run(tags=tags), ""
    # The user wants another experiment: a run cannot move, so a new one is made there.
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)
    mlflow.set_experiment(config.experiment)
    made_by = {k: v for k, v in own.data.tags.items() if k.startswith("mlflow.project")}
    run = mlflow.start_run(tags={**tags, **made_by, "dermalyze.project_run_id": given})
    client.set_tag(given, "dermalyze.run_id", run.info.run_id)
    client.set_tag(
        given,
        "mlflow.note.content",
        f"The training is run {run.info.run_id} of experiment {config.experiment}.",
    )
    return run, given


def _known_run_id(run_id: str) -> tuple[str, ...]:
    try:
        return (MlflowClient().get_run(run_id).info.run_id,)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return ()
        raise


def require_run(run_id: str) -> dict[str, str]:
    """Return the parameters of a run.

    Raises:
        TrackingError: there is no such run, or the tracking server does not answer.
    """
    store = use_store()
    try:
        if not _known_run_id(run_id):
            raise TrackingError(f"no run {run_id!r} in {store}; see `mlflow ui` for its run ids")
        params: dict[str, str] = MlflowClient().get_run(run_id).data.params
    except MlflowException as error:
        raise TrackingError(first_line(f"cannot read run {run_id}", error)) from error
    return params


def tags_of(run_id: str) -> dict[str, str]:
    """Return the tags of a run.

    Raises:
        TrackingError: there is no such run, or the tracking server does not answer.
    """
    require_run(run_id)
    return dict(MlflowClient().get_run(run_id).data.tags)


def children_of(run_id: str, tag: str) -> dict[str, tuple[str, bool]]:
    """Return the runs below a run, by the value of a tag: their ids and whether they ended well.

    Runs without the tag and deleted ones do not count.

    Raises:
        TrackingError: the tracking server does not answer.
    """
    use_store()
    client = MlflowClient()
    try:
        found = client.search_runs(
            [client.get_run(run_id).info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run_id}'",
            order_by=["attributes.start_time ASC"],
        )
    except MlflowException as error:
        raise TrackingError(first_line(f"cannot read the runs below {run_id}", error)) from error
    return {
        run.data.tags[tag]: (run.info.run_id, run.info.status == "FINISHED")
        for run in found
        if tag in run.data.tags
    }


def require_unfinished(run_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the parameters and tags of a run that has not ended well.

    Raises:
        TrackingError: there is no such run, or nothing is left to do in it.
    """
    params = require_run(run_id)
    run = MlflowClient().get_run(run_id)
    if run.info.status == "FINISHED":
        raise TrackingError(f"run {run_id} has ended well; there is nothing to resume")
    return params, dict(run.data.tags)


def fetch(run_id: str, name: str, folder: Path) -> Path:
    """Copy one artifact, a file or a folder, of a run into `folder`.

    Raises:
        TrackingError: the run has no such artifact.
    """
    use_store()
    try:
        found = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=name, dst_path=str(folder)
        )
    except (MlflowException, OSError) as error:
        place = local_artifacts(run_id)
        if place is not None and not place.parents[1].is_dir():  # that of the experiment
            raise TrackingError(
                f"the files of run {run_id} belong in {place}, which does not exist; if the "
                "project was moved, move it back or make that folder a link to the new one"
            ) from error
        raise TrackingError(
            f"run {run_id} has no {name}; did its training end? see `mlflow ui`"
        ) from error
    return Path(found)


def local_artifacts(run_id: str) -> Path | None:
    """Return the folder on this machine that holds the files of a run; None: a server has them.

    MLflow decides on it when the experiment is created, so it stays when the project is moved.
    """
    uri = MlflowClient().get_run(run_id).info.artifact_uri
    if not is_local_uri(uri):  # type: ignore[no-untyped-call]
        return None
    return Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]


def artifact_names(run_id: str) -> set[str]:
    """Return the names of a run's files and folders, at the top."""
    return {found.path for found in MlflowClient().list_artifacts(run_id)}


def status_of(run_id: str) -> str:
    """Return RUNNING, FINISHED, FAILED or KILLED.

    Raises:
        TrackingError: there is no such run, or the tracking server does not answer.
    """
    require_run(run_id)
    return str(MlflowClient().get_run(run_id).info.status)


def tell_project_run(tags: Mapping[str, str]) -> None:
    """Tag the run that `mlflow run` has made for this process, if it has."""
    use_store()
    if given := os.environ.get("MLFLOW_RUN_ID", ""):
        for name, value in tags.items():
            MlflowClient().set_tag(given, name, value)


@contextlib.contextmanager
def fetched(run_id: str, names: Sequence[str]) -> Iterator[list[Path]]:
    """Copy artifacts of a run into a folder that lives as long as the block."""
    require_run(run_id)
    with tempfile.TemporaryDirectory(prefix="dermalyze-") as folder:
        yield [fetch(run_id, name, Path(folder)) for name in names]


def add_to_run(run_id: str, folder: Path, name: str, metrics: Mapping[str, float]) -> None:
    """Add files, below `name` or at the top if it is empty, and metrics to a run that has ended."""
    use_store()
    client = MlflowClient()
    client.log_artifacts(run_id, str(folder), name or None)
    for key, value in metrics.items():
        client.log_metric(run_id, key, value)


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(what: str, error: Exception) -> str:
    """Say what went wrong and the first line of why."""
    return f"{what}: {str(error).splitlines()[0][:200]}"
