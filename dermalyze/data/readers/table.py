"""One table with a column for the image and one for the label, beside the images.

Common names of columns are recognized; others are told by the settings.  Columns with further facts
are kept.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dermalyze.config.schema import DataConfig, did_you_mean
from dermalyze.data.readers.dataset import (
    TABLE_SUFFIXES,
    Certainty,
    DataFolder,
    Dataset,
    Fit,
    dataset_of,
    image_sources,
    taxonomy_of,
)
from dermalyze.data.table_columns import columns_of, manifest_rows, read_file, read_frame
from serving.errors import DataError

LAYOUT = "one table with an image and a label column beside the images"
_NAMES = {  # our name -> what others call it, in small letters
    "image_id": (
        "image_id", "image", "img_id", "isic_id", "image_name", "img", "filename", "file_name",
        "file", "filepath", "file_path", "path", "image_path", "image_file",
    ),
    "label": (
        "label", "dx", "diagnosis", "diagnostic", "class", "class_name", "target", "category",
        "disease",
    ),
    "lesion_id": ("lesion_id", "lesion", "group_id", "group"),
    "patient_id": ("patient_id", "patient", "subject_id", "subject", "person_id", "person"),
    "dx_type": ("dx_type", "diagnosis_confirm_type"),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "localization": ("localization", "anatom_site_general", "location", "body_site", "site"),
}  # fmt: skip
_OPTIONS = {"image_id": "image", "label": "label"}  # whose columns must be there
_SKIN_TYPE = ("fitz", "fitspatrick", "skin_type", "skin_tone", "phototype")


def fits(folder: DataFolder) -> Fit | None:
    """Say whether a table beside images has, or may be meant to have, the columns."""
    tables = _tables(folder)
    if not tables or not image_sources(folder):
        return None
    settings = folder.settings
    if settings.named_columns:
        return Fit(Certainty.ASKED, "one table")
    known = [path for path in tables if _has_columns(path, settings)]
    found = f"one table ({', '.join(path.name for path in known or tables)})"
    return Fit(Certainty.ALIKE if known else Certainty.PERHAPS, found)


def read(folder: DataFolder) -> Dataset:
    """Read the table and list the images.

    Raises:
        DataError: no table has the columns, several have, or there is only one class.
    """
    tables = _tables(folder)
    path, *others = [path for path in tables if _has_columns(path, folder.settings)] or tables[:1]
    if others:
        raise DataError(f"{path} and {others[0]} both list images with labels; remove one of them")
    columns = columns_of(path, _known(folder.settings)) or ["image_id", "label"]
    table = read_frame(read_file(path), path, columns)
    chosen = {theirs: ours for ours, theirs in _chosen(columns, path, folder.settings).items()}
    # A column that has one of our names but is not chosen for it gets another.
    table.columns = pd.Index(
        [chosen.get(name, f"{name}_" if name in _NAMES else name) for name in columns]
    )
    table["label"] = [unicodedata.normalize("NFC", label) for label in table["label"]]
    recorded = any(part in name for name in columns for part in _SKIN_TYPE)
    labels = set(table["label"]) - {""}
    labels |= set(folder.known_labels) if len(labels) == 1 else set()
    taxonomy = taxonomy_of(labels, () if recorded else ("skin type",), path)
    rows = manifest_rows(table, path)
    return dataset_of(folder, f"one table ({path.name})", taxonomy, rows, image_sources(folder))


def _tables(folder: DataFolder) -> list[Path]:
    return [p for p in folder.entries if p.suffix.lower() in TABLE_SUFFIXES and p.is_file()]


def _has_columns(path: Path, settings: DataConfig) -> bool:
    try:
        _chosen(columns_of(path, _known(settings)), path, settings)
    except DataError:
        return False
    return True


def _known(settings: DataConfig) -> list[str]:
    """Return the names by which the mark between the values of a table is found."""
    return [*(other for others in _NAMES.values() for other in others), *_asked(settings).values()]


def _asked(settings: DataConfig) -> dict[str, str]:
    """Return the columns that the settings name, in small letters, by our name."""
    group = "patient_id" if settings.group_by == "patient" else "lesion_id"
    asked = {
        "image_id": settings.image_column,
        "label": settings.label_column,
        group: settings.group_column,
    }
    return {ours: name.strip().lower() for ours, name in asked.items() if name != "auto"}


def _chosen(columns: Sequence[str], path: Path, settings: DataConfig) -> Mapping[str, str]:
    """Return the column that is meant by each of our names, as far as there is one.

    Raises:
        DataError: image or label may be none of the columns or several, or one that the settings
            name is not there.
    """
    has = f"it has {', '.join(name for name in columns if name)}"
    chosen = dict(_asked(settings))
    for name in chosen.values():
        if name not in columns:
            hint = did_you_mean(name, columns) or f"; {has}"
            raise DataError(f"{path} has no column {name!r}{hint}")
    for ours, others in _NAMES.items():
        found = [name for name in others if name in columns and name not in chosen.values()]
        if ours in chosen:
            continue
        if ours in _OPTIONS:
            option = f"pass --{_OPTIONS[ours]}-column"
            if not found:
                raise DataError(
                    f"{path} has no column that names the {_OPTIONS[ours]}; {option} ({has})"
                )
            if len(found) > 1:
                raise DataError(
                    f"{path} has several columns that may name the {_OPTIONS[ours]}: "
                    f"{', '.join(found)}; {option}"
                )
        if found:
            chosen[ours] = found[0]
    return chosen
