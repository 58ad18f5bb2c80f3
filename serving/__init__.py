"""The runtime half of Dermalyze: one ONNX file in, predictions out.

Needs numpy, Pillow and onnxruntime; never imports torch or anything of the training half.
For education and research; a prediction is never a diagnosis.
"""

import os
from typing import TYPE_CHECKING

from serving.errors import ArtifactError as ArtifactError
from serving.errors import DermalyzeError as DermalyzeError
from serving.errors import ImageError as ImageError

if TYPE_CHECKING:
    from serving.prediction import Prediction as Prediction
    from serving.predictor import Predictor as Predictor

# onnxruntime's builds for Linux and macOS report to Microsoft since 2026, unless this is set before
# it is loaded; in every process, since most of ours load it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    """Load onnxruntime only where a prediction is wanted: the training half needs just errors."""
    if name == "Predictor":
        from serving.predictor import Predictor

        return Predictor
    if name == "Prediction":
        from serving.prediction import Prediction

        return Prediction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
