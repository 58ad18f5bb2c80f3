"""Where and in which precision the network runs."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dermalyze.config.schema import TrainingConfig
from dermalyze.training.distributed import local_device, size
from serving.errors import ConfigError, TrainingError


@dataclass(frozen=True, kw_only=True)
class Device:
    """A torch device and what pays on it."""

    torch_device: torch.device
    amp_dtype: torch.dtype | None  # None: full precision
    channels_last: bool

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients must be scaled: fp16 underflows, bf16 does not."""
        return self.amp_dtype == torch.float16

    @property
    def is_bf16_cpu(self) -> bool:
        """Whether this is a CPU that works in bf16."""
        return self.torch_device.type == "cpu" and self.amp_dtype == torch.bfloat16

    @property
    def precision(self) -> str:
        """The precision in words, as it is logged."""
        return "float32" if self.amp_dtype is None else str(self.amp_dtype).removeprefix("torch.")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the block in mixed precision where that helps."""
        if self.amp_dtype is None:
            yield
        else:
            with torch.autocast(self.torch_device.type, dtype=self.amp_dtype):
                yield


def available_devices() -> tuple[str, ...]:
    """Return the values that `training.device` can have here, the fastest one first after auto."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    return ("auto", *(name for name, is_there in there.items() if is_there))


def choose_device(config: TrainingConfig) -> Device:
    """Take CUDA, MPS or the CPU, and mixed precision where the hardware has it.

    Raises:
        ConfigError: `training.device` names one that is not here.
    """
    _, *available = available_devices()
    kind = config.device
    if kind == "auto":
        kind = available[0] if size() == 1 or available[0] != "mps" else "cpu"
    elif kind not in available:
        there = ", ".join(available)
        raise ConfigError(f"training.device {kind} is not available here; available: {there}")
    amp_dtype = None
    if config.use_amp and kind == "cuda":
        amp_dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    elif config.use_amp and kind == "cpu" and _cpu_has_bf16():
        amp_dtype = torch.bfloat16
    return Device(torch_device=local_device(kind), amp_dtype=amp_dtype, channels_last=kind != "mps")


def in_full_precision(device: Device) -> Device:
    """Return the same device without mixed precision: what is reported and shipped."""
    return dataclasses.replace(device, amp_dtype=None)


@contextlib.contextmanager
def enough_memory(device: Device, batch_size: int) -> Iterator[None]:
    """Say what to do where the block finds no memory for a batch.

    Raises:
        TrainingError: there is too little memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        named = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not named and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise TrainingError(
            f"out of memory on {device.torch_device.type} with batches of {batch_size} images; "
            "lower training.batch_size or data.image_size, take a smaller model, or free memory"
        ) from error


# What torch says on a CPU and on MPS, in errors without a type of their own.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")


def _cpu_has_bf16() -> bool:
    """Say whether this CPU multiplies bf16 in hardware; emulated, it is slower than float32."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    return capabilities.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())


def set_determinism(*, deterministic: bool) -> None:
    """Make two runs with one seed give equal weights, or let the fastest kernels be chosen."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's start
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
