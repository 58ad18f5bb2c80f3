"""The tracking store: its address, a local database, and calls to it, none of which lasts for ever.

A call runs in a thread of its own, so that Ctrl-C interrupts the wait for it, and a call that never
returns is abandoned.  MLflow's own retries, which take minutes, are switched off unless the user
has set them.
"""

import contextlib
import json
import logging
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with its password

import mlflow
import requests
from filelock import FileLock, Timeout
from mlflow.entities import Experiment, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from dermalyze.config.schema import TrackingConfig
from dermalyze.credentials import masked
from serving.atomic_write import sync
from serving.errors import TrackingError
from serving.os_errors import make_folder, reading, writing

DEFAULT_STORE = "sqlite:///mlflow.db"
# One in memory would be another one for each thread.
_DATABASE_FILE = re.compile(r"sqlite(\+\w+)?:///(?!:memory:|\?).+")
_CALL_THREAD = "dermalyze-store"  # the name of the thread of a call
_CREATING_SECONDS = 120.0  # for a new database, which takes 3 to 20
_UNFINISHED_SECONDS = 5.0  # since the last change of a database that another program may be making
_PATIENCE_SECONDS = 5.0  # in which a store that is away is asked again, at the start
_MOST_CONFLICTS = 10
_BYTES_PER_SECOND = 1e6  # a transfer slower than this is given up
_PACKAGES = (  # whose exceptions are failures of the store
    "azure", "boto3", "botocore", "google", "mlflow", "psycopg", "psycopg2", "pymysql", "requests",
    "sqlalchemy", "sqlite3", "urllib3",
)  # fmt: skip
_LOCKED = re.compile(r"database (table )?is locked")
_CONFLICT = re.compile(r"UNIQUE constraint|duplicate key|Duplicate entry|ALREADY_EXISTS")
_SOMETHING_ELSE = "did not answer like an MLflow server"
_AWAY = (
    (re.compile(r"Connection refused"), "refused the connection"),
    (
        re.compile(r"[Nn]ame or service not known|resolve|could not translate host name"),
        "has an unknown host name",
    ),
    (re.compile(r"(?i)timed out|timeout"), "did not answer within {seconds:g} seconds"),
    (
        re.compile(
            r"not in a valid JSON format|JSONDecodeError|Failed to parse|error code [23]\d\d|"
            r"Exceeded \d+ redirects"
        ),
        _SOMETHING_ELSE,
    ),
    (
        re.compile(
            r"(?i)connection (reset|aborted|broken)|RemoteDisconnected|closed the connection|"
            r"terminating connection|shutting down|starting up|connection already closed"
        ),
        "closed the connection",
    ),
    (re.compile(r"disk is full|No space left"), "has no space left on its disk"),
)
_DENIED = (
    (
        re.compile(r"password authentication failed|Access denied for user|no password supplied"),
        "refused the user name or the password",
    ),
    (re.compile(r"database \S+ does not exist|Unknown database"), "has no such database"),
    (re.compile(r"unable to open database file"), "cannot be opened: its folder is missing"),
    (re.compile(r"readonly database"), "is read-only"),
    (re.compile(r"not a database|malformed"), "is damaged, or not a database"),
    (
        re.compile(r"out-of-date database schema|Can't locate revision"),
        "was made by another version of MLflow: copy it, then run `mlflow db upgrade`",
    ),
)
# Not in MLflow's own form: something in front of it, or another server.
_NOT_MLFLOW = re.compile(r"too many (\d{3}) error responses|failed with error code ([45]\d\d)")
_ASKED_CODES = (400, 404, 409, 422)  # what was asked is at fault, not the store

Answer = TypeVar("Answer")

_seconds = TrackingConfig().timeout_seconds
_checked: set[str] = set()  # addresses of stores that were found whole


class StoreAwayError(TrackingError):
    """The tracking store cannot be reached; later it may."""

    reason = ""  # a sentence about the store

    @classmethod
    def during(cls, what: str, reason: str) -> Self:
        """Return the error of something that the state of the store prevented."""
        error = cls(f"{what}: {reason}; check that it runs, and MLFLOW_TRACKING_URI")
        error.reason = reason
        return error


class StoreDeniedError(StoreAwayError):
    """The tracking store is there but cannot be used as it is; asking again does not help."""


@dataclass(frozen=True, kw_only=True)
class _Failure:
    kind: Literal["conflict", "locked", "away", "denied", "refused"]
    reason: str  # after the name of the store


class _Masked(logging.Filter):
    """Mask what MLflow's own log lines show."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the text of the record; keep every record."""
        record.msg, record.args = masked(record.getMessage()), None
        if record.exc_info:
            record.exc_text = masked(logging.Formatter().formatException(record.exc_info))
        return True


for _handler in logging.getLogger("mlflow").handlers:
    _handler.addFilter(_Masked())
# Each of their failures reaches the user as one sentence.
for _name in ("alembic", "mlflow.tracking.fluent", "mlflow.tracking.client"):
    logging.getLogger(_name).setLevel(logging.WARNING)
for _name in ("mlflow.store.db.utils", "mlflow.utils.rest_utils", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def limit_calls(seconds: float) -> None:
    """Set how long a call may take, in this process; variables that the user has set stay."""
    global _seconds
    _seconds = seconds
    whole = str(max(1, round(seconds)))
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": whole,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "PGCONNECT_TIMEOUT": whole,
    }.items():
        if name not in os.environ or _set_by_us.get(name) == os.environ[name]:
            os.environ[name] = _set_by_us[name] = value


_set_by_us: dict[str, str] = {}
limit_calls(_seconds)


def use_store() -> str:
    """Use the user's tracking store, or a local database, and return its address for messages.

    A database that does not exist yet is created whole or not at all.

    Raises:
        TrackingError: the address cannot be one, or the database was left half made.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(DEFAULT_STORE)
    uri: str = mlflow.get_tracking_uri()
    if uri not in _checked:
        _check_address("MLFLOW_TRACKING_URI", uri)
        if registry := os.environ.get("MLFLOW_REGISTRY_URI"):
            _check_address("MLFLOW_REGISTRY_URI", registry)
        if not uri.startswith(("http", "databricks", "file:")):
            _check_database(uri)
        _checked.add(uri)
    return masked(uri)


def call(
    what: str,
    function: Callable[[], Answer],
    *,
    num_bytes: float = 0,
    patience: float = _PATIENCE_SECONDS,
) -> Answer:
    """Return what `function` gets from the store, within the bound.

    Args:
        what: begins the message of an error, as in "cannot open a run".
        function: asks the store; called again where another program was faster, or while the store
            is away.
        num_bytes: what it transfers; a large transfer may take longer.
        patience: seconds in which a store that is away is asked again.

    Raises:
        StoreAwayError: the store is away, or did not answer in time.
        StoreDeniedError: it does not let us in, or its driver is missing.
        TrackingError: it refuses what it was asked.
    """
    start = time.monotonic()
    limit = _seconds + num_bytes / _BYTES_PER_SECOND
    known: _Failure | None = None
    for attempt in range(1000):
        asked = _ask(function, limit - (time.monotonic() - start))
        if asked.error is None:
            return asked.value  # type: ignore[no-any-return]
        if not _is_of_store(asked.error):
            raise asked.error
        if known is None or asked.done.is_set():  # else the reason is that of the call before
            known = _failure_of(asked.error)
        waited = time.monotonic() - start
        again = {
            "conflict": attempt < _MOST_CONFLICTS,
            "locked": patience > 0,
            "away": waited + 1 < patience,
        }.get(known.kind, False)
        if not again or waited + 1 > limit:
            raise _error_of(what, known, asked.error) from asked.error
        time.sleep(random.uniform(0.05, 0.5))
    raise AssertionError("the time limit comes first")


def is_calling() -> bool:
    """Return whether the store has not answered a call yet, be it one that was given up."""
    return any(thread.name == _CALL_THREAD for thread in threading.enumerate())


def is_missing(error: BaseException | None) -> bool:
    """Return whether the store answered that there is nothing of that name."""
    return isinstance(error, MlflowException) and error.error_code in (
        "RESOURCE_DOES_NOT_EXIST",
        "INVALID_PARAMETER_VALUE",
    )


class BoundedClient:
    """MlflowClient with its own methods, each call of which is bounded as `call` does it."""

    def __init__(self, what: str) -> None:
        """Take what the message of an error begins with."""
        self._what = what

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the method of that name."""
        return lambda *arguments, **named: call(
            self._what, lambda: getattr(MlflowClient(), name)(*arguments, **named)
        )


def first_line(text: object) -> str:
    """Return the first line of a text or of what an exception says, without credentials."""
    return masked((str(text).splitlines() or [type(text).__name__])[0][:300])


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep some loggers from saying less than errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Caught:
    """What a thread came to: used as `with`, it keeps an exception for those who wait."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def __enter__(self) -> "Caught":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.error = error
        self.done.set()
        return True


def _ask(function: Callable[[], Any], seconds: float) -> Caught:
    """Call a function in a thread; after some seconds the call is left to itself."""
    asked = Caught()

    def work() -> None:
        with asked:
            asked.value = function()
            if not _has_identity(asked.value):
                raise MlflowException("Failed to parse: no id")

    threading.Thread(target=work, name=_CALL_THREAD, daemon=True).start()
    if asked.done.wait(max(0.0, seconds)):
        return asked
    late = Caught()
    late.error = TimeoutError("timed out")
    return late


def _has_identity(answer: Any) -> bool:
    """Return whether an answer is not what MLflow makes of JSON that another program sends."""
    match answer:
        case Run():
            return bool(answer.info.run_id)
        case Experiment():
            return bool(answer.experiment_id)
        case ModelVersion():
            return bool(answer.version)
    return True


def _is_of_store(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | ImportError | json.JSONDecodeError) or package in _PACKAGES


def _failure_of(error: BaseException) -> _Failure:
    """Find out what an exception of MLflow, a driver or the system says about the store."""
    chain = list(_causes(error))
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in chain)
    if isinstance(error, ImportError):
        package = error.name or "its driver"
        return _Failure(kind="denied", reason=f"needs the Python package {package}; install it")
    if _LOCKED.search(text):
        return _Failure(kind="locked", reason="is locked by another program")
    if _CONFLICT.search(text):
        return _Failure(kind="conflict", reason=_shortened(error))
    for pattern, reason in _DENIED:
        if pattern.search(text):
            return _Failure(kind="denied", reason=reason)
    status = _status_of(chain, text)
    if status in _ASKED_CODES and _is_of_mlflow(chain, text):
        return _Failure(kind="refused", reason=_shortened(error))
    if status >= 400:
        kind: Literal["away", "denied"] = "away" if status >= 500 or status == 429 else "denied"
        return _Failure(kind=kind, reason=f"answered {status} ({HTTPStatus(status).phrase})")
    for pattern, reason in _AWAY:
        if pattern.search(text):
            return _Failure(kind="away", reason=reason.format(seconds=_seconds))
    return _Failure(kind="away", reason=f"failed: {_shortened(error)}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(20):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _status_of(chain: list[BaseException], text: str) -> int:
    """Return the HTTP status that a failure comes from, or stands for; 0: neither."""
    if found := _NOT_MLFLOW.search(text):
        return int(found[1] or found[2])
    for cause in chain:
        if isinstance(cause, requests.HTTPError) and cause.response is not None:
            return cause.response.status_code
        if isinstance(cause, MlflowException):
            status: int = cause.get_http_status_code()  # type: ignore[no-untyped-call]
            if status < 500 or isinstance(cause, RestException):
                return status
    return 0


def _is_of_mlflow(chain: list[BaseException], text: str) -> bool:
    """Return whether MLflow itself gave the answer, and not something in front of it."""
    answers = [
        cause.response
        for cause in chain
        if isinstance(cause, requests.HTTPError) and cause.response is not None
    ]
    return not _NOT_MLFLOW.search(text) and all("error_code" in a.text for a in answers)


def _shortened(error: BaseException) -> str:
    """Return the first line of an exception, without a page of HTML."""
    lines = str(error).partition("<")[0].strip().splitlines() or [type(error).__name__]
    return masked(lines[0][:200].strip(" '\"."))


def _error_of(what: str, failure: _Failure, error: BaseException) -> TrackingError:
    if failure.kind in ("refused", "conflict"):
        return TrackingError(masked(f"{what}: {failure.reason}"))
    reason = f"the tracking store {masked(mlflow.get_tracking_uri())} {failure.reason}"
    kind = StoreDeniedError if failure.kind == "denied" else StoreAwayError
    return kind.during(what, reason)


def _check_address(variable: str, uri: str) -> None:
    if not _is_address(uri):
        raise TrackingError(
            f"{variable} must be an address such as http://HOST:PORT or sqlite:///mlflow.db, "
            f"got {masked(uri)!r}"
        )


def _is_address(uri: str) -> bool:
    if uri.startswith("sqlite"):
        return _DATABASE_FILE.fullmatch(uri) is not None
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            return bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", uri)
    except ValueError:  # half an IPv6 address, or a port that is none
        return False
    return uri.startswith("databricks") or (bool(parts.scheme) and "://" in uri)


def _check_database(uri: str) -> None:
    """Create the file of a local database where there is none, and refuse one left half made."""
    import mlflow.store.db.utils as mlflow_database  # half a second that only a database needs
    from sqlalchemy.engine import make_url

    what = "cannot open the database"
    url = call(what, lambda: make_url(uri))
    if url.get_backend_name() != "sqlite":
        # MLflow tries ten times, 100 seconds in all, to connect; `call` tries again itself.
        mlflow_database.MAX_RETRY_COUNT = 1
        return
    path = Path(str(url.database))
    with reading(path):
        is_there = path.exists()
    if not is_there:
        call(what, lambda: _create(path), num_bytes=_CREATING_SECONDS * _BYTES_PER_SECOND)
    while not call(what, lambda: _is_whole(path, uri)):
        if time.time() - path.stat().st_mtime > _UNFINISHED_SECONDS:
            raise TrackingError(
                f"{path} is incomplete: a program was stopped while it created it; it holds "
                "no runs: delete it and start again"
            )
        time.sleep(0.2)


def _create(path: Path) -> None:
    """Create a database under another name, then rename it; one command does so at a time."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    make_folder(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    new = path.with_name(f".{path.name}.new")
    with writing(path):
        lock.touch()  # what cannot be written now is not a store that may come back
    try:
        with FileLock(lock, timeout=_CREATING_SECONDS):
            if not path.exists():
                for left in path.parent.glob(f"{new.name}*"):
                    left.unlink()
                store = SqlAlchemyStore(  # type: ignore[no-untyped-call]
                    f"sqlite:///{new}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
                )
                store.engine.dispose()
                sync(new)
                with contextlib.suppress(FileExistsError):  # MLflow itself was faster
                    os.link(new, path)
                new.unlink()
            with contextlib.suppress(OSError):  # whoever waits for it makes it anew
                lock.unlink()
    except Timeout as error:
        raise TimeoutError("timed out") from error


def _is_whole(path: Path, uri: str) -> bool:
    """Return whether a database is empty, which MLflow mends, or has all that MLflow needs."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    with contextlib.closing(
        sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", 1, uri=True)
    ) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if not tables:
            return True
        if not {"experiments", "alembic_version"} <= tables:
            return False
        if db.execute("SELECT 1 FROM experiments").fetchone():
            return True
        version = db.execute("SELECT version_num FROM alembic_version").fetchone()
    return bool(version == (_get_latest_schema_revision(),))  # type: ignore[no-untyped-call]
