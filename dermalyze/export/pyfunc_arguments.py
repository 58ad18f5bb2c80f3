"""What MLflow must be told to log an ONNX file as a model that can be served."""

import base64
import importlib.metadata
import io
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map
from PIL import Image

import serving

_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pillow")  # MLflow's own guess misses Pillow


def pyfunc_arguments(onnx_path: Path) -> dict[str, Any]:
    """Return the arguments of `mlflow.pyfunc.log_model`, all but the name."""
    package = Path(serving.__file__).parent
    return {
        "python_model": str(package / "pyfunc.py"),
        "code_paths": [str(package)],
        "artifacts": {"onnx": str(onnx_path)},
        "signature": signature(),
        "input_example": input_example(),
        "pip_requirements": [
            f"{name}=={importlib.metadata.version(name)}" for name in _REQUIREMENTS
        ],
    }


def signature() -> ModelSignature:
    """Describe a request, one base64 image a row, and its answer."""
    return ModelSignature(
        # Not required, so that a request without it meets our sentence and not MLflow's, which
        # holds the whole request.
        inputs=Schema([ColSpec(DataType.string, "image", required=False)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "predicted_class"),
                ColSpec(DataType.string, "predicted_class_description"),
                ColSpec(DataType.double, "confidence"),
                ColSpec(Map(DataType.double), "probabilities"),
                ColSpec(DataType.string, "disclaimer"),
            ]
        ),
    )


def input_example() -> pd.DataFrame:
    """Return a request of one small drawn image."""
    image = Image.radial_gradient("L").resize((32, 24)).convert("RGB")
    data = io.BytesIO()
    image.save(data, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(data.getvalue()).decode("ascii")]})
