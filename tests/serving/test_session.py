"""What a network runs on: threads and providers, and what is not installed."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_model import SPEC, TINY_ONNX, tiny_model

from serving import Predictor, session
from serving.checksum import seal
from serving.errors import ArtifactError, ConfigError
from serving.session import multiplies_8_bit_weights, open_session, share_cores

ROOT = Path(__file__).parents[2]


def refusal(**settings):
    with pytest.raises(ConfigError) as caught:
        Predictor(TINY_ONNX, **settings)
    return str(caught.value)


def test_a_provider_that_is_not_installed_is_refused_with_those_that_are(monkeypatch):
    installed = ["OpenVINOExecutionProvider", "CPUExecutionProvider", "AzureExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: installed)
    for name in ("cuda", "tensorrt", "CPUExecutionProvider"):
        assert refusal(provider=name) == (
            f"the provider {name!r} is not installed, expected one of cpu, openvino; "
            "others come with other builds of onnxruntime"
        )


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_not_replaced_quietly(monkeypatch):
    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    assert refusal(provider="cuda") == (
        "the provider 'cuda' is installed but does not start; look for its driver and libraries, "
        "or use cpu"
    )


def test_fewer_threads_than_none_are_refused():
    assert refusal(num_threads=-1) == "the number of threads must be at least 0, got -1"


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_a_session_has_the_threads_that_were_asked_for(num_threads):
    session = open_session(TINY_ONNX.read_bytes(), num_threads=num_threads, provider="cpu")
    assert session.get_session_options().intra_op_num_threads == num_threads
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="reads Linux's /proc"
)
def test_8_bit_weights_are_multiplied_rightly_where_the_cpu_has_vnni():
    flags = Path("/proc/cpuinfo").read_text().split()
    assert multiplies_8_bit_weights() == any(flag in flags for flag in ("avx512_vnni", "avx_vnni"))


def test_what_asks_the_cpu_multiplies_the_largest_values_that_there_are():
    from onnx import ModelProto, checker, numpy_helper

    model = ModelProto.FromString(session._PRODUCT)
    checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]
    (weights,) = model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weights), np.full((8, 1), 127, np.int8))


@pytest.mark.parametrize(("vnni", "bits", "opens"), [(0, None, 0), (0, 8, 0), (0, 7, 1), (1, 8, 1)])
def test_8_bit_weights_are_refused_where_their_products_overflow(
    tmp_path, monkeypatch, vnni, bits, opens
):
    """A stand-in for a CPU without VNNI: a real one is in EXPERIMENTS.md, emulated."""
    monkeypatch.setattr("serving.predictor.multiplies_8_bit_weights", lambda: bool(vnni))
    path = tmp_path / "old.onnx"
    spec = replace(SPEC, precision="int8", int8_weight_bits=bits)
    path.write_bytes(seal(tiny_model(spec).SerializeToString()))
    if opens:
        assert Predictor(path).spec.int8_weight_bits == bits
        return
    with pytest.raises(ArtifactError) as caught:
        Predictor(path)
    assert str(caught.value) == (
        f"{path} has int8 weights of 8 bits, with which this CPU computes wrong answers, as it has "
        "no VNNI; export the model again, which writes 7 bits"
    )


@pytest.mark.parametrize(
    ("num_images", "num_threads", "shared"),
    [
        (1, 8, (1, 8)),  # one image: all threads are its own
        (2, 8, (2, 4)),
        (3, 8, (3, 2)),
        (1000, 8, (8, 1)),  # many: a thread each
        (1000, 1, (1, 1)),
        (0, 4, (1, 4)),
    ],
)
def test_cores_are_shared_between_images_and_then_within_one(num_images, num_threads, shared):
    assert share_cores(num_images, num_threads) == shared


def test_without_a_number_there_is_a_thread_for_each_core_that_may_be_used():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert share_cores(10_000) == (cores, 1)


def test_nothing_is_gathered_for_onnxruntimes_telemetry(tmp_path):
    code = "import sys; from serving import Predictor; Predictor(sys.argv[1])"
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(TINY_ONNX)], env=env, check=True)
    assert list(tmp_path.iterdir()) == []  # else an id of the device, and events to be sent
