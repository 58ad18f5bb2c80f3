"""What is done to the process before it trains."""

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from dermalyze.config.schema import TrainingConfig
from dermalyze.training.device import choose_device, enough_memory
from serving.errors import TrainingError

FAULTS = """
import resource, sys
import numpy as np
from serving.machine import keep_freed_memory
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


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.zeros(10**14), lambda: np.zeros(10**14), lambda: torch.zeros(10**9, 10**5)],
)
def test_too_little_memory_for_a_batch_is_one_sentence_that_says_what_to_lower(allocate):
    device = choose_device(TrainingConfig(device="cpu"))
    with pytest.raises(TrainingError) as caught, enough_memory(device, 64):
        allocate()
    assert str(caught.value) == (
        "out of memory on cpu with batches of 64 images; lower training.batch_size or "
        "data.image_size, take a smaller model, or free memory"
    )


def test_another_error_of_torch_stays_what_it_is():
    device = choose_device(TrainingConfig(device="cpu"))
    with pytest.raises(RuntimeError, match="shape") as caught, enough_memory(device, 64):
        torch.zeros(2, 3).reshape(4)
    assert not isinstance(caught.value, TrainingError)
