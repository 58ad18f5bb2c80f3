"""Files and folders in; a table, JSON or CSV out; a broken image does not lose the others."""

import csv
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import TINY_ONNX

from serving import Predictor
from serving.batch import (
    Request,
    find_images,
    find_metadata,
    left_out,
    predict_files,
    predict_one_lesion,
    read_metadata,
)
from serving.errors import (
    ArtifactError,
    ConfigError,
    DermalyzeError,
    ImageError,
    MetadataError,
    listed,
)
from serving.explanation import Explanation
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import Metadata, MetadataFields
from serving.output_formats import render
from serving.taxonomy import DISCLAIMER

FIELDS = MetadataFields(
    age_mean=52.0, age_std=17.0, sexes=("female", "male"), localizations=("back", "face", "foot")
)


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def predictor():
    return Predictor(TINY_ONNX)


@pytest.fixture
def answers(tmp_path, predictor, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(Path("a.png"), 1)
    Path("broken.jpg").write_bytes(b"junk")
    draw(Path("c, d.png"), 2)
    return list(predict_files(predictor, find_images([Path("a.png"), Path()])))


def test_folders_are_searched_to_the_bottom_and_sorted(tmp_path):
    for name in ("b.JPG", "a.png", "sub/deep/c.jpeg", ".hidden.png", ".git/d.png"):
        draw(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = [str(path.relative_to(tmp_path)) for path in find_images([tmp_path])]
    assert found == ["a.png", "b.JPG", "sub/deep/c.jpeg"]


def test_every_name_of_jpeg_is_read_and_the_other_files_are_counted_and_named(tmp_path):
    names = ("a.jpg", "b.JPEG", "c.jpe", "d.jfif", "e.pjpeg", "e.pjp", "e.png")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert {path.name for path in find_images([tmp_path])} == set(names)
    assert left_out([tmp_path, tmp_path / "a.jpg"]) == ""
    for name in "fghij":
        (tmp_path / f"{name}.webp").write_bytes(b"")
    (tmp_path / "away.jpg").symlink_to(tmp_path, target_is_directory=True)  # may go round
    assert {path.name for path in find_images([tmp_path])} == set(names)
    assert left_out([tmp_path]) == (
        "left out: 6 files that are not JPEG or PNG by name (away.jpg, f.webp, g.webp, h.webp, "
        "i.webp and 1 more)"
    )


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    draw(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):  # root may read everything
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ImageError) as caught:
        find_images([tmp_path])
    assert str(caught.value) == f"cannot read {tmp_path / 'closed'}: Permission denied"


def test_a_file_is_taken_as_given_and_once(tmp_path):
    first, second = draw(tmp_path / "z.png"), draw(tmp_path / "a.png")
    other = tmp_path / "image.dat"
    other.write_bytes(b"")
    assert find_images([first, tmp_path, other]) == [first, second, other]


def test_a_path_that_is_not_there_and_a_folder_without_images_are_named(tmp_path):
    with pytest.raises(ImageError) as caught:
        find_images([tmp_path / "none.jpg"])
    assert str(caught.value) == f"no image at {tmp_path}/none.jpg; expected a file or a folder"
    with pytest.raises(ImageError) as caught:
        find_images([tmp_path])
    expected = "expected .jpg, .jpeg, .jpe, .jfif, .pjpeg, .pjp, .png files"
    assert str(caught.value) == f"no image in {tmp_path}; {expected}"
    (tmp_path / "a.webp").write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        find_images([tmp_path])
    assert str(caught.value) == f"no image in {tmp_path}; {expected}, found a.webp"


def test_a_broken_image_does_not_lose_the_others(answers, predictor):
    assert [str(path) for path, _ in answers] == ["a.png", "broken.jpg", "c, d.png"]
    assert answers[0][1] == predictor.predict("a.png")
    assert str(answers[1][1]) == "not a JPEG or PNG image (4 bytes)"
    assert answers[2][1] == predictor.predict("c, d.png")


def test_json_is_one_object_a_line(answers):
    lines = [json.loads(line) for line in render(answers, "json", HAM10000.names)]
    assert lines[0] == {"image": "a.png", **answers[0][1].to_dict()}
    assert lines[0]["disclaimer"] == DISCLAIMER
    assert lines[1] == {"image": "broken.jpg", "error": "not a JPEG or PNG image (4 bytes)"}
    assert lines[2]["image"] == "c, d.png"


def test_csv_reads_back_with_every_probability(answers):
    rows = list(csv.DictReader(render(answers, "csv", HAM10000.names)))
    assert list(rows[0]) == [
        "image",
        "predicted_class",
        "predicted_class_description",
        "confidence",
        *(f"prob_{name}" for name in HAM10000.names),
        "error",
        "disclaimer",
    ]
    answer = answers[2][1]
    assert rows[2]["image"] == "c, d.png"
    assert rows[2]["predicted_class_description"] == answer.predicted_class_description
    for name in HAM10000.names:
        assert float(rows[2][f"prob_{name}"]) == answer.probabilities[name]
    assert {row["disclaimer"] for row in rows} == {DISCLAIMER}
    assert rows[1]["error"] == "not a JPEG or PNG image (4 bytes)"
    assert rows[1]["predicted_class"] == rows[1]["prob_nv"] == ""


def test_the_table_is_aligned_and_ends_with_the_disclaimer(answers):
    first, last = answers[0][1], answers[2][1]
    lines = list(render(answers, "table", HAM10000.names))
    width = max(len("class"), len(first.predicted_class), len(last.predicted_class))

    def row(image, label, confidence, description):
        return f"{image:<10}  {label:<{width}}  {confidence:>10}  {description}".rstrip()

    assert lines == [
        row("image", "class", "confidence", "description"),
        row(
            "a.png",
            first.predicted_class,
            f"{100 * first.confidence:.1f}%",
            first.predicted_class_description,
        ),
        row("broken.jpg", "error", "", "not a JPEG or PNG image (4 bytes)"),
        row(
            "c, d.png",
            last.predicted_class,
            f"{100 * last.confidence:.1f}%",
            last.predicted_class_description,
        ),
        "",
        DISCLAIMER,
    ]


@pytest.mark.parametrize("kind", ["table", "json", "csv"])
def test_a_strange_file_name_stays_on_its_line_and_can_be_written(tmp_path, predictor, kind):
    path = tmp_path / "a\nb\x1b[31m\udcff.png"  # a new line, a terminal's red, a byte of no UTF-8
    answer = predictor.predict(draw(tmp_path / "a.png"))
    for line in render(
        [(path, answer), (path, ImageError(f"cannot read {path}"))], kind, HAM10000.names
    ):
        assert line.encode("utf-8").decode("utf-8").isprintable()


def test_only_broken_images_still_make_a_table_and_a_csv(tmp_path, predictor):
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    broken = list(predict_files(predictor, [path]))
    assert list(render(broken, "table", HAM10000.names))[-1] == DISCLAIMER
    assert next(csv.DictReader(render(broken, "csv", HAM10000.names)))["error"] == (
        "not a JPEG or PNG image (0 bytes)"
    )


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_several_workers_keep_the_order_the_answers_and_the_broken_ones(
    tmp_path, predictor, workers
):
    paths = [draw(tmp_path / f"{i:02d}.png", i) for i in range(23)]
    broken = [4, 10, 11, 22]  # one of a pair, both of a pair, the last, which is alone
    for i in broken:
        paths[i].write_bytes(b"junk")
    answers = list(predict_files(predictor, paths, workers=workers))
    assert [path for path, _ in answers] == paths
    for i, (path, answer) in enumerate(answers):
        if i in broken:
            assert str(answer) == "not a JPEG or PNG image (4 bytes)"
        else:
            expected = predictor.predict(path)
            assert answer.predicted_class == expected.predicted_class
            for name, prob in expected.probabilities.items():
                assert abs(answer.probabilities[name] - prob) <= 1e-6


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_lines_come_before_the_last_image_is_looked_for(tmp_path, predictor, kind):
    path = draw(tmp_path / "a.png")
    asked = []

    def many():
        for _ in range(500):
            asked.append(path)
            yield path

    lines = render(predict_files(predictor, many(), workers=2), kind, HAM10000.names)
    first, second = next(lines), next(lines)
    assert "a.png" in second
    assert len(asked) <= 12  # a few images a worker are in memory, whatever follows
    assert first != second or kind == "json"
    lines.close()


def test_no_worker_goes_on_once_nobody_listens(tmp_path, predictor):
    before = set(threading.enumerate())
    answers = predict_files(predictor, [draw(tmp_path / "a.png")] * 100, workers=3)
    next(answers)
    assert set(threading.enumerate()) > before
    answers.close()
    assert set(threading.enumerate()) == before


def test_an_error_of_the_model_ends_it_all(tmp_path, predictor, monkeypatch):
    def fail(pixels, names, metadata=None):
        raise ArtifactError("no numbers")

    monkeypatch.setattr(predictor, "run", fail)
    with pytest.raises(ArtifactError, match="no numbers"):
        list(predict_files(predictor, [draw(tmp_path / "a.png")] * 9, workers=2))


def test_a_csv_has_the_classes_of_the_model_even_if_its_first_image_is_broken():
    broken = [(Path("a.png"), ImageError("damaged"))]
    (row,) = csv.DictReader(render(broken, "csv", ("x", "y")))
    assert list(row)[4:] == ["prob_x", "prob_y", "error", "disclaimer"]
    assert row["error"] == "damaged"


def limited(path, **values):
    """An answer of a model that knows its limits."""
    answer = Predictor(TINY_ONNX).predict(draw(path))
    return path, replace(
        answer,
        prediction_set=("bcc", "nv"),
        set_size=2,
        set_level=0.9,
        decision="uncertain",
        decision_reason="the confidence is low",
        quality=("it is dark", "it is blurred"),
        **values,
    )


def test_a_csv_gets_the_fields_of_a_model_that_knows_its_limits_behind_the_others(tmp_path):
    answers = [limited(tmp_path / "a.png"), (Path("b.png"), ImageError("damaged"))]
    more = ("prediction_set", "set_size", "decision", "quality")
    first, second = csv.DictReader(render(answers, "csv", HAM10000.names, more))
    assert list(first)[-5:] == ["disclaimer", *more]
    assert first["prediction_set"] == "bcc; nv"
    assert first["set_size"] == "2"
    assert first["quality"] == "it is dark; it is blurred"
    assert [second[name] for name in more] == [""] * 4
    assert second["disclaimer"] == DISCLAIMER


def test_a_table_shows_decision_and_set_and_why_an_answer_is_doubtful(tmp_path):
    path, answer = limited(tmp_path / "a.png")
    lines = list(render([(path, answer)], "table", HAM10000.names))
    assert lines[0].split() == ["image", "class", "confidence", "decision", "set", "description"]
    assert "uncertain  bcc, nv" in lines[1]
    assert lines[1].endswith(f"{answer.predicted_class_description} (the confidence is low)")


def test_json_has_lists_where_there_are_several(tmp_path):
    (line,) = render([limited(tmp_path / "a.png")], "json", HAM10000.names)
    values = json.loads(line)
    assert values["prediction_set"] == ["bcc", "nv"]
    assert "spread" not in values


def test_metadata_is_read_from_a_csv(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("image_id,sex,age,more\na,male,45,x\nb,,unknown,\n", encoding="utf-8-sig")
    assert read_metadata(path) == {"a": Metadata(age=45.0, sex="male"), "b": Metadata()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age\n40\n", "{path} has no column image_id; expected one row per image"),
        (
            "image_id,age\na,old\n",
            "{path}, image a: an age must be a number of years from 0 to 120",
        ),
        (
            None,
            "cannot read {path}: no such file or directory; expected a CSV with image_id and any "
            "of age, sex, localization",
        ),
        (
            "image_id,age\na,40,back\n",
            "cannot read {path}: a line has more or fewer values than there are names; expected a "
            "CSV with image_id and any of age, sex, localization",
        ),
    ],
)
def test_metadata_that_cannot_be_read_is_refused(tmp_path, text, message):
    path = tmp_path / "facts.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MetadataError) as caught:
        read_metadata(path)
    assert str(caught.value) == message.format(path=path)


def found_in(table, paths):
    return find_metadata(read_metadata(table), paths, FIELDS, table)


@pytest.mark.parametrize(
    "written",
    [
        "image_id,age\nX1,40\nX2,50\n",
        "image_id,age\nX1.jpg,40\nX2.jpg,50\n",
        "image_id,age\nold/place/X1.jpg,40\nold/place/X2.JPG,50\n",
        "image_id,age\nC:\\old\\X1.jpg,40\nC:\\old\\X2.jpg,50\n",
        "image_id,age\nx1,40\nx2,50\n",
        "image_id, age\nX1, 40\nX2, 50\n",
        "\ufeffImage_ID;Age\nX1;40\nX2;50\n",
        "image_id,age\nX1,40\nX1,40\nX2,50\n",
        "image_id,age\nX1,40\nX1.jpg,40\nX2,50\n",
    ],
)
def test_metadata_meet_their_images_however_they_are_written(tmp_path, written):
    paths = [draw(tmp_path / "a" / "X1.jpg"), draw(tmp_path / "a" / "X2.jpg")]
    (tmp_path / "facts.csv").write_text(written)
    found = found_in(tmp_path / "facts.csv", paths)
    assert found.of_image == {paths[0]: Metadata(age=40.0), paths[1]: Metadata(age=50.0)}
    assert found.note == ""


def test_rows_and_images_that_do_not_meet_are_counted_and_named(tmp_path):
    paths = [draw(tmp_path / f"X{i}.jpg") for i in range(7)]
    (tmp_path / "facts.csv").write_text("image_id,age\nX1,40\nY1,50\n")
    found = found_in(tmp_path / "facts.csv", paths)
    assert found.of_image == {paths[1]: Metadata(age=40.0)}
    assert found.note == (
        "1 of 2 rows match no image (Y1); 6 of 7 images have no row (X0.jpg, X2.jpg, X3.jpg, "
        "X4.jpg, X5.jpg and 1 more)"
    )


def test_files_of_one_name_have_their_own_metadata(tmp_path):
    paths = [draw(tmp_path / place / "0001.jpg") for place in "ab"]
    (tmp_path / "facts.csv").write_text("image_id,age\na/0001,40\nb/0001.jpg,50\n")
    found = found_in(tmp_path / "facts.csv", paths)
    assert found.of_image == {paths[0]: Metadata(age=40.0), paths[1]: Metadata(age=50.0)}


@pytest.mark.parametrize(
    ("files", "text", "message"),
    [
        (
            ("a/X.jpg", "b/X.jpg"),
            "image_id,age\nX,40\n",
            "'X' of {table} may be {folder}/a/X.jpg or {folder}/b/X.jpg; write folder and suffix "
            "into its image_id",
        ),
        (
            ("X.jpg", "X.png"),
            "image_id,age\nX,40\n",
            "'X' of {table} may be {folder}/X.jpg or {folder}/X.png; write folder and suffix into "
            "its image_id",
        ),
        (
            ("X.jpg",),
            "image_id,age\nX,40\nX,41\n",
            "{table} has two rows for 'X' that differ; keep one",
        ),
        (
            ("X.jpg",),
            "image_id,age\nX,40\nX.jpg,41\n",
            "{table} has two rows for {folder}/X.jpg that differ: 'X' and 'X.jpg'; keep one",
        ),
        (
            ("X.jpg",),
            "image_id,age\nY,40\n",
            "no row of {table} matches an image: a row has 'Y', an image is 'X.jpg'",
        ),
        (
            ("X.jpg",),
            "image_id,age_approx\nX,40\n",
            "{table} has the unknown column 'age_approx'; did you mean age?",
        ),
        (
            ("X.jpg",),
            "image_id,weight\nX,40\n",
            "{table} has none of the columns age, sex, localization",
        ),
        (("X.jpg",), "image_id,age\n", "{table} has no rows; expected one per image"),
        (
            ("X.jpg",),
            "image_id,age\nX,4\nNA,40\n",
            "{table} has no image_id in row 2; complete or remove it",
        ),
        (
            ("X.jpg",),
            "image_id,sex\nX,F\n",
            "{table}, image X: the sex is unknown to this model, expected one of female, male, or "
            "unknown",
        ),
    ],
)
def test_metadata_that_would_be_lost_are_refused(tmp_path, files, text, message):
    paths = [draw(tmp_path / name) for name in files]
    table = tmp_path / "facts.csv"
    table.write_text(text)
    with pytest.raises(DermalyzeError) as caught:
        found_in(table, paths)
    assert str(caught.value) == message.format(table=table, folder=tmp_path)


def test_photographs_of_one_lesion_have_one_age(tmp_path):
    paths = [draw(tmp_path / "a.png"), draw(tmp_path / "b.png")]
    ages = {paths[0]: Metadata(age=40.0), paths[1]: Metadata(age=41.0)}
    with pytest.raises(MetadataError) as caught:
        predict_one_lesion(Predictor(TINY_ONNX), paths, Request(metadata=ages))
    assert str(caught.value) == (
        f"{paths[0]} and {paths[1]} show one lesion and have different metadata; keep one row"
    )


class Mapped(Predictor):
    """The tiny model, as if it had a map."""

    def explain(self, image, *, class_name="", metadata=None):
        spec = replace(self.spec, saliency="grad_cam")
        return Explanation(
            image=Image.open(image).convert("RGB"),
            prediction=self.predict(image),
            class_name="nv",
            saliency=np.ones((2, 2), np.float32),
            spec=spec,
        )


def test_each_file_gets_a_picture_and_files_of_one_name_get_a_number(tmp_path):
    paths = [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png", tmp_path / "y" / "broken.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
    for path in paths[:2]:
        draw(path)
    paths[2].write_bytes(b"none")
    request = Request(pictures=tmp_path / "why")
    answers = list(predict_files(Mapped(TINY_ONNX), paths, workers=2, request=request))
    assert [type(answer).__name__ for _, answer in answers] == [
        "Prediction",
        "Prediction",
        "ImageError",
    ]
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == ["a-2.png", "a.png"]


def test_pictures_that_cannot_be_written_are_said(tmp_path):
    (tmp_path / "why").write_text("a file")
    request = Request(pictures=tmp_path / "why")
    with pytest.raises(ConfigError) as caught:
        list(predict_files(Mapped(TINY_ONNX), [draw(tmp_path / "a.png")], request=request))
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'why' / 'a.png'}: File exists; choose another folder"
    )


def test_photographs_of_one_lesion_get_one_answer(tmp_path):
    paths = [draw(tmp_path / "a.png"), draw(tmp_path / "b.png")]
    predictor = Predictor(TINY_ONNX)
    path, answer = predict_one_lesion(predictor, paths, Request())
    assert path == paths[0]
    assert answer == predictor.predict_lesion(paths)
    assert answer.num_images == 2


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "'-"])
def test_no_cell_of_the_csv_is_a_formula_and_numbers_stay_numbers(tmp_path, predictor, start):
    path = tmp_path / f"{start}cmd.png"
    Image.new("RGB", (9, 9)).save(path)
    answer = predictor.predict(path)
    lines = render(
        [(Path(path.name), answer), (Path("x"), ImageError(f"{start}x"))], "csv", HAM10000.names
    )
    good, bad = csv.DictReader(lines)
    assert good["image"] == f"'{start}cmd.png"
    assert bad["error"] == f"'{start}x"
    assert float(good["confidence"]) == answer.confidence


def test_of_many_names_a_message_has_the_first_each_on_one_line():
    names = [f"class {i}" for i in range(100)]
    assert listed(names, 2) == "class 0, class 1 and 98 more"
    assert listed(["two\nlines", "b"]) == "two\\nlines, b"


@pytest.mark.parametrize(
    ("referral", "cell", "text"), [(True, "refer", "true"), (False, "no", "false"), (None, "", "")]
)
def test_a_referral_is_a_column_of_a_table_and_of_a_csv(tmp_path, referral, cell, text):
    answers = [limited(tmp_path / "a.png", referral=referral)]
    head, row = list(render(answers, "table", HAM10000.names))[:2]
    assert ("referral" in head) == (referral is not None)
    assert f" {cell} " in row or not cell
    (found,) = csv.DictReader(render(answers, "csv", HAM10000.names, ("referral",)))
    assert found["referral"] == text
