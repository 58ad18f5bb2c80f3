"""Images in files and folders -> answers -> a table, JSON or CSV.  Never imports torch."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from serving.errors import ImageError
from serving.prediction import Prediction
from serving.predictor import Predictor
from serving.taxonomy import CLASS_NAMES, DISCLAIMER

EXTENSIONS = (".jpg", ".jpeg", ".png")

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


def predict_files(predictor: Predictor, paths: Iterable[Path]) -> Iterator[tuple[Path, Answer]]:
    """Yield an answer for each file, in order; one that cannot be used does not stop the rest."""
    for path in paths:
        try:
            yield path, predictor.predict(path)
        except ImageError as error:
            yield path, error


def render(answers: Iterable[tuple[Path, Answer]], kind: str) -> Iterator[str]:
    """Yield lines of text: `kind` is table, json (an object a line) or csv.

    The disclaimer is in each: as the last line, a key, a column.
    """
    if kind == "json":
        return _json_lines(answers)
    if kind == "csv":
        return _csv_lines(list(answers))
    return _table_lines(list(answers))


def _json_lines(answers: Iterable[tuple[Path, Answer]]) -> Iterator[str]:
    for path, answer in answers:
        values = {"error": str(answer)} if isinstance(answer, ImageError) else answer.to_dict()
        yield json.dumps({"image": _text(path), **values})


def _csv_lines(answers: list[tuple[Path, Answer]]) -> Iterator[str]:
    good = [answer for _, answer in answers if isinstance(answer, Prediction)]
    class_names = tuple(good[0].probabilities) if good else CLASS_NAMES
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


def _table_lines(answers: list[tuple[Path, Answer]]) -> Iterator[str]:
    rows = [("image", "class", "confidence", "description")]
    for path, answer in answers:
        if isinstance(answer, ImageError):
            rows.append((_text(path), "error", "", _text(answer)))
        else:
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
    yield next((a.disclaimer for _, a in answers if isinstance(a, Prediction)), DISCLAIMER)


def _text(value: object) -> str:
    """Show a file name on one line: it may hold control characters, or bytes that are no UTF-8."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(value)
    )
