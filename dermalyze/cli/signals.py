"""Ctrl-C and SIGTERM: a command ends within two seconds, whatever it is doing."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_MOST_SECONDS = 1.9  # for putting things in order; two are promised
_IMPORT_SECONDS = 0.5  # for an import that is under way
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has come that ends the command."""

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0: none has come
        self._is_raised = False
        self._is_ours = False  # the signal that comes next

    def take(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the command, once no import is under way; a second signal ends it at once.

        A library that is being imported may swallow the interruption, or abort with a C++ trace.
        """
        if self._is_raised and not self._is_ours:
            end(self.number)
        self._is_ours = False
        if not self.number:
            self.number = number
            threading.Thread(target=self._insist, daemon=True).start()
        if not (self._is_raised or _is_importing(frame)):
            self._is_raised = True
            raise KeyboardInterrupt

    def _insist(self) -> None:
        """Ask again until the import is over; a command that has not ended by then is ended.

        Something may hold it up that nothing interrupts, as a thread that waits for a pipe.
        """
        start = time.monotonic()
        while time.monotonic() - start < (_MOST_SECONDS if self._is_raised else _IMPORT_SECONDS):
            time.sleep(0.05)
            if not self._is_raised:
                self._is_ours = True
                signal.raise_signal(self.number)  # for the main thread
        end(self.number)


def end(number: int, _: FrameType | None = None) -> None:
    """End this process as a signal does, with a line on stderr."""
    os.write(2, b"Error: stopped\n")
    os._exit(128 + number)


@contextmanager
def ended_by_signals() -> Iterator[Stop]:
    """Let signals end the block as the first line says; outside the main thread nothing changes."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # A program in the background of a script, or under nohup, ignores signals on purpose.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number in SIGNALS if before[number] != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop.take)
    try:
        yield stop
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
