"""What is done to the process before it trains."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from dermalyze.training.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    blocks = [np.ones(20 * 2**20, np.uint8) for _ in range(6)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(what):
    command = [sys.executable, "-c", FAULTS, what]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back early")
def test_memory_that_was_freed_is_used_again_without_asking_the_system():
    pages = 5 * 6 * 20 * 2**20 // 4096  # of 4 KiB, touched after the warm-up
    assert page_faults("keep") < pages / 100
    assert page_faults("leave") > pages / 10
