"""The model that MLflow loads: models from code, so nothing is pickled.

MLflow runs this file itself, with the package `serving` beside it.  It is the only file of the
runtime half that knows MLflow, and with it pandas.  Never imports torch.
"""

import base64
import functools
import json
import logging
import os
from typing import Any

import pandas as pd  # MLflow's own type of a request; with any other type it warns
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from serving.errors import ImageError
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

        Raises:
            AnswerError: the table or an image cannot be used (400), or the model fails (500).
        """
        cells = _cells(model_input)
        answers = []
        for i, cell in enumerate(cells):
            try:
                answers.append(self._predictor.predict(_decode_base64(cell)).to_dict())
            except ImageError as error:
                raise AnswerError(f"image {i + 1} of {len(cells)}: {error}") from error
            except Exception as error:  # a traceback is for the log, not for the client
                log.exception("image %d of %d: the model fails", i + 1, len(cells))
                raise AnswerError(
                    f"image {i + 1} of {len(cells)}: the model fails; see the server's log",
                    INTERNAL_ERROR,
                ) from error
        return answers


def _cells(model_input: pd.DataFrame) -> list[Any]:
    """Take the images out of a data frame; a cell may hold a list of them."""
    if COLUMN not in model_input:
        raise AnswerError(f"no column {COLUMN}; {HOW_TO_ASK}")
    cells: list[Any] = []
    for cell in model_input[COLUMN].tolist():
        cells += cell if isinstance(cell, list) else [cell]
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
