"""Weights in float16: half the file, computed in float32, and no file where rounding tells."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_network import TINY_SPEC, tiny_network
from torch import nn

from dermalyze.cli.options import PRECISION
from dermalyze.export.float16 import export_float16, halve
from dermalyze.export.onnx import export_onnx
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.torch_predictor import SkinLesionPredictor
from serving import Predictor
from serving.errors import ArtifactError
from serving.session import open_session
from serving.spec import PRECISIONS


def test_the_command_line_offers_what_a_spec_may_say():
    assert tuple(PRECISION.choices) == PRECISIONS


def test_large_weights_are_rounded_and_nothing_else_is():
    rng = np.random.default_rng(0)
    values = {
        "large": rng.normal(size=(40, 30)).astype(np.float32),
        "beyond": rng.normal(size=(30, 40)).astype(np.float32) * 1e5,
        "small": rng.normal(size=(40, 25)).astype(np.float32),  # 1,000 weights
        "vector": rng.normal(size=1200).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"]),
        helper.make_node("MatMul", ["a", "beyond"], ["b"]),
        helper.make_node("MatMul", ["b", "small"], ["c"]),
        helper.make_node("Neg", ["large"], ["negative"]),  # a second use of the weights
        helper.make_node("Neg", ["vector"], ["negative_vector"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 40])],
        [
            helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 25]),
            helper.make_tensor_value_info("negative", TensorProto.FLOAT, [40, 30]),
            helper.make_tensor_value_info("negative_vector", TensorProto.FLOAT, [1200]),
        ],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    halve(model)
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kept = dict.fromkeys(("beyond", "small", "vector"), TensorProto.FLOAT)
    assert kinds == {"large_float16": TensorProto.FLOAT16, **kept}
    x = rng.normal(size=(2, 40)).astype(np.float32)
    session = open_session(model.SerializeToString(), num_threads=1, provider="cpu")
    product, negative = session.run(["c", "negative"], {"x": x})
    rounded = values["large"].astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(product, x @ rounded @ values["beyond"] @ values["small"], rtol=1e-4)
    np.testing.assert_array_equal(negative, -rounded.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("head_type", ["simple", "acrnn"])
def test_the_file_is_half_as_large_and_answers_nearly_as_pytorch(head_type, tmp_path):
    network = tiny_network(head_type=head_type)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    path = tmp_path / "deep" / "model.onnx"
    report = export_float16(ShippedNetwork([Member(network)]), TINY_SPEC, path)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    predictor = Predictor(path)
    assert json.loads(predictor.spec.to_json()) == {
        **json.loads(TINY_SPEC.to_json()),
        "precision": "float16",
    }
    float_file = tmp_path / "float32.onnx"
    export_onnx(ShippedNetwork([Member(network)]), TINY_SPEC, float_file, keep_norms=True)
    sizes = float_file.stat().st_size, path.stat().st_size
    assert (report.float_bytes, report.float16_bytes) == sizes
    in_large = sum(w.numel() for w in network.parameters() if w.numel() >= 1024)
    assert sizes[0] - sizes[1] == pytest.approx(2 * in_large, rel=0.03)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    exact = SkinLesionPredictor.of(ShippedNetwork([Member(network)]), TINY_SPEC).logits(pixels)
    answers = predictor.logits(pixels)
    # Each weight is off by at most 2**-11 of itself, and the errors have either sign.
    assert 1e-6 < np.sqrt(np.square(answers - exact).mean()) / exact.std() < 2**-9
    assert str(report) == (
        f"float16; differs from float32 by at most {report.parity.max_difference:.1e} in a "
        f"probability on {report.parity.num_images} images; "
        + {0: "no class changed", 1: "1 class changed"}[len(report.parity.changed_classes)]
        + f"; {sizes[1] / 1e6:.1f} MB, float32 {sizes[0] / 1e6:.1f} MB"
    )
    assert 0 < report.parity.max_difference <= 0.01
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


class Twice(nn.Module):
    """Every feature is there twice."""

    output_fmt = "NCHW"

    def forward_features(self, images):
        return images[:, [0, 1, 2, 0, 1, 2], ::4, ::4]


@pytest.mark.slow
def test_where_rounding_tells_nothing_is_written_and_the_old_file_stays(tmp_path):
    network = tiny_network(features=Twice)
    first = next(module for module in network.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():  # equal features with large weights that cancel out, but for rounding
        first.weight[:, :3] += 30
        first.weight[:, 3:] -= 30
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(ArtifactError) as caught:
        export_float16(ShippedNetwork([Member(network)]), TINY_SPEC, path)
    said = str(caught.value)
    assert said.startswith(f"{path} is not written: with float16 weights ")
    assert said.endswith("where 0.01 is allowed; export with --precision float32")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"the old one"
