"""Tables that people send: commas, semicolons or tabs; UTF-8, UTF-16 or what Windows writes.

One reader for every table.  Never imports pandas.
"""

import codecs
import csv
import difflib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from serving.errors import DataError
from serving.os_errors import read_bounded

Columns = dict[str, list[str]]

MAX_TABLE_BYTES = 128 * 2**20  # of one table, unpacked; HAM10000's have 0.6 MB
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_ALSO_CALLED = {"gender": "sex", "site": "localization"}  # by other archives


def table_bytes(path: Path) -> bytes:
    """Return the bytes of a file that should hold a table.

    Raises:
        OSError: it cannot be read.
        DataError: it is larger than any table of images, and perhaps than the memory.
    """
    require_size(path, path.stat().st_size)
    return read_bounded(path, MAX_TABLE_BYTES)


def require_size(path: Path, size: int) -> None:
    """Refuse a table by its size in bytes.

    Raises:
        DataError: it is larger than any table of images.
    """
    if size > MAX_TABLE_BYTES:
        raise DataError(
            f"{path} has {size:,} bytes; expected a table of images of at most "
            f"{MAX_TABLE_BYTES:,}; download it again"
        )


def read_table(
    data: bytes, where: object, required: Sequence[str], optional: Sequence[str] = ()
) -> Columns:
    """Return the columns of a table by name, without the spaces around names and values.

    Known names are found in any case, the others are in small letters.  Empty lines are left out.
    The mark between values is the one that gives most of the `required` names; whether all of them
    are there is left to the caller.

    Raises:
        ValueError: it is not text, or a line has more or fewer values than there are names.
        DataError: two columns have one name, or one would be passed over although it looks like an
            optional one that is missing.
    """
    known = {name.lower(): name for name in (*required, *optional)}

    def named(row: Iterable[str]) -> list[str]:
        return [known.get(name.strip().lower(), name.strip().lower()) for name in row]

    text = _decoded(data)
    header = next((line for line in text.splitlines() if line.strip()), "")

    def names_by(mark: str) -> tuple[int, int]:
        names = named(next(csv.reader([header], delimiter=mark, skipinitialspace=True), []))
        return len(set(names) & set(required)), len(names)

    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=max(",;\t", key=names_by),
        skipinitialspace=True,
        strict=True,
    )
    try:
        rows = [row for row in lines if any(value.strip() for value in row)]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if not rows:
        raise ValueError("it is empty")
    names, values = named(rows[0]), rows[1:]
    if any(len(row) != len(names) for row in values):
        raise ValueError("a line has more or fewer values than there are names")
    if twice := [name for name in known.values() if names.count(name) > 1]:
        raise DataError(f"{where} has two columns {twice[0]!r}; remove or rename one")
    absent = [name for name in optional if name not in names]
    for name, written in zip(names, rows[0], strict=True):
        if name not in known.values() and (meant := alike(written.strip(), absent)):
            raise DataError(f"{where} has the unknown column {name!r}; did you mean {meant}?")
    return {name: [row[i].strip() for row in values] for i, name in enumerate(names)}


def alike(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that one looks like: age_approx, patientAge, localisation."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    words = re.split(r"[^a-z0-9]+", name)
    for other in known:
        parts = other.split("_")
        inside = any(words[i : i + len(parts)] == parts for i in range(len(words)))
        if inside or any(_ALSO_CALLED.get(word) == other for word in words):
            return other
    # From 0.75 down `stage` would look like `age`.
    return next(iter(difflib.get_close_matches(name, known, 1, 0.8)), None)


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
    if _NO_TEXT.search(text):
        raise ValueError("it is not text")
    return text
