"""How much the service has to do, in this process and in those beside it."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

if sys.platform != "win32":
    import fcntl

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
            shared: a folder in which the processes of a service see which of them are busy.
        """
        self._observe = observe
        self.in_flight = 0  # in this process
        # Locked by each process with a request; the lock of one that is killed ends with it.
        self._busy = None
        if shared is not None and sys.platform != "win32":
            self._busy = (shared / "busy").open("a+b")
        self._last_together = -_CALM_SECONDS  # seconds of the clock, when several were seen

    def add(self, change: int) -> None:
        """Count a request that has come, or one that has been answered."""
        self.in_flight += change
        self._mark()
        self._observe(self.in_flight)

    def is_alone(self) -> bool:
        """Say whether the one request in flight may have every core, as for a while it was so."""
        now = time.monotonic()
        if self.in_flight > 1 or self._others_are_busy():
            self._last_together = now
        return now - self._last_together >= _CALM_SECONDS

    def _others_are_busy(self) -> bool:
        if self._busy is None:
            return False
        try:
            fcntl.lockf(self._busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        self._mark()
        return False

    def _mark(self) -> None:
        if self._busy is not None:
            kind = fcntl.LOCK_SH | fcntl.LOCK_NB if self.in_flight else fcntl.LOCK_UN
            with contextlib.suppress(OSError):  # another one asks: without the lock this is slower
                fcntl.lockf(self._busy, kind)
