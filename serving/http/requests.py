"""What a program asks over HTTP: JSON or CSV -> images with what is known of them -> answers.

The forms are those of `mlflow models serve`.  Never imports pandas or MLflow.

Bodies come from strangers: what reading one may cost is bounded before anything is built of it.
"""

import base64
import csv
import io
import json
import re
import string
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated, Any, NoReturn

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.base_predictor import NO_METADATA, PARAMS, AnyPredictor, pooled
from serving.errors import ConfigError, ImageError, MetadataError, RequestError
from serving.image_size import MAX_PIXELS
from serving.metadata import COLUMNS as METADATA_COLUMNS
from serving.metadata import Metadata
from serving.preprocess import decode_image
from serving.spec import ModelSpec
from serving.table_files import alike

COLUMN = "image"
MAX_IMAGES = 32  # in one request
MAX_BASE64 = 14_000_000  # characters of one image, 10.5 MB of JPEG or PNG
MAX_VALUES = 200_000  # of one request, nested ones and those of other columns included
MAX_COLUMNS = 1000  # of one request, other columns included
HOW_TO_ASK = (
    'expected Content-Type: application/json and {"dataframe_records": [{"image": "<base64>"}]}'
)
REFUSALS = (ImageError, MetadataError, ConfigError, RequestError)  # the request is to blame
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_SPACES = string.whitespace.encode()
_MAX_NAME = 64  # characters
_PARAMS_ALIKE = ("params", *(name.replace("_", "") for name in PARAMS))
_MAX_DIGITS = 20  # of a whole number; reading one of n digits takes n^2 steps


class Params(BaseModel):
    """What is asked of all images of a request."""

    model_config = ConfigDict(frozen=True)
    level: Annotated[float, Field(allow_inf_nan=False)] = float(PARAMS["level"])  # of the sets
    sensitivity: Annotated[float, Field(allow_inf_nan=False)] = float(PARAMS["sensitivity"])
    explain: bool = False  # a map in each answer
    one_lesion: bool = False  # all images show one lesion; one answer

    @classmethod
    def of(cls, values: object) -> "Params":
        """Take the `params` of a JSON request.

        Raises:
            RequestError: they are no object, or one is unknown or of another type.
        """
        if values is None:
            return cls()
        if not isinstance(values, dict):
            raise RequestError('params must be an object, such as {"level": 0.95}')
        require_known(values, tuple(PARAMS), "params")
        try:
            return cls.model_validate(values, strict=True)
        except ValidationError as error:
            raise RequestError(f"the parameter {_sentence(error)}") from error

    @classmethod
    def of_text(cls, values: Mapping[str, str]) -> "Params":
        """Take them out of the query of an address or the fields of a form.

        Raises:
            ConfigError: one is of another kind.
        """
        try:
            return cls.model_validate_strings(values)
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    name = error.errors()[0]["loc"][0]
    is_flag = isinstance(PARAMS[str(name)], bool)
    return f"{name} must be {'true or false' if is_flag else 'a number, such as 0.95'}"


def given_once(
    query: Iterable[tuple[str, str]], fields: Mapping[str, str], known: Sequence[str]
) -> dict[str, str]:
    """Merge what a query and the fields of a form say.

    Raises:
        RequestError: a name is not among the known ones, or there twice.
    """
    pairs = [*query, *fields.items()]
    values = dict(pairs)
    require_known(values, known, "the query or the form")
    if len(values) < len(pairs):
        raise RequestError("a name is given twice in the query or the form; send each once")
    return values


def facts_of_text(values: Mapping[str, str]) -> dict[str, str]:
    """Return what a query or a form says of the patient and the site."""
    return {name: values[name] for name in METADATA_COLUMNS if values.get(name)}


def require_known(names: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse a name that nobody would look at; a message never repeats what was sent.

    Raises:
        RequestError: one is unknown; it says which was meant, if one looks like it.
    """
    for name in names:
        if name not in known:
            meant = _meant(name, known)
            hint = f"; did you mean {meant}?" if meant else ""
            raise RequestError(f"unknown name in {where}: expected any of {', '.join(known)}{hint}")


def _meant(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that one looks like; looking at a long one would take long."""
    return alike(name.strip(), known) if len(name) <= _MAX_NAME else None


def _require_no_lookalike(names: Sequence[str]) -> None:
    """Refuse a column that looks like one of ours; others are the sender's and passed over."""
    if len(names) > MAX_COLUMNS:
        raise RequestError(
            f"a request holds at most {MAX_COLUMNS:,} columns; send those of the images alone"
        )
    for name in names:
        if name in (COLUMN, *METADATA_COLUMNS):
            continue
        if meant := _meant(name, METADATA_COLUMNS):
            raise RequestError(f"a column would be ignored: rename it if it means {meant}")
        if re.sub(r"[^a-z]", "", name[:_MAX_NAME].lower()) in _PARAMS_ALIKE:
            raise RequestError(
                'a column would be ignored: send params next to the images, as "params": '
                '{"level": 0.95}, or rename it'
            )


@dataclass(frozen=True)
class Item:
    """One image as it was sent, base64 text or bytes, and what is known beside it."""

    image: Any
    facts: Mapping[str, Any]  # age, sex, localization


Asked = tuple[list[Item], Params]


def read_json(body: bytes, *, max_images: int = MAX_IMAGES) -> Asked:
    """Read the JSON of a request in any of MLflow's four forms.

    Raises:
        RequestError: it cannot be read, is too large or holds a name that is not known.
    """
    _bound_values(body, b",[{")
    try:
        request = json.loads(body, parse_int=_whole_number, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request cannot be read; {HOW_TO_ASK}") from error
    forms = [name for name in _FORMS if isinstance(request, dict) and name in request]
    if len(forms) != 1:
        _unreadable()
    (form,) = forms
    require_known(request, (form, "params"), "the request")
    value = request[form]
    if form == "dataframe_split":
        columns = _split(value, max_images)
    elif form == "dataframe_records" and isinstance(value, list):
        columns = _records(value, max_images)
    else:
        columns = _columns(value, max_images)
    return items_of(columns), Params.of(request.get("params"))


def read_csv(body: bytes, *, max_images: int = MAX_IMAGES) -> Asked:
    """Read a CSV with the column `image` in base64.

    Raises:
        RequestError: as `read_json`.
    """
    _bound_values(body, b",\n\r")
    if csv.field_size_limit() < MAX_BASE64:
        csv.field_size_limit(MAX_BASE64)
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        rows = [row for row in lines if row]
    except (ValueError, csv.Error) as error:
        raise RequestError(f"the request cannot be read; {HOW_TO_ASK}") from error
    if not rows:
        _unreadable()
    names, *data = rows
    return items_of(_table(names, data, max_images)), Params()


def _bound_values(body: bytes, marks: bytes) -> None:
    """Refuse a body that would become many values, before it becomes any.

    Each value but the first follows a mark, so that marks are at least as many; of 8 MB of `[],[],`
    the parser would make three million lists in two seconds, in which nothing else runs.
    """
    if sum(body.count(mark) for mark in marks) > MAX_VALUES:
        raise RequestError(
            f"a request holds at most {MAX_VALUES:,} values; send fewer images, or their columns "
            "alone"
        )


def _whole_number(text: str) -> int | float:
    return int(text) if len(text) <= _MAX_DIGITS else float(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RequestError("an object of the request has one name twice; send each once")
    return found


def _unreadable() -> NoReturn:
    raise RequestError(f"the request cannot be read; {HOW_TO_ASK}")


def _bound_images(count: int, max_images: int) -> None:
    if count > max_images:
        raise RequestError(f"a request holds from 1 to {max_images} images, got {count}")


def _table(names: Sequence[str], rows: Sequence[Any], max_images: int) -> dict[str, list[Any]]:
    """Return the columns that are ours."""
    _bound_images(len(rows), max_images)
    _require_no_lookalike(names)
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        _unreadable()
    ours = {name: i for i, name in enumerate(names) if name in (COLUMN, *METADATA_COLUMNS)}
    if sum(name in ours for name in names) > len(ours):
        raise RequestError("the request has one column twice; send each once")
    return {name: [row[i] for row in rows] for name, i in ours.items()}


def _split(value: Any, max_images: int) -> dict[str, list[Any]]:
    """Read {"columns": [...], "data": [[...], ...]}."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        _unreadable()
    require_known(value, ("columns", "index", "data"), "dataframe_split")
    names = value.get("columns")
    if names is None:
        return {}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _unreadable()
    return _table(names, value["data"], max_images)


def _columns(value: Any, max_images: int) -> dict[str, list[Any]]:
    """Read records, columns, or a plain list of images."""
    if isinstance(value, dict):
        _require_no_lookalike(list(value))
        columns = {k: v if isinstance(v, list) else [v] for k, v in value.items()}
        if len({len(column) for column in columns.values()}) > 1:
            _unreadable()
        _bound_images(max(map(len, columns.values()), default=0), max_images)
        return columns
    if not isinstance(value, list):
        _unreadable()
    if any(isinstance(row, dict) for row in value):
        return _records(value, max_images)
    _bound_images(len(value), max_images)
    return {COLUMN: value}


def _records(value: list[Any], max_images: int) -> dict[str, list[Any]]:
    """Read [{"image": ...}, ...]."""
    if not all(isinstance(row, dict) for row in value):
        _unreadable()
    _bound_images(len(value), max_images)
    names = list(dict.fromkeys(name for row in value for name in row))
    _require_no_lookalike(names)
    ours = [name for name in (COLUMN, *METADATA_COLUMNS) if name in names]
    return {name: [row.get(name) for row in value] for name in ours}


def require_images(columns: Container[str]) -> None:
    """Refuse a table without a column of images.

    Raises:
        RequestError: there is none.
    """
    if COLUMN not in columns:
        raise RequestError(f"no column {COLUMN}; {HOW_TO_ASK}")


def items_of(columns: Mapping[str, list[Any]]) -> list[Item]:
    """Take images and what is known of each out of columns; a cell may hold a list of images.

    Raises:
        RequestError: there is no column of images.
    """
    require_images(columns)
    known = [name for name in METADATA_COLUMNS if name in columns]
    items: list[Item] = []
    for i, cell in enumerate(columns[COLUMN]):
        facts = {name: columns[name][i] for name in known}
        items += [Item(image, facts) for image in (cell if isinstance(cell, list) else [cell])]
    return items


def answers_for(
    predictor: AnyPredictor,
    items: Sequence[Item],
    params: Params,
    *,
    max_images: int | None = MAX_IMAGES,
    max_pixels: int = MAX_PIXELS,
) -> list[dict[str, Any]]:
    """Answer for each image in its order, or once if all show one lesion; ready for JSON.

    A few images are in memory at a time, however many there are.

    Args:
        predictor: the model.
        items: the images.
        params: what is asked of them.
        max_images: how many there may be; None: any number.
        max_pixels: how large each may be, width x height, by its header.

    Raises:
        RequestError: there are too many images, or none.
        ImageError, MetadataError, ConfigError: one cannot be used; the message says which.
    """
    if not 1 <= len(items) <= (max_images or len(items)):
        bound = f"from 1 to {max_images} images" if max_images else "at least one image"
        raise RequestError(f"a request holds {bound}, got {len(items)}")
    metadata = metadata_of(items, predictor.spec)
    images = _opened(items, max_pixels)
    asked: dict[str, Any] = {"level": params.level, "sensitivity": params.sensitivity}
    if params.one_lesion:
        shared = repeat(_of_one_lesion(metadata), len(items))
        each = predictor.predict_batch(images, metadata=shared, **asked)
        return [pooled(each, predictor.spec).to_dict()]
    answers: list[dict[str, Any]] = []
    for i, (image, known) in enumerate(zip(images, metadata, strict=True)):
        with _where(i, len(items)):
            if params.explain:
                explained = predictor.explain(image, metadata=known, **asked)
                saliency = explained.saliency.tolist()
                answers.append({**explained.prediction.to_dict(), "saliency": saliency})
            else:
                answers.append(predictor.predict(image, metadata=known, **asked).to_dict())
    return answers


def metadata_of(items: Sequence[Item], spec: ModelSpec) -> list[Metadata | None]:
    """Return what is known beside each image; None: nothing was said.

    Raises:
        MetadataError: a value cannot be.
        ConfigError: the model takes no metadata.
    """
    found: list[Metadata | None] = []
    for i, item in enumerate(items):
        with _where(i, len(items)):
            found.append(Metadata.of(item.facts) if item.facts else None)
            if item.facts and spec.metadata is None:
                raise ConfigError(NO_METADATA)
    return found


def _of_one_lesion(metadata: Sequence[Metadata | None]) -> Metadata | None:
    """Return what is known of a lesion; images without it say nothing against the others."""
    found = set(metadata)
    if len(known := found - {None, Metadata()}) > 1:
        raise MetadataError(
            "the photographs of one lesion have differing metadata; send the same with each"
        )
    return next(iter(known or found))


def _opened(items: Sequence[Item], max_pixels: int) -> Iterator[Image.Image]:
    """Yield each image, decoded."""
    for i, item in enumerate(items):
        with _where(i, len(items)):
            data = item.image if isinstance(item.image, bytes) else decode_base64(item.image)
            image = decode_image(data, max_pixels=max_pixels)
        yield image


@contextmanager
def _where(i: int, count: int) -> Iterator[None]:
    """Say in an error which image it is about."""
    try:
        yield
    except (ImageError, MetadataError, ConfigError) as error:
        raise type(error)(f"image {i + 1} of {count}: {error}") from error


def decode_base64(cell: object) -> bytes:
    """Return the bytes of base64 text, which may be wrapped into lines, or of a data: URI of it.

    Raises:
        ImageError: it is no such text, or too long.
    """
    if not isinstance(cell, str):
        raise ImageError("expected base64 text, got another type")
    if len(cell) > MAX_BASE64:
        raise ImageError(f"its base64 has {len(cell):,} characters; the limit is {MAX_BASE64:,}")
    if cell[:_MAX_NAME].lstrip().lower().startswith("data:"):
        kind, comma, cell = cell.partition(",")
        if not (comma and kind.rstrip().lower().endswith(";base64")):
            raise ImageError("a data: URI must hold base64, as data:image/jpeg;base64,... does")
    try:  # `base64` wraps its lines
        return base64.b64decode(cell.encode("ascii").translate(None, _SPACES), validate=True)
    except ValueError as error:
        raise ImageError("its text is not base64") from error
