"""Files, pipes and devices that users name: never waited for, nor read, without an end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_model import TINY_ONNX

from dermalyze.cli.main import main
from serving import os_errors, table_files
from serving.os_errors import read_bounded

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")

ZERO = Path("/dev/zero")
# Writes a byte again and again.
DRIP = "import sys, time\nwhile True: sys.stdout.write('x'); sys.stdout.flush(); time.sleep(0.02)"


@pytest.fixture
def pipe(tmp_path):
    """A pipe that nobody writes to."""
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    return path


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.png"
    Image.new("RGB", (20, 10)).save(path)
    return path


@pytest.fixture
def hurry(monkeypatch):
    """A bound on pipes that tests can wait for."""
    monkeypatch.setattr(os_errors, "_PIPE_SECONDS", 0.3)


def test_what_a_pipe_gives_is_read_to_its_end(tmp_path):
    data = os.urandom(3 * 2**20)
    (tmp_path / "data").write_bytes(data)
    with subprocess.Popen(["cat", tmp_path / "data"], stdout=subprocess.PIPE) as writer:
        assert read_bounded(Path(f"/dev/fd/{writer.stdout.fileno()}"), len(data)) == data


def test_a_device_without_an_end_and_a_file_too_large_are_refused(tmp_path):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**40)
    for path, why in {
        ZERO: "more than the 1,000,000 bytes that are expected",
        large: "1,099,511,627,776 bytes, where at most 1,000,000 are expected",
    }.items():
        with pytest.raises(OSError, match=f"^.*{why}$"):
            read_bounded(path, 1_000_000)


def test_a_pipe_that_gives_nothing_or_drips_is_given_up(pipe, hurry):
    with subprocess.Popen([sys.executable, "-c", DRIP], stdout=subprocess.PIPE) as writer:
        for path in (pipe, Path(f"/dev/fd/{writer.stdout.fileno()}")):
            with pytest.raises(OSError, match=r"^.*it did not end within 0 seconds$"):
                read_bounded(path, 1_000_000)
        writer.kill()


def test_every_command_says_of_such_a_file_that_it_cannot_be_read(
    tmp_path, pipe, photograph, hurry, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table_files, "MAX_TABLE_BYTES", 1_000_000)
    table = "expected a CSV with image_id and any of age, sex, localization"
    end = "it did not end within 0 seconds"
    config = "more than the 1,048,576 bytes that are expected"
    plugin = tmp_path / "plugin.py"
    os.mkfifo(plugin)
    predict = ("predict", photograph, "--model", TINY_ONNX)
    for words, said in {
        (*predict, "--metadata", ZERO): f"cannot read {ZERO}: more than the "
        f"1,000,000 bytes that are expected; {table}",
        (*predict, "--metadata", pipe): f"cannot read {pipe}: {end}; {table}",
        ("predict", "--model", TINY_ONNX, "--one-lesion", pipe): "image 1 of 1: cannot "
        f"read {pipe}: {end}",
        ("predict", photograph, "--model", pipe): f"no model at {pipe}; create one with "
        "`dermalyze export-onnx`",
        ("train", "--config", ZERO): f"cannot read the config file {ZERO}: {config}",
        ("train", "--config", pipe): f"cannot read the config file {pipe}: {end}",
        ("promote", "1", "--config", ZERO): f"cannot read the config file {ZERO}: {config}",
        ("train", "--plugin", plugin): f"model.plugins names {plugin}, which is not a file",
        ("report", "--predictions", pipe): f"cannot read {pipe}: {end}",
        ("export-web", "--model", TINY_ONNX, "--output", "web", "--runtime", pipe): "cannot read "
        f"{pipe}: {end}",
    }.items():
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert (done.output.splitlines()[-1], done.exit_code) == (f"Error: {said}", 1)
    done = CliRunner().invoke(main, ["predict", str(pipe), "--model", str(TINY_ONNX)])
    assert (done.output.splitlines()[-1], done.exit_code) == (
        "Error: 1 of 1 images could not be read",
        1,
    )


def test_pipes_among_the_images_of_a_data_folder_are_not_waited_for(tmp_path):
    images = tmp_path / "HAM10000_images_part_1"
    images.mkdir()
    Image.new("RGB", (20, 10)).save(images / "there.jpg")
    os.mkfifo(images / "pipe.jpg")
    os.mkfifo(tmp_path / "HAM10000_images_part_2.zip")
    rows = "image_id,lesion_id,dx,dx_type,age,sex,localization\n"
    rows += "".join(f"{name},{name},nv,histo,40,male,back\n" for name in ("there", "pipe"))
    (tmp_path / "HAM10000_metadata.csv").write_text(rows)
    done = CliRunner().invoke(main, ["prepare-data", "--data-dir", str(tmp_path), "--workers", "1"])
    assert done.output == (
        f"Error: {tmp_path} has 1 of 2 images missing or broken, listed in "
        f"{tmp_path}/prepared/audit.txt; fix the data, or pass --allow-problems\n"
    )


def test_folders_that_go_round_are_walked_through_once(tmp_path, photograph):
    (tmp_path / "round").symlink_to(tmp_path)
    done = CliRunner().invoke(main, ["predict", str(tmp_path), "--model", str(TINY_ONNX)])
    assert done.exit_code == 0
    assert done.output.count(photograph.name) == 1
