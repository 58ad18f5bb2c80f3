"""The model that MLflow loads: models from code, so nothing is pickled.

MLflow runs this file itself, with the package `serving` beside it.  It is the only file of the
runtime half that knows MLflow, and with it pandas.  Never imports torch.
"""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd  # MLflow's own type of a request; with any other type it warns
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from serving.http.requests import (
    COLUMN,
    HOW_TO_ASK,
    MAX_IMAGES,
    REFUSALS,
    Item,
    Params,
    answers_for,
    items_of,
    metadata_of,
    read_csv,
    read_json,
    require_images,
)
from serving.machine import return_large_blocks
from serving.metadata import COLUMNS as METADATA_COLUMNS
from serving.predictor import Predictor
from serving.spec import ModelSpec

_READERS = {"application/json": read_json, "text/csv": read_csv}

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
        self._max_images = None  # a program may ask about any number
        if "__pyfunc_model_path__" in os.environ:  # MLflow's scoring server is loading us
            self._max_images = MAX_IMAGES
            _guard_server(self._predictor.spec)
            return_large_blocks()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer for each image of the column `image`, in its order.

        Args:
            context: MLflow's; not used.
            model_input: the column `image` and, for a model that takes metadata, any of `age`,
                `sex` and `localization`.
            params: `level`, the coverage of prediction sets; `sensitivity`, that of the referral
                for malignant lesions; `explain`, whether each answer has
                the map of its class; `one_lesion`, whether all images show one lesion, which is
                then answered for once.

        Raises:
            AnswerError: the table, a parameter or an image cannot be used (400), or the model
                fails (500).
        """
        with _one_sentence():
            return answers_for(
                self._predictor,
                _items(model_input),
                Params.of(params),
                max_images=self._max_images,
            )


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn whatever goes wrong into the answer of one sentence."""
    try:
        yield
    except REFUSALS as error:
        raise AnswerError(str(error)) from error
    except Exception as error:  # a traceback is for the log, not for the client
        log.exception("the model fails")
        raise AnswerError("the model fails; see the server's log", INTERNAL_ERROR) from error


def _items(table: pd.DataFrame) -> Sequence[Item]:
    """Take images and what is known of each out of a data frame."""
    require_images(table.columns)
    ours = table[[name for name in (COLUMN, *METADATA_COLUMNS) if name in table]]
    if any(isinstance(cell, list) for cell in ours[COLUMN]):  # as MLflow makes of a mapping
        cells = ours.astype(object).where(ours.notna(), None)  # pandas.NA is missing, too
        return items_of({str(name): cells[name].tolist() for name in cells})
    return _Rows(ours)


class _Rows(Sequence[Item]):
    """The rows of a data frame; each is taken out when it is asked for, so that few are copied."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        row = self._table.iloc[index].to_dict()
        known = {name: None if pd.isna(value) else value for name, value in row.items()}
        return Item(known.pop(COLUMN), known)


def _guard_server(spec: ModelSpec) -> None:
    """Make MLflow's scoring server answer a request that it cannot read with one sentence.

    By itself it answers some with a traceback, some with the request, some with 500 (seen with
    MLflow 3.17), passes over columns and params that it does not know, and spends a minute on a
    table of 20,000 columns.  So our own reader looks at JSON and CSV first.  All requests go
    through one function of the server, which is wrapped here, once in its life.
    """
    from mlflow.pyfunc import scoring_server

    invocations: Any = scoring_server.invocations
    if hasattr(invocations, "__wrapped__"):
        return

    @functools.wraps(invocations)
    def guarded(data: bytes, content_type: str, *rest: Any) -> Any:
        try:
            kind = content_type.partition(";")[0].strip()
            if kind in _READERS:
                items, _ = _READERS[kind](data)
                metadata_of(items, spec)  # MLflow would drop what the model does not take
            return invocations(data, content_type, *rest)
        except AnswerError:
            raise
        except REFUSALS as error:
            raise AnswerError(str(error)) from error
        except Exception as error:  # `predict` lets nothing else out: it is about the request
            raise AnswerError(f"the request cannot be read; {HOW_TO_ASK}") from error

    scoring_server.invocations = guarded


set_model(DermalyzeModel())
