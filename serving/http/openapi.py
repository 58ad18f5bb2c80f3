"""What the OpenAPI document says of bodies and answers."""

from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.utils import deep_dict_update
from pydantic import BaseModel

from serving.base_predictor import PARAMS, Case, predictions
from serving.errors import listed
from serving.http.request_limits import ERROR_CODES
from serving.http.requests import HOW_TO_ASK
from serving.metadata import MAX_AGE, MetadataFields
from serving.prediction import Prediction
from serving.spec import ModelSpec
from serving.uncertainty import DEFAULT_LEVEL, DEFAULT_SENSITIVITY


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


def document(app: FastAPI, spec: ModelSpec) -> dict[str, Any]:
    """Describe the service as it answers with the model of `spec`."""
    taxonomy = spec.taxonomy
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=f"Distinguishes {len(taxonomy)} classes in photographs"
        f"{taxonomy.title and f' (trained on {taxonomy.title})'}: {listed(taxonomy.names)}. "
        f"{spec.disclaimer}",
        routes=app.routes,
    )
    example = {"content": {"application/json": {"example": {"predictions": [_example(spec)]}}}}
    answered = {"responses": {"200": example}}
    for path, described in {
        "/predict": answered | _image_body(spec, *PARAMS) | _query(spec, *PARAMS),
        "/explain": _image_body(spec) | _query(spec, "class_name"),
        "/invocations": answered | _invocations_body(),
    }.items():
        deep_dict_update(found["paths"][path]["post"], described)
    return found


def _example(spec: ModelSpec) -> dict[str, Any]:
    """Return the answer of this model for a photograph of which it is rather certain."""
    probs = np.full(len(spec.taxonomy), 0.2 / (len(spec.taxonomy) - 1))
    probs[0] = 0.8
    logits = np.log(probs)[None] * spec.temperature  # (1, C)
    outputs = {
        "logits": logits,
        "scope_score": np.zeros(1),
        "member_logits": np.repeat(logits[:, None], spec.num_members, 1),
    }
    case = Case(np.zeros((*spec.input_size, 3), np.uint8), (600, 450))
    (answer,) = predictions(outputs, [case], replace(spec, quality=None))
    return answer.to_dict()


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of refused requests."""
    return {status: {"model": Error, "description": ERROR_CODES[status]} for status in statuses}


POST_ERRORS = errors(400, 401, 408, 413, 415, 422, 500, 503, 504)
_BYTES = {"schema": {"type": "string", "format": "binary"}}


def _image_body(spec: ModelSpec, *fields: str) -> dict[str, Any]:
    """Describe a body of one photograph, or a form of several with fields beside them, if any."""
    content: dict[str, Any] = {"image/jpeg": _BYTES, "image/png": _BYTES}
    if fields:
        photographs = {"type": "array", "items": _BYTES["schema"]}
        beside = {name: schema for name, (schema, _) in _values(spec, *fields).items()}
        schema = {
            "type": "object",
            "properties": {"photographs": photographs, **beside},
            "required": ["photographs"],
        }
        content["multipart/form-data"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


def _invocations_body() -> dict[str, Any]:
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
            "sensitivity": {"type": "number"},
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
    "sensitivity": (
        {"type": "number", "default": DEFAULT_SENSITIVITY},
        "share of malignant lesions that the referral flag finds",
    ),
    "explain": ({"type": "boolean"}, "whether each answer has the map of its class"),
    "one_lesion": ({"type": "boolean"}, "whether all images show one lesion: one answer"),
    "class_name": ({"type": "string"}, "class of the map; default: the predicted class"),
}


def _values(spec: ModelSpec, *names: str) -> dict[str, tuple[dict[str, Any], str]]:
    """Describe values that a query or a form may have, metadata included if the model takes it."""
    fields = spec.metadata
    return {name: _QUERY[name] for name in names} | ({} if fields is None else _metadata(fields))


def _metadata(fields: MetadataFields) -> dict[str, tuple[dict[str, Any], str]]:
    age = {"type": "number", "minimum": 0, "maximum": MAX_AGE}
    text = {"type": "string"}
    described: dict[str, tuple[dict[str, Any], str]] = {
        "age": (age, "years"),
        "sex": (text, f"one of {listed(fields.sexes, 30)}, or unknown"),
        "localization": (text, f"one of {listed(fields.localizations, 30)}, or unknown"),
    }
    return {name: described[name] for name in fields.columns}


def _query(spec: ModelSpec, *names: str) -> dict[str, Any]:
    """Describe the query of a path."""
    return {
        "parameters": [
            {"name": name, "in": "query", "schema": schema, "description": description}
            for name, (schema, description) in _values(spec, *names).items()
        ]
    }
