"""The copy of a registered model that a service works with: fetched, followed, deleted."""

import fcntl
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dermalyze.cli_streams import log_lines
from serving.errors import ArtifactError, ConfigError
from serving.isolation import end_with_parent, isolated

_PREFIX = "dermalyze-serve-"  # of the folder of a copy, in the system's folder for temporary files
_LOCK = "lock"  # in it: locked as long as its service lives


@contextmanager
def copy_of(model: str, seconds: float) -> Iterator[Path]:
    """Yield the file of a registered model, which is replaced by each new version.

    MLflow works in processes of its own, so that the service stays small.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION or another address that MLflow knows.
        seconds: between two looks at what the alias stands for; 0: never.

    Raises:
        ConfigError: something is to be followed that has no alias.
        TrackingError: there is no such model.
        ArtifactError: the process that fetches it died.
    """
    if seconds and "@" not in model:
        raise ConfigError(f"--watch needs a file or models:/NAME@ALIAS, got {model!r}")
    with ExitStack() as stack:
        try:
            _delete_abandoned()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX)))
            stack.enter_context(_locked(folder))
        except OSError as error:
            raise ArtifactError(
                f"cannot make a folder for a copy of {model}: {error.strerror}; set TMPDIR to a "
                "folder that can be written"
            ) from error
        path = folder / "model.onnx"
        try:
            version = isolated(_fetch, model, path)
        except ChildProcessError as error:
            raise ArtifactError(
                f"cannot fetch {model}: the process died ({error}); look for its message above"
            ) from error
        if not seconds:
            yield path
            return
        spawn = multiprocessing.get_context("spawn")
        following = spawn.Process(target=_follow, args=(model, path, version, seconds), daemon=True)
        following.start()
        try:
            yield path
        finally:  # it may be writing into the folder
            following.kill()
            following.join()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock that says that the service of this folder lives; the system frees it."""
    with (folder / "new").open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / "new").rename(folder / _LOCK)  # which is never there without being locked
        yield


def _delete_abandoned() -> None:
    """Delete the copies of services that were killed: their lock is there, and nobody holds it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / _LOCK).open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def _fetch(model: str, path: Path) -> str:
    from dermalyze.registry import fetch_model

    return fetch_model(model, path)


def _follow(model: str, path: Path, version: str, seconds: float) -> None:
    end_with_parent()
    from dermalyze.registry import follow

    with log_lines():  # this process is a new one
        follow(model, path, version, seconds)
