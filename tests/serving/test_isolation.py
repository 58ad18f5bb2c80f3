"""Processes that work for another one end with it, also if that is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from strangers import png

pytestmark = pytest.mark.slow

# Each starts processes that have work for minutes, or wait for some, and says so.
PARENTS = {
    "isolated": """
from serving.isolation import isolated
from test_isolation import work_long
isolated(work_long)
""",
    "isolated, from a thread": """
import threading
from serving.isolation import isolated
from test_isolation import work_long
threading.Thread(target=isolated, args=(work_long,)).start()
""",
    "following an alias": """
import multiprocessing, pathlib, time
from dermalyze.cli.model_copy import _follow
spawn = multiprocessing.get_context("spawn")
process = spawn.Process(target=_follow, args=("models:/m@a", pathlib.Path("m"), "1", 600.0))
process.start()
print("begun", flush=True)
time.sleep(600)
""",
    "decoding": """
import itertools, time
from dermalyze.data.pixel_store.decoder import Target
from dermalyze.data.pixel_store.worker_processes import decode_in_processes
for name, row in (("pixels", 16 * 16 * 3), ("small", 32 * 32)):
    open(name, "wb").write(bytes(row))
target = Target("pixels", 0, "small", 16, "squash", "bilinear")
for _ in decode_in_processes(itertools.repeat([(0, "a", "a.png", "")]), target, 2):
    print("begun", flush=True)
    time.sleep(600)
""",
}


def work_long():
    os.write(1, b"begun\n")
    time.sleep(600)


@pytest.mark.parametrize("code", PARENTS.values(), ids=PARENTS)
def test_processes_end_with_the_one_that_is_killed(tmp_path, code):
    (tmp_path / "a.png").write_bytes(png())
    here = Path(__file__).parent
    paths = here, here.parent / "support", here.parents[1]
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert parent.stdout.readline() == "begun\n"
        parent.kill()
        parent.communicate(timeout=60)  # until nobody holds the other end of stdout
    finally:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
