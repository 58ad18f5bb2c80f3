"""Images in files and folders -> answers -> a table, JSON or CSV.  Never imports torch."""

import csv
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from serving.errors import ImageError
from serving.prediction import Prediction, predictions
from serving.predictor import Predictor
from serving.preprocess import Pixels
from serving.taxonomy import CLASS_NAMES, DISCLAIMER

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


def predict_files(
    predictor: Predictor, paths: Iterable[Path], *, workers: int = 1
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
    """
    rest = iter(paths)
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[list[Path], Future[list[Answer]]]] = deque()
    try:
        while some := list(islice(rest, _TOGETHER)):
            waiting.append((some, pool.submit(_answers, predictor, some)))
            if len(waiting) > 2 * workers:  # a slow image holds up no other worker
                first, future = waiting.popleft()
                yield from zip(first, future.result(), strict=True)
        for first, future in waiting:
            yield from zip(first, future.result(), strict=True)
    finally:  # also after Ctrl-C, and when nobody wants the rest
        pool.shutdown(cancel_futures=True)


def _answers(predictor: Predictor, paths: Sequence[Path]) -> list[Answer]:
    """Answer for a few files with one run of the network."""
    pixels: list[Pixels] = []
    errors: dict[int, ImageError] = {}
    for i, path in enumerate(paths):
        try:
            pixels.append(predictor.pixels(path))
        except ImageError as error:
            errors[i] = error
    good = iter(predictions(predictor.logits(np.stack(pixels)), predictor.spec) if pixels else ())
    return [errors[i] if i in errors else next(good) for i in range(len(paths))]


def render(
    answers: Iterable[tuple[Path, Answer]], kind: str, class_names: Sequence[str] = CLASS_NAMES
) -> Iterator[str]:
    """Yield lines of text: `kind` is table, json (an object a line) or csv.

    JSON and CSV come line by line; a table waits for its last row, whose width it must know.  The
    disclaimer is in each: as the last line, a key, a column.
    """
    if kind == "json":
        return _json_lines(answers)
    if kind == "csv":
        return _csv_lines(answers, class_names)
    return _table_lines(answers)


def _json_lines(answers: Iterable[tuple[Path, Answer]]) -> Iterator[str]:
    for path, answer in answers:
        values = {"error": str(answer)} if isinstance(answer, ImageError) else answer.to_dict()
        yield json.dumps({"image": _text(path), **values})


def _csv_lines(answers: Iterable[tuple[Path, Answer]], class_names: Sequence[str]) -> Iterator[str]:
    yield _csv_line(
        "image",
        "predicted_class",
        "predicted_class_description",
        "confidence",
        *(f"prob_{name}" for name in class_names),
        "error",
        "disclaimer",
    )
    for path, answer in answers:
        if isinstance(answer, ImageError):
            yield _csv_line(_text(path), *[""] * (3 + len(class_names)), str(answer), DISCLAIMER)
        else:
            yield _csv_line(
                _text(path),
                answer.predicted_class,
                answer.predicted_class_description,
                answer.confidence,
                *answer.probabilities.values(),
                "",
                answer.disclaimer,
            )


def _csv_line(*values: object) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def _table_lines(answers: Iterable[tuple[Path, Answer]]) -> Iterator[str]:
    disclaimer = DISCLAIMER
    rows = [("image", "class", "confidence", "description")]
    for path, answer in answers:
        if isinstance(answer, ImageError):
            rows.append((_text(path), "error", "", _text(answer)))
        else:
            disclaimer = answer.disclaimer
            rows.append(
                (
                    _text(path),
                    answer.predicted_class,
                    f"{answer.confidence:.1%}",
                    answer.predicted_class_description,
                )
            )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for image, label, confidence, description in rows:
        yield (
            f"{image:<{widths[0]}}  {label:<{widths[1]}}  {confidence:>{widths[2]}}  {description}"
        ).rstrip()
    yield ""
    yield disclaimer


def _text(value: object) -> str:
    """Show a file name on one line: it may hold control characters, or bytes that are no UTF-8."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(value)
    )
