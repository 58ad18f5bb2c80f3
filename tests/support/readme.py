"""The shell blocks of the README, and a shell as a user has it."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:<!-- shell: (?P<fate>[^>]*) -->\n)?```sh\n(?P<code>.*?)```", re.DOTALL)
TESTED = "run by tests/project/test_readme.py"
INSTALLED = "run by tests/project/test_wheel.py"
FATES = {TESTED, INSTALLED, "run by .ci/run", "needs the network", "runs until stopped"}


def blocks(fate=TESTED):
    return [found["code"] for found in BLOCK.finditer(README) if found["fate"] == fate]


def user_env(**variables):
    """A user's environment: nothing set by earlier tests (MLFLOW_*) or by `make slow` (MAKE*)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "MAKE"))}
    return env | {"MLFLOW_DISABLE_TELEMETRY": "true"} | variables


def script(code, folder, env):
    """Run lines of a shell in a session that ends with them; return what they print."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):  # what they left in the background
            os.killpg(process.pid, signal.SIGTERM)
    assert process.returncode == 0, output
    return output
