"""A graph in int8: how far it may be off, which layers suffer, and what it is calibrated with."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dermalyze.export.int8_graph import calibrate, logits_of, quantize, rank

SIDE = 4  # pixels


def graph_of(nodes, weights):
    """Return a model of (operation, inputs, output, attributes); pixels / 255 are its `x`."""
    front = [
        ("Transpose", ["image"], "turned", {"perm": [0, 3, 1, 2]}),
        ("Cast", ["turned"], "numbers", {"to": TensorProto.FLOAT}),
        ("Div", ["numbers", "white"], "x", {}),
    ]
    constants = {"white": np.float32(255)} | weights
    graph = helper.make_graph(
        [
            helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes)
            for kind, inputs, output, attributes in front + nodes
        ],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 7])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def pixels_of(num_images, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, SIDE, SIDE, 3), np.uint8)


def two_layers():
    """x -> itself -> weights (7, 3, 4, 4) and bias (7,); the first layer changes nothing."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((7, 3, SIDE, SIDE)).astype(np.float32)
    weights *= 10.0 ** np.arange(-3, 4, dtype=np.float32)[:, None, None, None]
    bias = rng.standard_normal(7).astype(np.float32)
    same = np.eye(3, dtype=np.float32)[:, :, None, None]
    nodes = [
        ("Conv", ["x", "same"], "a", {}),
        ("Conv", ["a", "weights", "bias"], "b", {}),
        ("Flatten", ["b"], "logits", {}),
    ]
    model = graph_of(nodes, {"same": same, "weights": weights, "bias": bias})
    return model, weights.reshape(7, -1).astype(float), bias


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_int8_is_off_by_no_more_than_its_roundings():
    model, weights, bias = two_layers()
    pixels = pixels_of(8)  # one group: the ranges are the extremes, so that nothing is cut off
    calibrated = calibrate(model, {"image": pixels})
    answers = logits_of(quantize(calibrated, calibrated.layers[1:]), {"image": pixels})
    x = pixels.transpose(0, 3, 1, 2).reshape(8, -1) / 255
    exact = x @ weights.T + bias
    np.testing.assert_allclose(
        logits_of(model, {"image": pixels}), exact, rtol=1e-5, atol=1e-3
    )  # of 1,000
    x_step = x.max() / 255  # x begins at 0
    weight_steps = np.abs(weights).max(axis=1) / 64  # one a channel: their sizes differ 10**6
    answer_step = (exact.max() - exact.min()) / 255
    worst = (
        np.abs(weights).sum(axis=1) * x_step / 2
        + x.sum(axis=1, keepdims=True) * weight_steps / 2
        + weights.shape[1] * x_step * weight_steps / 4
        + x_step * weight_steps / 2  # of the bias
        + answer_step  # half a step, and half a step of where zero lies
    )
    assert (np.abs(answers - exact) <= worst * 1.001).all()  # float32 rounds too
    assert np.abs(answers - exact).max() > 0


def test_weights_are_7_bits_by_channel_and_values_uint8():
    model, weights, _ = two_layers()
    calibrated = calibrate(model, {"image": pixels_of(8)})
    values = initializers(quantize(calibrated, calibrated.layers[1:]))
    assert values["weights_quantized"].dtype == np.int8
    np.testing.assert_allclose(values["weights_scale"], np.abs(weights).max(axis=1) / 64, rtol=1e-6)
    assert np.abs(values["weights_quantized"].reshape(7, -1)).max(axis=1).tolist() == [64] * 7
    assert 255 * 64 * 2 <= np.iinfo(np.int16).max  # in which CPUs without VNNI add two products
    assert values["b_zero_point"].dtype == np.uint8


def test_a_layer_that_is_not_asked_for_stays_in_float32():
    model, _, _ = two_layers()
    calibrated = calibrate(model, {"image": pixels_of(8)})
    assert [layer.name for layer in calibrated.layers] == ["same", "weights"]
    values = initializers(quantize(calibrated, calibrated.layers[1:]))
    assert values["same"].dtype == np.float32
    values = initializers(quantize(calibrated, calibrated.layers[:1]))
    assert values["weights"].dtype == np.float32
    assert values["same_quantized"].dtype == np.int8


def test_a_range_is_the_mean_of_the_extremes_of_groups_of_eight_images():
    model, _, _ = two_layers()
    pixels = pixels_of(20)
    pixels[8:16] //= 2
    pixels[16:] //= 4  # the last group is smaller
    ranges = calibrate(model, {"image": pixels}).ranges["a"].range_value
    x = pixels / 255
    groups = (x[:8], x[8:16], x[16:])
    low, high = (np.mean([extreme(g) for g in groups]) for extreme in (np.min, np.max))
    assert ranges == pytest.approx((low, high), abs=1e-6)


def block():
    """All that a mobile block has: SiLU, squeeze and excitation, a residual sum, a pooled mean."""
    rng = np.random.default_rng(2)

    def random(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    nodes = [
        ("Conv", ["x", "stem"], "a", {"pads": [1, 1, 1, 1]}),
        ("Sigmoid", ["a"], "a_gate", {}),
        ("Mul", ["a", "a_gate"], "silu", {}),
        ("Conv", ["silu", "depthwise"], "b", {"pads": [1, 1, 1, 1], "group": 6}),
        ("ReduceMean", ["b", "axes"], "squeezed", {"keepdims": 1}),
        ("Conv", ["squeezed", "excite"], "c", {}),
        ("Sigmoid", ["c"], "c_gate", {}),
        ("Mul", ["b", "c_gate"], "excited", {}),
        ("Add", ["excited", "silu"], "sum", {}),
        ("ReduceMean", ["sum", "negative_axes"], "mean", {"keepdims": 0}),
        ("Gemm", ["mean", "head"], "logits", {"transB": 1}),
    ]
    weights = {
        "stem": random(6, 3, 3, 3),
        "depthwise": random(6, 1, 3, 3),
        "excite": random(6, 6, 1, 1),
        "head": random(7, 6),
        "axes": np.array([2, 3]),
        "negative_axes": np.array([-1, -2]),
    }
    return graph_of(nodes, weights)


def test_the_graph_that_is_calibrated_answers_as_the_given_one_which_stays_as_it_is():
    model = block()
    before = model.SerializeToString()
    pixels = pixels_of(10)
    calibrated = calibrate(model, {"image": pixels})
    assert model.SerializeToString() == before
    kinds = [node.op_type for node in calibrated.model.graph.node]
    assert kinds.count("GlobalAveragePool") == 1  # the mean that keeps its axes
    assert kinds.count("ReduceMean") == 1
    assert kinds.count("Transpose") == 3  # that of the pixels, and two that undo each other
    np.testing.assert_allclose(
        logits_of(calibrated.model, {"image": pixels}),
        logits_of(model, {"image": pixels}),
        rtol=1e-5,
        atol=1e-5,
    )
    before = calibrated.model.SerializeToString()
    quantize(calibrated, calibrated.layers)
    rank(calibrated, calibrated.layers, {"image": pixels})
    assert calibrated.model.SerializeToString() == before


def test_every_operation_of_a_block_is_in_int8_and_no_answer_is_far_off():
    model = block()
    pixels = pixels_of(16)
    calibrated = calibrate(model, {"image": pixels})
    quantized = quantize(calibrated, calibrated.layers[1:])
    onnx.checker.check_model(quantized, full_check=True)
    made_by = {output: node for node in quantized.graph.node for output in node.output}
    for node in quantized.graph.node:
        if node.op_type in ("Mul", "Add", "GlobalAveragePool") and node.output[0] != "silu":
            assert {made_by[name].op_type for name in node.input} == {"DequantizeLinear"}
    expected = logits_of(model, {"image": pixels})
    difference = logits_of(quantized, {"image": pixels}) - expected
    # ten roundings of 1/255 of a range, which is about six standard deviations: below 10 %
    assert np.sqrt(np.square(difference).mean()) < 0.1 * expected.std()


def test_the_layers_around_a_value_with_one_huge_channel_are_ranked_first():
    """The channel is not read, but its range makes the steps of the others 10,000 times as wide."""
    rng = np.random.default_rng(3)
    good, bad, reader, head = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((4, 3, 1, 1), (4, 4, 1, 1), (4, 4, 1, 1), (7, 4, SIDE, SIDE))
    )
    bad[0] *= 10_000
    reader[:, 0] = 0
    nodes = [
        ("Conv", ["x", "stem"], "a", {}),
        ("Conv", ["a", "good"], "b", {}),
        ("Relu", ["b"], "c", {}),
        ("Conv", ["c", "bad"], "d", {}),
        ("Conv", ["d", "reader"], "e", {}),
        ("Conv", ["e", "head"], "f", {}),
        ("Flatten", ["f"], "logits", {}),
    ]
    stem = rng.standard_normal((3, 3, 1, 1)).astype(np.float32)
    model = graph_of(
        nodes, {"stem": stem, "good": good, "bad": bad, "reader": reader, "head": head}
    )
    pixels = pixels_of(16)
    calibrated = calibrate(model, {"image": pixels})
    groups = rank(calibrated, calibrated.layers[1:], {"image": pixels})
    assert [len(group) for group in groups] == [1] * 4
    names = [group[0].name for group in groups]
    assert set(names[:2]) == {"bad", "reader"}
