"""A float32 ONNX graph -> the same graph in int8, and which of its layers suffer most from that.

Weights become int8 of 7 bits, one scale a channel; what flows between the layers becomes uint8, one
scale a value.  What leads to the logits is changed; the rest of the graph stays in float32.  Never
sees a label, a validation or a test image.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, MinMaxCalibrater, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from tqdm import tqdm

from serving.os_errors import temporary_folder
from serving.session import open_session, run_options

Inputs = Mapping[str, NDArray[Any]]  # image uint8 (N, H, W, 3); metadata float32 (N, K) if taken

# A CPU without VNNI adds pairs of products in 16 bits: 255 x 64 twice fits, 255 x 127 does not.
WEIGHT_BITS = 7

_WEIGHTED = ("Conv", "Gemm", "MatMul")  # what opens a layer
_KINDS = [*_WEIGHTED, "Add", "Mul", "Sigmoid", "Relu", "Clip", "GlobalAveragePool"]
_DEQUANTIZED = "_DequantizeLinear_Output"  # what the quantizer puts behind the name of a value
_BATCH = 2  # images that run at once; bounds memory
_GROUP = 8  # images whose extremes make one range; more are coarser, fewer cut off more
MAX_GROUPS = 32  # what is ranked at most: each costs a graph, a session and a run
_RANKED_IMAGES = 56  # the first of the calibration images; enough to order the groups


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product, and what follows it up to the next one."""

    name: str  # of its weights
    nodes: tuple[str, ...]
    num_weights: int


@dataclass(frozen=True)
class Calibrated:
    """A float32 graph, and the range of every value in it."""

    model: ModelProto
    layers: tuple[Layer, ...]  # in the order in which they run
    ranges: TensorsData  # by the name of the value


def calibrate(model: ModelProto, inputs: Inputs) -> Calibrated:
    """Measure the range of every value of a float32 graph on images of the training split.

    Args:
        model: the graph; it is not changed.
        inputs: of the graph, N images.
    """
    graph = copy.deepcopy(model)
    _pool_globally(graph)
    graph = _with_shapes(graph)
    layers = _layers(graph)
    if layers:
        _put_channels_last(graph, layers[0])
        graph = _with_shapes(graph)
    return Calibrated(graph, layers, _ranges(graph, inputs))


def _with_shapes(graph: ModelProto) -> ModelProto:
    with temporary_folder():  # onnxruntime has one of its own, which fails for the same reasons
        reloaded: ModelProto = save_and_reload_model_with_shape_infer(graph)
    return reloaded


def quantize(calibrated: Calibrated, layers: Sequence[Layer]) -> ModelProto:
    """Return the graph with these of its layers in int8, the others in float32."""
    assert layers  # no node would mean all nodes
    quantizer = QDQQuantizer(
        copy.deepcopy(calibrated.model),
        per_channel=True,
        reduce_range=True,  # weights from -64 to 64; see WEIGHT_BITS
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,  # int8 here is slower than float32 on VNNI
        tensors_range=calibrated.ranges,
        nodes_to_quantize=[node for layer in layers for node in layer.nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=_KINDS,
        extra_options={"MatMulConstBOnly": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    model: ModelProto = quantizer.model.model
    _share_weights(model)
    del model.graph.value_info[:]
    return model


def rank(
    calibrated: Calibrated, layers: Sequence[Layer], inputs: Inputs
) -> list[tuple[Layer, ...]]:
    """Order neighbouring layers by the error that they cause in int8 alone, the worst first.

    The error is that of the logits, root mean square, on the first calibration images.
    """
    some = {name: values[:_RANKED_IMAGES] for name, values in inputs.items()}
    expected = logits_of(calibrated.model, some)
    size = math.ceil(len(layers) / MAX_GROUPS)
    groups = [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]
    errors = []
    for group in tqdm(groups, "ranking layers", unit="group", leave=False, disable=None):
        difference = logits_of(quantize(calibrated, group), some) - expected
        errors.append(float(np.square(difference).mean()))
    return [groups[i] for i in np.argsort(errors)[::-1]]


def logits_of(model: ModelProto, inputs: Inputs) -> NDArray[np.float32]:
    """Run a graph on N images: float32 (N, C)."""
    session, options = _session(model), run_options()
    return np.concatenate(
        [session.run(["logits"], batch, options)[0] for batch in _batches(inputs)]
    )


def _session(model: ModelProto) -> Any:
    return open_session(model.SerializeToString(), num_threads=0, provider="cpu")


def _batches(inputs: Inputs) -> Iterator[dict[str, NDArray[Any]]]:
    for start in range(0, len(inputs["image"]), _BATCH):
        yield {name: values[start : start + _BATCH] for name, values in inputs.items()}


def _share_weights(model: ModelProto) -> None:
    """Let what uses a weight beside its layer use the int8 one too, not a copy in float32.

    The map of evidence is made of the weights of the head.
    """
    dequantized = {
        node.output[0].removesuffix(_DEQUANTIZED): node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0].endswith(_DEQUANTIZED)
    }
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in weights and name in dequantized:
                node.input[i] = dequantized[name]
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _pool_globally(model: ModelProto) -> None:
    """Write means over height and width as the pooling that onnxruntime has in int8."""
    axes = {
        tensor.name: sorted(axis % 4 for axis in numpy_helper.to_array(tensor).tolist())
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) == 1
    }
    for node in model.graph.node:
        keeps = {a.name: a.i for a in node.attribute}.get("keepdims", 1)
        if node.op_type == "ReduceMean" and keeps and axes.get(node.input[-1]) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _put_channels_last(model: ModelProto, layer: Layer) -> None:
    """Turn the answer of a layer to (N, H, W, C) and back again, which changes no number.

    onnxruntime's int8 kernels want channels last.  Left alone it turns every value of the first
    blocks, to and fro; here it turns one.  The shape between the two turns keeps it from taking
    both for nothing.
    """
    nodes = list(model.graph.node)
    position = max(i for i, node in enumerate(nodes) if node.name in layer.nodes)
    value = nodes[position].output[0]
    shapes = {info.name: info.type.tensor_type.shape.dim for info in model.graph.value_info}
    sides = [side.dim_value for side in shapes.get(value, ())][1:]
    if len(sides) != 3 or not all(sides):
        return
    channels, height, width = sides
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == value:
                node.input[i] = f"{value}_turned"
    shape = np.array([-1, height, width, channels], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(shape, f"{value}_shape"))
    turns = [
        helper.make_node("Transpose", [value], [f"{value}_last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", [f"{value}_last", f"{value}_shape"], [f"{value}_kept"]),
        helper.make_node("Transpose", [f"{value}_kept"], [f"{value}_turned"], perm=[0, 3, 1, 2]),
    ]
    for offset, node in enumerate(turns, 1):
        node.name = node.output[0]
        model.graph.node.insert(position + offset, node)


def _layers(model: ModelProto) -> tuple[Layer, ...]:
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    groups: list[list[NodeProto]] = []
    for node in _leading_to_logits(model):
        if node.op_type in _WEIGHTED and node.input[1] in sizes:
            groups.append([node])
        elif groups and node.op_type in _KINDS:
            groups[-1].append(node)
    return tuple(
        Layer(nodes[0].input[1], tuple(n.name for n in nodes), sizes[nodes[0].input[1]])
        for nodes in groups
    )


def _leading_to_logits(model: ModelProto) -> list[NodeProto]:
    """List the nodes that the logits need, in the order in which they run."""
    needed, found = {"logits"}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _ranges(model: ModelProto, inputs: Inputs) -> TensorsData:
    """Return the means over groups of images of the lowest and of the highest value in a group.

    The extremes of all images would make every step coarser for the sake of a few values.
    """
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        onnx.save(model, path)
        calibrater = MinMaxCalibrater(path, _KINDS, augmented_model_path=f"{path}.ranges")
        calibrater.augment_graph()  # each value gets two outputs, its minimum and its maximum
        session = _session(onnx.load(calibrater.augmented_model_path))
    own = {output.name for output in model.graph.output}
    outputs = [output.name for output in session.get_outputs() if output.name not in own]
    batches = tqdm(list(_batches(inputs)), "calibrating", unit="batch", leave=False, disable=None)
    extremes = np.stack([np.concatenate(session.run(outputs, batch)) for batch in batches])
    groups = np.arange(0, len(extremes), _GROUP // _BATCH)
    low = np.minimum.reduceat(extremes[:, 0::2], groups).mean(axis=0)
    high = np.maximum.reduceat(extremes[:, 1::2], groups).mean(axis=0)
    names = [name.removesuffix("_ReduceMin") for name in outputs[0::2]]
    ranges = {name: (lo, hi) for name, lo, hi in zip(names, low, high, strict=True)}
    return TensorsData(CalibrationMethod.MinMax, ranges)
