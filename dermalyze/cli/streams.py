"""Standard output and error of the command line: where log lines go, closed pipes, full disks.

Results that cannot be printed end the command.  Progress that cannot be printed ends nothing: a
training of hours is worth more than its lines.  Once there is room, lines are printed again.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from dermalyze.credentials import masked
from serving.errors import StorageError
from serving.os_errors import reason_of


class ReaderGoneError(Exception):
    """Whoever read standard output has closed it, as `head` does."""


class _Stream:
    """A text stream that says in one sentence why it cannot be written."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        if text != "":  # nothing is what click writes to see whether this is a text stream
            with self._writing():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Send what was written."""
        with self._writing():
            self._stream.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._name == "stderr":  # later lines may find room
                return
            # What is left in the buffer would fail once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise ReaderGoneError from error
            raise StorageError(
                f"cannot write to standard output: {reason_of(error)}; make room, or send it "
                "elsewhere"
            ) from error


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Let standard output and error fail as this module's first lines say, within the block."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in before.items():
        if stream is not None:  # as it is where the caller has closed it
            setattr(sys, name, _Stream(stream, name))
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)


class _Lines(logging.Handler):
    """Hands each record on as one line; a warning begins with `warning: `."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        self._show(f"{prefix}{record.getMessage()}")


def to_stderr(line: str) -> None:
    """Print progress or a warning."""
    click.echo(masked(line), err=True)


@contextmanager
def log_lines(show: Callable[[str], None] = to_stderr) -> Iterator[None]:
    """Show what dermalyze's modules log, from progress upwards, within the block."""
    logger, handler = logging.getLogger("dermalyze"), _Lines(show)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
