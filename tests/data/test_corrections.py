"""Reviewed labels, read back with the data."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from dermalyze.config.schema import DataConfig
from dermalyze.data.preparation import prepare
from serving.errors import DataError

HEADER = "image_id,label,corrected_label\n"


@pytest.fixture
def folder(tmp_path):
    """Six images of five lesions: L1 has two."""
    folder = tmp_path / "data"
    folder.mkdir()
    lesions = ("L1", "L1", "L2", "L3", "L4", "L5")
    lines = ["image_id,label,lesion_id"]
    for number, lesion in enumerate(lesions, start=1):
        name = f"IMG{number}"
        Image.new("RGB", (40, 40), (40 * number, 90, 200 - 30 * number)).save(
            folder / f"{name}.png"
        )
        lines.append(f"{name},{'mel' if number < 4 else 'nv'},{lesion}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def corrected(folder, text):
    path = folder.parent / "review.csv"
    path.write_text(HEADER + text)
    settings = DataConfig(image_size=16, corrections=str(path), allow_problems=True)
    return prepare(folder, settings)


def labels(prepared):
    return dict(zip(prepared.manifest["image_id"], prepared.manifest["label"], strict=True))


def test_a_reviewed_label_is_the_label_and_a_row_without_one_changes_nothing(folder):
    plain = prepare(folder, DataConfig(image_size=16, allow_problems=True))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    same = corrected(folder, "IMG3,mel,\n")
    assert labels(same) == labels(plain)
    assert same.fingerprint == plain.fingerprint
    found = corrected(folder, "IMG3,mel,nv\nIMG4,nv,\n")
    assert labels(found) == labels(plain) | {"IMG3": "nv"}
    assert found.fingerprint != plain.fingerprint
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    audit = json.loads((folder / "prepared" / "audit.json").read_text())
    problems = {problem["kind"]: problem["items"] for problem in audit["problems"]}
    assert problems["corrected"] == ["IMG3"]


def test_an_excluded_image_is_left_out_and_named(folder):
    found = corrected(folder, "IMG3,mel,exclude\n")
    assert sorted(labels(found)) == ["IMG1", "IMG2", "IMG4", "IMG5", "IMG6"]
    assert len(found.store) == 5
    (problem,) = [p for p in found.audit.problems if "IMG3" in p.items]
    assert problem.meaning == "images were excluded by data.corrections"


def test_the_other_images_of_a_lesion_follow_unless_they_have_a_correction_of_their_own(folder):
    assert labels(corrected(folder, "IMG1,mel,nv\n"))["IMG2"] == "nv"
    assert labels(corrected(folder, "IMG1,mel,nv\nIMG2,mel,\n"))["IMG2"] == "nv"
    assert "IMG2" not in labels(corrected(folder, "IMG1,mel,nv\nIMG2,mel,exclude\n"))
    assert labels(corrected(folder, "IMG1,mel,exclude\n"))["IMG2"] == "mel"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "IMG9,mel,nv\n",
            "{path} corrects image 'IMG9', which is not in {folder}; pass the folder that was "
            "reviewed, or remove the row",
        ),
        (
            "IMG3,nv,mel\n",
            "{path} says that image 'IMG3' has the label 'nv', but the data says 'mel'; review the "
            "data as it is now, or remove the row",
        ),
        (
            "IMG3,mel,naevus\n",
            "{path} corrects image 'IMG3' to 'naevus'; expected one of mel, nv, or exclude",
        ),
        (
            "IMG3,mel,nv\nIMG3,mel,exclude\n",
            "{path} has two different corrections of image 'IMG3'; keep one of the rows",
        ),
    ],
)
def test_corrections_that_do_not_fit_the_data_are_one_sentence(folder, text, message):
    with pytest.raises(DataError) as caught:
        corrected(folder, text)
    path = folder.parent / "review.csv"
    assert str(caught.value) == message.format(path=path, folder=folder)


def test_a_file_that_is_missing_or_of_another_form_is_one_sentence(folder, tmp_path):
    path = tmp_path / "review.csv"
    settings = DataConfig(image_size=16, corrections=str(path))
    with pytest.raises(DataError) as caught:
        prepare(folder, settings)
    assert str(caught.value) == f"cannot read {path}: No such file or directory"
    path.write_text("image_id,label\nIMG3,mel\n")
    with pytest.raises(DataError) as caught:
        prepare(folder, replace(settings))
    assert str(caught.value) == (
        f"{path} lacks the columns corrected_label; it has image_id, label"
    )


def test_a_name_that_a_spreadsheet_would_run_is_read_as_it_was(folder):
    """As `data-issues` writes it, with an apostrophe."""
    (folder / "IMG3.png").rename(folder / "-3.png")
    text = (folder / "labels.csv").read_text().replace("IMG3", "-3")
    (folder / "labels.csv").write_text(text)
    assert pd.Series(labels(corrected(folder, "'-3,mel,nv\n")))["-3"] == "nv"
