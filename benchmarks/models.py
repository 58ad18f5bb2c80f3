"""Three models with random weights, made once under `build/benchmarks/`, to time predicting with.

Random weights cost as much to run as trained ones; `spread` keeps them well-conditioned, or the
export would refuse them.
"""

from pathlib import Path

import torch

from benchmarks.report import RESULTS
from dermalyze.config.schema import ModelConfig
from dermalyze.export.onnx import export_onnx
from dermalyze.models.checkpoint import load_member, save_checkpoint
from dermalyze.models.classifier import build_classifier
from dermalyze.models.ensemble import Member, ShippedNetwork
from serving.errors import ArtifactError
from serving.ham10000_taxonomy import HAM10000
from serving.predictor import Predictor
from serving.spec import ModelSpec
from tests.support.tiny_network import spread

SIZE = 224  # pixels
NETWORKS = {  # as the tables call them -> as timm does
    "MobileNetV2": "mobilenetv2_100",
    "MobileNetV3-Small": "mobilenetv3_small_100",
    "EfficientNetV2-S": "tf_efficientnetv2_s.in21k_ft_in1k",
}


def model_files(name: str) -> tuple[Path, Path]:
    """Return the ONNX file and the checkpoint of a key of `NETWORKS`."""
    onnx = RESULTS / f"{name}-{SIZE}.onnx"
    checkpoint = onnx.with_suffix(".pt")
    try:
        Predictor(onnx)
        load_member(checkpoint)
    except ArtifactError:  # not there, or of an older version of the program
        RESULTS.mkdir(parents=True, exist_ok=True)
        print(f"exporting {name} with random weights to {onnx}")
        torch.manual_seed(0)
        config = ModelConfig(name=NETWORKS[name], pretrained=False)
        spec = ModelSpec(taxonomy=HAM10000, input_size=(SIZE, SIZE))
        network, _ = build_classifier(config, SIZE, len(spec.taxonomy))
        spread(network, spec)
        save_checkpoint(checkpoint, network.state_dict(), config, spec)
        export_onnx(ShippedNetwork([Member(network)]), spec, onnx)
    return onnx, checkpoint
