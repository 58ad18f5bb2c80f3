"""A model small enough to be done by hand: logits = pixels / 255 @ weights + bias.

`python tests/support/tiny_model.py` writes old_files/tiny.onnx beside it; a test holds the two
together.
"""

from pathlib import Path

import numpy as np

from serving.checksum import DIGEST_KEY, NO_DIGEST, seal
from serving.ham10000_taxonomy import HAM10000
from serving.spec import SPEC_KEY, ModelSpec

TINY_ONNX = Path(__file__).parent / "old_files" / "tiny.onnx"
SPEC = ModelSpec(taxonomy=HAM10000, input_size=(6, 8), temperature=2.0, resize_filter="bilinear")


def weights_and_bias():
    """float32 (H * W * 3, C), (C,)."""
    rng = np.random.RandomState(0)  # its stream is frozen for ever, unlike default_rng's
    weights = rng.standard_normal((6 * 8 * 3, 7)).astype(np.float32)
    bias = np.linspace(-1, 1, 7, dtype=np.float32)
    return weights, bias


def logits_by_hand(pixels):
    """uint8 (N, 6, 8, 3) -> float64 (N, C)."""
    weights, bias = (array.astype(np.float64) for array in weights_and_bias())
    return pixels.reshape(len(pixels), -1) / 255 @ weights + bias


def tiny_model(spec=SPEC, **changes):
    """Build the graph; `changes` replace parts of it, to make files that lie."""
    from onnx import TensorProto, helper, numpy_helper

    parts = {
        "input_name": "image",
        "input_type": TensorProto.UINT8,
        "input_shape": ["batch", 6, 8, 3],
        "output_name": "logits",
        "output_type": TensorProto.FLOAT,
        "num_logits": 7,
        "metadata": {SPEC_KEY: spec.to_json(), DIGEST_KEY: NO_DIGEST},
    } | changes
    weights, bias = weights_and_bias()
    side = parts["input_shape"][1] * parts["input_shape"][2] * 3
    weights, bias = (
        np.resize(weights, (side, parts["num_logits"])),
        np.resize(bias, parts["num_logits"]),
    )
    nodes = [
        ("Cast", [parts["input_name"]], "numbers", {"to": TensorProto.FLOAT}),
        ("Div", ["numbers", "white"], "scaled", {}),
        ("Flatten", ["scaled"], "rows", {"axis": 1}),
        ("MatMul", ["rows", "weights"], "product", {}),
        ("Add", ["product", "bias"], "sum", {}),
        ("Cast", ["sum"], parts["output_name"], {"to": parts["output_type"]}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, ins, [out], **options) for kind, ins, out, options in nodes],
        "tiny",
        [
            helper.make_tensor_value_info(
                parts["input_name"], parts["input_type"], parts["input_shape"]
            )
        ],
        [
            helper.make_tensor_value_info(
                parts["output_name"],
                parts["output_type"],
                [parts["input_shape"][0], parts["num_logits"]],
            )
        ],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.float32(255), "white"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, parts["metadata"])
    return model


def tiny_bytes():
    """Return the file that `tests/support/old_files/tiny.onnx` is."""
    return seal(tiny_model().SerializeToString(deterministic=True))


if __name__ == "__main__":
    TINY_ONNX.parent.mkdir(exist_ok=True)
    TINY_ONNX.write_bytes(tiny_bytes())
