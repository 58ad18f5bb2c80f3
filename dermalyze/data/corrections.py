"""A reviewed table of corrections, applied to what a data folder claims; no file is changed."""

import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dermalyze.data.readers.dataset import Dataset
from dermalyze.data.table_columns import read_file, read_frame
from serving.errors import DataError
from serving.spreadsheet import restored

COLUMNS = ("image_id", "label", "corrected_label")  # of the table; others are for the reviewer
EXCLUDE = "exclude"  # in place of a class: the image is left out

logger = logging.getLogger(__name__)


def read_corrections(path: Path) -> pd.DataFrame:
    """Read COLUMNS of the reviewed rows, those with a corrected label.

    Raises:
        DataError: the file is missing or not such a table, or corrects an image twice.
    """
    table = read_frame(read_file(path), path, COLUMNS)[list(COLUMNS)].map(restored)
    reviewed = table[table["corrected_label"] != ""].drop_duplicates()
    if (twice := reviewed["image_id"].duplicated()).any():
        image_id = reviewed["image_id"][twice].iloc[0]
        raise DataError(
            f"{path} has two different corrections of image {image_id!r}; keep one of the rows"
        )
    return reviewed.reset_index(drop=True)


def with_corrections(dataset: Dataset, path: Path) -> Dataset:
    """Return a data set with the labels that a review has corrected.

    A lesion has one diagnosis: its other images with the same label get the corrected one too,
    unless the table has a correction of their own.

    Raises:
        DataError: the table cannot be read, or does not fit the data.
    """
    rows, names = dataset.rows, dataset.taxonomy.names
    labels = rows.groupby("image_id")["label"].agg(set)
    lesions = dict(zip(rows["image_id"], rows["lesion_id"], strict=True))
    corrections: dict[str, str] = {}
    diagnoses: dict[tuple[str, str], str] = {}  # lesion, label in the data -> corrected label
    for image_id, label, corrected in read_corrections(path).itertuples(index=False):
        if image_id not in labels:
            raise DataError(
                f"{path} corrects image {image_id!r}, which is not in {dataset.folder}; pass the "
                "folder that was reviewed, or remove the row"
            )
        if label not in labels[image_id]:
            raise DataError(
                f"{path} says that image {image_id!r} has the label {label!r}, but the data says "
                f"{', '.join(sorted(labels[image_id]))!r}; review the data as it is now, or remove "
                "the row"
            )
        if corrected not in (*names, EXCLUDE):
            raise DataError(
                f"{path} corrects image {image_id!r} to {corrected!r}; expected one of "
                f"{', '.join(names)}, or {EXCLUDE}"
            )
        corrections[image_id] = corrected
        if corrected != EXCLUDE and (lesion := lesions[image_id]):
            diagnoses[lesion, label] = corrected
    reviewed = len(corrections)
    for image_id, label, lesion in rows[["image_id", "label", "lesion_id"]].itertuples(index=False):
        if (lesion, label) in diagnoses:
            corrections.setdefault(image_id, diagnoses[lesion, label])
    excluded = sum(corrected == EXCLUDE for corrected in corrections.values())
    logger.info(
        f"{path}: {len(corrections) - excluded:,} labels corrected, "
        f"{len(corrections) - reviewed:,} of them in further images of corrected lesions; "
        f"{excluded:,} images excluded"
    )
    new = rows["image_id"].map(corrections)
    rows = rows.assign(label=rows["label"].mask(new.notna(), new))
    return replace(dataset, rows=rows[new != EXCLUDE], corrections=corrections)
