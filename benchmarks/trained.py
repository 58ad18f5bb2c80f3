"""A trained run with its images and splits, as several benchmarks need them."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

from dermalyze.models.plugins import load_plugins
from dermalyze.workflows.finished_run import FinishedRun, open_finished
from dermalyze.workflows.run_context import Here


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; `--plugin FILE_OR_MODULE` imports what the run's network needs."""
    parser.add_argument("--plugin", action="append", default=[], help="code of the run's network")
    arguments = parser.parse_args()
    load_plugins(arguments.plugin)
    return arguments


def trained(run_id: str, data_dir: str) -> AbstractContextManager[FinishedRun]:
    """Open a run whose images are in `data_dir`."""
    return open_finished(run_id, Here(data_dir=Path(data_dir)))
