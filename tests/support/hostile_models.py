"""Model files with a fitting spec and checksum that mean no good: the tiny model, and more."""

import numpy as np
from tiny_model import tiny_model

from serving.checksum import seal


def hostile_model(nodes=(), constants=None, *, out=None, opset=18, ir=10, change=None):
    """Add nodes to the tiny graph so that its logits depend on the value `out`; return the file."""
    from onnx import NodeProto, helper, numpy_helper

    model = tiny_model()
    model.opset_import[0].version, model.ir_version = opset, ir
    graph = model.graph
    constants = {"zero": np.float32(0), **(constants or {})}
    if out is not None:
        last = NodeProto()
        last.CopyFrom(graph.node[-1])
        del graph.node[-1]
        last.input[0] = "whole"
        for kind, inputs, output, more in nodes:
            graph.node.append(helper.make_node(kind, inputs, [output], **more))
        graph.node.extend(
            [
                helper.make_node("ReduceMax", [out], ["most"], keepdims=0),
                helper.make_node("Mul", ["most", "zero"], ["nothing"]),
                helper.make_node("Add", ["sum", "nothing"], ["whole"]),
                last,
            ]
        )
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
        )
    if change is not None:
        change(model)
    return seal(model.SerializeToString(deterministic=True))


def never_loaded():
    """A file of 6 kB that onnxruntime computes on for minutes before it is loaded."""
    from onnx import TensorProto, helper

    half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
    nodes = [("ConstantOfShape", ["shape"], "p0", {"value": half})]
    nodes += [("MatMul", [f"p{i}", "p0"], f"p{i + 1}", {}) for i in range(100)]
    return hostile_model(nodes, {"shape": np.array([4000, 4000])}, out="p100")


def takes_all_memory():
    """A file of 6 kB that takes 400 GB when it is run."""
    nodes = [
        ("ReduceMax", ["sum"], "one", {"keepdims": 0}),
        ("Expand", ["one", "shape"], "many", {}),
    ]
    return hostile_model(nodes, {"shape": np.array([10**11])}, out="many")


def loops():
    """A file with a loop of a thousand million rounds."""
    from onnx import TensorProto, helper

    whole, truth, number = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT

    def value(name, kind):
        return helper.make_tensor_value_info(name, kind, [])

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            value("i", whole),
            value("go", truth),
            value("x", number),
        ],
        [value("on", truth), value("y", number)],
    )
    constants = {"rounds": np.int64(10**9), "true": np.bool_(True)}
    nodes = [("Loop", ["rounds", "true", "zero"], "sum of all", {"body": body})]
    return hostile_model(nodes, constants, out="sum of all")
