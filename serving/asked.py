"""What a program asks over HTTP: JSON or CSV -> images with what is known of them -> answers.

The forms are those of `mlflow models serve`.  Never imports pandas or MLflow.
"""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from serving.answering import PARAMS, AnyPredictor
from serving.errors import ConfigError, ImageError, MetadataError, RequestError
from serving.limits import is_number
from serving.metadata import COLUMNS as METADATA_COLUMNS
from serving.metadata import Metadata
from serving.preprocess import decode_image
from serving.sizes import MAX_PIXELS

COLUMN = "image"
MAX_IMAGES = 32  # in one request
MAX_BASE64 = 14_000_000  # characters of one image, 10.5 MB of JPEG or PNG
HOW_TO_ASK = (
    'expected Content-Type: application/json and {"dataframe_records": [{"image": "<base64>"}]}'
)
REFUSALS = (ImageError, MetadataError, ConfigError, RequestError)  # the request is to blame
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


@dataclass(frozen=True, kw_only=True)
class Params:
    """What is asked of all images of a request."""

    level: float = float(PARAMS["level"])  # coverage of the prediction sets
    explain: bool = False  # a map in each answer
    one_lesion: bool = False  # all images show one lesion; one answer

    @classmethod
    def of(cls, values: object) -> "Params":
        """Take the `params` of a JSON request; unknown ones are passed over, as MLflow does.

        Raises:
            RequestError: they are no object, or one is of another type.
        """
        if values is None:
            return cls()
        if not isinstance(values, dict):
            raise RequestError('params must be an object, such as {"level": 0.95}')
        known = {name: values[name] for name in PARAMS if name in values}
        for name, value in known.items():
            ok = is_number(value) if name == "level" else isinstance(value, bool)
            if not ok:
                kind = "a number" if name == "level" else "true or false"
                raise RequestError(f"the parameter {name} must be {kind}")
        return cls(**known)

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> "Params":
        """Take them out of the query of an address; unknown ones are passed over.

        Raises:
            ConfigError: one is of another kind.
        """
        values: dict[str, object] = {}
        for name in PARAMS:
            text = query.get(name)
            if text is None:
                continue
            if name == "level":
                try:
                    values[name] = float(text)
                except ValueError as error:
                    raise ConfigError("level must be a number, such as 0.95") from error
            elif text.lower() in _BOOLEANS:
                values[name] = _BOOLEANS[text.lower()]
            else:
                raise ConfigError(f"{name} must be true or false")
        return cls(**values)  # type: ignore[arg-type]


def facts_of_query(query: Mapping[str, str]) -> dict[str, str]:
    """Return what the query of an address says of the patient and the site."""
    return {name: query[name] for name in METADATA_COLUMNS if query.get(name)}


@dataclass(frozen=True)
class Item:
    """One image as it was sent, base64 text or bytes, and what is known beside it."""

    image: Any
    facts: Mapping[str, Any]  # age, sex, localization


def read_json(body: bytes) -> tuple[list[Item], Params]:
    """Read the JSON of a request in any of MLflow's four forms.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request cannot be read; {HOW_TO_ASK}") from error
    forms = [name for name in _FORMS if isinstance(request, dict) and name in request]
    if len(forms) != 1:
        _unreadable()
    (form,) = forms
    value = request[form]
    if form == "dataframe_split":
        columns = _split(value)
    elif form == "dataframe_records" and isinstance(value, list):
        columns = _records(value)
    else:
        columns = _columns(value)
    return items_of(columns), Params.of(request.get("params"))


def read_csv(body: bytes) -> tuple[list[Item], Params]:
    """Read a CSV with the column `image` in base64.

    Raises:
        RequestError: it cannot be read.
    """
    if csv.field_size_limit() < MAX_BASE64:
        csv.field_size_limit(MAX_BASE64)
    try:
        rows = list(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise RequestError(f"the request cannot be read; {HOW_TO_ASK}") from error
    if not rows:
        _unreadable()
    names, *data = rows
    if any(len(row) != len(names) for row in data):
        _unreadable()
    return items_of({name: [row[i] for row in data] for i, name in enumerate(names)}), Params()


def _unreadable() -> NoReturn:
    raise RequestError(f"the request cannot be read; {HOW_TO_ASK}")


def _split(value: Any) -> dict[str, list[Any]]:
    """Read {"columns": [...], "data": [[...], ...]}."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        _unreadable()
    names, rows = value.get("columns"), value["data"]
    if names is None:
        return {}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _unreadable()
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        _unreadable()
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _columns(value: Any) -> dict[str, list[Any]]:
    """Read records, columns, or a plain list of images."""
    if isinstance(value, dict):
        columns = {k: v if isinstance(v, list) else [v] for k, v in value.items()}
        if len({len(column) for column in columns.values()}) > 1:
            _unreadable()
        return columns
    if not isinstance(value, list):
        _unreadable()
    if any(isinstance(row, dict) for row in value):
        return _records(value)
    return {COLUMN: value}


def _records(value: list[Any]) -> dict[str, list[Any]]:
    """Read [{"image": ...}, ...]."""
    if not all(isinstance(row, dict) for row in value):
        _unreadable()
    names = list(dict.fromkeys(name for row in value for name in row))
    return {name: [row.get(name) for row in value] for name in names}


def items_of(columns: Mapping[str, list[Any]]) -> list[Item]:
    """Take images and what is known of each out of columns; a cell may hold a list of images.

    Raises:
        RequestError: there is no column of images.
    """
    if COLUMN not in columns:
        raise RequestError(f"no column {COLUMN}; {HOW_TO_ASK}")
    known = [name for name in METADATA_COLUMNS if name in columns]
    items = []
    for i, cell in enumerate(columns[COLUMN]):
        facts = {name: columns[name][i] for name in known}
        items += [Item(image, facts) for image in (cell if isinstance(cell, list) else [cell])]
    return items


def answers_for(
    predictor: AnyPredictor,
    items: Sequence[Item],
    params: Params,
    *,
    max_images: int = MAX_IMAGES,
    max_pixels: int = MAX_PIXELS,
) -> list[dict[str, Any]]:
    """Answer for each image in its order, or once if all show one lesion; ready for JSON.

    Raises:
        RequestError: there are too many images, or none.
        ImageError, MetadataError, ConfigError: one cannot be used; the message says which.
    """
    if not 1 <= len(items) <= max_images:
        raise RequestError(f"a request holds from 1 to {max_images} images, got {len(items)}")
    answers: list[dict[str, Any]] = []
    photographs, metadata = [], None
    for i, item in enumerate(items):
        try:
            data = item.image if isinstance(item.image, bytes) else decode_base64(item.image)
            image = decode_image(data, max_pixels=max_pixels)
            metadata = Metadata.of(item.facts) if item.facts else None
            if params.one_lesion:
                photographs.append(image)
            elif params.explain:
                explained = predictor.explain(image, metadata=metadata, level=params.level)
                saliency = explained.saliency.tolist()
                answers.append({**explained.prediction.to_dict(), "saliency": saliency})
            else:
                answer = predictor.predict(image, metadata=metadata, level=params.level)
                answers.append(answer.to_dict())
        except (ImageError, MetadataError, ConfigError) as error:
            raise type(error)(f"image {i + 1} of {len(items)}: {error}") from error
    if photographs:
        pooled = predictor.predict_lesion(photographs, metadata=metadata, level=params.level)
        answers.append(pooled.to_dict())
    return answers


def decode_base64(cell: object) -> bytes:
    """Return the bytes of base64 text; it may be wrapped into lines.

    Raises:
        ImageError: it is no such text, or too long.
    """
    if not isinstance(cell, str):
        raise ImageError("expected base64 text, got another type")
    if len(cell) > MAX_BASE64:
        raise ImageError(f"its base64 has {len(cell):,} characters; the limit is {MAX_BASE64:,}")
    try:
        return base64.b64decode("".join(cell.split()), validate=True)  # `base64` wraps its lines
    except ValueError as error:
        raise ImageError("its text is not base64") from error
