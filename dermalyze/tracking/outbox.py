"""What a run has to tell the tracking store: on disk first, then delivered in the background.

The thread that trains never waits for the store.  While the store is away the entries stay in
`outbox.jsonl` of the run's folder, and are delivered when it is back, or by `dermalyze sync`.
"""

import contextlib
import errno
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from dermalyze.credentials import masked
from dermalyze.tracking.delivery import DAMAGED, Entry, deliver, size_of
from dermalyze.tracking.store import Caught, StoreAwayError, StoreDeniedError, call
from serving.atomic_write import sync
from serving.errors import TrackingError
from serving.os_errors import cannot_write, make_folder, writing

logger = logging.getLogger(__name__)

WORK = Path(".dermalyze/runs")
OUTBOX = "outbox.jsonl"
DELIVERED = "outbox.delivered"  # how many entries of it
REFUSED = "outbox.refused.jsonl"
_LONGEST_PAUSE = 30.0  # seconds between two tries while the store is away
_HICCUP_SECONDS = 2.0  # without an answer that nobody needs to hear of


class Outbox:
    """The entries of a run, and of the runs below it, in the order in which they came."""

    def __init__(self, folder: Path) -> None:
        """Open the outbox of a run's folder, with what is left in it."""
        make_folder(folder)
        self.folder = folder
        self._changed = threading.Condition()
        self._entries = _read(folder)
        self.stages: dict[str, str] = {}  # of runs, by their ids: what was last said of each
        self.is_damaged = False  # something is lost that a resumed run logs again
        for entry in self._entries:
            self._note_stage(entry)
        self._num_delivered = _num_delivered(folder, len(self._entries))
        del self._entries[: self._num_delivered]
        self._away: StoreAwayError | None = None  # what the last try came to
        self._num_before = 0  # delivered when the store went away
        self._hurry = False  # somebody waits for all to be delivered
        self._in_call = False
        self._closed = False
        self._has_refused = False
        self._progress = time.monotonic()
        self._pause = 1.0  # seconds before the next try while the store is away
        self._crash = Caught()
        with writing(folder / OUTBOX):
            self._file = (folder / OUTBOX).open("ab", buffering=0)
        sync(folder)
        threading.Thread(target=self._work, name="dermalyze-outbox", daemon=True).start()

    @property
    def entries(self) -> list[Entry]:
        """What is not delivered yet."""
        with self._changed:
            return list(self._entries)

    def add(self, run_id: str, kind: str, **what: Any) -> None:
        """Write an entry down, to be delivered soon.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        if self._crash.error is not None:
            raise self._crash.error
        entry = {"kind": kind, "run": run_id, "time": time.time_ns() // 1_000_000, **what}
        line = f"{json.dumps(entry)}\n".encode()
        with self._changed:  # two threads must come in one order, on disk and here
            size = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file.fileno())
            except OSError as error:
                os.truncate(self.folder / OUTBOX, size)  # nothing half written in the middle
                raise cannot_write(self.folder / OUTBOX, error) from error
            self._note_stage(entry)
            self._entries.append(entry)
            self._changed.notify_all()

    def _note_stage(self, entry: Entry) -> None:
        if entry["kind"] in ("status", "complete"):
            self.stages[entry["run"]] = entry.get("status", "complete")
        if entry.get("status") == "RUNNING":
            self.is_damaged = False
        elif entry["kind"] == DAMAGED:
            self.is_damaged = True

    def flush(self, patience: float | None = None) -> None:
        """Wait until all is delivered.

        Args:
            patience: seconds after which to give up; by default calls, which are bounded, are
                waited for, and given up once one has failed.

        Raises:
            StoreAwayError: not all could be delivered.
        """
        with self._changed:
            self._hurry, self._away, start = True, None, time.monotonic()
            self._changed.notify_all()
            while self._entries and self._crash.error is None:
                now = time.monotonic()
                silent = now - max(start, self._progress)
                if isinstance(self._away, StoreDeniedError):
                    break
                if patience is None:
                    if self._away is not None and not self._in_call and silent > _HICCUP_SECONDS:
                        break
                elif now - start > patience:
                    break
                self._changed.wait(0.1)
            self._hurry = False
            if self._crash.error is not None:
                raise self._crash.error
            if self._entries:
                late = StoreAwayError.during("not delivered", "the tracking store is slow")
                raise self._away or late

    def say_what_is_left(self) -> None:
        """Tell the user of what is not delivered, and how it can be."""
        logger.warning(
            f"{len(self.entries)} entries of the run are not delivered yet; they are kept in "
            f"{self.folder}, and `dermalyze sync {self.folder.name}` delivers them"
        )

    def close(self) -> None:
        """Stop delivering; what is left stays on disk."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._file.close()

    def _work(self) -> None:
        with self._crash:
            while self._wait_for_entry():
                self._deliver_first()

    def _wait_for_entry(self) -> bool:
        """Wait for something to deliver; say whether there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._entries)
            return not self._closed

    def _deliver_first(self) -> None:
        entry = self._entries[0]
        try:
            if not self._is_superseded(entry):
                self._send(entry)
        except StoreAwayError as error:
            self._note_away(error)
            return
        except TrackingError as error:
            if getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":  # the run
                self._note_away(StoreDeniedError.during("cannot deliver", str(error)))
                return
            self._keep_refused(entry, error)
        self._note_delivered()

    def _send(self, entry: Entry) -> None:
        work = self.folder.parent
        self._in_call = True
        try:
            call(
                f"cannot deliver {entry['kind']}",
                lambda: deliver(entry, work),
                num_bytes=size_of(entry, work),
                patience=_HICCUP_SECONDS,
            )
        finally:
            self._in_call = False

    def _is_superseded(self, entry: Entry) -> bool:
        """Return whether the same file is to be sent again later on."""
        if entry["kind"] != "file":
            return False
        same = ("kind", "run", "path", "folder")
        key = [entry[name] for name in same]
        return any([other.get(name) for name in same] == key for other in self.entries[1:])

    def _note_delivered(self) -> None:
        with self._changed:
            self._entries.pop(0)
            self._num_delivered += 1
            self._progress = time.monotonic()
            with contextlib.suppress(OSError):  # then it is delivered once more, which is harmless
                (self.folder / DELIVERED).write_text(str(self._num_delivered))
            if self._num_before and not self._entries:
                number = self._num_delivered - self._num_before + 1
                logger.info(f"the tracking store is back; {number} entries delivered")
                self._num_before = 0
            self._pause = 1.0
            self._changed.notify_all()

    def _note_away(self, error: StoreAwayError) -> None:
        """Say so once, then wait before the next try."""
        with self._changed:
            self._away = error
            if not self._num_before:
                self._num_before = self._num_delivered + 1
                logger.warning(
                    masked(
                        f"{error.reason}; the run continues, and what it logs is kept in "
                        f"{self.folder} until it can be delivered"
                    )
                )
            self._changed.notify_all()
            hopeless = isinstance(error, StoreDeniedError)
            self._changed.wait_for(
                lambda: self._closed or self._hurry, None if hopeless else self._pause
            )
            if self._hurry:
                self._changed.wait_for(lambda: self._closed, 0.5)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _keep_refused(self, entry: Entry, error: TrackingError) -> None:
        """Put aside what the store will never take; say so once."""
        path = self.folder / REFUSED
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, "reason": str(error)}) + "\n")
        if not self._has_refused:
            logger.warning(masked(f"{error}; what the tracking store refuses is kept in {path}"))
        self._has_refused = True


def undelivered(folder: Path) -> list[Entry]:
    """Return the entries in the folder of a run, in which no process works, that are left."""
    entries = _read(folder)
    return entries[_num_delivered(folder, len(entries)) :]


def _num_delivered(folder: Path, num_entries: int) -> int:
    """Return how many entries are delivered; too few do no harm, and too many would lose some."""
    path = folder / DELIVERED
    text = path.read_bytes()[:10] if path.exists() else b""
    number = int(text) if text.isdigit() else 0
    if number > num_entries:  # the file of the entries was cut off
        with writing(path):
            path.write_text(str(num_entries))
    return min(number, num_entries)


def _read(folder: Path) -> list[Entry]:
    """Read all entries; one that a kill or a full disk cut off is removed from the file.

    A line that is damaged, as by a bad disk, becomes an entry of the kind `DAMAGED`.
    """
    path = folder / OUTBOX
    if not path.exists():
        return []
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        os.truncate(path, len(whole) + 1 if whole else 0)
    return [_entry_of(line, folder) for line in whole.split(b"\n") if line]


def _entry_of(line: bytes, folder: Path) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if isinstance(entry, dict) and {"kind", "run", "time"} <= entry.keys():
        return entry
    text = line.decode(errors="replace")
    return {"kind": DAMAGED, "run": folder.name, "time": 0, "line": text}
