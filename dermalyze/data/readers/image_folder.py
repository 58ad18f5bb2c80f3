"""A folder for each class, whose name is the class; above them may be `train/`, `val/`, `test/`."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dermalyze.data.readers.dataset import (
    TABLE_SUFFIXES,
    Certainty,
    DataFolder,
    Dataset,
    Fit,
    ImageFile,
    files_in,
    has_images,
    plain_ids,
    taxonomy_of,
)
from dermalyze.data.table_columns import manifest_rows
from serving.image_matching import has_image_suffix

LAYOUT = "one folder of images per class, also below train/, val/ and test/"
_NOT_RECORDED = ("lesion", "age", "sex", "localization", "skin type")
_SPLITS = {  # in small letters -> ours
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def fits(folder: DataFolder) -> Fit | None:
    """Say whether images lie in two or more folders, or in two or more below each split.

    Where the classes are known from elsewhere and no table can be meant, one folder is enough.
    """
    classes = {label for _, label, _ in _class_folders(folder)}
    tables = any(path.suffix.lower() in TABLE_SUFFIXES for path in folder.entries)
    least = 1 if folder.known_labels and not tables else 2
    return Fit(Certainty.ALIKE, _layout(folder)) if len(classes) >= least else None


def read(folder: DataFolder) -> Dataset:
    """List the images; what is a class, and what a split, say their folders."""
    labels: dict[str, str] = {}
    splits: dict[str, str] = {}
    files: dict[str, ImageFile] = {}
    others: list[str] = []
    for split, label, path in _class_folders(folder):
        above = "" if path.parent == folder.path else f"{path.parent.name}/"
        for inside, file in files_in(path):
            name = above + inside
            if not has_image_suffix(name):
                others.append(name)
                continue
            files[name], labels[name] = file, label
            if split:
                splits[name] = split
    ids = _ids(list(files))
    table = pd.DataFrame({"image_id": ids.values(), "label": labels.values()})
    return Dataset(
        folder=folder.path,
        layout=_layout(folder),
        taxonomy=taxonomy_of([*labels.values(), *folder.known_labels], _NOT_RECORDED, folder.path),
        rows=manifest_rows(table, folder.path),
        files={ids[name]: file for name, file in files.items()},
        others=tuple(others),
        splits={ids[name]: split for name, split in splits.items()},
    )


def _layout(folder: DataFolder) -> str:
    above = ", ".join(f"{path.name}/" for path in _splits(folder))
    return f"one folder per class{' below ' if above else ''}{above}"


def _splits(folder: DataFolder) -> list[Path]:
    return [p for p in folder.entries if p.is_dir() and p.name.lower() in _SPLITS]


def _class_folders(folder: DataFolder) -> list[tuple[str, str, Path]]:
    """Return split, class and place of each folder that has images; no split: it is empty."""
    splits = _splits(folder)
    if not splits:
        return [("", _label(path), path) for path in folder.entries if _has_images(path)]
    if any(_has_images(path) for path in folder.entries if path not in splits):
        return []  # which of the folders are classes is not clear
    return [
        (_SPLITS[above.name.lower()], _label(path), path)
        for above in splits
        for path in sorted(above.iterdir())
        if _has_images(path)
    ]


def _label(path: Path) -> str:
    """Return the name of a class: macOS decomposes letters, and tables are read without spaces."""
    return unicodedata.normalize("NFC", path.name).strip()


def _has_images(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and has_images(path)


def _ids(names: list[str]) -> Mapping[str, str]:
    """Return the image id of each file: its name alone where that is enough to tell it apart."""
    plain = [image_id.strip() for image_id in plain_ids(names)]
    unique = pd.Series(plain).duplicated(keep=False)
    return {
        name: name if shared else image_id
        for name, image_id, shared in zip(names, plain, unique, strict=True)
    }
