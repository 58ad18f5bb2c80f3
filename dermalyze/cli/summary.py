"""What a run ends by printing: its metrics and the next three things to type."""

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dermalyze import tracking
from dermalyze.evaluation.report.folder import format_metrics
from dermalyze.workflows.finish import REQUEST, RunResult
from serving.taxonomy import DISCLAIMER

if TYPE_CHECKING:
    from dermalyze.workflows.cross_validate import FoldsResult

PORT = 5001
_LOCAL = "sqlite:///"


@dataclass(frozen=True, kw_only=True)
class Shell:
    """The user's shell, into which the commands are pasted."""

    folder: Path | None  # None: unknown, since `mlflow run` works in the project's folder
    path: str | None  # where it looks for programs

    @classmethod
    def of_user(cls, *, typed_here: bool) -> "Shell":
        """Return what the Makefile says of it, else this process's if the user started that."""
        variables = os.environ if typed_here else {}
        path = os.environ.get("DERMALYZE_SHELL_PATH", variables.get("PATH"))
        folder = os.environ.get("DERMALYZE_SHELL_FOLDER", str(Path.cwd()) if typed_here else None)
        return cls(folder=Path(folder) if folder else None, path=path)

    def file(self, path: Path) -> str:
        """Name a file of this process's folder."""
        here = self.folder == Path.cwd()
        return shlex.quote(str(path if here else Path.cwd() / path))

    def program(self, name: str) -> str:
        """Call a program of this environment."""
        folder = Path(sys.executable).parent
        found = shutil.which(name, path=self.path) if self.path else None
        if found and Path(found).parent == folder:
            return name
        # MLflow looks for uvicorn on PATH, so its full name alone would not do.
        if self.folder == Path.cwd() and folder.is_relative_to(Path.cwd()):
            return f'PATH="$PWD/{folder.relative_to(Path.cwd())}:$PATH" {name}'
        return f'PATH={shlex.quote(str(folder))}:"$PATH" {name}'

    def other_store(self, uri: str) -> str:
        """Return a store on disk that MLflow would not find by itself; '' for any other one."""
        if not uri.startswith(_LOCAL):
            return ""  # MLFLOW_TRACKING_URI of the shell names it
        database = Path.cwd() / uri.removeprefix(_LOCAL)
        if self.folder is not None and database == self.folder / "mlflow.db":
            return ""
        return shlex.quote(f"{_LOCAL}{database}")


def summarize(result: "RunResult | FoldsResult", *, typed_here: bool = True) -> str:
    """Write the summary, with commands that can be typed next.

    With `typed_here` the user's shell is in the folder of this process and has its PATH.
    """
    if isinstance(result, RunResult) and result.folder is not None:
        metrics = format_metrics(result.metrics, result.taxonomy, result.intervals)
        return "\n".join([metrics, "", f"run: {result.folder}", result.parity, "", DISCLAIMER])
    shell = Shell.of_user(typed_here=typed_here)
    uri, mlflow = tracking.use_store(), shell.program("mlflow")
    store = shell.other_store(uri)
    show = f"{mlflow} ui{f' --backend-store-uri {store}' if store else ''}"
    if uri.startswith("http"):  # the server shows its runs itself
        show = f"python3 -m webbrowser {shlex.quote(re.sub('//[^/]*@', '//', uri))}"
    with_store = f"MLFLOW_TRACKING_URI={store} " if store else ""
    if not isinstance(result, RunResult):
        return "\n".join(
            [
                format_metrics(result.metrics, result.taxonomy, result.intervals),
                "",
                f"run id: {result.run_id}, parent of {len(result.fold_run_ids)} runs, one per fold",
                f"warning: {result.caveat}",
                "",
                f"next:\n  {show}",
                "",
                DISCLAIMER,
            ]
        )
    lines = [
        format_metrics(result.metrics, result.taxonomy, result.intervals),
        "",
        f"run id: {result.run_id}",
        result.parity,
    ]
    if result.registered is not None:
        model = result.registered
        alias = "champion" if model.is_champion else "challenger"
        lines += [
            f"registered: {model.name} version {model.version}, alias {alias} ({model.reason})",
            "",
            "next:",
            f"  {show}",
            f"  {with_store}{mlflow} models serve -m models:/{model.name}@{alias} "
            f"--env-manager local --port {PORT}",
            f"  curl -s http://127.0.0.1:{PORT}/invocations -H 'Content-Type: application/json' "
            f"-d @{shell.file(REQUEST)}",
            "",
            "open:",
            f"  {with_store}{shell.program('dermalyze')} serve "
            f"--model models:/{model.name}@{alias}",
        ]
        if result.report is not None:
            lines.append(f"  python3 -m webbrowser {shell.file(result.report)}")
    return "\n".join([*lines, "", DISCLAIMER])
