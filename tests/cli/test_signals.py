"""Ctrl-C and SIGTERM end a command within two seconds, at whatever moment they come."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from servers import wait_for
from tiny_model import TINY_ONNX

pytestmark = pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="looks for open files in /proc"
)

ROOT = Path(__file__).parents[2]
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
SECONDS = 4  # the two, and a busy machine
SWALLOWED = """
import pathlib, time
pathlib.Path("here").touch()
try:
    time.sleep(60)
except BaseException:
    time.sleep(60)
"""
ABORTED = """
import os, pathlib, time
pathlib.Path("here").touch()
try:
    for _ in range(50):
        time.sleep(0.02)
except BaseException:  # as C++ does of which torch is made
    os.abort()
"""


def start(place, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "dermalyze", *map(str, words)],
        cwd=place, env=dict(os.environ, PYTHONPATH=f"{place}:{ROOT}"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process, number):
    """Send a signal; return seconds until the end, its code and the lines on stderr."""
    started = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    took = time.monotonic() - started
    return took, process.returncode, [line for line in errors.splitlines() if line]


def has_open(process_id, path):
    """Return whether a process has opened a file."""
    folder = Path(f"/proc/{process_id}/fd")
    for link in folder.iterdir():
        try:
            if link.readlink() == path:
                return True
        except FileNotFoundError:  # closed since
            continue
    return False


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("option", [None, "--metadata"])
def test_a_command_that_waits_for_a_pipe_is_ended(tmp_path, option, number):
    # Python's own end takes seconds on a busy machine, once torch is imported; nobody waits for it.
    slow_end = "import atexit, time\natexit.register(time.sleep, 10)\n"
    (tmp_path / "sitecustomize.py").write_text(slow_end)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)  # which never writes
    images = [tmp_path / f"{i}.png" for i in range(3)]
    for path in images:
        Image.new("RGB", (20, 10)).save(path)
    words = ("predict", "--model", TINY_ONNX, *images)
    process = start(tmp_path, *words, *([pipe] if option is None else [option, pipe]))
    wait_for(lambda: has_open(process.pid, pipe), seconds=60)
    took, code, errors = ended(process, number)
    os.close(writer)
    assert took < SECONDS
    assert (code, errors) == (SIGNALS[number], ["Error: stopped"])


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("code", [SWALLOWED, ABORTED], ids=["swallowed", "aborted"])
def test_an_import_that_takes_no_interruption_does_not_keep_a_command_from_ending(
    tmp_path, code, number
):
    (tmp_path / "plugin.py").write_text(code)
    process = start(tmp_path, "export-onnx", "--run-id", "none", "--plugin", "plugin.py")
    wait_for((tmp_path / "here").exists, seconds=60)
    took, code, errors = ended(process, number)
    assert took < SECONDS
    assert (code, errors) == (SIGNALS[number], ["Error: stopped"])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_command_line_is_imported_is_one_line(tmp_path, number):
    (tmp_path / "click.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    process = start(tmp_path, "--version")
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out, errors) == (SIGNALS[number], "", "Error: stopped\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_python_ends_is_no_traceback(tmp_path, number):
    code = f"import atexit, os\natexit.register(lambda: os.kill(os.getpid(), {int(number)}))\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    process = start(tmp_path, "--version")
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (-number, "")
    assert out.startswith("dermalyze, version ")
