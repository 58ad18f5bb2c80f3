"""What the tables of the ISIC challenges have in common: where they are, and one column a class."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from dermalyze.data.pixel_store.decoder import read_member
from dermalyze.data.readers.dataset import DataFolder, named_sources, open_zip, plain_name
from dermalyze.data.table_columns import read_file, read_frame
from serving.errors import DataError
from serving.image_matching import match
from serving.metadata import is_missing
from serving.table_files import require_size


def read_table_of(
    folder: DataFolder, title: str, name: str, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[Path, pd.DataFrame]:
    """Read a table that is a file of this name, or inside a folder or zip of its own.

    Args:
        folder: where to look.
        title: the challenge, for an error.
        name: of the table, without `.csv`.
        required: columns.
        optional: further columns.

    Raises:
        DataError: it is missing, damaged or no such table.
    """
    path, data = _find(folder, title, f"{name}.csv")
    return path, read_frame(data, path, required, optional)


def one_hot_labels(truth: pd.DataFrame, classes: Sequence[str], path: Path) -> pd.Series:
    """Return the class of each row; two ones become "MEL+NV", none "": no class has such a name.

    Raises:
        DataError: a value is not a number.
    """
    ones = pd.DataFrame({name: _ones(truth, name, path) for name in classes})
    return pd.Series(["+".join(ones.columns[row]) for row in ones.to_numpy()], truth.index)


def joined(rows: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Add the facts of each image, by `image`; the tables may write an image differently.

    Facts that differ for one image make as many rows, for the audit to name.
    """
    images = rows["image"].drop_duplicates().tolist()
    meant = match(images, facts["image"].tolist()).ids
    names = [
        images[of_row[0]] if len(of_row) == 1 else image
        for image, of_row in zip(facts["image"], meant, strict=True)
    ]
    facts = facts.assign(image=names).drop_duplicates()
    return (
        rows.merge(facts, on="image", how="left").fillna("").rename(columns={"image": "image_id"})
    )


def _ones(truth: pd.DataFrame, name: str, path: Path) -> list[bool]:
    ones = []
    for image, text in zip(truth["image"], truth[name], strict=True):
        try:
            share = 0.0 if is_missing(text) else float(text)
        except ValueError as error:
            raise DataError(f"{path} has {name} {text!r} for {image}; expected 0 or 1") from error
        ones.append(share >= 0.5)
    return ones


def _find(folder: DataFolder, title: str, name: str) -> tuple[Path, bytes]:
    for path in folder.entries:
        if path.is_file() and plain_name(path.name) == name.lower():
            return path, read_file(path)
    for path in named_sources(folder.entries, (name.lower().removesuffix(".csv"),)):
        if path.is_dir():
            for inner in sorted(path.rglob("*.csv")):
                if inner.name.lower() == name.lower():
                    return inner, read_file(inner)
        else:
            with open_zip(path) as archive:
                for member in sorted(archive.namelist()):
                    inside = PurePosixPath(member.replace("\\", "/"))
                    if inside.name.lower() == name.lower() and "__MACOSX" not in inside.parts:
                        return path / inside, _unpacked(archive, member, path / inside)
    raise DataError(
        f"no {name} in {folder.path}, which has {title} images; download it into that folder "
        "from challenge.isic-archive.com"
    )


def _unpacked(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """Unpack a table, if it has the size of one; `path` is what it is called in an error."""
    require_size(path, archive.getinfo(name).file_size)
    try:
        return read_member(archive, name)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'no such file'}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is damaged in its zip; download the zip again") from error
    except RuntimeError as error:
        raise DataError(f"cannot read {path}: encrypted or packed in an unknown way") from error
