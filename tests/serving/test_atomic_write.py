"""Files appear whole or not at all, whatever ends the writing."""

import errno
import itertools
import os
import signal

import pytest

from serving.atomic_write import whole_file, whole_folder, write_text
from serving.errors import StorageError


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


OLD = {"report.html": "old", "numbers.json": "old", "extra.csv": "old", "mine.txt": "mine"}
NEW = {"report.html": "new", "numbers.json": "new", "mine.txt": "mine"}
CALLS = ("rename", "replace", "link", "mkdir", "unlink", "rmdir", "fsync", "open")


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def write_new(place):
    with whole_folder(place) as folder:
        write_text(folder / "report.html", "new")
        write_text(folder / "numbers.json", "new")
        (folder / "extra.csv").unlink(missing_ok=True)


def killed_at(number, place):
    """Write the folder in another process, which is killed before a call; say whether it was."""
    child = os.fork()
    if child == 0:
        calls = itertools.count(1)

        def counted(real):
            def call(*arguments, **named):
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        write_new(place)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("before", [None, OLD])
def test_a_folder_is_old_or_new_whenever_its_writing_is_killed(tmp_path, before):
    after = NEW if before else {name: NEW[name] for name in ("report.html", "numbers.json")}
    num_absent = 0
    for number in itertools.count(1):
        place = tmp_path / str(number) / "evaluation"
        place.parent.mkdir()
        if before is not None:
            place.mkdir()
            for name, text in before.items():
                (place / name).write_text(text)
        if not killed_at(number, place):
            break
        if place.exists():
            assert contents(place) in (before, after)
        else:
            num_absent += 1
        with whole_folder(place):  # which tidies up
            pass
        assert contents(place) in (before or {}, after)
        assert list(place.parent.iterdir()) == [place]
    assert contents(place) == after
    assert list(place.parent.iterdir()) == [place]
    assert number > 10
    assert before is None or num_absent == 1


@pytest.mark.parametrize("why", ["current", "with a folder", "mount"])
def test_a_folder_that_cannot_be_replaced_gets_the_files(tmp_path, monkeypatch, why):
    place = tmp_path / "evaluation"
    place.mkdir()
    for name, text in OLD.items():
        (place / name).write_text(text)
    if why == "current":
        monkeypatch.chdir(place)
    elif why == "mount":
        monkeypatch.setattr(type(place), "is_mount", lambda path: path == place)
    else:
        (place / "folder").mkdir()
    number = place.stat().st_ino

    def write():
        with whole_folder(place) as folder:
            write_text(folder / "report.html", "half")
            raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(StorageError):
        write()
    assert contents(place) == OLD
    write_new(place)
    assert contents(place) == NEW
    assert place.stat().st_ino == number
    folders = [path.name for path in place.iterdir() if path.is_dir()]
    assert folders == (["folder"] if why == "with a folder" else [])


def test_what_cannot_be_written_in_a_folder_is_called_what_the_user_calls_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path.relative_to(tmp_path) / "evaluation"

    def write():
        with whole_folder(place) as folder:
            write_text(folder / "none" / "report.html", "new")

    with pytest.raises(StorageError) as caught:
        write()
    assert str(caught.value) == (
        "cannot write evaluation/none/report.html: no such file or directory; look at the disk, or "
        "name another place"
    )
