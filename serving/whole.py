"""Files that appear whole or not at all, also if the power fails."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.disk import writing


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under; it becomes `path` if the block ends well.

    Otherwise what was written is removed, and what stood at `path` stays.

    Raises:
        StorageError: the operating system refuses.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            yield partial
            sync(partial)  # or a power cut may leave the new name with nothing in it
            partial.replace(path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


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
