"""Our tracked_program.py as a process, which logs a run as it is told."""

import os
import subprocess
import sys
import time
from pathlib import Path

from servers import wait_for

PROGRAM = Path(__file__).with_name("tracked_program.py")
ROOT = Path(__file__).parents[2]


class Program:
    """A program that logs a run as it is told; it answers at once, whatever the store does."""

    def __init__(self, folder, uri, seconds=30):
        self.folder, self.env = folder, dict(os.environ, MLFLOW_TRACKING_URI=uri)
        self.env |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
            self.env.pop(name, None)
        folder.mkdir(exist_ok=True, parents=True)
        self.log = folder / "stderr.txt"
        with self.log.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, PROGRAM, "log", str(seconds)],
                cwd=folder, env=self.env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err,
            )  # fmt: skip

    def opened(self):
        self.run_id = self.process.stdout.readline().strip()
        assert self.run_id, self.log.read_text()
        return self

    def tell(self, *lines):
        """Let it log something; return the last answer."""
        for line in lines:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            said = self.process.stdout.readline().strip()
            assert said, self.log.read_text()
        return said

    def stop(self, number):
        """Send a signal; return how many seconds it took to end."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(60)
        return time.monotonic() - start

    def end(self):
        """Let it end; return its exit code and what it wrote to stderr."""
        self.process.stdin.close()
        return self.process.wait(120), self.log.read_text()

    def sync(self):
        return subprocess.run(
            [sys.executable, PROGRAM, "sync", self.run_id],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def said(self, text, seconds=60):
        wait_for(lambda: text in self.log.read_text(), seconds)
