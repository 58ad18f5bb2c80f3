"""ISIC 2018 Task 3: the images of HAM10000 with the tables of the challenge."""

from dermalyze.data.readers.challenge import joined, one_hot_labels, read_table_of
from dermalyze.data.readers.dataset import (
    Certainty,
    DataFolder,
    Dataset,
    Fit,
    dataset_of,
    named_sources,
)
from dermalyze.data.table_columns import manifest_rows
from serving.ham10000_taxonomy import HAM10000

LAYOUT = (
    "ISIC 2018 Task 3 (ISIC2018_Task3_Training_Input, ISIC2018_Task3_Training_GroundTruth and "
    "ISIC2018_Task3_Training_LesionGroupings.csv)"
)
_TITLE = "ISIC 2018 Task 3"
_PREFIX = "ISIC2018_Task3_Training_"
_IMAGES = (f"{_PREFIX}Input".lower(),)
_CLASSES = ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")  # in the order of the columns
_CONFIRMED = "diagnosis_confirm_type"
_DX_TYPES = {  # ISIC's words -> HAM10000's
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}


def fits(folder: DataFolder) -> Fit | None:
    """Say whether the images of the challenge are there."""
    return Fit(Certainty.NAMED, _TITLE) if named_sources(folder.entries, _IMAGES) else None


def read(folder: DataFolder) -> Dataset:
    """Read both tables and list the images."""
    path, truth = read_table_of(folder, _TITLE, f"{_PREFIX}GroundTruth", ("image", *_CLASSES))
    _, lesions = read_table_of(
        folder, _TITLE, f"{_PREFIX}LesionGroupings", ("image", "lesion_id"), (_CONFIRMED,)
    )
    if _CONFIRMED not in lesions:
        lesions[_CONFIRMED] = ""
    labels = one_hot_labels(truth, _CLASSES, path)
    table = joined(truth[["image"]].assign(label=labels), lesions)
    table["dx_type"] = table.pop(_CONFIRMED).replace(_DX_TYPES)
    sources = named_sources(folder.entries, _IMAGES)
    return dataset_of(folder, _TITLE, HAM10000, manifest_rows(table, path), sources)
