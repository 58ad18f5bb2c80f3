"""Files and folders that appear whole or not at all, also if the power fails."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from serving.errors import DermalyzeError, StorageError
from serving.os_errors import make_folder, writing

if sys.platform != "win32":
    import fcntl

PARTIAL = ".partial"  # the end of the name of what is not whole yet


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under; it becomes `path` if the block ends well.

    Otherwise what was written is removed, and what stood at `path` stays.  Of several processes
    that write it at once, each waits for the one before.

    Raises:
        StorageError: the operating system refuses.
    """
    partial = path.with_name(path.name + PARTIAL)
    with writing(path), held(partial, lambda: os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)):
        try:
            yield partial
            sync(partial)  # or a power cut may leave the new name with nothing in it
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def whole_folder(path: Path, *, keep: bool = True, wait: bool = False) -> Iterator[Path]:
    """Yield a folder to write files into; it becomes `path` if the block ends well.

    Otherwise, and after a kill, the files at `path` are those from before.  A kill between the two
    renames at the end leaves nothing there; the next call puts back what was.  A folder that cannot
    be replaced (a mount, the current one, somebody else's, one with folders in it, one in a folder
    that cannot be written) gets the files one by one at the end: only a kill then leaves some.

    Args:
        path: the folder, there or not.
        keep: whether what it holds stays, unless the block deletes or replaces it.  The files in
            the yielded folder are the same ones: replace them as `whole_file` does, never in place.
        wait: for another process that writes the folder, instead of an error.

    Raises:
        StorageError: the operating system refuses, or another process writes the folder.
    """
    place = path.resolve()
    with writing(path), ExitStack() as stack:
        make_folder(place.parent)
        is_movable = _is_movable(place)
        own = place.with_name(f".{place.name}{PARTIAL}") if is_movable else place / PARTIAL
        made, earlier = own / "new", own / "earlier"
        try:
            stack.enter_context(held(own, lambda: _open_folder(own), wait=wait))
        except BlockingIOError as error:
            raise StorageError(
                f"cannot write {path}: another process is writing it; wait for that one, or name "
                "another folder"
            ) from error
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        if earlier.exists() and not place.exists():
            earlier.rename(place)
        shutil.rmtree(made, ignore_errors=True)  # a kill has left it
        made.mkdir(parents=True)
        if keep and place.exists():
            _link_files(place, made)
        try:
            yield made
        except DermalyzeError as error:
            error.args = (str(error).replace(str(made), str(path)),)
            raise
        sync(made)
        if is_movable:
            _exchange(made, place, earlier)
        else:
            _move_files(made, place)
        sync(place.parent if is_movable else place)


@contextmanager
def held(path: Path, opened: Callable[[], int], *, wait: bool = True) -> Iterator[None]:
    """Keep other processes out of a file or folder within the block, which may move or delete it.

    Raises:
        BlockingIOError: another process is in, and this one is not to wait.
    """
    if sys.platform == "win32":  # what is open there can be neither moved nor deleted
        yield
        return
    while True:
        descriptor = opened()
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise
            except OSError:  # a file system without locks
                pass
            if _is_at(descriptor, path):  # else its holder has moved or deleted it
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _open_folder(path: Path) -> int:
    """Make a folder, unless it is there, and open it."""
    while True:
        with suppress(FileExistsError):
            path.mkdir()
        with suppress(FileNotFoundError):  # whose process has ended in this moment
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _is_movable(place: Path) -> bool:
    if not os.access(place.parent, os.W_OK):
        return False
    if not place.exists():
        return True
    is_ours = os.name == "nt" or place.stat().st_uid == os.geteuid()
    try:
        has_folders = any(file.is_dir() for file in place.iterdir() if file.name != PARTIAL)
    except FileNotFoundError:  # another process is replacing it
        return True
    return is_ours and not has_folders and not place.is_mount() and place != Path.cwd()


def _link_files(place: Path, made: Path) -> None:
    """Put the same files into another folder, without their bytes where that is possible."""
    for file in place.iterdir():
        if not file.is_dir():
            try:
                os.link(file, made / file.name, follow_symlinks=False)
            except OSError:  # some file systems have none
                shutil.copy2(file, made / file.name, follow_symlinks=False)
    shutil.copystat(place, made)
    if os.name != "nt":
        with suppress(OSError):
            os.chown(made, -1, place.stat().st_gid)


def _exchange(made: Path, place: Path, earlier: Path) -> None:
    """Put a folder in the place of another, which comes back if that cannot be."""
    shutil.rmtree(earlier, ignore_errors=True)
    if place.exists():
        place.rename(earlier)
    try:
        made.rename(place)
    except OSError:
        if earlier.exists():
            earlier.rename(place)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _move_files(made: Path, place: Path) -> None:
    """Give one folder the files of another."""
    for file in place.iterdir():
        if not file.is_dir() and not os.path.lexists(made / file.name):
            file.unlink()
    for file in made.iterdir():
        file.replace(place / file.name)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders, and needs this less
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
