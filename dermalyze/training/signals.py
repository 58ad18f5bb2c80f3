"""Ctrl-C as a question that the loop may answer at a good moment."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether a signal has asked the loop to stop."""

    number = 0  # of the signal; 0: none has come

    def __call__(self) -> bool:
        """Say whether to stop at the next good moment."""
        return self.number != 0


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the block, Ctrl-C or a request to terminate only makes the yielded request true.

    A second one ends the program at once.  Outside the main thread nothing is changed.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop():
            raise KeyboardInterrupt
        stop.number = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
