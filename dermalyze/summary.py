"""What a run ends by printing: its metrics and the next three things to type."""

import base64
import json
import os
import shutil
import sys
from pathlib import Path

from dermalyze.evaluation.folder import format_metrics
from dermalyze.training.folds import FoldsResult
from dermalyze.training.ship import RunResult
from serving.disk import make_folder
from serving.taxonomy import DISCLAIMER
from serving.whole import write_text

REQUEST = Path(".dermalyze/request.json")
PORT = 5001


def summarize(result: RunResult | FoldsResult) -> str:
    """Write the summary; one test image is put into a request file that `curl` can send."""
    if isinstance(result, FoldsResult):
        return "\n".join(
            [
                format_metrics(result.metrics, result.intervals),
                "",
                f"run id: {result.run_id}, above the {len(result.fold_run_ids)} runs of the folds",
                f"warning: {result.caveat}",
                "",
                f"next:\n  {_command('mlflow')} ui",
                "",
                DISCLAIMER,
            ]
        )
    lines = [
        format_metrics(result.metrics, result.intervals),
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
            f"  {_command('mlflow')} ui",
            f"  {_command('mlflow')} models serve -m models:/{model.name}@{alias} "
            f"--env-manager local --port {PORT}",
            f"  curl -s http://127.0.0.1:{PORT}/invocations -H 'Content-Type: application/json' "
            f"-d @{_write_request(result)}",
        ]
    return "\n".join([*lines, "", DISCLAIMER])


def _write_request(result: RunResult) -> Path:
    make_folder(REQUEST.parent)
    image = base64.b64encode(result.sample).decode("ascii")
    write_text(REQUEST, json.dumps({"dataframe_records": [{"image": image}]}))
    return REQUEST


def _command(name: str) -> str:
    """Return how to call a program of this environment from the user's shell."""
    folder = Path(sys.executable).parent
    found = shutil.which(name, path=os.environ.get("DERMALYZE_SHELL_PATH", os.environ.get("PATH")))
    if found and Path(found).parent == folder:
        return name
    # MLflow looks for uvicorn on PATH, so its full name alone would not do.
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    place = shown if shown.is_absolute() else Path("$PWD") / shown
    return f'PATH="{place}:$PATH" {name}'
