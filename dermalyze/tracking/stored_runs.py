"""Runs as the tracking store has them: their facts, and copies of their files.

Each function asks the store anew; a `StoredRun` asked it once.
"""

import contextlib
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import FileInfo, Metric
from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from dermalyze.tracking.run_folder import RunFolder
from dermalyze.tracking.shown_metrics import shown
from dermalyze.tracking.store import BoundedClient, call, is_missing, use_store
from serving.errors import TrackingError
from serving.os_errors import make_folder, owned_folder, require_room, writing_temporary_files

EVERY_EPOCH = "train/loss"  # a metric that each logged epoch has


@dataclass(frozen=True, kw_only=True)
class StoredRun(RunFolder):
    """A run as the store had it when it was read; its files are copied when they are asked for."""

    _listed: dict[str, list[FileInfo]] = field(default_factory=dict)  # by folder
    _copied: set[str] = field(default_factory=set)

    def find(self, name: str) -> Path | None:
        """Return a copy of a file of the run; None: it has no such file.

        Raises:
            StoreAwayError: the tracking store is away.
            StorageError: there is no room for it.
        """
        if not self.artifact_uri:
            return super().find(name)
        path = self.folder / name
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
        super().replace(name, text)
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
            f"run {self.run_id} has no {name}; did its training finish? see `mlflow ui`"
        )


def stored_run(run_id: str, folder: Path) -> StoredRun:
    """Read a run, whose files will be copied into `folder`.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    run = read_run(run_id)
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
    return dict(read_run(run_id).data.params)


def tags_of(run_id: str) -> dict[str, str]:
    """Return the tags of a run.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    return dict(read_run(run_id).data.tags)


def children_of(run_id: str, tag: str) -> dict[str, tuple[str, bool]]:
    """Return the runs below a run, by the value of a tag: their ids and whether they are finished.

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


def fetch(run_id: str, name: str, folder: Path) -> Path:
    """Copy one file of a run into `folder`; as `StoredRun.file`."""
    return stored_run(run_id, folder).file(name)


def local_artifacts(run_id: str) -> Path | None:
    """Return the folder on this machine that holds the files of a run; None: a server has them.

    MLflow decides on it when the experiment is created, so it stays when the project is moved.
    """
    return _place_of(read_run(run_id).info.artifact_uri)


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
    return str(read_run(run_id).info.status)


def has_epochs(run_id: str) -> bool:
    """Return whether the metrics of an epoch of a run are logged."""
    return EVERY_EPOCH in read_run(run_id).data.metrics


def project_arguments(run_id: str) -> list[str]:
    """Return what `mlflow run` was asked for, of a run in which nothing has begun; else nothing.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    run = read_run(run_id)
    params, tags = run.data.params, run.data.tags
    begun = any(name.startswith("dermalyze.") for name in tags) or run.info.status == "FINISHED"
    if begun or tags.get("mlflow.project.entryPoint") not in ("main", "main_distributed"):
        return []
    names = [name for name in params if name not in ("processes", "restarts")]  # of torchrun
    arguments = [(f"--{name.replace('_', '-')}", *shlex.split(params[name])) for name in names]
    return [word for words in arguments for word in words]


@contextlib.contextmanager
def opened(run_id: str) -> Iterator[StoredRun]:
    """Read a run, whose files are copied into a folder that lives as long as the block.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    with contextlib.ExitStack() as stack:
        with writing_temporary_files():
            folder = stack.enter_context(owned_folder())
        yield stored_run(run_id, folder)


def add_to_run(run: RunFolder, folder: Path, name: str, metrics: Mapping[str, float]) -> None:
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
    values = [Metric(key, value, time_ms, 0) for key, value in shown(metrics, run.params).items()]
    if values:
        call(what, lambda: MlflowClient().log_batch(run.run_id, metrics=values))


def read_run(run_id: str) -> MlflowRun:
    """Read a run from the store.

    Raises:
        TrackingError: there is none with that id, or the tracking store is away.
    """
    store = use_store()
    try:
        return call(f"cannot read run {run_id}", lambda: MlflowClient().get_run(run_id))
    except TrackingError as error:
        if is_missing(error.__cause__):
            message = f"no run {run_id!r} in {store}; see `mlflow ui` for its run ids"
            raise TrackingError(message) from error
        raise
