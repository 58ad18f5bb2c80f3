"""A model file that no export is, though its spec and its checksum fit, is refused unloaded."""

from contextlib import suppress

import pytest
from hostile_models import hostile_model, loops
from tiny_model import TINY_ONNX

from serving import Predictor
from serving.errors import ArtifactError
from serving.onnx_header import MAX_BYTES, require_known


def with_function(model):
    from onnx import helper

    node = helper.make_node("Identity", ["x"], ["y"])
    opset = helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("evil", "f", ["x"], ["y"], [node], [opset]))


def with_domain(model):
    from onnx import helper

    model.opset_import.append(helper.make_opsetid("evil", 1))


def with_many_nodes(model):
    from onnx import helper

    model.graph.node.extend([helper.make_node("Identity", ["sum"], ["x"])] * 100_001)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda: hostile_model(opset=7), "opset 7, expected 18 to 20"),
        (lambda: hostile_model(opset=99), "opset 99, expected 18 to 20"),
        (lambda: hostile_model(ir=3), "IR version 3, expected 8 to 10"),
        (lambda: hostile_model(ir=11), "IR version 11, expected 8 to 10"),
        (loops, "the operator Loop, expected none with a graph of its own"),
        (
            lambda: hostile_model(change=with_domain),
            "operators of 'evil', expected those of ONNX",
        ),
        (
            lambda: hostile_model(change=with_function),
            "functions or a graph for training, expected one graph",
        ),
        (
            lambda: hostile_model(change=with_many_nodes),
            "more than 100,000 nodes and weights, expected fewer",
        ),
    ],
)
def test_what_no_export_has_is_refused_with_a_sentence(tmp_path, content, what):
    path = tmp_path / "m.onnx"
    path.write_bytes(content())
    with pytest.raises(ArtifactError) as caught:
        Predictor(path)
    assert str(caught.value) == f"{path} has {what}; export the model again"


def test_a_file_larger_than_a_model_can_be_is_refused_unread(tmp_path):
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # it takes no room on the disk
    with pytest.raises(ArtifactError) as caught:
        Predictor(path)
    assert str(caught.value) == (
        f"{path} has 2,147,483,649 bytes, expected at most 2,147,483,648; export the model again"
    )


def test_damaged_bytes_are_left_to_onnxruntime_and_never_break_the_look_at_them():
    content = TINY_ONNX.read_bytes()
    for i in range(len(content)):
        damaged = bytearray(content[: 3 * i] if i % 2 else content)
        damaged[i % max(1, len(damaged)) : i + 1] = bytes([255 - content[i]])
        with suppress(ArtifactError):
            require_known(bytes(damaged))
