"""How a network is run: on what, and by how many threads.

Never imports torch.
"""

import base64
import functools
import os

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    EPFail,
    Fail,
    InvalidArgument,
    NotImplemented,
    RuntimeException,
)

from serving.errors import ConfigError
from serving.machine import num_cores

# Our name of a provider -> onnxruntime's; the order is that of messages.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
# What a run that goes wrong raises.
FAILURES = (Fail, RuntimeException, InvalidArgument, NotImplemented, EPFail, MemoryError)
# An ONNX graph of one MatMulInteger: uint8 `x` (1, 8) times eight int8 weights of 127 is int32 `y`.
_PRODUCT = base64.b64decode(
    "CAg6XAoYCgF4CgF3EgF5Ig1NYXRNdWxJbnRlZ2VyEgFwKhMICAgBEANCAXdKCH9/f39/f39/WhMKAXgSDgoMCAISCAoC"
    "CAEKAggIYhMKAXkSDgoMCAYSCAoCCAEKAggBQgQKABAN"
)
_FATAL = 4  # onnxruntime's log level; what goes wrong is raised, and told once


def require_session(num_threads: int, provider: str) -> None:
    """Refuse settings that no session can have, before a model is read.

    Args:
        num_threads: as `open_session` takes it.
        provider: a key of `PROVIDERS`.

    Raises:
        ConfigError: the number is negative, or the provider is unknown or not installed.
    """
    if num_threads < 0:
        raise ConfigError(f"the number of threads must be at least 0, got {num_threads}")
    installed = onnxruntime.get_available_providers()
    names = [name for name, theirs in PROVIDERS.items() if theirs in installed]
    if provider not in names:
        raise ConfigError(
            f"the provider {provider!r} is not installed, expected one of {', '.join(names)}; "
            "others come with other builds of onnxruntime"
        )


def open_session(
    content: bytes, *, num_threads: int, provider: str
) -> onnxruntime.InferenceSession:
    """Load the bytes of a model; whatever onnxruntime raises is let through.

    Args:
        content: an ONNX file.
        num_threads: the threads of one run; 0 is one a core.
        provider: a key of `PROVIDERS`; what it cannot run, the CPU does.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = _FATAL
    # A model is one file: weights that it looks for elsewhere are sought where nothing can be.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    providers = list(dict.fromkeys((PROVIDERS[provider], PROVIDERS["cpu"])))
    # With its fallback, onnxruntime prints its complaint and tries the same again.
    return onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)


def is_out_of_memory(error: Exception) -> bool:
    """Say whether a failure of onnxruntime is that of an allocation."""
    return isinstance(error, MemoryError) or "alloc" in str(error)


@functools.cache
def multiplies_8_bit_weights() -> bool:
    """Say whether uint8 values times int8 weights of 8 bits are right on this machine.

    A CPU without VNNI adds pairs of products in 16 bits, and onnxruntime lets them be cut off:
    255 x 127 twice is more (microsoft/onnxruntime#6004).
    """
    session = open_session(_PRODUCT, num_threads=1, provider="cpu")
    (found,) = session.run(["y"], {"x": np.full((1, 8), 255, np.uint8)})
    return int(found[0, 0]) == 8 * 255 * 127


def run_options() -> onnxruntime.RunOptions:
    """Return how to run a graph: only what leads to the outputs that are asked for."""
    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return options


def require_provider(session: onnxruntime.InferenceSession, provider: str) -> None:
    """Refuse a session without its provider: onnxruntime would quietly use the CPU instead.

    Raises:
        ConfigError: it has been left out.
    """
    if PROVIDERS[provider] not in session.get_providers():
        raise ConfigError(
            f"the provider {provider!r} is installed but does not start; look for its driver and "
            "libraries, or use cpu"
        )


def share_cores(num_images: int, num_threads: int = 0) -> tuple[int, int]:
    """Say how many images to work on at once, and with how many threads each.

    One thread an image keeps every core busy: while one image is decoded, another is classified,
    and no core waits for the others in the middle of a network.

    Args:
        num_images: how many there are.
        num_threads: in all; 0 is one a core.
    """
    num_threads = num_threads or num_cores()
    workers = max(1, min(num_images, num_threads))
    return workers, num_threads // workers
