"""One process at a time works on a run.

On one machine a file lock decides, which ends with its process.  Other machines see a tag of the
run that is written again every minute.
"""

import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dermalyze import tracking
from dermalyze.config.schema import TrackingConfig
from serving.errors import DermalyzeError, TrainingError

HELD_TAG = "dermalyze.held_by"  # JSON: token, host, process, since and seen (seconds since 1970)
BEAT_SECONDS = 60.0
DEAD_SECONDS = 600.0  # without a sign of life
_SETTLE_SECONDS = 1.0  # in which another machine that claims a run as well has written its tag

_SELF = {
    "token": uuid.uuid4().hex,
    "host": socket.gethostname(),
    "process": os.getpid(),
    "since": time.time(),
}


@contextmanager
def open_held(
    tracking: TrackingConfig,
    *,
    name: str = "",
    resume: str = "",
    parent: str = "",
    tags: Mapping[str, str] | None = None,
) -> Iterator["tracking.TrackedRun"]:
    """Open a run as `open_run` does, and keep others out of it until it has ended.

    Raises:
        TrainingError: another process works on the run to resume, which is left as it is.
        TrackingError: as `open_run`.
    """
    from dermalyze.tracking import open_run  # `tracking` has another meaning here

    with ExitStack() as holds:  # left after the run has ended
        if resume:
            holds.enter_context(hold(resume))
            _claim(resume)
        with open_run(
            tracking,
            name=name,
            resume=resume,
            parent=parent,
            tags={**(tags or {}), HELD_TAG: _sign_of_life()},
        ) as run:
            if not resume:
                holds.enter_context(lock(run.run_id, f"run {run.run_id}"))
            with heartbeat(run):
                yield run


@contextmanager
def hold(run_id: str) -> Iterator[None]:
    """Keep other processes out of a run within the block, which may be inside another such block.

    Raises:
        TrainingError: another process works on the run.
    """
    tracking.require_run(run_id)  # before its name becomes that of a file
    with lock(run_id, f"run {run_id}") as before:
        holder = json.loads(tracking.tags_of(run_id).get(HELD_TAG, "{}"))
        ours = holder.get("token") in {_SELF["token"], *before}
        age = time.time() - holder.get("seen", 0)
        if not ours and age < DEAD_SECONDS and tracking.status_of(run_id) == "RUNNING":
            raise TrainingError(
                f"{_in_words(f'run {run_id}', holder)}; if that process is gone, try again in "
                f"{(DEAD_SECONDS - age) / 60:.0f} minutes"
            )
        yield


def _claim(run_id: str) -> None:
    """Write the tag, and look after a moment whether another machine did so as well: the last wins.

    Raises:
        TrackingError: it did.
    """
    start = time.monotonic()
    tracking.BoundedClient(f"cannot tag run {run_id}").set_tag(run_id, HELD_TAG, _sign_of_life())
    time.sleep(max(_SETTLE_SECONDS, 2 * (time.monotonic() - start)))  # its store is as slow
    holder = json.loads(tracking.tags_of(run_id).get(HELD_TAG, "{}"))
    if holder.get("token") != _SELF["token"]:
        raise TrainingError(_in_words(f"run {run_id}", holder))


@contextmanager
def lock(name: str, what: str) -> Iterator[set[str]]:
    """Hold what `name` stands for on this machine; yield the tokens of all who ever have here.

    Raises:
        TrainingError: another process holds it; the message begins with `what`.
    """
    folder = Path(tempfile.gettempdir()) / f"dermalyze-{_user()}"
    path = folder / f"{name}.lock"
    holders = folder / f"{name}.jsonl"  # one line for each process, the last one the latest
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != _user():
            raise PermissionError(0, "the folder belongs to somebody else")
        held = FileLock(path, is_singleton=True)  # a block in the same process may hold it already
        held.acquire(blocking=False)
    except Timeout as error:
        raise TrainingError(_in_words(what, _read(holders)[-1])) from error
    except OSError as error:
        raise TrainingError(
            f"cannot lock {path}: {(error.strerror or 'unknown reason').lower()}; set TMPDIR to a "
            "folder that can be written"
        ) from error
    try:
        known = _read(holders)
        if known[-1] != _SELF:
            with holders.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_SELF) + "\n")
        yield {holder.get("token", "") for holder in known}
    finally:
        held.release()


def _read(holders: Path) -> list[dict[str, Any]]:
    """Return who has held a lock; never empty."""
    found: list[dict[str, Any]] = [{}]
    if holders.exists():
        for line in holders.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # the line at which a process was killed
                continue
    return found


def _in_words(what: str, holder: Mapping[str, Any]) -> str:
    return (
        f"{what} is in use by process {holder.get('process', 'unknown')} on "
        f"{holder.get('host', 'this machine')} since "
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(holder.get('since', time.time())))}; "
        "wait for it, or stop it first"
    )


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _sign_of_life() -> str:
    return json.dumps({**_SELF, "seen": round(time.time())})


@contextmanager
def heartbeat(run: "tracking.TrackedRun") -> Iterator[None]:
    """Show other machines that the run is alive, whatever it does within the block."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(DermalyzeError):  # a full disk, of which the training hears as well
                run.set_tags({HELD_TAG: _sign_of_life()})

    run.set_tags({HELD_TAG: _sign_of_life()})
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
