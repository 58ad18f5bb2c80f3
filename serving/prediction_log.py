"""The prediction log: what a service answered, without pixels and names; written and read.

Lines of JSON in a file, which becomes FILE.1, FILE.2, ... when it is full, or rows of a database.
Nothing in it is ever changed or deleted.  Never imports torch; SQLAlchemy only for a database.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.atomic_write import held
from serving.errors import ConfigError, DataError, StorageError
from serving.os_errors import reading, writing
from serving.spec import ModelSpec

TABLE = "dermalyze_predictions"
_MOST_WAITING = 20_000  # answers that are not written yet, perhaps for lack of room
_RETRY_SECONDS = 1.0
_SILENT_SECONDS = 60.0  # between two lines about a log that cannot be written

log = logging.getLogger("serving")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One answer."""

    time: str  # ISO 8601, UTC
    model: str  # `model_name`
    request_id: str
    image: int  # of the request, from 1
    predicted_class: str
    confidence: float
    probabilities: dict[str, float]
    decision: str | None  # None, here and below: the model has no such thing
    scope_score: float | None
    quality: list[str] | None
    latency_ms: float  # of the request


def model_name(spec: ModelSpec) -> str:
    """Return what tells one model from the next: its run, and a digest of its spec.

    What is known of validation images changes no answer, and so not the name.
    """
    text = dataclasses.replace(spec, monitoring=None).to_json()
    return f"{spec.run_id or 'untracked'}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def entries_of(
    answers: Sequence[Mapping[str, Any]], spec: ModelSpec, request_id: str, seconds: float
) -> list[Entry]:
    """Take out of the answers to a request what is logged."""
    now, name = datetime.now(UTC).isoformat(timespec="milliseconds"), model_name(spec)
    return [
        Entry(
            time=now,
            model=name,
            request_id=request_id,
            image=number,
            predicted_class=answer["predicted_class"],
            confidence=answer["confidence"],
            probabilities=answer["probabilities"],
            decision=answer.get("decision"),
            scope_score=answer.get("scope_score"),
            quality=answer.get("quality"),
            latency_ms=round(1000 * seconds, 3),
        )
        for number, answer in enumerate(answers, 1)
    ]


class PredictionLog:
    """Writes in a thread, so that a slow or full log keeps no answer waiting.

    What cannot be written waits for room; what no longer fits is lost, and counted.
    """

    def __init__(
        self, address: str, max_bytes: int, lose: Callable[[int], None] = lambda number: None
    ) -> None:
        """Open a log.

        Args:
            address: a file, or the URL of a database.
            max_bytes: of a file, before the next one is begun.
            lose: told how many answers are lost.

        Raises:
            ConfigError: the address is of no database that can be used here.
            StorageError: it cannot be written.
        """
        self._sink = _Database(address) if "://" in address else _File(Path(address), max_bytes)
        self._sink.write([])
        self._lose = lose
        self._told = -_SILENT_SECONDS
        self._waiting: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._is_ending = False
        self._thread = threading.Thread(target=self._work, name="prediction-log", daemon=True)
        self._thread.start()

    def add(self, entries: Sequence[Entry]) -> None:
        """Take the answers to a request; never waits for the log."""
        with self._changed:
            room = _MOST_WAITING - len(self._waiting)
            self._waiting.extend(entries[:room])
            self._changed.notify()
        if lost := len(entries[room:]):
            self._lose(lost)

    def close(self, seconds: float) -> None:
        """Write what waits, within a time."""
        with self._changed:
            self._is_ending = True
            self._changed.notify()
        self._thread.join(seconds)
        if self._waiting:
            log.error("%d answers are missing in the prediction log", len(self._waiting))
            self._lose(len(self._waiting))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_ending)
                entries, is_last = list(self._waiting), self._is_ending
            if not entries:
                return
            try:
                self._sink.write(entries)
            except StorageError as error:
                if (now := time.monotonic()) - self._told >= _SILENT_SECONDS:
                    self._told = now
                    log.error("%s; answers are still given", error)
                if is_last:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._is_ending, _RETRY_SECONDS)
                continue
            with self._changed:
                for _ in entries:
                    self._waiting.popleft()


class _File:
    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes

    def write(self, entries: Sequence[Entry]) -> None:
        """Append whole lines or none, whoever else writes the file."""
        lines = [json.dumps(dataclasses.asdict(entry)) + "\n" for entry in entries]
        with writing(self._path):
            while not self._append("".join(lines).encode()):
                pass

    def _append(self, data: bytes) -> bool:
        """Return False if the file was full and has got another name."""
        path = self._path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with held(path, lambda: os.open(path, flags, 0o600)), path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and size + len(data) > self._max_bytes:
                numbers = [int(each.suffix[1:]) for each in _full_files(path)]
                path.rename(f"{path}.{max(numbers, default=0) + 1}")
                return False
            if size and data:
                file.seek(size - 1)
                data = data if file.read(1) == b"\n" else b"\n" + data  # torn when power failed
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, "no room")
            except OSError:
                file.truncate(size)
                raise
        return True


def _full_files(path: Path) -> list[Path]:
    """Return the files that a log filled before the present one, oldest first."""
    found = [each for each in path.parent.glob("*") if each.name.startswith(f"{path.name}.")]
    full = [each for each in found if each.name[len(path.name) + 1 :].isdecimal()]
    return sorted(full, key=lambda each: int(each.suffix[1:]))


class _Database:
    def __init__(self, address: str) -> None:
        try:
            import sqlalchemy as sql
        except ModuleNotFoundError as error:
            raise ConfigError(
                "a prediction log in a database needs SQLAlchemy, which is not installed; run "
                "`pip install sqlalchemy` with the driver of the database, or log to a file"
            ) from error
        self._sql = sql
        try:
            url = sql.make_url(address)
            self._engine = sql.create_engine(url, pool_pre_ping=True, hide_parameters=True)
        except (sql.exc.ArgumentError, ModuleNotFoundError, ValueError) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else ""
            raise ConfigError(
                f"the database of the prediction log needs {missing}, which is not installed; "
                "install the driver that the address names, or log to a file"
                if missing
                else "the address of the prediction log is of no known database; expected a file, "
                "or DIALECT://USER:PASSWORD@HOST/DATABASE as SQLAlchemy reads it"
            ) from error
        # Without user, password and options.
        self._shown = f"{url.drivername}://{url.host or ''}/{url.database or ''}"
        kinds = {"image": sql.Integer, "probabilities": sql.JSON, "quality": sql.JSON}
        kinds |= dict.fromkeys(("confidence", "scope_score", "latency_ms"), sql.Double)
        columns = [
            sql.Column(field.name, kinds.get(field.name, sql.String(255)))
            for field in dataclasses.fields(Entry)
        ]
        self._table = sql.Table(TABLE, sql.MetaData(), *columns)

    def write(self, entries: Sequence[Entry]) -> None:
        """Add rows, all or none; without any, the table is made."""
        with self._used(), self._engine.begin() as connection:
            if entries:
                rows = [dataclasses.asdict(entry) for entry in entries]
                connection.execute(self._table.insert(), rows)
            else:
                self._table.create(connection, checkfirst=True)

    def read(self) -> Iterator[dict[str, Any]]:
        """Return the rows."""
        with self._used(), self._engine.connect() as connection:
            for row in connection.execute(self._table.select().order_by(self._table.c.time)):
                yield dict(row._mapping)

    @contextmanager
    def _used(self) -> Iterator[None]:
        try:
            yield
        except self._sql.exc.SQLAlchemyError as error:
            said = " ".join(str(getattr(error, "orig", None) or error).split())
            raise StorageError(
                f"the prediction log {self._shown} cannot be used: {said}; start the database, or "
                "correct the address"
            ) from error


def read_log(address: str) -> tuple[list[Entry], int]:
    """Read a log, with the files that are full; also return how many lines are none of its lines.

    Raises:
        ConfigError: the address is of no database that can be used here.
        StorageError: it cannot be read.
        DataError: there is no such file.
    """
    if "://" in address:
        rows = list(_Database(address).read())
    else:
        path = Path(address)
        files = [*_full_files(path), *([path] if path.exists() else [])]
        if not files:
            raise DataError(
                f"there is no prediction log at {path}; start the service with --prediction-log"
            )
        rows = [row for each in files for row in _lines_of(each)]
    entries = [entry for row in rows if (entry := _entry_of(row)) is not None]
    return entries, len(rows) - len(entries)


def _lines_of(path: Path) -> Iterator[Any]:
    with reading(path), path.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                yield None


def _entry_of(row: Any) -> Entry | None:
    """Return a line or row of a log; None: it is damaged, or of another program."""
    try:
        entry = Entry(**{field.name: row[field.name] for field in dataclasses.fields(Entry)})
        at = datetime.fromisoformat(entry.time)
        numbers = [entry.confidence, *entry.probabilities.values(), entry.scope_score or 0.0]
        sound = at.tzinfo is not None and all(0 <= number < float("inf") for number in numbers)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return entry if sound and entry.predicted_class in entry.probabilities else None
