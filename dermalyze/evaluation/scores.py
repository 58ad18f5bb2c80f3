"""Predictions ready for statistics: what every interval, subgroup and comparison starts from.

N images, C classes, L lesions.  Never imports torch.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.evaluation.metrics.classification import Answers, Counts, Floats
from dermalyze.evaluation.predictions import (
    group_kind,
    group_numbers,
    logits_of,
    read_predictions,
    targets_of,
    taxonomy_beside,
)
from serving.taxonomy import Taxonomy


@dataclass(frozen=True)
class Scored(Answers):
    """N images with their facts, their logits and what is true of them."""

    table: pd.DataFrame  # as `predictions_table` makes it
    lesions: Counts  # (N,), numbers from 0 to L - 1; of patients or images if `group_by` says so
    group_by: str = "lesion"  # lesion, patient or image: what intervals draw

    @property
    def num_lesions(self) -> int:
        """L."""
        return int(self.lesions.max()) + 1

    def take(self, rows: Counts | NDArray[np.bool_]) -> "Scored":
        """Return some of the images, lesions numbered anew: numbers (M,) or a mask (N,)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        _, lesions = np.unique(self.lesions[rows], return_inverse=True)
        return replace(
            self,
            table=self.table.iloc[rows].reset_index(drop=True),
            logits=self.logits[rows],
            targets=self.targets[rows],
            lesions=lesions.astype(np.int64),
        )

    def with_logits(self, logits: Floats) -> "Scored":
        """Return the same images with other logits (N, C), such as calibrated ones.

        The logits in the table stay as they were.
        """
        assert logits.shape == self.logits.shape
        return replace(self, logits=logits)


def scored_of(table: pd.DataFrame, taxonomy: Taxonomy) -> Scored:
    """Take what `predictions_table` made.

    Raises:
        DataError: a label is not a class.
    """
    return Scored(
        table=table.reset_index(drop=True),
        logits=logits_of(table, taxonomy).astype(np.float64),
        targets=targets_of(table, taxonomy),
        taxonomy=taxonomy,
        lesions=group_numbers(table),
        group_by=group_kind(table),
    )


def read_scored(path: Path) -> Scored:
    """Read a `predictions.csv`, of ours or in that form, with the taxonomy beside it.

    Raises:
        DataError: the file is missing or is not such a table, or a row contradicts itself.
    """
    taxonomy = taxonomy_beside(path)
    return scored_of(read_predictions(path, taxonomy)[0], taxonomy)
