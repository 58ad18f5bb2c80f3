"""A run whose files are in a folder of this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serving.atomic_write import write_text
from serving.errors import DataError


class OpenRun(Protocol):
    """What a run that is under way knows of itself, with a tracking store or without."""

    run_id: str
    params: dict[str, str]
    tags: dict[str, str]
    status: str

    @property
    def folder(self) -> Path:
        """Where its files are on this machine."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What is known of a run, and its files."""

    run_id: str
    params: dict[str, str]
    tags: dict[str, str]
    status: str  # RUNNING, FINISHED, FAILED, KILLED or, of a fold that has not begun, SCHEDULED
    folder: Path  # for a run in a store: for copies of its files
    artifact_uri: str = ""  # where a store has the files; empty: all are in the folder

    @classmethod
    def of(cls, run: OpenRun) -> "RunFolder":
        """Return an open run with what it has logged and keeps here; no store is asked."""
        return cls(
            run_id=run.run_id,
            params=run.params,
            tags=run.tags,
            status=run.status,
            folder=run.folder,
        )

    def find(self, name: str) -> Path | None:
        """Return a file or folder of the run; None: it has no such file."""
        path = self.folder / name
        return path if path.exists() else None

    def file(self, name: str) -> Path:
        """Return a file or folder of the run.

        Raises:
            DataError: it has no such file.
        """
        path = self.find(name)
        if path is None:
            raise DataError(f"{self.folder} has no {name}; did its training end?")
        return path

    def replace(self, name: str, text: str) -> None:
        """Take a text for a file of the run from now on; a store keeps its own."""
        write_text(self.folder / name, text)
