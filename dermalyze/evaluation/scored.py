"""Predictions ready for statistics: what every interval, subgroup and comparison starts from.

N images, C classes, L lesions.  Never imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.evaluation.metrics import Counts, Floats
from dermalyze.evaluation.predictions import logits_of, read_predictions, targets_of
from serving.metadata import is_missing
from serving.prediction import softmax
from serving.taxonomy import CLASS_NAMES


@dataclass(frozen=True)
class Scored:
    """N images with their facts, their logits and what is true of them."""

    table: pd.DataFrame  # as `predictions_table` makes it
    logits: Floats  # (N, C)
    targets: Counts  # (N,), class indices
    lesions: Counts  # (N,), numbers from 0 to L - 1
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    @property
    def num_lesions(self) -> int:
        """L."""
        return int(self.lesions.max()) + 1

    @cached_property
    def probs(self) -> Floats:
        """Softmax of the logits: (N, C), rows sum to 1."""
        return softmax(self.logits)

    @cached_property
    def predicted(self) -> Counts:
        """The class of the largest logit: int64 (N,)."""
        return np.asarray(self.logits.argmax(axis=1), np.int64)

    def take(self, rows: Counts | NDArray[np.bool_]) -> "Scored":
        """Return some of the images, lesions numbered anew: numbers (M,) or a mask (N,)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        _, lesions = np.unique(self.lesions[rows], return_inverse=True)
        return Scored(
            table=self.table.iloc[rows].reset_index(drop=True),
            logits=self.logits[rows],
            targets=self.targets[rows],
            lesions=lesions.astype(np.int64),
            class_names=self.class_names,
        )

    def with_logits(self, logits: Floats) -> "Scored":
        """Return the same images with other logits (N, C), such as calibrated ones.

        The logits in the table stay as they were.
        """
        assert logits.shape == self.logits.shape
        return Scored(self.table, logits, self.targets, self.lesions, self.class_names)


def scored_of(table: pd.DataFrame, class_names: Sequence[str] = CLASS_NAMES) -> Scored:
    """Take what `predictions_table` made.

    Raises:
        DataError: a label is no class.
    """
    return Scored(
        table=table.reset_index(drop=True),
        logits=logits_of(table, class_names).astype(np.float64),
        targets=targets_of(table, class_names),
        lesions=lesion_numbers(table),
        class_names=tuple(class_names),
    )


def read_scored(path: Path, class_names: Sequence[str] = CLASS_NAMES) -> Scored:
    """Read a `predictions.csv`, of ours or in that form.

    Raises:
        DataError: the file is missing or no such table, or a row contradicts itself.
    """
    return scored_of(read_predictions(path, class_names)[0], class_names)


def lesion_numbers(table: pd.DataFrame) -> Counts:
    """Number the lesions: int64 (N,) from 0; an image without a lesion id is one of its own."""
    ids = table["lesion_id"].to_numpy(dtype=object)
    own = [("image", row) if is_missing(name) else ("lesion", name) for row, name in enumerate(ids)]
    numbers: dict[tuple[str, object], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in own], np.int64)
