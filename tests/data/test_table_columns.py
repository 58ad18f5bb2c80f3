"""Every reader of a table has one rule for what is missing, for ages and for ids."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermalyze.data.readers.dataset import open_dataset
from dermalyze.evaluation.predictions import group_numbers, predictions_table, read_predictions
from dermalyze.evaluation.scores import scored_of
from dermalyze.workflows.evaluate import files_of_rows, read_labels
from serving.batch import read_metadata
from serving.errors import DataError, DermalyzeError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import MISSING

FACTS = ("lesion_id", "dx_type", "age", "sex", "localization")
IDS = ("X1", "X2")


def labels(folder, columns):
    table = pd.DataFrame({"image_id": IDS, "label": "nv"}).assign(**columns)
    table.to_csv(folder / "labels.csv", index=False)
    return read_labels(folder / "labels.csv", HAM10000, "lesion")


@pytest.mark.parametrize(
    ("group_by", "patients", "drawn", "number"),
    [
        ("lesion", "PPQQ", "lesion", 3),
        ("patient", "PPQQ", "patient", 2),
        ("none", "PPQQ", "image", 4),
        ("patient", "    ", "lesion", 3),
    ],
)
def test_intervals_of_other_images_draw_what_the_run_grouped_by(
    tmp_path, caplog, group_by, patients, drawn, number
):
    path = tmp_path / "labels.csv"
    rows = zip("abcd", "LLMN", patients, strict=True)
    lines = [f"{image},nv,{lesion},{patient}" for image, lesion, patient in rows]
    path.write_text("\n".join(["image_id,label,lesion_id,patient_id", *lines]))
    manifest = read_labels(path, HAM10000, group_by)
    scored = scored_of(predictions_table(manifest, np.zeros((4, 7)), HAM10000), HAM10000)
    assert (scored.group_by, scored.num_lesions) == (drawn, number)
    no_ids = f"{path} has no patient ids: intervals are drawn by lesion"
    assert caplog.messages == ([no_ids] if patients.isspace() else [])


def predictions(folder, columns):
    table = pd.DataFrame({"image_id": IDS, "label": "nv", "predicted": "akiec"}).assign(**columns)
    numbers = {f"{kind}_{name}": 0.0 for kind in ("logit", "prob") for name in HAM10000.names}
    table.assign(confidence=0.0, **numbers).to_csv(folder / "predictions.csv", index=False)
    return read_predictions(folder / "predictions.csv", HAM10000)[0]


def dataset(folder, columns):
    (folder / "images").mkdir(exist_ok=True)
    table = pd.DataFrame({"image_id": IDS, "dx": "nv"}).assign(**columns)
    table.to_csv(folder / "metadata.csv", index=False)
    return open_dataset(folder).rows


READERS = (labels, predictions, dataset)


def facts(folder, columns):
    pd.DataFrame({"image_id": IDS}).assign(**columns).to_csv(folder / "facts.csv", index=False)
    found = read_metadata(folder / "facts.csv")
    return pd.DataFrame([vars(found[name]) for name in IDS])


@settings(max_examples=15, deadline=None)
@given(
    words=st.lists(st.sampled_from(sorted(MISSING)), min_size=5, max_size=5),
    change=st.sampled_from([str, str.upper, str.title]),
    space=st.sampled_from(["", " ", "\u00a0"]),
)
def test_any_word_for_what_is_missing_is_missing_for_every_reader(
    tmp_path_factory, words, change, space
):
    folder = tmp_path_factory.mktemp("missing")
    columns = {
        name: f"{space}{change(word)}{space}" for name, word in zip(FACTS, words, strict=True)
    }
    for reader in READERS:
        rows = reader(folder, columns)
        assert len(set(group_numbers(rows))) == 2, reader  # never one lesion called `nan`
        assert rows["age"].isna().all()
        assert set(rows[["dx_type", "sex", "localization"]].to_numpy().flat) == {"unknown"}
    assert facts(folder, columns)[["age", "sex", "localization"]].isna().to_numpy().all()


@settings(max_examples=15, deadline=None)
@given(
    age=st.one_of(
        st.integers(-5, 200).map(str),
        st.floats(0, 140).map(str),
        st.sampled_from(["abc", "4_5", "1e1", "0x10", "120.0", "999", "inf", "45 years", "45,0"]),
    )
)
def test_an_age_is_read_or_refused_by_every_reader_alike(tmp_path_factory, age):
    folder = tmp_path_factory.mktemp("ages")
    columns = dict.fromkeys(FACTS, "") | {"age": age}

    def read(reader):
        try:
            return reader(folder, columns)["age"].tolist()
        except DermalyzeError:
            return "refused"

    found = [read(reader) for reader in (*READERS, facts)]
    assert all(each == found[0] for each in found)
    try:
        expected = float(age) if "_" not in age and 0 <= float(age) <= 120 else None
    except ValueError:
        expected = None
    assert found[0] == ("refused" if expected is None else [expected] * 2)


@pytest.mark.parametrize("reader", READERS)
def test_words_are_alike_in_any_case_for_every_reader(tmp_path, reader):
    columns = {
        "lesion_id": "L1",
        "dx_type": "Histo",
        "age": "",
        "sex": " Male",
        "localization": "x",
    }
    rows = reader(tmp_path, columns | {"localization": ["Back", "back "]})
    assert rows["sex"].tolist() == ["male", "male"]
    assert rows["dx_type"].tolist() == ["histo", "histo"]
    assert rows["localization"].tolist() == ["back", "back"]
    assert len(set(group_numbers(rows))) == 1


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "age",
            "999",
            "{path} has the age '999' for X1; expected years from 0 to 120, or nothing",
        ),
        (
            "label",
            "",
            "{path} has the label '' for X1; expected one of akiec, bcc, bkl, df, mel, nv, vasc",
        ),
        (
            "image_id",
            "n/a",
            "{path} has 2 rows without an image id; complete or remove them",
        ),
    ],
)
def test_labels_that_cannot_be_used_name_the_row(tmp_path, column, value, message):
    with pytest.raises(DataError) as caught:
        labels(tmp_path, {column: value})
    assert str(caught.value) == message.format(path=tmp_path / "labels.csv")


def test_labels_may_be_written_in_capitals(tmp_path):
    assert labels(tmp_path, {"label": ["NV", " Mel"]})["label"].tolist() == ["nv", "mel"]


def draw(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_labels_meet_files_of_one_name_by_their_folders(tmp_path):
    draw(tmp_path, "a/0001.jpg", "b/0001.jpg")
    found = files_of_rows(["b/0001.jpg", "a/0001"], tmp_path, tmp_path / "labels.csv")
    assert found == {
        "b/0001.jpg": tmp_path / "b" / "0001.jpg",
        "a/0001": tmp_path / "a" / "0001.jpg",
    }


@pytest.mark.parametrize(
    ("files", "ids", "message"),
    [
        (
            ("a/1.jpg", "b/1.jpg"),
            ["1"],
            "'1' of labels.csv may be {folder}/a/1.jpg or {folder}/b/1.jpg; write folder and "
            "suffix into its image_id",
        ),
        (
            ("1.jpg",),
            ["1", "1.jpg"],
            "labels.csv has two rows for {folder}/1.jpg: '1' and '1.jpg'; expected one row per "
            "image",
        ),
        (
            ("img-1.jpg",),
            ["1", "2"],
            "2 images of labels.csv are not in {folder}, among them 1, where a file without a row "
            "is img-1.jpg",
        ),
    ],
)
def test_labels_that_do_not_meet_one_file_each_are_refused(tmp_path, files, ids, message):
    draw(tmp_path, *files)
    with pytest.raises(DataError) as caught:
        files_of_rows(ids, tmp_path, "labels.csv")
    assert str(caught.value) == message.format(folder=tmp_path)
