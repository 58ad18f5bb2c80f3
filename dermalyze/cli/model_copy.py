"""The copy of a registered model that a service works with: fetched, followed, deleted."""

import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dermalyze.cli.options import naming_missing_packages
from dermalyze.cli.streams import guarded_streams, log_lines
from serving.errors import ArtifactError, ConfigError
from serving.isolation import end_with_parent, isolated
from serving.os_errors import owned_folder, writing_temporary_files


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
        StorageError: a copy cannot be made.
    """
    if seconds and "@" not in model:
        raise ConfigError(f"--watch needs a file or models:/NAME@ALIAS, got {model!r}")
    with ExitStack() as stack:
        with writing_temporary_files():
            path = stack.enter_context(owned_folder()) / "model.onnx"
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


def _fetch(model: str, path: Path) -> str:
    with naming_missing_packages():
        from dermalyze.tracking.registry import fetch_model

    return fetch_model(model, path)


def _follow(model: str, path: Path, version: str, seconds: float) -> None:
    end_with_parent()
    from dermalyze.tracking.registry import follow

    with guarded_streams(), log_lines():  # this process is a new one
        follow(model, path, version, seconds)
