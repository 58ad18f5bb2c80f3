"""The model that MLflow loads: models from code, so nothing is pickled.

MLflow runs this file itself, with the package `serving` beside it.  It is the only file of the
runtime half that knows MLflow, and with it pandas.  Never imports torch.
"""

import base64
import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pandas as pd  # MLflow's own type of a request; with any other type it warns
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from serving.answering import PARAMS
from serving.errors import ConfigError, ImageError, MetadataError
from serving.metadata import COLUMNS as METADATA_COLUMNS
from serving.metadata import Metadata
from serving.predictor import Predictor

COLUMN = "image"
MAX_IMAGES = 32  # in one request
MAX_BASE64 = 14_000_000  # characters of one image, 10.5 MB of JPEG or PNG
HOW_TO_ASK = (
    'expected Content-Type: application/json and {"dataframe_records": [{"image": "<base64>"}]}'
)

log = logging.getLogger(__name__)


class AnswerError(MlflowException):
    """An HTTP answer of one sentence.

    MLflow's server writes the whole request into the message of every exception; the answer is
    made from our own copy of the sentence, so that no image is sent back.
    """

    def __init__(self, sentence: str, error_code: int = INVALID_PARAMETER_VALUE) -> None:
        super().__init__(sentence, error_code=error_code)
        self._sentence = sentence

    def serialize_as_json(self) -> str:
        """Return the body of the HTTP answer."""
        return json.dumps({"error_code": self.error_code, "message": self._sentence})


class DermalyzeModel(PythonModel):
    """A table with base64 JPEG or PNG images in a column of text -> a list of predictions."""

    def load_context(self, context: Any) -> None:
        """Open the ONNX file that lies in the model."""
        self._predictor = Predictor(context.artifacts["onnx"])
        if "__pyfunc_model_path__" in os.environ:  # MLflow's scoring server is loading us
            _guard_server()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer for each image of the column `image`, in its order.

        Args:
            context: MLflow's; not used.
            model_input: the column `image` and, for a model that takes metadata, any of `age`,
                `sex` and `localization`.
            params: `level`, the coverage of prediction sets; `explain`, whether each answer has
                the map of its class; `one_lesion`, whether all images show one lesion, which is
                then answered for once.

        Raises:
            AnswerError: the table, a parameter or an image cannot be used (400), or the model
                fails (500).
        """
        asked = {**PARAMS, **(params or {})}
        level = asked["level"]
        cells = _cells(model_input)
        answers, images = [], []
        for i, (cell, facts) in enumerate(cells):
            with _one_sentence(f"image {i + 1} of {len(cells)}"):
                image, metadata = _decode_base64(cell), Metadata.of(facts) if facts else None
                if asked["one_lesion"]:
                    images.append(image)
                    continue
                answer = self._predictor.predict(image, metadata=metadata, level=level).to_dict()
                if asked["explain"]:
                    explanation = self._predictor.explain(image, metadata=metadata)
                    answer["saliency"] = explanation.saliency.tolist()
                answers.append(answer)
        if images:
            with _one_sentence(f"{len(images)} images of one lesion"):
                pooled = self._predictor.predict_lesion(images, metadata=metadata, level=level)
                answers.append(pooled.to_dict())
        return answers


@contextlib.contextmanager
def _one_sentence(where: str) -> Iterator[None]:
    """Turn whatever goes wrong into the answer of one sentence that says where."""
    try:
        yield
    except (ImageError, MetadataError, ConfigError) as error:
        raise AnswerError(f"{where}: {error}") from error
    except Exception as error:  # a traceback is for the log, not for the client
        log.exception("%s: the model fails", where)
        raise AnswerError(
            f"{where}: the model fails; see the server's log", INTERNAL_ERROR
        ) from error


def _cells(model_input: pd.DataFrame) -> list[tuple[Any, dict[str, Any]]]:
    """Take images and what is known of each out of a data frame.

    A cell may hold a list of images.
    """
    if COLUMN not in model_input:
        raise AnswerError(f"no column {COLUMN}; {HOW_TO_ASK}")
    known = [name for name in METADATA_COLUMNS if name in model_input]
    cells: list[tuple[Any, dict[str, Any]]] = []
    for row in model_input[[COLUMN, *known]].to_dict("records"):
        facts = {name: row[name] for name in known}
        cell = row[COLUMN]
        cells += [(image, facts) for image in (cell if isinstance(cell, list) else [cell])]
    if not 1 <= len(cells) <= MAX_IMAGES:
        raise AnswerError(f"a request holds from 1 to {MAX_IMAGES} images, got {len(cells)}")
    return cells


def _decode_base64(cell: Any) -> bytes:
    if not isinstance(cell, str):
        raise ImageError("expected base64 text, got another type")
    if len(cell) > MAX_BASE64:
        raise ImageError(f"its base64 has {len(cell):,} characters; the limit is {MAX_BASE64:,}")
    try:
        return base64.b64decode("".join(cell.split()), validate=True)  # `base64` wraps its lines
    except ValueError as error:
        raise ImageError("its text is not base64") from error


def _guard_server() -> None:
    """Make MLflow's scoring server answer a request that it cannot read with one sentence.

    By itself it answers some with a traceback, some with the request, some with 500 (seen with
    MLflow 3.17).  All requests go through one function of it, which is wrapped here, once in the
    life of a server.
    """
    from mlflow.pyfunc import scoring_server

    invocations: Any = scoring_server.invocations
    if hasattr(invocations, "__wrapped__"):
        return

    @functools.wraps(invocations)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return invocations(*args, **kwargs)
        except AnswerError:
            raise
        except Exception as error:  # `predict` lets nothing else out: it is about the request
            raise AnswerError(f"the request cannot be read; {HOW_TO_ASK}") from error

    scoring_server.invocations = guarded


set_model(DermalyzeModel())
