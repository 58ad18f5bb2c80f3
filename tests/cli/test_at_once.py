"""Two processes that write one folder or file at once: each result appears whole, or not at all."""

import json
import subprocess
import sys

import pytest
from simulated import THREE, simulate
from tiny_model import TINY_ONNX

from dermalyze.evaluation.predictions import predictions_table, write_predictions, write_taxonomy
from serving.predictor import Predictor

pytestmark = pytest.mark.slow

TOLD = (
    "Error: cannot write {}: another process is writing it; wait for that one, or name another "
    "folder\n"
)
# Writes a folder or file full of one letter, again and again.
WRITER = """
import sys
from pathlib import Path
from serving.errors import StorageError
from serving.atomic_write import whole_file, whole_folder
place, kind, letter = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for _ in range(50):
    try:
        if kind == "file":
            with whole_file(place) as path, path.open("w") as file:
                for _ in range(20):
                    file.write(letter * 500)
                    file.flush()
            continue
        with whole_folder(place) as folder:
            for number in range(20):
                (folder / str(number)).unlink(missing_ok=True)
                (folder / str(number)).write_text(letter)
    except StorageError as error:
        assert str(error) == (
            f"cannot write {place}: another process is writing it; wait for that one, or name "
            "another folder"
        ), error
"""


def started(*words, cwd=None):
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("kind", ["file", "folder", "folder with a folder"])
def test_writers_never_mix(tmp_path, kind):
    place = tmp_path / "place"
    if kind == "folder with a folder":  # which cannot be replaced as a whole
        (place / "inside").mkdir(parents=True)
    writers = [started("-c", WRITER, place, kind, letter) for letter in "abc"]
    for writer in writers:
        errors = writer.communicate()[1]
        assert writer.returncode == 0, errors
    files = [place] if kind == "file" else [path for path in place.iterdir() if path.is_file()]
    assert len(files) == (1 if kind == "file" else 20)
    texts = {path.read_text() for path in files}
    assert len(texts) == 1
    assert len(set(texts.pop())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert not list(place.glob("*.partial"))


def tables(folder):
    """Write predictions of two models; their reports differ in every number."""
    for name, num_lesions in (("few", 60), ("many", 90)):
        images = simulate(num_lesions, seed=1, shares=THREE)
        (folder / name).mkdir()
        table = predictions_table(images.table, images.logits, images.taxonomy)
        write_predictions(folder / name / "predictions.csv", table)
        write_taxonomy(folder / name, images.taxonomy)


def test_of_two_reports_in_one_folder_one_is_whole_and_the_other_is_told(tmp_path):
    tables(tmp_path)
    told = 0
    for _ in range(3):
        commands = [
            started(
                *("-m", "dermalyze", "report", "--predictions", f"{name}/predictions.csv"),
                cwd=tmp_path,
            )
            for name in ("few", "many")
        ]
        for command in commands:
            errors = command.communicate()[1]
            if command.returncode:
                assert errors == TOLD.format("report")
                told += 1
        report = tmp_path / "report"
        summary = json.loads((report / "evaluation_metrics.json").read_text())
        rows = (report / "predictions.csv").read_text().splitlines()
        judged = json.loads((report / "judgement.json").read_text())
        assert summary["num_images"] == judged["num_images"] == len(rows) - 1
        assert f"{summary['num_images']} images" in (report / "report.html").read_text()
        assert not list(tmp_path.glob(".report*"))
    assert told < 6


def test_of_two_pages_in_one_folder_one_is_whole_and_the_other_is_told(rich, tmp_path):
    for _ in range(3):
        commands = [
            started(
                "-m", "dermalyze", "export-web", "--model", model, "--output", "page", cwd=tmp_path
            )
            for model in (TINY_ONNX, rich)
        ]
        for command in commands:
            errors = command.communicate()[1]
            assert errors in ("", TOLD.format("page"))
        page = tmp_path / "page"
        spec = json.loads((page / "spec.json").read_text())
        assert spec == json.loads(Predictor(page / "model.onnx").spec.to_json())
        assert {path.name for path in page.iterdir()} == {
            *json.loads((page / "dermalyze.json").read_text())["files"]
        }
        assert [path.name for path in tmp_path.iterdir()] == ["page"]
