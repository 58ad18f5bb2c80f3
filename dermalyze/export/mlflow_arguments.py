"""What MLflow must be told to log an ONNX file as a model that can be served."""

import base64
import importlib.metadata
import io
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, Map
from PIL import Image

import serving
from serving.base_predictor import PARAMS, optional_fields
from serving.metadata import COLUMNS as METADATA_COLUMNS
from serving.predictor import Predictor
from serving.spec import ModelSpec

_FIELDS: dict[str, Any] = {  # of an answer
    "predicted_class": DataType.string,
    "predicted_class_description": DataType.string,
    "confidence": DataType.double,
    "probabilities": Map(DataType.double),
    "logits": Map(DataType.double),
    "prediction_set": Array(DataType.string),
    "set_size": DataType.long,
    "set_level": DataType.double,
    "set_note": DataType.string,
    "decision": DataType.string,
    "decision_reason": DataType.string,
    "malignant_probability": DataType.double,
    "referral": DataType.boolean,
    "referral_level": DataType.double,
    "referral_specificity": DataType.double,
    "referral_reason": DataType.string,
    "scope_score": DataType.double,
    "quality": Array(DataType.string),
    "spread": DataType.double,
    "num_images": DataType.long,
    "saliency": Array(Array(DataType.double)),
    "disclaimer": DataType.string,
}
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pillow")  # MLflow's own guess misses Pillow


def pyfunc_arguments(onnx_path: Path) -> dict[str, Any]:
    """Return the arguments of `mlflow.pyfunc.log_model`, all but the name."""
    package = Path(serving.__file__).parent
    return {
        "python_model": str(package / "mlflow_model.py"),
        "code_paths": [str(package)],
        "artifacts": {"onnx": str(onnx_path)},
        "signature": signature(Predictor(onnx_path).spec),
        "input_example": input_example(),
        "pip_requirements": [
            f"{name}=={importlib.metadata.version(name)}" for name in _REQUIREMENTS
        ],
    }


def signature(spec: ModelSpec) -> ModelSignature:
    """Describe a request, one base64 image a row, and its answer."""
    # Nothing is required, so that a request without it meets our sentence and not MLflow's, which
    # holds the whole request.
    inputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "image", required=False)]
    if spec.metadata is not None:
        inputs += [
            ColSpec(DataType.double if name == "age" else DataType.string, name, required=False)
            for name in METADATA_COLUMNS
        ]
    return ModelSignature(
        inputs=Schema(inputs),
        outputs=Schema(
            [
                *(
                    ColSpec(_FIELDS[name], name)
                    for name in (
                        "predicted_class",
                        "predicted_class_description",
                        "confidence",
                        "probabilities",
                        "logits",
                        "disclaimer",
                    )
                ),
                *(ColSpec(_FIELDS[name], name) for name in optional_fields(spec)),
                *(
                    ColSpec(_FIELDS[name], name, required=False)
                    for name in ("set_note", "num_images", "saliency")
                ),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec(
                    name,
                    DataType.boolean if isinstance(default, bool) else DataType.double,
                    default,
                )
                for name, default in PARAMS.items()
            ]
        ),
    )


def input_example() -> pd.DataFrame:
    """Return a request of one small drawn image."""
    image = Image.radial_gradient("L").resize((32, 24)).convert("RGB")
    data = io.BytesIO()
    image.save(data, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(data.getvalue()).decode("ascii")]})
