"""Results that nobody reads on, or that find no room, end a command in one sentence or none."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dermalyze.cli.streams import log_lines

MODEL = Path(__file__).parents[1] / "support" / "old_files" / "tiny.onnx"
FULL = Path("/dev/full")
NO_ROOM = "Error: cannot write to standard output: no space left; make room, or send it elsewhere\n"

needs_full = pytest.mark.skipif(not FULL.exists(), reason="a full device is Linux's")


def start(*words, **streams):
    return subprocess.Popen(
        [sys.executable, "-m", "dermalyze", *map(str, words)], text=True, **streams
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(40):
        Image.new("RGB", (20, 20), (number, 90, 60)).save(folder / f"{number}.png")
    return folder


@needs_full
def test_a_full_disk_behind_standard_output_is_one_sentence():
    with FULL.open("w") as full:
        process = start("--help", stdout=full, stderr=subprocess.PIPE)
        assert process.communicate() == (None, NO_ROOM)
    assert process.returncode == 1


@needs_full
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "json", "csv"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_answers_that_find_no_room_are_one_sentence(images, kind, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with FULL.open("w") as full:
        words = ("predict", images, "--model", MODEL, "--format", kind)
        process = start(*words, stdout=full, stderr=subprocess.PIPE)
        assert process.communicate() == (None, NO_ROOM)
    assert process.returncode == 1


@needs_full
@pytest.mark.slow
def test_progress_that_finds_no_room_ends_nothing(images):
    with FULL.open("w") as full:
        words = ("predict", images, "--model", MODEL, "--format", "csv", "--threads", "1")
        process = start(*words, stdout=subprocess.PIPE, stderr=full)
        table, _ = process.communicate()
    assert process.returncode == 0
    assert table.count("\n") == 41


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_reader_that_leaves_ends_the_command_without_a_word(images, kind):
    process = start(
        *("predict", images, "--model", MODEL, "--format", kind),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()  # before the first line: nothing may stand in a pipe's buffer
    assert process.stderr.read() == ""
    assert process.wait() == 141  # what a shell shows for a program that SIGPIPE ended


@pytest.mark.slow
def test_a_command_without_standard_output_still_runs(images):
    words = [sys.executable, "-m", "dermalyze", "predict", str(images), "--model", str(MODEL)]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *words], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_logged_is_a_line_on_standard_error_and_a_warning_has_its_word(capsys):
    logger = logging.getLogger("dermalyze.workflows.train")
    with log_lines():
        logger.debug("nobody asked")
        logger.info("epoch 1/2")
        logger.warning("see http://user:secret@host")
    logger.info("after the command")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "epoch 1/2\nwarning: see http://user:***@host\n"
