"""A proven ONNX file -> the same model in half the size: its weights are stored in float16.

The graph turns them back into float32 and computes in float32, so that it runs wherever the other
one does, as fast, and answers the same in every runtime.  What is lost is the rounding of the
weights, to 11 significant bits.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dermalyze.export.onnx import export_onnx, write_model
from dermalyze.export.parity import ParityReport, check_parity
from dermalyze.export.parity_images import parity_images
from dermalyze.models.ensemble import ShippedNetwork
from serving.atomic_write import whole_file
from serving.errors import ArtifactError
from serving.os_errors import make_folder, temporary_folder
from serving.predictor import Predictor
from serving.spec import ModelSpec

MAX_ROUNDED = 0.01  # of a probability, and of any other output in shares of its largest value
_MIN_WEIGHTS = 1024  # fewer are not worth a node
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class Float16Report:
    """What was measured of the smaller file, beside the float32 one on the same images."""

    parity: ParityReport
    float_bytes: int
    float16_bytes: int

    def __str__(self) -> str:
        """Say it in one line."""
        changed = len(self.parity.changed_classes)
        return (
            f"float16; differs from float32 by at most {self.parity.max_difference:.1e} in a "
            f"probability on {self.parity.num_images} images; {changed or 'no'} class"
            f"{'es' if changed > 1 else ''} changed; {self.float16_bytes / 1e6:.1f} MB, float32 "
            f"{self.float_bytes / 1e6:.1f} MB"
        )


def export_float16(network: ShippedNetwork, spec: ModelSpec, output: Path) -> Float16Report:
    """Write a network as one ONNX file with float16 weights, if it answers nearly as PyTorch does.

    Args:
        network: it is not changed.
        spec: its contract.
        output: the file to write; what stands there stays until the new file is proven.

    Raises:
        ArtifactError: the float32 file disagrees with PyTorch, or rounding the weights changes a
            probability by more than 0.01; nothing is written.
    """
    make_folder(output.parent)
    with temporary_folder() as folder:
        exact = folder / "float32.onnx"
        export_onnx(network, spec, exact, keep_norms=True)  # it can be trained from
        float_bytes = exact.stat().st_size
        model = onnx.load(exact)
        predictor = Predictor(exact)
    halve(model)
    with whole_file(output) as partial:  # `output` never names an unproven model
        write_model(partial, model, replace(spec, precision="float16"))
        parity = check_parity(predictor, Predictor(partial), parity_images())
        if not parity.within(MAX_ROUNDED, MAX_ROUNDED):
            raise ArtifactError(
                f"{output} is not written: with float16 weights {parity.worst_image} differs from "
                f"float32 by {parity.max_difference:.1e} in a probability, or a map or score by "
                f"{max(parity.output_differences.values(), default=0.0):.1e} of its largest value, "
                f"where {MAX_ROUNDED:.2f} is allowed; export with --precision float32"
            )
        report = Float16Report(
            parity=parity, float_bytes=float_bytes, float16_bytes=partial.stat().st_size
        )
    return report


def halve(model: ModelProto) -> None:
    """Store the large weights of a float32 graph in float16, and turn them back where it starts.

    Vectors (biases, the statistics of norms) and weights that float16 cannot hold (above 65,504)
    stay as they are.
    """
    graph = model.graph
    casts: list[NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _MIN_WEIGHTS or not np.abs(values).max() <= _LARGEST:
            continue
        name, stored = tensor.name, f"{tensor.name}_float16"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]  # in the order in which they run
    del graph.node[:]
    graph.node.extend(nodes)
