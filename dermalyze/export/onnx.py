"""PyTorch -> one ONNX file: pixels in, logits out, the spec inside, proven before it has a name."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto, helper
from onnxscript import optimizer
from torch import Tensor, nn

from dermalyze.export.parity import MAX_DIFFERENCE, MAX_SHARE, ParityReport, check_parity
from dermalyze.export.parity_images import NamedImage, parity_images
from dermalyze.models.ensemble import ShippedNetwork
from dermalyze.models.torch_predictor import SkinLesionPredictor
from serving.atomic_write import whole_file
from serving.base_predictor import map_names, output_names
from serving.checksum import DIGEST_KEY, NO_DIGEST, seal
from serving.errors import ArtifactError
from serving.os_errors import make_folder
from serving.predictor import Predictor
from serving.spec import SPEC_KEY, ModelSpec

OPSET = 20


class _Graph(nn.Module):
    """The exported graph: pixels, and metadata where the network takes it, to named outputs."""

    def __init__(self, network: ShippedNetwork, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> tuple[Tensor, ...]:
        outputs = self.network(image, metadata, self.names)
        return tuple(outputs[name] for name in self.names)


def export_onnx(
    network: ShippedNetwork,
    spec: ModelSpec,
    output: Path,
    *,
    extra_images: Sequence[NamedImage] = (),
    keep_norms: bool = False,
) -> ParityReport:
    """Write a network as one ONNX file, if it answers as PyTorch does.

    Args:
        network: it is not changed.
        spec: its contract.
        output: the file to write; what stands there stays until the new file is proven.
        extra_images: names and JPEG or PNG bytes to check beside the drawn images.
        keep_norms: do not fold batch norms into convolutions, so that the weights in the file are
            those of PyTorch; onnxruntime folds them when it loads the file.

    Raises:
        ArtifactError: the file disagrees with PyTorch; it is not written.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    make_folder(output.parent)
    with whole_file(output) as partial:  # `output` never names an unproven model
        write_model(partial, _model(network, spec, keep_norms=keep_norms), spec)
        report = check_parity(
            SkinLesionPredictor.of(network, spec),
            Predictor(partial),
            [*parity_images(), *extra_images],
        )
        if not report.agrees:
            others = "".join(
                f", the {name} by {share:.1e} of its largest value"
                for name, share in report.output_differences.items()
                if not share <= MAX_SHARE
            )
            raise ArtifactError(
                f"{output} is not written: in image {report.worst_image} ONNX differs from "
                f"PyTorch by {report.max_difference:.1e} in a probability, where "
                f"{MAX_DIFFERENCE:.0e} is allowed, and of {report.num_images} images "
                f"{len(report.changed_classes)} change their class{others}; if the network was "
                "hardly trained, train it longer"
            )
    return report


def write_model(path: Path, model: ModelProto, spec: ModelSpec) -> None:
    """Write a graph with its contract inside; nothing is proven yet."""
    helper.set_model_props(model, {SPEC_KEY: spec.to_json(), DIGEST_KEY: NO_DIGEST})
    path.write_bytes(seal(model.SerializeToString(deterministic=True)))


def _model(network: ShippedNetwork, spec: ModelSpec, *, keep_norms: bool) -> ModelProto:
    height, width = spec.input_size
    names = [*output_names(spec), *map_names(spec)]
    batch = torch.export.Dim("batch", min=1)
    inputs = {"image": torch.zeros((2, height, width, 3), dtype=torch.uint8)}  # 1 would be fixed
    if spec.metadata is not None:
        inputs["metadata"] = torch.zeros((2, spec.metadata.width))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own internals
        program = torch.onnx.export(
            _Graph(network, names).eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=names,
            dynamic_shapes={name: {0: batch} for name in inputs},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            optimize=not keep_norms,
        )
    assert program is not None  # only the older exporter returns nothing
    if keep_norms:
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    model: ModelProto = program.model_proto  # a new object on every access
    _strip(model)
    del model.graph.value_info[:]
    return model


def _strip(message: Any) -> None:
    """Remove notes for programmers, here and below: they hold paths of this machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _strip(inner)
