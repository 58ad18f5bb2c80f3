"""Answers -> a table, JSON or CSV.  Never imports torch."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from serving.batch import Answer
from serving.errors import ImageError, listed, one_line
from serving.spreadsheet import neutralized
from serving.taxonomy import DISCLAIMER

_SHOWN_IN_SET = 7  # classes of a prediction set in a table, which must fit on a screen


def render(
    answers: Iterable[tuple[Path, Answer]],
    kind: str,
    class_names: Sequence[str],
    more: Sequence[str] = (),
) -> Iterator[str]:
    """Yield lines of text: `kind` is table, json (an object a line) or csv.

    JSON and CSV come line by line; a table waits for its last row, whose width it must know.  The
    disclaimer is in each: as the last line, a key, a column.

    Args:
        answers: files and what was answered.
        kind: the form.
        class_names: those of the model.
        more: names of the fields that this model's answers have beyond those of every model; CSV
            shows them in columns after all others.
    """
    if kind == "json":
        return _json_lines(answers)
    if kind == "csv":
        return _csv_lines(answers, class_names, more)
    return _table_lines(answers)


def _json_lines(answers: Iterable[tuple[Path, Answer]]) -> Iterator[str]:
    for path, answer in answers:
        values = {"error": str(answer)} if isinstance(answer, ImageError) else answer.to_dict()
        yield json.dumps({"image": one_line(path), **values})


def columns(class_names: Sequence[str], more: Sequence[str]) -> list[str]:
    """Name the columns of a table that programs read; `more` as for `render`."""
    return [
        "image",
        "predicted_class",
        "predicted_class_description",
        "confidence",
        *(f"prob_{name}" for name in class_names),
        "error",
        "disclaimer",
        *more,
    ]


def row(
    path: Path, answer: Answer, class_names: Sequence[str], more: Sequence[str]
) -> list[object]:
    """Return the values of those columns for one file; what it does not have is None."""
    if isinstance(answer, ImageError):
        empty = [None] * (3 + len(class_names))
        return [one_line(path), *empty, one_line(answer), DISCLAIMER, *[None] * len(more)]
    return [
        one_line(path),
        answer.predicted_class,
        answer.predicted_class_description,
        answer.confidence,
        *answer.probabilities.values(),
        None,
        answer.disclaimer,
        *(getattr(answer, name) for name in more),
    ]


def _csv_lines(
    answers: Iterable[tuple[Path, Answer]], class_names: Sequence[str], more: Sequence[str]
) -> Iterator[str]:
    yield _csv_line(*columns(class_names, more))
    for path, answer in answers:
        yield _csv_line(*(_cell(value) for value in row(path, answer, class_names, more)))


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()  # as in JSON
    return "; ".join(value) if isinstance(value, tuple) else value


def _csv_line(*values: object) -> str:
    text = io.StringIO()
    cells = [neutralized(value) if isinstance(value, str) else value for value in values]
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # whose characters are quoted in a cell
    return text.getvalue().removesuffix("\r\n")


def _table_lines(answers: Iterable[tuple[Path, Answer]]) -> Iterator[str]:
    disclaimer = DISCLAIMER
    rows = [["image", "class", "confidence", "decision", "referral", "set", "description"]]
    for path, answer in answers:
        if isinstance(answer, ImageError):
            rows.append([one_line(path), "error", "", "", "", "", one_line(answer)])
            continue
        disclaimer = answer.disclaimer
        description = one_line(answer.predicted_class_description)
        if answer.decision not in (None, "answer"):
            description += f" ({answer.decision_reason})"
        rows.append(
            [
                one_line(path),
                one_line(answer.predicted_class),
                f"{answer.confidence:.1%}",
                answer.decision or "",
                {None: "", True: "refer", False: "no"}[answer.referral],
                listed(answer.prediction_set or (), _SHOWN_IN_SET),
                description,
            ]
        )
    # A column that the model has nothing for is left out.
    count = len(rows[0])
    kept = [i for i in range(count) if i not in (3, 4, 5) or any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in range(count)]
    for row in rows:
        cells = [f"{row[i]:>{widths[i]}}" if i == 2 else f"{row[i]:<{widths[i]}}" for i in kept]
        yield "  ".join(cells).rstrip()
    yield ""
    yield disclaimer
