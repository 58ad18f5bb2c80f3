"""Readers of HAM10000 as it lies on disk: Dataverse, Kaggle, images/, ISIC 2018 Task 3.

Nothing is unpacked, nothing is decoded and nothing is mended here: rows that contradict each other
are handed on as they are, for the audit to name.
"""

import io
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import pandas as pd

from dermalyze.data.decoding import read_member
from serving.errors import DataError, ImageError

COLUMNS = ("image_id", "label", "lesion_id", "dx_type", "age", "sex", "localization")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_FILE_BYTES = 256 * 2**20  # of one image file; none is a hundredth of it
MAX_TABLE_BYTES = 128 * 2**20  # of one table, unpacked; HAM10000's have 0.6 MB
LAYOUTS = (
    "HAM10000_metadata (no suffix, .csv or .tab) beside HAM10000_images_part_1 and "
    "HAM10000_images_part_2 (zips or folders) or beside images/, or "
    "ISIC2018_Task3_Training_Input and ISIC2018_Task3_Training_GroundTruth (zips, folders or .csv) "
    "with ISIC2018_Task3_Training_LesionGroupings.csv"
)
_METADATA = ("ham10000_metadata.csv", "ham10000_metadata.tab", "ham10000_metadata", "metadata.csv")
_HAM_IMAGES = ("ham10000_images_part_1", "ham10000_images_part_2", "images")
_ISIC = "isic2018_task3_training_"
_ISIC_CLASSES = ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")
_ISIC_DX_TYPES = {  # ISIC's words -> HAM10000's
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Where the bytes of one image are, and how to see that they have changed."""

    path: Path  # the file itself, or the zip that holds it
    member: str  # its name inside the zip; empty: `path` is the image
    size: int  # bytes
    stamp: int  # CRC-32 of a zip's member, else the file's time of change in nanoseconds

    def __str__(self) -> str:
        return f"{self.path.name}/{self.member}" if self.member else str(self.path)


@dataclass(frozen=True)
class Dataset:
    """What a data folder claims: every row of its table, and every image file."""

    folder: Path
    rows: pd.DataFrame  # COLUMNS, one row a line of the table; age in years or NaN
    files: Mapping[str, ImageFile]  # image_id -> file
    rivals: Mapping[str, ImageFile]  # image_id -> a second file of that name, unlike the first


class ImageReader:
    """Reads image files and keeps the zips open.  Safe to share between threads."""

    def __init__(self) -> None:
        self._zips: dict[Path, zipfile.ZipFile] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_: object) -> None:
        for archive in self._zips.values():
            archive.close()

    def read(self, file: ImageFile) -> bytes:
        """Return the bytes of one image file.

        Raises:
            ImageError: it is gone, damaged, encrypted or far too large.
        """
        if file.size > MAX_FILE_BYTES:
            raise ImageError(f"{file} has {file.size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
        try:
            if not file.member:
                return file.path.read_bytes()
            with self._lock:
                if file.path not in self._zips:
                    self._zips[file.path] = zipfile.ZipFile(file.path)
            return read_member(self._zips[file.path], file.member)
        except OSError as error:
            raise ImageError(f"cannot read {file}: {error.strerror or 'no such file'}") from error
        except KeyError as error:
            raise ImageError(f"cannot read {file}: no such member") from error
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ImageError(f"cannot read {file}: the zip is damaged there") from error
        except RuntimeError as error:
            raise ImageError(
                f"cannot read {file}: encrypted or packed in an unknown way"
            ) from error


def read_image_bytes(file: ImageFile) -> bytes:
    """Return the bytes of one image; for many, keep an `ImageReader`.

    Raises:
        ImageError: as `ImageReader.read`.
    """
    with ImageReader() as reader:
        return reader.read(file)


def open_dataset(data_dir: Path) -> Dataset:
    """Recognize what lies in `data_dir` and list its rows and image files.

    Raises:
        DataError: the folder is missing, its layout unknown, its table malformed or a zip damaged.
    """
    if not data_dir.is_dir():
        raise DataError(
            f"no data folder at {data_dir}; download HAM10000 into it (doi:10.7910/DVN/DBW86T), or "
            "draw images with `dermalyze demo-data`"
        )
    entries = sorted(p for p in data_dir.iterdir() if not p.name.startswith("."))
    metadata = [p for name in _METADATA for p in entries if p.name.lower() == name and p.is_file()]
    images = named_sources(entries, _HAM_IMAGES)
    isic_images = named_sources(entries, (_ISIC + "input",))
    if metadata and images:
        rows = _ham_rows(metadata[0])
    elif isic_images:
        images = isic_images
        rows = _isic_rows(data_dir, entries)
    else:
        found = "images without a table" if images else "a table without images"
        what = found if images or metadata else "nothing known"
        raise DataError(f"found {what} in {data_dir}; expected {LAYOUTS}")
    files: dict[str, ImageFile] = {}
    rivals: dict[str, ImageFile] = {}
    for source in images:
        for image_id, file in files_in(source):
            first = files.setdefault(image_id, file)
            # Kaggle ships every image twice, in folders that differ by case: copies are no rivals.
            same_content = not (first.member and file.member) or first.stamp == file.stamp
            if first.size != file.size or not same_content:
                rivals[image_id] = file
    return Dataset(data_dir, rows, MappingProxyType(files), MappingProxyType(rivals))


def named_sources(entries: list[Path], names: tuple[str, ...]) -> list[Path]:
    """Return the folders and zips of these names, whatever their case."""
    return [
        p
        for p in entries
        if (p.name.lower() in names and p.is_dir())
        or (p.suffix.lower() == ".zip" and p.stem.lower() in names)
    ]


def files_in(source: Path) -> Iterator[tuple[str, ImageFile]]:
    """Yield image_id and file of every image in a folder or a zip, at any depth."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if _is_image(PurePosixPath(path.relative_to(source).as_posix())) and path.is_file():
                status = path.stat()
                yield path.stem, ImageFile(path, "", status.st_size, status.st_mtime_ns)
        return
    with _open_zip(source) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            name = PurePosixPath(member.filename)
            if not member.is_dir() and _is_image(name):
                yield name.stem, ImageFile(source, member.filename, member.file_size, member.CRC)


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is no zip file or was cut short; download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'no such file'}") from error


def _read_file(path: Path) -> bytes:
    try:
        _require_size(path, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'no such file'}") from error


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """Unpack a table, if it has the size of one; `path` is what it is called in an error."""
    _require_size(path, archive.getinfo(name).file_size)
    try:
        return read_member(archive, name)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'no such file'}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is damaged in its zip; download the zip again") from error
    except RuntimeError as error:
        raise DataError(f"cannot read {path}: encrypted or packed in an unknown way") from error


def _require_size(path: Path, size: int) -> None:
    if size > MAX_TABLE_BYTES:
        raise DataError(
            f"{path} has {size:,} bytes; expected a table of images of at most "
            f"{MAX_TABLE_BYTES:,}; download it again"
        )


def _ham_rows(path: Path) -> pd.DataFrame:
    table = _read_table(_read_file(path), path, ("lesion_id", "image_id", "dx"))
    for column in ("dx_type", "age", "sex", "localization"):
        if column not in table:
            table[column] = ""
    table["label"] = table["dx"]
    return _tidy(table, path)


def _isic_rows(data_dir: Path, entries: list[Path]) -> pd.DataFrame:
    truth_path, truth_bytes = _isic_csv(data_dir, entries, "GroundTruth")
    lesion_path, lesion_bytes = _isic_csv(data_dir, entries, "LesionGroupings")
    truth = _read_table(truth_bytes, truth_path, ("image", *_ISIC_CLASSES))
    lesions = _read_table(lesion_bytes, lesion_path, ("image", "lesion_id"))
    if "diagnosis_confirm_type" not in lesions:
        lesions["diagnosis_confirm_type"] = ""
    ones = truth[list(_ISIC_CLASSES)].apply(pd.to_numeric, errors="coerce").fillna(0.0) >= 0.5
    # Two ones become "mel+nv", none becomes "": no class has such a name, so the audit finds it.
    labels = ["+".join(ones.columns[row]) for row in ones.to_numpy()]
    table = pd.DataFrame({"image_id": truth["image"], "label": labels})
    lesions = lesions.drop_duplicates().rename(columns={"image": "image_id"})
    table = table.merge(lesions, on="image_id", how="left").fillna("")  # two lesions: two rows
    table["dx_type"] = table["diagnosis_confirm_type"].replace(_ISIC_DX_TYPES)
    for column in ("age", "sex", "localization"):
        table[column] = ""
    return _tidy(table, truth_path)


def _isic_csv(data_dir: Path, entries: list[Path], part: str) -> tuple[Path, bytes]:
    """Find one of ISIC's tables: a file, or inside a folder or zip of its own."""
    name = f"ISIC2018_Task3_Training_{part}.csv"
    for path in entries:
        if path.is_file() and path.name.lower() == name.lower():
            return path, _read_file(path)
    for path in named_sources(entries, ((_ISIC + part).lower(),)):
        if path.is_dir():
            for inner in sorted(path.rglob("*.csv")):
                if inner.name.lower() == name.lower():
                    return inner, _read_file(inner)
        else:
            with _open_zip(path) as archive:
                for member in sorted(archive.namelist()):
                    inside = PurePosixPath(member)
                    if inside.name.lower() == name.lower() and "__MACOSX" not in inside.parts:
                        return path / member, _read_member(archive, member, path / member)
    raise DataError(
        f"no {name} in {data_dir}, which has ISIC 2018 Task 3 images; download it beside them from "
        "challenge.isic-archive.com"
    )


def _read_table(data: bytes, path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """Read comma or tab separated text; every value is text, column names lower case."""
    try:
        text = data.decode("utf-8")
        separator = "\t" if "\t" in text.partition("\n")[0] else ","
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; expected a table with a header") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise _no_table(path, required) from error
    if not isinstance(table.index, pd.RangeIndex):  # more values than names, in every line
        raise _no_table(path, required)
    table.columns = table.columns.str.strip().str.lower()
    if missing := [column for column in required if column not in table]:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}"
        )
    if table.empty:
        raise DataError(f"{path} has a header and no rows; expected one row an image")
    for column in table:
        table[column] = table[column].fillna("").str.strip()
    return table


def _no_table(path: Path, required: tuple[str, ...]) -> DataError:
    return DataError(
        f"{path} is no table; expected columns {', '.join(required)} and the same number of values "
        "in every line"
    )


def _tidy(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Bring a table to COLUMNS; only spelling is changed, never a row taken away."""
    table = table.copy()
    suffix = r"(?i)(?:" + "|".join(s.replace(".", r"\.") for s in IMAGE_SUFFIXES) + ")$"
    table["image_id"] = table["image_id"].str.replace(suffix, "", regex=True)
    if nameless := int((table["image_id"] == "").sum()):
        raise DataError(f"{path} has {nameless} rows without an image id; complete or remove them")
    table["label"] = table["label"].str.lower()
    for column in ("dx_type", "sex", "localization"):
        table[column] = table[column].str.lower().replace({"": "unknown", "nan": "unknown"})
    known = ~table["age"].str.lower().isin(["", "unknown", "nan", "na"])
    age = pd.to_numeric(table["age"].where(known), errors="coerce")
    if (wrong := known & ~age.between(0, 130)).any():
        row = table[wrong].iloc[0]
        raise DataError(
            f"{path} has the age {row['age']!r} for {row['image_id']}; expected years from 0 to "
            "130, or nothing"
        )
    table["age"] = age.astype("float64")
    return table[list(COLUMNS)].reset_index(drop=True)
