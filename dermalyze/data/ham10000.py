"""Readers of HAM10000 as it lies on disk: Dataverse, Kaggle, images/, ISIC 2018 Task 3.

Nothing is unpacked, nothing is decoded and nothing is mended here: rows that contradict each other
are handed on as they are, for the audit to name.
"""

import re
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import pandas as pd

from dermalyze.data.decoding import read_member
from dermalyze.data.tables import FACTS, read_file, tidy_facts
from serving.disk import reading
from serving.errors import DataError, ImageError
from serving.matching import has_image_suffix, match, plain_id
from serving.metadata import is_missing
from serving.sizes import MAX_FILE_BYTES
from serving.tables import read_table, require_size
from serving.taxonomy import HAM10000, Taxonomy

COLUMNS = ("image_id", "label", "lesion_id", *FACTS)
LAYOUTS = (
    "HAM10000_metadata (no suffix, .csv or .tab) beside HAM10000_images_part_1 and "
    "HAM10000_images_part_2 (zips or folders) or beside images/, or "
    "ISIC2018_Task3_Training_Input and ISIC2018_Task3_Training_GroundTruth (zips, folders or .csv) "
    "with ISIC2018_Task3_Training_LesionGroupings.csv"
)
_METADATA = ("ham10000_metadata.csv", "ham10000_metadata.tab", "ham10000_metadata", "metadata.csv")
_HAM_IMAGES = ("ham10000_images_part_1", "ham10000_images_part_2", "images")
_ISIC = "isic2018_task3_training_"
_COPY = re.compile(r" ?\(\d+\)| - copy")  # in the name of what was downloaded or copied again
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
    files: Mapping[str, ImageFile]  # image_id -> file; what no row means is there by its name
    rivals: Mapping[
        str, ImageFile
    ]  # image_id -> a second file that its row means, unlike the first
    others: tuple[str, ...] = ()  # files in the same places that are not JPEG or PNG by their names
    taxonomy: Taxonomy = HAM10000


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
        StorageError: the folder cannot be read.
    """
    with reading(data_dir):
        if not data_dir.is_dir():
            raise DataError(
                f"no data folder at {data_dir}; download HAM10000 into it "
                "(doi:10.7910/DVN/DBW86T), or draw images with `dermalyze demo-data`"
            )
        entries = sorted(p for p in data_dir.iterdir() if not p.name.startswith("."))
    metadata = [
        path
        for name in _METADATA
        for path in entries
        if _COPY.sub("", path.name.lower()) == name and path.is_file()
    ]
    images = named_sources(entries, _HAM_IMAGES)
    isic_images = named_sources(entries, (_ISIC + "input",))
    if metadata and images:
        rows = _ham_rows(_only_one(metadata))
    elif isic_images:
        images = isic_images
        rows = _isic_rows(data_dir, entries)
    else:
        found = "images without a table" if images else "a table without images"
        what = found if images or metadata else "nothing known"
        raise DataError(f"found {what} in {data_dir}; expected {LAYOUTS}")
    listed = [pair for source in images for pair in files_in(source)]
    files, rivals = _files_of(rows["image_id"], [p for p in listed if has_image_suffix(p[0])])
    rows["image_id"] = _plain_ids(rows["image_id"])
    others = tuple(name for name, _ in listed if not has_image_suffix(name))
    return Dataset(data_dir, rows, MappingProxyType(files), MappingProxyType(rivals), others)


def _only_one(tables: list[Path]) -> Path:
    """Return the first table, if those of its name are the same; other names are passed over."""
    name = _COPY.sub("", tables[0].name.lower())
    for other in tables[1:]:
        if _COPY.sub("", other.name.lower()) == name and read_file(other) != read_file(tables[0]):
            raise DataError(f"{tables[0]} and {other} differ; remove one of them")
    return tables[0]


def _files_of(
    column: pd.Series, listed: list[tuple[str, ImageFile]]
) -> tuple[dict[str, ImageFile], dict[str, ImageFile]]:
    """Find the file of each row, and another one that it could mean as well."""
    plain = dict(zip(column, _plain_ids(column), strict=True))
    ids, taken = list(plain), set(plain.values())
    found = match(ids, [name for name, _ in listed])
    files: dict[str, ImageFile] = {}
    places: dict[str, tuple[str, str]] = {}
    rivals: dict[str, ImageFile] = {}
    for (name, file), meant in zip(listed, found.ids, strict=True):
        image_ids = {plain[ids[number]] for number in meant}
        if len(image_ids) != 1:  # no row means it, or rows of several images do
            stem = plain_id(name)[0]
            files[name if stem in taken else stem] = file
            taken.add(stem)
            continue
        (image_id,) = image_ids
        source, _, inside = name.partition("/")
        place = _COPY.sub("", source.lower()), inside
        first = files.setdefault(image_id, file)
        same_place = places.setdefault(image_id, place) == place
        if first is not file and not _alike(first, file, same_place=same_place):
            rivals[image_id] = file
    return files, rivals


def _plain_ids(column: pd.Series) -> list[str]:
    """Take folders and suffixes off ids; folders stay where ids differ by nothing else."""
    plain = {text: plain_id(text) for text in column}
    places: dict[str, set[str]] = {}
    for stem, whole in plain.values():
        places.setdefault(stem, set()).add(whole)
    return [plain[text][0 if len(places[plain[text][0]]) == 1 else 1] for text in column]


def _alike(first: ImageFile, file: ImageFile, *, same_place: bool) -> bool:
    """Say whether two files have the same content.

    Kaggle ships every image twice, in folders that differ by case, and others unpack a zip beside
    itself: in the same place, an equal size is enough, as comparing all of them would take long.
    """
    if first.size != file.size:
        return False
    if first.member and file.member:
        return first.stamp == file.stamp
    if same_place:
        return True
    try:
        with ImageReader() as reader:
            return reader.read(first) == reader.read(file)
    except ImageError:
        return False


def named_sources(entries: list[Path], names: tuple[str, ...]) -> list[Path]:
    """Return the folders and zips of these names, whatever their case; copies count as well."""
    return [
        p
        for p in entries
        if (p.is_dir() and _COPY.sub("", p.name.lower()) in names)
        or (p.suffix.lower() == ".zip" and _COPY.sub("", p.stem.lower()) in names)
    ]


def files_in(source: Path) -> Iterator[tuple[str, ImageFile]]:
    """Yield path and file of everything in a folder or a zip; the path begins with its name."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source.parent).as_posix()
            if not _is_hidden(path.relative_to(source).as_posix()) and path.is_file():
                status = path.stat()
                yield name, ImageFile(path, "", status.st_size, status.st_mtime_ns)
        return
    with _open_zip(source) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            name = member.filename.replace("\\", "/")  # as some programs of Windows write it
            if not name.endswith("/") and not _is_hidden(name):
                file = ImageFile(source, member.filename, member.file_size, member.CRC)
                yield f"{source.stem}/{name}", file


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a zip file or was cut short; download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'no such file'}") from error


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
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


def _ham_rows(path: Path) -> pd.DataFrame:
    table = _read_table(read_file(path), path, ("lesion_id", "image_id", "dx"), FACTS)
    table["label"] = table["dx"].str.lower()
    return tidy_facts(table, path)[list(COLUMNS)]


def _isic_rows(data_dir: Path, entries: list[Path]) -> pd.DataFrame:
    truth_path, truth_bytes = _isic_csv(data_dir, entries, "GroundTruth")
    lesion_path, lesion_bytes = _isic_csv(data_dir, entries, "LesionGroupings")
    truth = _read_table(truth_bytes, truth_path, ("image", *_ISIC_CLASSES))
    confirmed = "diagnosis_confirm_type"
    lesions = _read_table(lesion_bytes, lesion_path, ("image", "lesion_id"), (confirmed,))
    if confirmed not in lesions:
        lesions[confirmed] = ""
    # Two ones become "mel+nv", none becomes "": no class has such a name, so the audit finds it.
    ones = pd.DataFrame({name: _ones(truth, name, truth_path) for name in _ISIC_CLASSES})
    labels = ["+".join(ones.columns[row]) for row in ones.to_numpy()]
    table = pd.DataFrame({"image_id": truth["image"], "label": labels})
    images = table["image_id"].drop_duplicates().tolist()
    meant = match(images, lesions["image"].tolist()).ids  # the tables may write them differently
    lesions["image_id"] = [
        images[of_row[0]] if len(of_row) == 1 else image
        for image, of_row in zip(lesions["image"], meant, strict=True)
    ]
    lesions = lesions[["image_id", "lesion_id", confirmed]].drop_duplicates()
    table = table.merge(lesions, on="image_id", how="left").fillna("")  # two lesions: two rows
    table["dx_type"] = table[confirmed].replace(_ISIC_DX_TYPES)
    return tidy_facts(table, truth_path)[list(COLUMNS)]


def _ones(truth: pd.DataFrame, name: str, path: Path) -> list[bool]:
    """Read one class of ISIC's ground truth."""
    ones = []
    for image, text in zip(truth["image"], truth[name], strict=True):
        try:
            share = 0.0 if is_missing(text) else float(text)
        except ValueError as error:
            raise DataError(f"{path} has {name} {text!r} for {image}; expected 0 or 1") from error
        ones.append(share >= 0.5)
    return ones


def _isic_csv(data_dir: Path, entries: list[Path], part: str) -> tuple[Path, bytes]:
    """Find one of ISIC's tables: a file, or inside a folder or zip of its own."""
    name = f"ISIC2018_Task3_Training_{part}.csv"
    for path in entries:
        if path.is_file() and _COPY.sub("", path.name.lower()) == name.lower():
            return path, read_file(path)
    for path in named_sources(entries, ((_ISIC + part).lower(),)):
        if path.is_dir():
            for inner in sorted(path.rglob("*.csv")):
                if inner.name.lower() == name.lower():
                    return inner, read_file(inner)
        else:
            with _open_zip(path) as archive:
                for member in sorted(archive.namelist()):
                    inside = PurePosixPath(member.replace("\\", "/"))
                    if inside.name.lower() == name.lower() and "__MACOSX" not in inside.parts:
                        return path / inside, _read_member(archive, member, path / inside)
    raise DataError(
        f"no {name} in {data_dir}, which has ISIC 2018 Task 3 images; download it beside them from "
        "challenge.isic-archive.com"
    )


def _read_table(
    data: bytes, path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> pd.DataFrame:
    try:
        table = pd.DataFrame(read_table(data, path, required, optional))
    except ValueError as error:
        raise DataError(
            f"{path} is not a table; expected columns {', '.join(required)} and the same number of "
            "values in every line"
        ) from error
    if missing := [column for column in required if column not in table]:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}"
        )
    if table.empty:
        raise DataError(f"{path} has a header and no rows; expected one row an image")
    return table
