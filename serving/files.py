"""Images in files and folders -> answers.  Never imports torch."""

import csv
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from PIL import Image

from serving.answering import Case
from serving.errors import ConfigError, ImageError, MetadataError
from serving.limits import DEFAULT_LEVEL
from serving.metadata import COLUMNS, Metadata
from serving.prediction import Prediction
from serving.predictor import Predictor
from serving.whole import whole_file

EXTENSIONS = (".jpg", ".jpeg", ".png")

_TOGETHER = 2  # images in one run: 5 % faster than one; more are no faster

Answer = Prediction | ImageError


def find_images(paths: Iterable[Path]) -> list[Path]:
    """List image files: each file as given, each folder's JPEG and PNG files, sorted by path.

    A file met twice is listed once; hidden files and folders are left out.

    Raises:
        ImageError: a path does not exist, or a folder holds no image.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(_images_below(path))
            if not inside:
                raise ImageError(f"no image in {path}; expected {', '.join(EXTENSIONS)} files")
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            raise ImageError(f"no image at {path}; expected a file or a folder")
    return list(found)


def _images_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(place, name)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked about each of many files."""

    level: float = DEFAULT_LEVEL  # coverage of the prediction sets
    metadata: Mapping[str, Metadata] = field(default_factory=dict)  # by name without extension
    pictures: Path | None = None  # the folder that gets a picture of each map


def read_metadata(path: Path) -> dict[str, Metadata]:
    """Read a CSV of metadata: image id, which is a file's name without its extension -> facts.

    Raises:
        MetadataError: the file cannot be read, has no column image_id or a value that cannot be.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise MetadataError(
            f"cannot read {path}; expected a CSV with image_id and any of {', '.join(COLUMNS)}"
        ) from error
    found: dict[str, Metadata] = {}
    for row in rows:
        if (image_id := row.get("image_id")) is None:
            raise MetadataError(f"{path} has no column image_id; expected one row an image")
        try:
            found[image_id] = Metadata.of({name: row.get(name) for name in COLUMNS})
        except MetadataError as error:
            raise MetadataError(f"{path}, image {image_id}: {error}") from error
    return found


def predict_files(
    predictor: Predictor,
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
    finally:  # also after Ctrl-C, and when nobody wants the rest
        pool.shutdown(cancel_futures=True)


def predict_one_lesion(
    predictor: Predictor, paths: Sequence[Path], request: Request
) -> tuple[Path, Prediction]:
    """Answer once for photographs of one lesion; the path is that of the first.

    Raises:
        ImageError: one of them cannot be used.
        ConfigError: as `predict_files`.
    """
    metadata = next((request.metadata[p.stem] for p in paths if p.stem in request.metadata), None)
    answer = predictor.predict_lesion(paths, metadata=metadata, level=request.level)
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
    predictor: Predictor, paths: Sequence[Path], request: Request, pictures: Sequence[str]
) -> list[Answer]:
    """Answer for a few files with one run of the network."""
    cases: list[Case] = []
    errors: dict[int, ImageError] = {}
    for i, path in enumerate(paths):
        metadata = request.metadata.get(path.stem)
        try:
            cases.append(predictor.read(path, metadata))
            if request.pictures is not None:
                explanation = predictor.explain(path, metadata=metadata)
                save_whole(explanation.page(), request.pictures / pictures[i])
        except ImageError as error:
            errors[i] = error
    good = iter(predictor.answer(cases, level=request.level) if cases else ())
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
