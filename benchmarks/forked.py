"""Commands in forks of one process that has loaded the libraries: a start takes 0.1 s, not 4.

`python -m benchmarks.forked` is that process: it reads requests from stdin, one JSON object a line,
and answers each with the exit status.  It never runs a command itself, so each fork is fresh.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARIES = (
    "dermalyze.cli.main", "dermalyze.cli.summary", "dermalyze.export.web",
    "dermalyze.training.step_benchmark", "dermalyze.workflows.cross_validate",
    "dermalyze.workflows.export", "dermalyze.workflows.leakage",
    "matplotlib.pyplot", "mlflow.pyfunc", "sklearn",
)  # fmt: skip
TIMED_OUT = -signal.SIGALRM


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a command."""

    status: int  # of its exit; negative: the signal that ended it
    stdout: str
    stderr: str


class Commands:
    """Runs commands of the command line, one at a time."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(
        self,
        words: Sequence[object],
        cwd: Path,
        *,
        environment: Mapping[str, str] | None = None,
        max_file_bytes: int = -1,
        seconds: int = 600,
    ) -> Done:
        """Run `dermalyze WORDS`, with no file above a size if that is given, for some seconds."""
        stdout, stderr = self._folder / "stdout", self._folder / "stderr"
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "environment": dict(environment or {}),
            "max_file_bytes": max_file_bytes,
            "seconds": seconds,
            "streams": [os.devnull, str(stdout), str(stderr)],
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return Done(
            status=status,
            stdout=stdout.read_text(errors="replace"),
            stderr=stderr.read_text(errors="replace"),
        )


@contextlib.contextmanager
def commands() -> Iterator[Commands]:
    """Start the process that forks, and end it."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.forked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment,
        ) as process,
    ):
        yield Commands(process, Path(folder))


def serve() -> None:
    """Fork for each request on stdin, until it ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    answers = os.dup(1)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os.close(answers)
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(request: dict[str, Any]) -> None:
    """Be the command that is asked for; never return."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    for number, path in enumerate(request["streams"]):
        os.dup2(os.open(path, flags), number)
    signal.alarm(request["seconds"])
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # which it may have looked up for the parent
    if request["max_file_bytes"] >= 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["max_file_bytes"],) * 2)
    status: object = 1
    try:
        importlib.import_module("dermalyze.cli.main").main(request["words"], prog_name="dermalyze")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # An ordinary end would wait for threads that only the parent has.
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    serve()
