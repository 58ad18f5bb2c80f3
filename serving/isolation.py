"""Work in a process of its own: it has a time limit, and ends when nobody waits for it any more."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from serving.errors import DermalyzeError

Result = TypeVar("Result")
_POLL_SECONDS = 0.1  # between two looks whether somebody still waits


def isolated(
    work: Callable[..., Result],
    *arguments: Any,
    seconds: float = math.inf,
    given_up: threading.Event | None = None,
) -> Result:
    """Return `work(*arguments)`, computed in a new process.

    Args:
        work: a function of a module; what it takes and returns must be picklable.
        arguments: what it gets.
        seconds: how long to wait, the start of the process included.
        given_up: set, from another thread, when nobody waits any more.

    Raises:
        DermalyzeError: as `work` does.
        TimeoutError: the time is over.
        ChildProcessError: the process died, as it does when memory runs out, or was given up.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_work, args=(theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        end = time.monotonic() + seconds
        while not ours.poll(_POLL_SECONDS):
            if time.monotonic() > end:
                raise TimeoutError
            if given_up is not None and given_up.is_set():
                raise ChildProcessError("given up")
        found = ours.recv()
    except EOFError as error:
        process.join()
        raise ChildProcessError(f"exit code {process.exitcode}") from error
    finally:  # also when a signal ends the waiting
        process.kill()
        process.join()
        ours.close()
    if isinstance(found, DermalyzeError):
        raise found
    result: Result = found
    return result


def end_with_parent(sign: int | None = None) -> None:
    """End this process when the one that started it is gone, even if that was killed.

    Args:
        sign: a signal to send to this process then; None: it ends at once.
    """
    parent = multiprocessing.parent_process()
    if parent is None:  # a command of the user, who ends it
        return

    def wait() -> None:
        parent.join()
        if sign is None:
            os._exit(1)
        os.kill(os.getpid(), sign)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _work(answers: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who wait, who then end us
    found: Any
    try:
        found = work(*arguments)
    except DermalyzeError as error:
        found = error
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more
        answers.send(found)
