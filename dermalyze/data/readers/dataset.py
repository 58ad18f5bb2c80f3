"""What a data folder claims: its rows, its image files, its classes; and which reader knows it.

A reader is a module of this package with what `Reader` names, one for each format.  It is found by
being there.  Nothing is unpacked, decoded or mended here: rows that contradict each other are
handed on as they are, for the audit to name.
"""

import importlib
import pkgutil
import re
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, cast

import pandas as pd

from dermalyze.config.schema import DataConfig
from dermalyze.data import readers
from dermalyze.data.pixel_store.decoder import read_member
from dermalyze.data.taxonomy_file import TAXONOMY_FILE, with_taxonomy_file
from serving.errors import DataError, ImageError
from serving.image_matching import has_image_suffix, match, plain_id
from serving.image_size import MAX_FILE_BYTES
from serving.os_errors import reading
from serving.taxonomy import Taxonomy

PREPARED = "prepared"  # the folder in the data for what is made of it, unless another is named
TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
_COPY = re.compile(r" ?\(\d+\)| - copy")  # in the name of what was downloaded or copied again


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Where the bytes of one image are, and how to see that they have changed."""

    path: Path  # the file itself, or the zip that holds it
    member: str  # its name inside the zip; empty: `path` is the image
    size: int  # bytes
    stamp: int  # CRC-32 of a zip's member, else the file's time of change in nanoseconds

    def __str__(self) -> str:
        return f"{self.path.name}/{self.member}" if self.member else str(self.path)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a data folder claims: every row of its table, and every image file."""

    folder: Path
    layout: str  # what was recognized, in words
    taxonomy: Taxonomy
    rows: pd.DataFrame  # as `tables.manifest_rows` makes them
    files: Mapping[str, ImageFile]  # image_id -> file; what no row means is there by its name
    # image_id -> a second file that its row means, unlike the first
    rivals: Mapping[str, ImageFile] = field(default_factory=dict)
    others: tuple[str, ...] = ()  # files in the same places that are not JPEG or PNG by their names
    left_out: tuple[str, ...] = ()  # images that the data says are of none of the classes
    splits: Mapping[str, str] = field(
        default_factory=dict
    )  # image_id -> split, where they are given
    # image_id -> corrected label, or `exclude`, where data.corrections has one
    corrections: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Say what was recognized, with counts."""
        counts = [
            f"{self.rows['image_id'].nunique():,} images",
            f"{len(self.taxonomy)} classes",
        ]
        for column, what in (("lesion_id", "lesions"), ("patient_id", "patients")):
            number = len(set(self.rows.get(column, ())) - {""})
            counts.append(f"{number:,} {what}" if number else f"no {what[:-1]} ids")
        return f"{self.layout}: {', '.join(counts)}"


@dataclass(frozen=True)
class DataFolder:
    """A folder that a reader may know."""

    path: Path
    entries: tuple[Path, ...]  # what is directly in it, sorted, without hidden and prepared files
    settings: DataConfig
    known_labels: tuple[str, ...] = ()  # classes even where no row has them


class Certainty(IntEnum):
    """How sure a reader is that a folder is its own."""

    PERHAPS = 1  # nothing else can be meant; reading it says what is missing
    ALIKE = 2  # it has the form
    NAMED = 3  # its files have the names, or its table the columns, of this data set alone
    ASKED = 4  # the settings say so


class Fit(NamedTuple):
    """That a folder fits a reader."""

    certainty: Certainty
    found: str  # what was recognized, in words


class Reader(Protocol):
    """What a module of this package has to be a reader."""

    LAYOUT: str  # what it expects, in words

    def fits(self, folder: DataFolder) -> Fit | None:
        """Say whether the folder has this format."""

    def read(self, folder: DataFolder) -> Dataset:
        """Read a folder that fits.

        Raises:
            DataError: its table is malformed or a zip damaged.
        """


def open_dataset(
    data_dir: Path, settings: DataConfig | None = None, *, known_labels: tuple[str, ...] = ()
) -> Dataset:
    """Recognize what is in `data_dir` and list its rows and image files.

    Labels that are known from elsewhere are classes of a table too, which then may have one alone.

    Raises:
        ConfigError: taxonomy.yaml does not fit the data.
        DataError: the folder is missing, its layout unknown or not clear, its table malformed or a
            zip damaged; or there are no patient ids to group by.
        StorageError: the folder cannot be read.
    """
    known = _readers()
    with reading(data_dir):
        if not data_dir.is_dir():
            raise DataError(
                f"no data folder at {data_dir}; download HAM10000 into it "
                "(doi:10.7910/DVN/DBW86T), or draw images with `dermalyze demo-data`"
            )
        entries = sorted(
            p for p in data_dir.iterdir() if not p.name.startswith(".") and p.name != PREPARED
        )
        folder = DataFolder(data_dir, tuple(entries), settings or DataConfig(), known_labels)
        fits = [(reader, fit) for reader in known if (fit := reader.fits(folder)) is not None]
        surest = max((fit.certainty for _, fit in fits), default=None)
        chosen = [(reader, fit) for reader, fit in fits if fit.certainty == surest]
        if not chosen:
            layouts = [reader.LAYOUT for reader in known]
            raise DataError(
                f"found {_found_in(folder)} in {data_dir}; expected {', '.join(layouts[:-1])}, or "
                f"{layouts[-1]}"
            )
        if len(chosen) > 1:
            found = " and ".join(fit.found for _, fit in chosen)
            raise DataError(
                f"{data_dir} matches several layouts, {found}; expected one: remove the others "
                "from the folder (--image-column and --label-column choose a table)"
            )
        reader, fit = chosen[0]
        if folder.settings.named_columns and fit.certainty != Certainty.ASKED:
            raise DataError(
                f"{data_dir} is {fit.found}, which has no table to take columns from; leave out "
                f"{', '.join(folder.settings.named_columns)}"
            )
        dataset = reader.read(folder)
        if (data_dir / TAXONOMY_FILE).exists():
            taxonomy = with_taxonomy_file(dataset.taxonomy, data_dir / TAXONOMY_FILE)
            dataset = replace(dataset, taxonomy=taxonomy)
    if folder.settings.group_by == "patient" and not any(dataset.rows.get("patient_id", ())):
        raise DataError(
            f"data.group_by is patient, and {data_dir} has no patient ids; expected lesion or none"
        )
    return dataset


def _readers() -> list[Reader]:
    """Return the modules of this package that are readers, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(readers.__path__))
    modules = [importlib.import_module(f"{readers.__name__}.{name}") for name in names]
    return [cast(Reader, module) for module in modules if hasattr(module, "fits")]


def _found_in(folder: DataFolder) -> str:
    tables = any(path.suffix.lower() in TABLE_SUFFIXES for path in folder.entries)
    if image_sources(folder):
        return "images and a table of another form" if tables else "images without a table"
    return "a table without images" if tables else "nothing known"


def image_sources(folder: DataFolder) -> list[Path]:
    """Return all that has an image of what is directly in a folder: folders, zips and images."""
    return [path for path in folder.entries if is_source(path) and has_images(path)]


def taxonomy_of(labels: Iterable[str], not_recorded: tuple[str, ...], where: object) -> Taxonomy:
    """Make the taxonomy of data that says no more of its classes than their names.

    Raises:
        DataError: there are fewer than two classes.
    """
    names = sorted(
        {label for label in labels if label},
        key=lambda name: (int(name), name) if name.isdecimal() else (float("inf"), name),
    )
    if len(names) < 2:
        found = f"one class, {names[0]!r}" if names else "no class"
        raise DataError(f"{where} has {found}; expected two or more")
    return Taxonomy(names=tuple(names), not_recorded=not_recorded)


def dataset_of(
    folder: DataFolder,
    layout: str,
    taxonomy: Taxonomy,
    rows: pd.DataFrame,
    sources: Sequence[Path],
) -> Dataset:
    """Find the file of each row among those of folders and zips.

    Args:
        folder: where the data is.
        layout: what was recognized, in words.
        taxonomy: the classes.
        rows: of `tables.manifest_rows`; an image_id may be a path, with or without suffix.
        sources: folders, zips and single files that hold the images.
    """
    listed = [pair for source in sources for pair in files_in(source)]
    files, rivals = _files_of(rows["image_id"], [p for p in listed if has_image_suffix(p[0])])
    return Dataset(
        folder=folder.path,
        layout=layout,
        taxonomy=taxonomy,
        rows=rows.assign(image_id=plain_ids(rows["image_id"])),
        files=MappingProxyType(files),
        rivals=MappingProxyType(rivals),
        others=tuple(name for name, _ in listed if not has_image_suffix(name)),
    )


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


def _files_of(
    column: pd.Series, listed: list[tuple[str, ImageFile]]
) -> tuple[dict[str, ImageFile], dict[str, ImageFile]]:
    """Find the file of each row, and another one that it could mean as well."""
    plain = dict(zip(column, plain_ids(column), strict=True))
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
        place = plain_name(source), inside
        first = files.setdefault(image_id, file)
        same_place = places.setdefault(image_id, place) == place
        if first is not file and not _alike(first, file, same_place=same_place):
            rivals[image_id] = file
    return files, rivals


def plain_ids(column: Iterable[str]) -> list[str]:
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


def named_sources(entries: Iterable[Path], names: tuple[str, ...]) -> list[Path]:
    """Return the folders and zips of these names, whatever their case; copies count as well."""
    return [
        p
        for p in entries
        if (p.is_dir() and plain_name(p.name) in names)
        or (p.suffix.lower() == ".zip" and p.is_file() and plain_name(p.stem) in names)
    ]


def plain_name(name: str) -> str:
    """Return a file's name in small letters, without what a second download adds."""
    return _COPY.sub("", name.lower())


def is_source(path: Path) -> bool:
    """Say whether images may be in it, or it may be one."""
    named = path.suffix.lower() == ".zip" or has_image_suffix(path.name)
    return path.is_dir() or (named and path.is_file())  # a pipe would be waited for


def has_images(source: Path) -> bool:
    """Say whether a folder, a zip or a single file has an image by its name; stop at the first."""
    if not source.is_dir():
        return any(has_image_suffix(name) for name, _ in files_in(source))
    return any(
        has_image_suffix(path.name) and not _is_hidden(path.relative_to(source).as_posix())
        for path in source.rglob("*")
    )


def files_in(source: Path) -> Iterator[tuple[str, ImageFile]]:
    """Yield path and file of everything in a folder or a zip; the path begins with its name.

    A single file is all that is in itself.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source.parent).as_posix()
            if not _is_hidden(path.relative_to(source).as_posix()) and path.is_file():
                yield name, file_at(path)
        return
    if source.suffix.lower() != ".zip":
        yield source.name, file_at(source)
        return
    with open_zip(source) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            name = member.filename.replace("\\", "/")  # as some programs of Windows write it
            if not name.endswith("/") and not _is_hidden(name):
                file = ImageFile(source, member.filename, member.file_size, member.CRC)
                yield f"{source.stem}/{name}", file


def file_at(path: Path) -> ImageFile:
    """Return an image that is a file of its own."""
    status = path.stat()
    return ImageFile(path, "", status.st_size, status.st_mtime_ns)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip.

    Raises:
        DataError: it is none, was cut short or cannot be read.
    """
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a zip file or was cut short; download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'no such file'}") from error
