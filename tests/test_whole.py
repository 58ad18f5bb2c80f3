"""Files appear whole or not at all, whatever ends the writing."""

import os

import pytest

from serving.whole import whole_file, write_text


def test_a_text_takes_the_place_of_the_one_before(tmp_path):
    path = tmp_path / "note.txt"
    for text in ("one\n", "größer\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt, OSError])
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
