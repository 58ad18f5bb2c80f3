"""What the operating system refuses, as a sentence: full disks, read-only folders, wrong names."""

import errno
import os
import select
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.errors import StorageError

if sys.platform != "win32":
    import fcntl

_ELSEWHERE = "name a place that can be written to"
_REMEDIES = {
    errno.ENOSPC: "make room or name another place",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "a file is where a folder is needed; name another place",
    errno.ENOTDIR: "a file is where a folder is needed; name another place",
    errno.EISDIR: "a folder is where a file is needed; name another place",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}
_SLACK = 2**16  # bytes: files take whole blocks
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PIPE_SECONDS = 60.0  # until all is there that a pipe or a device gives
_PIECE = 2**20  # bytes of it that are read at once
_PREFIX = "dermalyze-"  # of temporary folders
_LOCK = "lock"  # in each: locked as long as its process lives


def reason_of(error: OSError) -> str:
    """Return an operating system's reason in lower case words."""
    if error.errno in _FULL:
        return "no space left"
    return (error.strerror or str(error) or "unknown reason").lower()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence why a file or folder cannot be written, if the block fails at that.

    Raises:
        StorageError: the operating system refuses.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one sentence why a file or folder cannot be read or looked up.

    Raises:
        StorageError: the operating system refuses.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {reason_of(error)}; name one that can be read"
        ) from error


def read_bounded(path: Path, most: int) -> bytes:
    """Return what is in a file, a pipe or a device, which may have no end or give nothing.

    Args:
        path: the file.
        most: bytes.

    Raises:
        OSError: it cannot be read, holds more, or is not whole within a minute.
    """
    status = path.stat()
    is_file = stat.S_ISREG(status.st_mode)
    if is_file and status.st_size > most:
        raise OSError(None, f"{status.st_size:,} bytes, where at most {most:,} are expected")
    if is_file or os.name == "nt":
        return path.read_bytes()
    found, end = bytearray(), time.monotonic() + _PIPE_SECONDS
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else opening waits for a writer
    try:
        while (left := end - time.monotonic()) > 0 and select.select([descriptor], [], [], left)[0]:
            if not (piece := os.read(descriptor, _PIECE)):
                return bytes(found)
            found += piece
            if len(found) > most:
                raise OSError(None, f"more than the {most:,} bytes that are expected")
    finally:
        os.close(descriptor)
    raise OSError(errno.ETIMEDOUT, f"it did not end within {_PIPE_SECONDS:.0f} seconds")


def cannot_write(path: Path, error: OSError) -> StorageError:
    """Return the error that says why, and what to do."""
    number = errno.ENOSPC if error.errno in _FULL else error.errno
    remedy = _REMEDIES.get(number or 0, "look at the disk, or name another place")
    return StorageError(f"cannot write {path}: {reason_of(error)}; {remedy}")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        StorageError: it cannot be made.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def require_room(folder: Path, size: int) -> None:
    """Refuse what will not fit into a folder, where its writer would not say why it fails.

    Raises:
        StorageError: the disk has not so many bytes left.
    """
    if shutil.disk_usage(folder).free < size + _SLACK:
        raise cannot_write(folder, OSError(errno.ENOSPC, "no room"))


@contextmanager
def writing_temporary_files() -> Iterator[None]:
    """Do for the system's folder of temporary files what `writing` does for a path."""
    try:
        yield
    except OSError as error:
        # A new process has not looked for the folder yet, and would not choose one that is full.
        place = tempfile.tempdir or os.environ.get("TMPDIR") or "a temporary folder"
        raise StorageError(
            f"cannot write to {place}: {reason_of(error)}; make room there or set TMPDIR to "
            "another folder"
        ) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that lives as long as the block.

    Raises:
        StorageError: it cannot be made, or what the block writes finds no room there.
    """
    with writing_temporary_files(), owned_folder() as folder:
        yield folder


@contextmanager
def owned_folder() -> Iterator[Path]:
    """Yield a temporary folder; if its process is killed, the next one of ours deletes it.

    Raises:
        OSError: it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name) / "files"
        folder.mkdir()
        if sys.platform == "win32":
            yield folder
            return
        for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
            with suppress(OSError), lock.open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it: killed
                shutil.rmtree(lock.parent)
        with (folder.parent / "new").open("xb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            (folder.parent / "new").rename(folder.parent / _LOCK)  # never there without being held
            yield folder
