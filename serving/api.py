"""What the OpenAPI document says of bodies and answers."""

from typing import Any

from pydantic import BaseModel

from serving.asked import HOW_TO_ASK
from serving.bounds import ERROR_CODES
from serving.limits import DEFAULT_LEVEL
from serving.metadata import COLUMNS, MAX_AGE
from serving.prediction import Prediction
from serving.taxonomy import CLASS_DESCRIPTIONS, CLASS_NAMES, DISCLAIMER

DESCRIPTION = f"Seven classes of skin lesions in dermoscopic photographs. {DISCLAIMER}"


class Answer(Prediction):
    """The answer for one photograph or lesion; what the model does not have is left out."""

    saliency: list[list[float]] | None = None  # rows of the map of the predicted class


class Predictions(BaseModel):
    """The answers, in the order of the images; one for all where they show one lesion."""

    predictions: list[Answer]


class Error(BaseModel):
    """Why a request was refused, in one sentence."""

    error_code: str
    message: str


_PROBABILITIES = (0.02, 0.02, 0.05, 0.01, 0.1, 0.78, 0.02)
EXAMPLE = {
    "predicted_class": "nv",
    "predicted_class_description": CLASS_DESCRIPTIONS["nv"],
    "confidence": 0.78,
    "probabilities": dict(zip(CLASS_NAMES, _PROBABILITIES, strict=True)),
    "prediction_set": ["mel", "nv"],
    "set_size": 2,
    "set_level": 0.9,
    "decision": "answer",
    "decision_reason": "the confidence 78.0% is at least 74.0%, from which on at most 10% of the "
    "answers were wrong on validation images",
    "disclaimer": DISCLAIMER,
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of refused requests."""
    return {status: {"model": Error, "description": ERROR_CODES[status]} for status in statuses}


POST_ERRORS = errors(400, 401, 408, 413, 415, 422, 500, 503, 504)
_BYTES = {"schema": {"type": "string", "format": "binary"}}


def image_body(*fields: str) -> dict[str, Any]:
    """Describe a body of one photograph, or a form of several with fields beside them, if any."""
    content: dict[str, Any] = {"image/jpeg": _BYTES, "image/png": _BYTES}
    if fields:
        photographs = {"type": "array", "items": _BYTES["schema"]}
        beside = {name: _QUERY[name][0] for name in (*fields, *COLUMNS)}
        schema = {
            "type": "object",
            "properties": {"photographs": photographs, **beside},
            "required": ["photographs"],
        }
        content["multipart/form-data"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


def invocations_body() -> dict[str, Any]:
    """Describe the body that `mlflow models serve` takes as well."""
    image = {"type": "string", "format": "byte"}
    record = {"type": "object", "properties": {"image": image}, "required": ["image"]}
    columns = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "data": {"type": "array", "items": {"type": "array"}},
        },
        "required": ["columns", "data"],
    }
    params = {
        "type": "object",
        "properties": {
            "level": {"type": "number"},
            "explain": {"type": "boolean"},
            "one_lesion": {"type": "boolean"},
        },
    }
    listed = {"type": "array", "items": {"anyOf": [image, record]}}
    forms: dict[str, Any] = {
        "dataframe_records": {"type": "array", "items": record},
        "dataframe_split": columns,
        "instances": listed,
        "inputs": listed,
    }
    schema = {
        "description": HOW_TO_ASK,
        "oneOf": [
            {
                "type": "object",
                "properties": {name: form, "params": params},
                "required": [name],
            }
            for name, form in forms.items()
        ],
    }
    example = {
        "dataframe_records": [{"image": "<base64 of a JPEG or PNG>"}],
        "params": {"level": 0.9},
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema, "example": example},
                "text/csv": {"schema": {"type": "string"}, "example": "image\n<base64>\n"},
            },
        }
    }


_QUERY: dict[str, tuple[dict[str, Any], str]] = {
    "level": ({"type": "number", "default": DEFAULT_LEVEL}, "coverage of the prediction set"),
    "explain": ({"type": "boolean"}, "whether each answer has the map of its class"),
    "one_lesion": ({"type": "boolean"}, "whether all images show one lesion: one answer"),
    "class_name": ({"type": "string"}, "whose map; without it, of the predicted class"),
    "age": ({"type": "number", "minimum": 0, "maximum": MAX_AGE}, "years"),
    "sex": ({"type": "string"}, "as in HAM10000's metadata"),
    "localization": ({"type": "string"}, "as in HAM10000's metadata"),
}


def query(*names: str) -> dict[str, Any]:
    """Describe the values that a query may have, and metadata, for a model that takes it."""
    return {
        "parameters": [
            {"name": name, "in": "query", "schema": _QUERY[name][0], "description": _QUERY[name][1]}
            for name in (*names, *COLUMNS)
        ]
    }
