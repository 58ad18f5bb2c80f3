"""The reference model as a checkpoint to train from: the weights are read from its ONNX file."""

from typing import Any

import onnx
import torch
from onnx import numpy_helper

from serving.errors import ArtifactError
from serving.predictor import Predictor
from serving.reference import REFERENCE

NETWORK = REFERENCE.with_name("network.json")  # the settings that build the network again
_PREFIX = "network.members.0.classifier."  # of the weights in the file
_SUFFIX = "_float16"


def load_reference() -> dict[str, Any]:
    """Read the parts of a checkpoint from which training starts: weights, spec, model settings.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    spec = Predictor().spec  # compares the checksum
    weights = {}
    for tensor in onnx.load(REFERENCE).graph.initializer:
        name = tensor.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if tensor.name.startswith(_PREFIX):
            weights[name] = torch.from_numpy(numpy_helper.to_array(tensor).copy()).float()
            if name.endswith(".running_var"):  # batch norm counts, and the file does not say it
                counter = name.removesuffix("running_var") + "num_batches_tracked"
                weights[counter] = torch.tensor(0)
    try:
        model = NETWORK.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{NETWORK} is missing; install the package again") from error
    return {"weights": weights, "spec": spec.to_json(), "model": model}
