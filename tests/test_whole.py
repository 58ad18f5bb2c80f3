"""Files appear whole or not at all, whatever ends the writing."""

import errno
import os

import pytest

from serving.errors import StorageError
from serving.whole import whole_file, write_text


def test_a_text_takes_the_place_of_the_one_before(tmp_path):
    path = tmp_path / "note.txt"
    for text in ("one\n", "größer\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "the old one"])
def test_what_does_not_end_well_leaves_what_was_there(tmp_path, end, before):
    path = tmp_path / "note.txt"
    if before is not None:
        path.write_text(before)

    def write():
        with whole_file(path) as partial:
            partial.write_text("half of it")
            raise end

    with pytest.raises(end):
        write()
    left = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert left == ({} if before is None else {"note.txt": before})


def test_nothing_stands_there_before_the_end(tmp_path):
    path = tmp_path / "note.txt"
    with whole_file(path) as partial:
        partial.write_text("half of it")
        assert not path.exists()
    assert path.read_text() == "half of it"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_so_is_the_name(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    synced = []

    def fsync(descriptor):
        number = os.fstat(descriptor).st_ino
        synced.append((number, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "text")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


REFUSED = {
    errno.ENOSPC: "no space left; make room or name another place",
    errno.EFBIG: "no space left; make room or name another place",
    errno.EACCES: "permission denied; name a place that can be written to",
    errno.EROFS: "read-only file system; name a place that can be written to",
    errno.EIO: "input/output error; look at the disk, or name another place",
}


@pytest.mark.parametrize(("number", "why"), REFUSED.items())
def test_what_the_system_refuses_is_one_sentence_and_leaves_what_was_there(tmp_path, number, why):
    path = tmp_path / "note.txt"
    path.write_text("the old one")

    def write():
        with whole_file(path) as partial:
            partial.write_text("half of it")
            raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError) as caught:
        write()
    assert str(caught.value) == f"cannot write {path}: {why}"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "note.txt": "the old one"
    }


def test_names_that_cannot_be_are_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    long = "n" * 300
    elsewhere = "; name another place"
    for path, why in {
        tmp_path / long: "file name too long; choose a shorter name",
        tmp_path / "file" / "a": f"not a directory; a file is where a folder is needed{elsewhere}",
        tmp_path / "folder": f"is a directory; a folder is where a file is needed{elsewhere}",
        tmp_path / "none" / "a": "no such file or directory; look at the disk, or name another "
        "place",
    }.items():
        with pytest.raises(StorageError) as caught:
            write_text(path, "text")
        assert str(caught.value) == f"cannot write {path}: {why}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
