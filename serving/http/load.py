"""How much the service has to do, in this process and in those beside it."""

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

_COUNT = struct.Struct("<q")
_SLOTS = 256  # processes that may come and go in the life of a service
_CALM_SECONDS = 0.5


class Load:
    """Requests with a body, from its last byte to their answer.

    One whose body is still coming takes little memory and no core; so that slow clients keep
    nobody out, it is not among them.
    """

    def __init__(
        self, observe: Callable[[int], None] = lambda in_flight: None, shared: Path | None = None
    ) -> None:
        """Begin with none.

        Args:
            observe: told the number in this process when it changes.
            shared: a folder in which the processes of a service tell each other theirs.
        """
        self._observe = observe
        self.in_flight = 0  # in this process
        self._counts = _open_counts(shared) if shared is not None else None
        self._slot = _claim_slot(shared) if shared is not None else 0
        self._last_together = -_CALM_SECONDS  # seconds of the clock, when several were seen

    def add(self, change: int) -> None:
        """Count a request that has come, or one that has been answered."""
        self.in_flight += change
        if self._counts is not None:
            _COUNT.pack_into(self._counts, self._slot * _COUNT.size, self.in_flight)
        self._observe(self.in_flight)

    def is_alone(self) -> bool:
        """Say whether the one request in flight may have every core, as for a while it was so."""
        now = time.monotonic()
        if self._everywhere() > 1:
            self._last_together = now
        return now - self._last_together >= _CALM_SECONDS

    def _everywhere(self) -> int:
        if self._counts is None:
            return self.in_flight
        return sum(count for (count,) in _COUNT.iter_unpack(self._counts[:]))


def _open_counts(folder: Path) -> mmap.mmap:
    """Map the file in which each process has a place of its own."""
    with contextlib.suppress(FileExistsError), (folder / "load").open("xb") as file:
        file.write(bytes(_SLOTS * _COUNT.size))
    with (folder / "load").open("r+b") as file:
        os.truncate(file.fileno(), _SLOTS * _COUNT.size)  # another process may not be so far yet
        return mmap.mmap(file.fileno(), _SLOTS * _COUNT.size)


def _claim_slot(folder: Path) -> int:
    for slot in range(_SLOTS):
        with contextlib.suppress(FileExistsError):
            (folder / f"load-{slot}").open("xb").close()
            return slot
    return _SLOTS - 1  # shared with others then: it costs speed, nothing else
