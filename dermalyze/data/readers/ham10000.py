"""HAM10000 as Dataverse and Kaggle ship it, or as one table beside `images/`."""

from pathlib import Path

from dermalyze.data.readers.dataset import (
    Certainty,
    DataFolder,
    Dataset,
    Fit,
    dataset_of,
    named_sources,
    plain_name,
)
from dermalyze.data.table_columns import FACTS, columns_of, manifest_rows, read_file, read_frame
from serving.errors import DataError
from serving.ham10000_taxonomy import HAM10000

LAYOUT = (
    "HAM10000 (HAM10000_metadata beside HAM10000_images_part_1 and HAM10000_images_part_2, or "
    "beside images/)"
)
_REQUIRED = ("lesion_id", "image_id", "dx")
_OWN_NAMES = ("ham10000_metadata.csv", "ham10000_metadata.tab", "ham10000_metadata")
_ANY_NAME = "metadata.csv"  # which other data sets have as well: its columns decide
_IMAGES = ("ham10000_images_part_1", "ham10000_images_part_2", "images")


def fits(folder: DataFolder) -> Fit | None:
    """Say whether a table of HAM10000 lies beside images."""
    tables = _tables(folder)
    if not tables or not named_sources(folder.entries, _IMAGES):
        return None
    return Fit(Certainty.NAMED, f"HAM10000 ({tables[0].name})")


def read(folder: DataFolder) -> Dataset:
    """Read the table and list the images."""
    path = _only_one(_tables(folder))
    table = read_frame(read_file(path), path, _REQUIRED, FACTS)
    table["label"] = table.pop("dx").str.lower()
    sources = named_sources(folder.entries, _IMAGES)
    layout = f"HAM10000 ({path.name})"
    return dataset_of(folder, layout, HAM10000, manifest_rows(table, path), sources)


def _tables(folder: DataFolder) -> list[Path]:
    """Return what may be the table, that of the most telling name first."""
    files = [path for path in folder.entries if path.is_file()]
    own = [path for name in _OWN_NAMES for path in files if plain_name(path.name) == name]
    return own or [
        path
        for path in files
        if plain_name(path.name) == _ANY_NAME
        and {"image_id", "dx"} <= set(columns_of(path, _REQUIRED))
    ]


def _only_one(tables: list[Path]) -> Path:
    """Return the first table, if those of its name are the same; other names are passed over."""
    first, *rest = tables
    for other in rest:
        same_name = plain_name(other.name) == plain_name(first.name)
        if same_name and read_file(other) != read_file(first):
            raise DataError(f"{first} and {other} differ; remove one of them")
    return first
