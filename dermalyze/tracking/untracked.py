"""Runs without MLflow: all that a run keeps is in a folder that the user names.

`run.json` holds what a tracked run has in the store; it is the first file of the folder.
"""

import dataclasses
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dermalyze.credentials import masked
from serving.atomic_write import PARTIAL, write_text
from serving.errors import TrackingError
from serving.os_errors import make_folder, reading

RUN_FILE = "run.json"


@dataclasses.dataclass(kw_only=True)
class UntrackedRun:
    """What a training needs of a `TrackedRun`; files are in their place when they are written."""

    folder: Path
    run_id: str
    status: str = "RUNNING"  # what the run ends as is written when it ends
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    resumed: bool = False

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep settings that are not kept yet."""
        self.params = {name: masked(str(value)) for name, value in params.items()} | self.params
        self._write()

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: training_history.json has them."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Keep final metrics."""
        self.metrics |= metrics
        self._write()

    def log_file(self, path: Path, folder: str = "") -> None:
        """Do nothing: it is in the folder."""

    def log_split(self, rows: Any, **described: str) -> None:
        """Do nothing: it is in the folder."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Keep what is known of the run."""
        self.tags |= {name: masked(str(value)) for name, value in tags.items()}
        self._write()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Let the run begin, or continue, and end with the block."""
        self.status = "RUNNING"
        self._write()
        try:
            yield
            self.status = "FINISHED"
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) or self.status == "KILLED"
            self.status = "KILLED" if stopped else "FAILED"
            raise
        finally:
            self._write()

    def _write(self) -> None:
        make_folder(self.folder)
        values = {name: getattr(self, name) for name in _KEPT}
        write_text(self.folder / RUN_FILE, json.dumps(values, indent=1))


_KEPT = ("run_id", "status", "params", "tags", "metrics")


def untracked_run(folder: Path) -> UntrackedRun:
    """Return the run in a folder, or a new one for a folder that is empty or not there.

    Raises:
        TrackingError: the folder holds something else.
    """
    path = folder / RUN_FILE
    with reading(folder):
        if path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                return UntrackedRun(
                    folder=folder, resumed=True, **{name: kept[name] for name in _KEPT}
                )
            except (ValueError, KeyError, TypeError) as error:
                raise TrackingError(
                    f"{path} is damaged: expected what `dermalyze train --no-tracking` wrote; "
                    "restore it from a copy, or name another folder"
                ) from error
        names = {file.name for file in folder.iterdir()} if folder.exists() else set()
    if names - {RUN_FILE + PARTIAL}:  # which a kill in the first moment leaves
        raise TrackingError(
            f"{folder} holds files but no run: expected a new or empty folder, or one of "
            "`dermalyze train --no-tracking`; name another folder"
        )
    return UntrackedRun(folder=folder, run_id=uuid.uuid4().hex)
