"""Images in files and folders -> answers.  Never imports torch."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from PIL import Image

from serving.atomic_write import whole_file
from serving.base_predictor import AnyPredictor, Case
from serving.errors import ConfigError, DataError, ImageError, MetadataError, listed, one_line
from serving.image_matching import IMAGE_SUFFIXES, has_image_suffix, match_files
from serving.metadata import COLUMNS, Metadata, MetadataFields, encode, is_missing
from serving.os_errors import reason_of
from serving.prediction import Prediction
from serving.predictor import Predictor
from serving.table_files import read_table, table_bytes
from serving.uncertainty import DEFAULT_LEVEL, DEFAULT_SENSITIVITY

_NAMED = 5  # files, where there may be many
_TOGETHER = 2  # images in one run: 5 % faster than one; more are no faster

Answer = Prediction | ImageError


def find_images(paths: Iterable[Path]) -> list[Path]:
    """List image files: each file as given, each folder's JPEG and PNG files, sorted by path.

    A file met twice is listed once; hidden files and folders are left out.

    Raises:
        ImageError: a path does not exist, or a folder cannot be read or holds no image.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            below = sorted(_below(path))
            inside = [file for file in below if _is_image(file)]
            if not inside:
                others = f", found {some([file.name for file in below])}" if below else ""
                raise ImageError(
                    f"no image in {path}; expected {', '.join(IMAGE_SUFFIXES)} files{others}"
                )
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            raise ImageError(f"no image at {path}; expected a file or a folder")
    return list(found)


def left_out(paths: Iterable[Path]) -> str:
    """Say what `find_images` leaves out of folders: other files, and folders behind links."""
    others = [
        file.name
        for path in paths
        if path.is_dir()
        for file in sorted(_below(path))
        if not _is_image(file)
    ]
    if not others:
        return ""
    return f"left out: {len(others):,} files that are not JPEG or PNG by name ({some(others)})"


def some(names: Sequence[str]) -> str:
    """Name the first few of many files."""
    return listed(names, _NAMED)


def _below(folder: Path) -> Iterator[Path]:
    """Yield what is not hidden below a folder: files, and links to folders, which may go round."""

    def refuse(error: OSError) -> None:
        raise ImageError(f"cannot read {error.filename}: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))
        yield from (path for name in folders if (path := Path(place, name)).is_symlink())


def _is_image(path: Path) -> bool:
    return has_image_suffix(path.name) and not path.is_dir()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked about each of many files."""

    level: float = DEFAULT_LEVEL  # coverage of the prediction sets
    sensitivity: float = DEFAULT_SENSITIVITY  # of the referral
    metadata: Mapping[Path, Metadata] = field(default_factory=dict)
    pictures: Path | None = None  # the folder that gets a picture of each map


def read_metadata(path: Path) -> dict[str, Metadata]:
    """Read a CSV of metadata: image id, in any form that `match` knows -> facts.

    Raises:
        MetadataError: the file cannot be read, lacks columns, has a value that cannot be, or two
            rows of one id that differ.
    """
    try:
        columns = read_table(table_bytes(path), path, ("image_id",), COLUMNS)
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise MetadataError(
            f"cannot read {path}: {reason}; expected a CSV with image_id and any of "
            f"{', '.join(COLUMNS)}"
        ) from error
    except DataError as error:
        raise MetadataError(str(error)) from error
    if "image_id" not in columns:
        raise MetadataError(f"{path} has no column image_id; expected one row per image")
    known = [name for name in COLUMNS if name in columns]
    if not known:
        raise MetadataError(f"{path} has none of the columns {', '.join(COLUMNS)}")
    if not columns["image_id"]:
        raise MetadataError(f"{path} has no rows; expected one per image")
    found: dict[str, Metadata] = {}
    for row, image_id in enumerate(columns["image_id"]):
        if is_missing(image_id):
            raise MetadataError(f"{path} has no image_id in row {row + 1}; complete or remove it")
        try:
            facts = Metadata.of({name: columns[name][row] for name in known})
        except MetadataError as error:
            raise MetadataError(f"{path}, image {image_id}: {error}") from error
        if found.setdefault(image_id, facts) != facts:
            raise MetadataError(f"{path} has two rows for {image_id!r} that differ; keep one")
    return found


@dataclass(frozen=True)
class FoundMetadata:
    """What a table says of images, and what did not meet."""

    of_image: Mapping[Path, Metadata]
    note: str  # how many rows and images are left over; empty: none


def find_metadata(
    rows: Mapping[str, Metadata], paths: Sequence[Path], fields: MetadataFields | None, table: Path
) -> FoundMetadata:
    """Find the row of each image.

    Args:
        rows: of `read_metadata`.
        paths: the images.
        fields: those of the model.
        table: the file that the rows are from, for messages.

    Raises:
        MetadataError: two rows of one image differ, no row means any image, or the model does not
            know a word.
        DataError: a row may mean several images.
    """
    ids = list(rows)
    of_path = match_files(ids, paths, table).ids
    found: dict[Path, Metadata] = {}
    for path, numbers in zip(paths, of_path, strict=True):
        for number in numbers:
            first, facts = ids[numbers[0]], rows[ids[number]]
            if found.setdefault(path, facts) != facts:
                raise MetadataError(
                    f"{table} has two rows for {path} that differ: {first!r} and {ids[number]!r}; "
                    "keep one"
                )
            try:
                if fields is not None:
                    encode([facts], fields)
            except MetadataError as error:
                raise MetadataError(f"{table}, image {ids[number]}: {error}") from error
    if not found:
        raise MetadataError(
            f"no row of {table} matches an image: a row has {ids[0]!r}, an image is "
            f"{one_line(paths[0].name)!r}"
        )
    used = {number for numbers in of_path for number in numbers}
    unused = [name for number, name in enumerate(ids) if number not in used]
    without = [path.name for path in paths if path not in found]
    parts = []
    if unused:
        parts.append(f"{len(unused):,} of {len(ids):,} rows match no image ({some(unused)})")
    if without:
        parts.append(f"{len(without):,} of {len(paths):,} images have no row ({some(without)})")
    return FoundMetadata(found, "; ".join(parts))


def predict_files(
    predictor: AnyPredictor,
    paths: Iterable[Path],
    *,
    workers: int = 1,
    request: Request = Request(),
) -> Iterator[tuple[Path, Answer]]:
    """Yield an answer for each file, in order; one that cannot be used does not stop the rest.

    Answers come as soon as they and those before them are there, and only a few images a worker
    are in memory.  Pairs of images share a run of the network, so that an answer may differ from
    that of `predict` in its last digits, by less than 1e-6 in a probability.

    Args:
        predictor: the model; with several workers, one thread a run is the fastest.
        paths: image files.
        workers: the threads that read, decode and classify; onnxruntime and Pillow let them run
            at the same time.
        request: what is asked.

    Raises:
        ConfigError: the model has no sets of that level, has no map, or takes no metadata.
    """
    rest = iter(paths)
    names = _PictureNames()
    pool = ThreadPoolExecutor(workers)
    can_wait = True
    waiting: deque[tuple[list[Path], Future[list[Answer]]]] = deque()
    try:
        while some := list(islice(rest, _TOGETHER)):
            pictures = [names.next(path) for path in some] if request.pictures else []
            waiting.append((some, pool.submit(_answers, predictor, some, request, pictures)))
            if len(waiting) > 2 * workers:  # a slow image holds up no other worker
                first, future = waiting.popleft()
                yield from zip(first, future.result(), strict=True)
        for first, future in waiting:
            yield from zip(first, future.result(), strict=True)
    except KeyboardInterrupt:
        can_wait = False  # for a thread that may read a pipe
        raise
    finally:  # also when nobody wants the rest
        pool.shutdown(wait=can_wait, cancel_futures=True)


def predict_one_lesion(
    predictor: Predictor, paths: Sequence[Path], request: Request
) -> tuple[Path, Prediction]:
    """Answer once for photographs of one lesion; the path is that of the first.

    Raises:
        ImageError: one of them cannot be used.
        ConfigError: as `predict_files`.
        MetadataError: their metadata differ.
    """
    known = [path for path in paths if path in request.metadata]
    metadata = request.metadata[known[0]] if known else None
    for path in known:
        if request.metadata[path] != metadata:
            raise MetadataError(
                f"{known[0]} and {path} show one lesion and have different metadata; keep one row"
            )
    answer = predictor.predict_lesion(
        paths, metadata=metadata, level=request.level, sensitivity=request.sensitivity
    )
    return paths[0], answer


class _PictureNames:
    """Gives each image file the name of its picture; files of one name get a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def next(self, path: Path) -> str:
        """Return a name that was not given before."""
        name, number = path.stem, 1
        while name in self._taken:
            number += 1
            name = f"{path.stem}-{number}"
        self._taken.add(name)
        return f"{name}.png"


def _answers(
    predictor: AnyPredictor, paths: Sequence[Path], request: Request, pictures: Sequence[str]
) -> list[Answer]:
    """Answer for a few files with one run of the network."""
    cases: list[Case] = []
    errors: dict[int, ImageError] = {}
    for i, path in enumerate(paths):
        metadata = request.metadata.get(path)
        try:
            cases.append(predictor.read(path, metadata))
            if request.pictures is not None:
                explanation = predictor.explain(path, metadata=metadata)
                save_whole(explanation.page(), request.pictures / pictures[i])
        except ImageError as error:
            errors[i] = error
    asked = {"level": request.level, "sensitivity": request.sensitivity}
    good = iter(predictor.answer(cases, **asked) if cases else ())
    return [errors[i] if i in errors else next(good) for i in range(len(paths))]


def save_whole(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all; its folder is made if it is missing.

    Raises:
        ConfigError: the folder cannot be made.
        StorageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; choose another folder"
        ) from error
    with whole_file(path) as partial:
        image.save(partial, "PNG")
