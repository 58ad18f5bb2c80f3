"""Runs: opening one, what it logs, and reading those that have ended.

What an open run logs goes to its outbox; all that it reads was read when it was opened.
"""

import contextlib
import os
import shlex
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import FileInfo, Metric
from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from dermalyze.config import TrackingConfig
from dermalyze.credentials import masked
from dermalyze.tracking.delivery import deliver, save_model
from dermalyze.tracking.outbox import OUTBOX, REFUSED, WORK, Outbox, undelivered
from dermalyze.tracking.store import (
    BoundedClient,
    StoreAwayError,
    call,
    is_missing,
    limit_calls,
    quiet,
    use_store,
)
from serving.disk import make_folder, require_room, writing_temporary_files
from serving.errors import TrackingError
from serving.taxonomy import DISCLAIMER
from serving.whole import write_text

DEFAULT_EXPERIMENT = "dermalyze"
EVERY_EPOCH = "train/loss"  # a metric that each logged epoch has
_MODEL = "model"  # the folder of the model, in that of the run
_SIGNAL_SECONDS = 1.0  # for what is left to deliver, where a program is stopped


@dataclass(kw_only=True)
class TrackedRun:
    """One MLflow run, open for writing; nothing here waits for the store but `deliver`."""

    run_id: str
    resumed: bool
    params: dict[str, str]  # as the store has them or will have them
    tags: dict[str, str]
    outbox: Outbox
    status: str = "FINISHED"  # what the run ends as, unless an exception says otherwise
    is_below: bool = False  # another run, whose outbox this one uses, delivers
    project_run_id: str = ""  # a run of `mlflow run` that only points to this one
    is_complete: bool = False  # all that is left to do can be done from the outbox
    _epochs_logged: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """What the run keeps on this machine until all of it is delivered."""
        return WORK / self.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings that are not logged yet; what was logged once never changes."""
        new = {
            name: masked(str(value)) for name, value in params.items() if name not in self.params
        }
        if new:
            self.params |= new
            self.outbox.add(self.run_id, "params", params=new)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one epoch, once, whatever interruption came between."""
        if epoch not in self._epochs_logged:
            self.outbox.add(self.run_id, "metrics", metrics=dict(metrics), step=epoch)
            self._epochs_logged.add(epoch)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log final metrics."""
        self.outbox.add(self.run_id, "metrics", metrics=dict(metrics))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file, or all files of a folder, below `folder`, as they are when it is sent."""
        self.outbox.add(self.run_id, "file", path=_from_work(path), folder=folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        new = {name: masked(str(value)) for name, value in tags.items()}
        self.tags |= new
        self.outbox.add(self.run_id, "tags", tags=new)

    def tag(self, name: str) -> str:
        """Return a tag of the run, or an empty text."""
        return self.tags.get(name, "")

    def log_model(self, arguments: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log a pyfunc model with its metrics; once delivered, `MODEL_URI_TAG` has its address."""
        path = self.folder / _MODEL
        with quiet("mlflow.models.model", "mlflow.pyfunc"):
            save_model(path, self.run_id, arguments)
        self.outbox.add(self.run_id, "model", path=_from_work(path), metrics=dict(metrics))

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
        entity = dict(dataset._to_mlflow_entity())
        self.outbox.add(self.run_id, "dataset", dataset=entity, context=contexts[split])

    def deliver(self) -> None:
        """Wait until the store has all of a run whose work is done.

        A run below another one leaves this to that one.

        Raises:
            StoreAwayError: the store is still away; `dermalyze sync` delivers what is left.
        """
        if self.is_below:
            return
        self.is_complete = True
        self.outbox.add(self.run_id, "complete")
        with self.left_to_sync("delivered"):
            self.outbox.flush()

    @contextlib.contextmanager
    def left_to_sync(self, done: str) -> Iterator[None]:
        """Say how to finish the run, complete but not `done`, where the store goes away in here."""
        try:
            yield
        except StoreAwayError as error:
            raise StoreAwayError(
                f"run {self.run_id} is complete but not {done}: {error.reason}; all of it is "
                f"kept in {self.folder}: when the store is back, run `dermalyze sync "
                f"{self.run_id}`"
            ) from error

    def as_stored(self) -> "StoredRun":
        """Return the run with what it has logged and keeps here; the store is not asked."""
        return StoredRun(
            run_id=self.run_id,
            params=self.params,
            tags=self.tags,
            status=self.status,
            folder=self.folder,
        )

    def _end(self) -> None:
        clear = self.is_below and self.status == "FINISHED"
        self.outbox.add(self.run_id, "status", status=self.status, clear=clear)
        if self.project_run_id:
            self.outbox.add(self.project_run_id, "status", status=self.status)


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

    The run ends as FINISHED, as FAILED after an exception, as KILLED after Ctrl-C.  While the store
    is away it goes on all the same; what it logs is kept on disk.

    Raises:
        TrackingError: the run to resume does not exist, or the store is away at the start or at
            the end.
    """
    limit_calls(config.timeout_seconds)
    use_store()
    named = {**(tags or {}), **({"mlflow.runName": name} if name else {})}
    run = _reopened(resume) if resume else _new(config, parent, named)
    try:
        if resume:
            require_unfinished(resume)  # what was left to deliver may have ended it
        with under_way(run):
            yield run
        run.deliver()
        _clear(run.folder)
    finally:
        run.outbox.close()


@contextlib.contextmanager
def open_undelivered(run_id: str) -> Iterator[TrackedRun | None]:
    """Deliver what a run has left on this machine, then yield it; None: nothing is left.

    A complete run ends with the block.

    Raises:
        TrackingError: there is no such run, it has not ended and is not here, or the store is away.
    """
    if status_of(run_id) == "FINISHED":
        clear_finished(run_id)
        yield None
        return
    if not (WORK / run_id / OUTBOX).exists():
        raise TrackingError(
            f"run {run_id} has not ended well, and {WORK.resolve()} holds nothing of it; run this "
            "in the folder that it was trained in"
        )
    run = _reopened(run_id)
    try:
        yield run
        if run.is_complete:
            run._end()
            run.deliver()
            _clear(run.folder)
    finally:
        run.outbox.close()


@contextlib.contextmanager
def under_way(run: TrackedRun) -> Iterator[TrackedRun]:
    """Let a run begin, or go on, and end with the block."""
    run.is_complete = False
    if run.resumed or run.is_below:
        run.outbox.add(run.run_id, "status", status="RUNNING")
    try:
        yield run
        run._end()
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt) or run.status == "KILLED"
        run.status = "KILLED" if interrupted else "FAILED"
        is_away = run.is_complete and isinstance(error, StoreAwayError)
        # A complete run ends as what it is once it is delivered.
        if not (is_away or (run.is_complete and isinstance(error, KeyboardInterrupt))):
            run._end()
        if not (is_away or run.is_below):  # else the error says what is left
            _leave(run, _SIGNAL_SECONDS if interrupted else None)
        raise


def add_below(
    parent: TrackedRun, *, name: str, tags: Mapping[str, str], resume: str = ""
) -> TrackedRun:
    """Make a run below an open one, or take up one that was made there, to begin at any time.

    The store is asked now; from then on the run needs it no more than its parent does, whose
    outbox it uses.

    Raises:
        TrackingError: the store is away.
    """
    what = f"cannot open a run below {parent.run_id}"
    if resume:
        run = call(what, lambda: MlflowClient().get_run(resume))
    else:
        below = {**tags, "mlflow.runName": name, "mlflow.parentRunId": parent.run_id}
        there = call(what, lambda: MlflowClient().get_run(parent.run_id)).info.experiment_id
        run = _created(there, below)
        BoundedClient(what).update_run(run.info.run_id, status="SCHEDULED")
    begun = bool(resume) and run.info.status != "SCHEDULED"
    tracked = _tracked(run, parent.outbox, resumed=begun)
    tracked.is_below = True
    return tracked


def _clear(folder: Path) -> None:
    """Remove the folder of a run that is delivered, but for what the store has refused."""
    if not (folder / REFUSED).exists():
        # First: without the note of what is delivered, all of it would seem to be left.
        (folder / OUTBOX).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def clear_finished(run_id: str) -> None:
    """Remove what a kill at the very end of a run, which has ended well, has left here of it.

    What another machine did not deliver before the run was finished elsewhere stays.

    Raises:
        StoreAwayError: the tracking store is away.
    """
    left = undelivered(WORK / run_id)
    if all(entry["kind"] == "complete" or entry.get("status") == "FINISHED" for entry in left):
        for entry in left:  # the kill may have come before that of the run of `mlflow run`
            call("cannot deliver status", partial(deliver, entry, WORK))
        _clear(WORK / run_id)


def _leave(run: TrackedRun, seconds: float | None) -> None:
    """Deliver what can be delivered in some seconds, or at all, and say where the rest is."""
    try:
        run.outbox.flush(seconds)
    except StoreAwayError:
        run.outbox.say_what_is_left()


def _from_work(path: Path) -> str:
    """Return a path as the outbox holds it: relative to the folder of all runs, or absolute."""
    inside = path.is_relative_to(WORK)
    return path.relative_to(WORK).as_posix() if inside else str(path.resolve())


def _tracked(run: MlflowRun, outbox: Outbox, *, resumed: bool) -> TrackedRun:
    tracked = TrackedRun(
        run_id=run.info.run_id,
        resumed=resumed,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        outbox=outbox,
    )
    if resumed:
        history = BoundedClient(f"cannot read run {tracked.run_id}").get_metric_history(
            tracked.run_id, EVERY_EPOCH
        )
        tracked._epochs_logged.update(metric.step for metric in history)
    return tracked


def _reopened(run_id: str) -> TrackedRun:
    """Open a run again, once what it has left undelivered is delivered."""
    _run(run_id)
    outbox = Outbox(WORK / run_id)
    try:
        outbox.flush()
        tracked = _tracked(_run(run_id), outbox, resumed=True)
        tracked.is_complete = outbox.stages.get(run_id) == "complete" and not outbox.is_damaged
        return tracked
    except BaseException:
        outbox.close()
        raise


def _new(config: TrackingConfig, parent: str, tags: dict[str, str]) -> TrackedRun:
    """Make a run, or take the one that `mlflow run` has made."""
    what = "cannot open a run"
    client = BoundedClient(what)
    given = os.environ.pop("MLFLOW_RUN_ID", "")  # or a child of this process would take it too
    project_run_id = ""
    if parent:
        there = client.get_run(parent).info.experiment_id
        run = _created(there, {**tags, "mlflow.parentRunId": parent})
    elif not given:
        run = _created(_experiment(config.experiment, client), tags)
    else:
        run = client.get_run(given)
        name = client.get_experiment(run.info.experiment_id).name
        if config.experiment not in (name, "auto"):
            # The user wants another experiment: a run cannot move, so a new one is made there.
            for variable in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
                os.environ.pop(variable, None)
            project_run_id = given
            made_by = {k: v for k, v in run.data.tags.items() if k.startswith("mlflow.project")}
            pointer = {"dermalyze.project_run_id": given}
            run = _created(_experiment(config.experiment, client), {**tags, **made_by, **pointer})
    tracked = _tracked(run, Outbox(WORK / run.info.run_id), resumed=False)
    tracked.project_run_id = project_run_id
    if given and not project_run_id:
        tracked.set_tags({**tracked.tags, **tags, "dermalyze.disclaimer": DISCLAIMER})
    if project_run_id:
        note = f"The training is run {tracked.run_id} of experiment {config.experiment}."
        pointer = {"dermalyze.run_id": tracked.run_id, "mlflow.note.content": note}
        tracked.outbox.add(project_run_id, "tags", tags=pointer)
    return tracked


def _created(experiment_id: str, tags: Mapping[str, str]) -> MlflowRun:
    """Make a run; not tried twice, since the first try may have made one."""
    all_tags = resolve_tags({**tags, "dermalyze.disclaimer": DISCLAIMER})
    shown = {name: masked(str(value)) for name, value in all_tags.items()}
    return call(
        "cannot open a run",
        lambda: MlflowClient().create_run(
            experiment_id, tags=shown, run_name=tags.get("mlflow.runName")
        ),
        patience=0,
    )


def _experiment(wanted: str, client: BoundedClient) -> str:
    """Return the id of the experiment that the user wants, made if it is not there."""
    variable, by_id = (os.environ.get(f"MLFLOW_EXPERIMENT_{part}", "") for part in ("NAME", "ID"))
    name = wanted if wanted != "auto" else variable
    if not name and by_id:
        return _experiment_of(by_id)
    name = name or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        return call("cannot open a run", lambda: _made_experiment(name))
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} was deleted; restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or name another one"
        )
    return str(found.experiment_id)


def _experiment_of(experiment_id: str) -> str:
    try:
        client = BoundedClient("cannot open a run")
        return str(client.get_experiment(experiment_id).experiment_id)
    except TrackingError as error:
        if is_missing(error.__cause__):
            raise TrackingError(
                f"MLFLOW_EXPERIMENT_ID must be the id of an experiment in {use_store()}, "
                f"got {experiment_id!r}; see `mlflow experiments search`"
            ) from error
        raise


def _made_experiment(name: str) -> str:
    """Make an experiment, or take the one that another program has just made."""
    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as the store had it when it was read; its files are copied when they are asked for."""

    run_id: str
    params: dict[str, str]
    tags: dict[str, str]
    status: str  # RUNNING, FINISHED, FAILED, KILLED or, of a fold that has not begun, SCHEDULED
    folder: Path  # for the copies
    artifact_uri: str = ""  # empty: all files are in the folder
    _listed: dict[str, list[FileInfo]] = field(default_factory=dict)  # by folder
    _copied: set[str] = field(default_factory=set)

    def find(self, name: str) -> Path | None:
        """Return a copy of a file of the run; None: it has no such file.

        Raises:
            StoreAwayError: the tracking store is away.
            StorageError: there is no room for it.
        """
        path = self.folder / name
        if not self.artifact_uri:
            return path if path.exists() else None
        if name in self._copied:
            return path
        what = f"cannot fetch {name} of run {self.run_id}"
        artifacts = call(what, lambda: get_artifact_repository(self.artifact_uri))
        size = call(what, lambda: self._size_of(name, artifacts))
        if size is None:
            return None
        make_folder(self.folder)
        require_room(self.folder, size)  # MLflow would say that there is no such artifact
        call(
            what,
            lambda: artifacts.download_artifacts(name, str(self.folder)),  # type: ignore[no-untyped-call]
            num_bytes=size,
        )
        self._copied.add(name)
        return path

    def replace(self, name: str, text: str) -> None:
        """Take a text for a file of the run from now on; the store keeps its own."""
        write_text(self.folder / name, text)
        self._copied.add(name)

    def _size_of(self, name: str, artifacts: ArtifactRepository) -> int | None:
        """Return the bytes of a file or folder; None: there is none.  Folders are listed once."""

        def files(folder: str) -> list[FileInfo]:
            if folder not in self._listed:
                self._listed[folder] = artifacts.list_artifacts(folder or None)
            return self._listed[folder]

        for found in files(name.rpartition("/")[0]):
            if found.path == name and found.is_dir:
                return sum(file.file_size or 0 for file in files(name))
            if found.path == name:
                return found.file_size or 0
        return None

    def file(self, name: str) -> Path:
        """Return a copy of a file of the run.

        Raises:
            TrackingError: it has no such file.
            DermalyzeError: as `find`.
        """
        path = self.find(name)
        if path is not None:
            return path
        place = _place_of(self.artifact_uri)
        if _is_missing(place):
            raise TrackingError(
                f"the files of run {self.run_id} belong in {place}, which does not exist; if the "
                "project was moved, move it back or make that folder a link to the new one"
            )
        raise TrackingError(
            f"run {self.run_id} has no {name}; did its training end? see `mlflow ui`"
        )


def stored_run(run_id: str, folder: Path) -> StoredRun:
    """Read a run, whose files will be copied into `folder`.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    run = _run(run_id)
    return StoredRun(
        run_id=run_id,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        status=str(run.info.status),
        folder=folder,
        artifact_uri=run.info.artifact_uri,
    )


def require_run(run_id: str) -> dict[str, str]:
    """Return the parameters of a run.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    return dict(_run(run_id).data.params)


def tags_of(run_id: str) -> dict[str, str]:
    """Return the tags of a run.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    return dict(_run(run_id).data.tags)


def children_of(run_id: str, tag: str) -> dict[str, tuple[str, bool]]:
    """Return the runs below a run, by the value of a tag: their ids and whether they ended well.

    Runs without the tag and deleted ones do not count.

    Raises:
        TrackingError: the tracking store is away.
    """
    use_store()
    client = BoundedClient(f"cannot read the runs below {run_id}")
    found = client.search_runs(
        [client.get_run(run_id).info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{run_id}'",
        order_by=["attributes.start_time ASC"],
    )
    return {
        run.data.tags[tag]: (run.info.run_id, run.info.status == "FINISHED")
        for run in found
        if tag in run.data.tags
    }


def require_unfinished(run_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the parameters and tags of a run that has not ended well.

    Of one that has, what a kill has left here is removed.

    Raises:
        TrackingError: there is no such run, or nothing is left to do in it.
    """
    run = _run(run_id)
    if run.info.status == "FINISHED":
        clear_finished(run_id)
        raise TrackingError(f"run {run_id} is already finished")
    return dict(run.data.params), dict(run.data.tags)


def fetch(run_id: str, name: str, folder: Path) -> Path:
    """Copy one file of a run into `folder`; as `StoredRun.file`."""
    return stored_run(run_id, folder).file(name)


def local_artifacts(run_id: str) -> Path | None:
    """Return the folder on this machine that holds the files of a run; None: a server has them.

    MLflow decides on it when the experiment is created, so it stays when the project is moved.
    """
    return _place_of(_run(run_id).info.artifact_uri)


def is_place_missing(run_id: str) -> bool:
    """Return whether the files of a run belong on this machine, in a folder that is not there."""
    return _is_missing(local_artifacts(run_id))


def _place_of(artifact_uri: str) -> Path | None:
    if not is_local_uri(artifact_uri):  # type: ignore[no-untyped-call]
        return None
    return Path(local_file_uri_to_path(artifact_uri))  # type: ignore[no-untyped-call]


def _is_missing(place: Path | None) -> bool:
    return place is not None and not place.parents[1].is_dir()  # that of the experiment


def artifact_names(run_id: str) -> set[str]:
    """Return the names of a run's files and folders, at the top."""
    client = BoundedClient(f"cannot read run {run_id}")
    return {found.path for found in client.list_artifacts(run_id)}


def status_of(run_id: str) -> str:
    """Return RUNNING, FINISHED, FAILED, KILLED or, of a fold that has not begun, SCHEDULED.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    return str(_run(run_id).info.status)


def has_epochs(run_id: str) -> bool:
    """Return whether the metrics of an epoch of a run are logged."""
    return EVERY_EPOCH in _run(run_id).data.metrics


def reach_store(config: TrackingConfig, tags: Mapping[str, str]) -> None:
    """Ask the store before the minutes of work that come before a run is opened.

    The run that `mlflow run` has made for this process, if it has, is tagged.

    Raises:
        TrackingError: the store is away, or has no such experiment.
    """
    limit_calls(config.timeout_seconds)
    use_store()
    if not (given := os.environ.get("MLFLOW_RUN_ID", "")):
        _experiment(config.experiment, BoundedClient("cannot open a run"))
    else:
        client = BoundedClient(f"cannot tag run {given}")
        for name, value in tags.items():
            client.set_tag(given, name, masked(value))


def project_arguments(run_id: str) -> list[str]:
    """Return what `mlflow run` was asked for, of a run in which nothing has begun; else nothing.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    run = _run(run_id)
    params, tags = run.data.params, run.data.tags
    begun = any(name.startswith("dermalyze.") for name in tags) or run.info.status == "FINISHED"
    if begun or tags.get("mlflow.project.entryPoint") != "main":
        return []
    arguments = [(f"--{name.replace('_', '-')}", *shlex.split(params[name])) for name in params]
    return [word for words in arguments for word in words]


@contextlib.contextmanager
def opened(run_id: str) -> Iterator[StoredRun]:
    """Read a run, whose files are copied into a folder that lives as long as the block.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    with writing_temporary_files():
        temporary = tempfile.TemporaryDirectory(prefix="dermalyze-")
    with temporary as folder:
        yield stored_run(run_id, Path(folder))


def add_to_run(run: StoredRun, folder: Path, name: str, metrics: Mapping[str, float]) -> None:
    """Add files, below `name` or at the top if it is empty, and metrics to a run that has ended.

    Raises:
        TrackingError: the tracking store is away.
    """
    what, time_ms = f"cannot add to run {run.run_id}", time.time_ns() // 1_000_000
    artifacts = call(what, lambda: get_artifact_repository(run.artifact_uri))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    call(
        what,
        lambda: artifacts.log_artifacts(str(folder), name or None),  # type: ignore[no-untyped-call]
        num_bytes=size,
    )
    values = [Metric(key, value, time_ms, 0) for key, value in metrics.items()]
    if values:
        call(what, lambda: MlflowClient().log_batch(run.run_id, metrics=values))


def _run(run_id: str) -> MlflowRun:
    store = use_store()
    try:
        return call(f"cannot read run {run_id}", lambda: MlflowClient().get_run(run_id))
    except TrackingError as error:
        if is_missing(error.__cause__):
            message = f"no run {run_id!r} in {store}; see `mlflow ui` for its run ids"
            raise TrackingError(message) from error
        raise
