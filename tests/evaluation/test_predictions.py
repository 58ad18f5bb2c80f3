"""Images are rows made here: C = 7 classes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from dermalyze.evaluation.predictions import (
    predictions_table,
    read_predictions,
    targets_of,
    write_predictions,
)
from serving.errors import DataError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import is_missing

C = len(HAM10000.names)
EVALUATE = "write it with `dermalyze evaluate`"


def manifest(labels: list[str]) -> pd.DataFrame:
    n = len(labels)
    return pd.DataFrame(
        {
            "image_id": [f"ISIC_{i:07d}" for i in range(n)],
            "label": labels,
            "lesion_id": [f"HAM_{i // 2:07d}" for i in range(n)],
            "dx_type": "histo",
            "age": [float("nan") if i == 1 else 5.0 * i for i in range(n)],
            "sex": ['female, or "f"' if i == 0 else "unknown" for i in range(n)],
            "localization": "back",
        }
    )


@pytest.fixture
def written(tmp_path):
    """A good file of three images: nv, mel and nv, predicted as nv, mel and bkl."""
    logits = 3 * np.eye(C, dtype=np.float32)[[5, 4, 2]]
    path = tmp_path / "predictions.csv"
    write_predictions(path, predictions_table(manifest(["nv", "mel", "nv"]), logits, HAM10000))
    return path


def test_a_row_has_all_that_is_known_of_its_image():
    logits = np.log(np.array([[1, 1, 1, 1, 2, 3, 1]]))
    table = predictions_table(manifest(["mel"]), logits, HAM10000)
    assert list(table.columns) == [
        *("image_id", "lesion_id", "label", "predicted", "confidence"),
        *(f"prob_{name}" for name in HAM10000.names),
        *(f"logit_{name}" for name in HAM10000.names),
        *("dx_type", "age", "sex", "localization"),
    ]
    (row,) = table.to_dict("records")
    assert (row["label"], row["predicted"]) == ("mel", "nv")
    assert row["confidence"] == pytest.approx(0.3, abs=1e-7)
    assert row["prob_mel"] == pytest.approx(0.2, abs=1e-7)
    assert row["logit_nv"] == np.float32(np.log(3))


def test_rows_keep_their_order_whatever_their_index():
    rows = manifest(["nv", "mel", "bkl"]).iloc[[2, 0]]
    table = predictions_table(rows, np.eye(C)[[2, 5]], HAM10000)
    assert table["image_id"].tolist() == ["ISIC_0000002", "ISIC_0000000"]
    assert table["predicted"].tolist() == ["bkl", "nv"]
    assert table["age"].tolist() == [10.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(
    logits=hypothesis_numpy.arrays(
        np.float32,
        (3, C),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_logits_read_back_bit_for_bit(tmp_path_factory, logits):
    path = tmp_path_factory.mktemp("bits") / "predictions.csv"
    table = predictions_table(manifest(["nv", "mel", "nv"]), logits, HAM10000)
    write_predictions(path, table)
    _, read, targets = read_predictions(path, HAM10000)
    np.testing.assert_array_equal(read.view(np.int32), logits.view(np.int32))
    assert targets.dtype == np.int64
    assert targets.tolist() == [5, 4, 5]


def test_texts_and_missing_ages_read_back_as_they_were(written):
    table, _, _ = read_predictions(written, HAM10000)
    expected = manifest(["nv", "mel", "nv"])
    for name in ("image_id", "label", "lesion_id", "dx_type", "sex", "localization"):
        assert table[name].tolist() == expected[name].tolist()
    np.testing.assert_array_equal(table["age"], [0.0, np.nan, 10.0])
    sure = np.exp(3) / (np.exp(3) + 6)  # one logit of 3 among six of 0
    np.testing.assert_allclose(table["confidence"], sure, rtol=1e-8)  # nine digits are written


def test_nothing_else_is_left_beside_the_file(written):
    assert [path.name for path in written.parent.iterdir()] == ["predictions.csv"]


def test_an_unknown_label_is_named():
    with pytest.raises(DataError) as caught:
        targets_of(manifest(["nv", "naevus"]), HAM10000)
    assert str(caught.value) == (
        "image 'ISIC_0000001' has the label 'naevus', "
        "expected one of akiec, bcc, bkl, df, mel, nv, vasc"
    )


def refusal(path) -> str:
    with pytest.raises(DataError) as caught:
        read_predictions(path, HAM10000)
    return str(caught.value).replace(str(path), "FILE")


def test_a_missing_file_is_one_sentence(tmp_path):
    assert refusal(tmp_path / "no.csv") == "cannot read FILE: No such file or directory"


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\xff", b'a,b\n1,2,3\n"x'])
def test_a_file_that_is_no_table_is_one_sentence(tmp_path, content):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    assert refusal(path) == f"FILE is not a CSV table; {EVALUATE}"


def test_missing_columns_are_named(written):
    pd.read_csv(written).drop(columns=["logit_df", "sex"]).to_csv(written, index=False)
    assert refusal(written) == f"FILE lacks the columns sex, logit_df; {EVALUATE}"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "logit_df",
            "much",
            "FILE has logit_df 'much' for image 'ISIC_0000001', expected a number",
        ),
        ("prob_df", "", "FILE has prob_df '' for image 'ISIC_0000001', expected a number"),
        (
            "age",
            "old",
            "FILE has the age 'old' for ISIC_0000001; expected years from 0 to 120, or nothing",
        ),
        (
            "logit_df",
            "nan",
            "FILE: the logits of 1 of 3 images are not finite numbers; "
            "train again with a lower training.lr or with training.use_amp=false",
        ),
        (
            "label",
            "naevus",
            "FILE: image 'ISIC_0000001' has the label 'naevus', "
            "expected one of akiec, bcc, bkl, df, mel, nv, vasc",
        ),
        (
            "image_id",
            "ISIC_0000000",
            "FILE lists image 'ISIC_0000000' twice; expected one row per image",
        ),
        (
            "predicted",
            "nv",
            "FILE says 'nv' for image 'ISIC_0000001', but its logits say 'mel'; "
            "the file was changed, write it again with `dermalyze evaluate`",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_image(written, column, value, message):
    table = pd.read_csv(written, dtype=str, keep_default_na=False)
    table.loc[1, column] = value
    table.to_csv(written, index=False)
    assert refusal(written) == message


def test_a_table_without_rows_is_one_sentence(written):
    pd.read_csv(written).iloc[:0].to_csv(written, index=False)
    assert refusal(written) == (
        "FILE: there is no image to score; expected at least one in the split"
    )


def test_what_was_measured_of_an_image_reads_back_bit_for_bit(tmp_path):
    scores = np.random.default_rng(5).gamma(1, 3, 9)
    measured = {"scope_score": scores, "photo_problem": np.arange(9.0) % 2}
    logits = np.random.default_rng(6).normal(size=(9, C))
    table = predictions_table(manifest(["nv"] * 9), logits, HAM10000, measured)
    write_predictions(tmp_path / "p.csv", table)
    again, _, _ = read_predictions(tmp_path / "p.csv", HAM10000)
    for name in measured:
        np.testing.assert_array_equal(again[name], table[name])
        assert again[name].dtype == table[name].dtype == np.float32
    again["scope_score"] = again["scope_score"].astype(object)
    again.loc[2, "scope_score"] = "high"
    write_predictions(tmp_path / "p.csv", again)
    with pytest.raises(DataError) as caught:
        read_predictions(tmp_path / "p.csv", HAM10000)
    assert str(caught.value).endswith(
        "has scope_score 'high' for image 'ISIC_0000002', expected a number"
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            "".join,
            st.tuples(
                st.sampled_from(["", "'", "''"]),
                st.sampled_from(["", "=", "+", "-", "@", "\uff1d", "\t"]),
                st.text("ab'=,;\"1 \n", max_size=5),
            ),
        )
        .map(str.strip)
        .filter(lambda text: not is_missing(text)),  # neither is an id or a place
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_any_image_id_reads_back_as_it_was_and_no_cell_is_a_formula(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("ids") / "predictions.csv"
    rows = manifest(["nv"] * len(ids)).assign(image_id=ids, localization=ids)
    logits = np.full((len(ids), C), -1, np.float32)
    write_predictions(path, predictions_table(rows, logits, HAM10000))
    table, read, _ = read_predictions(path, HAM10000)
    assert table["image_id"].tolist() == table["localization"].tolist() == ids
    assert read.tolist() == logits.tolist()
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    texts = [*cells["image_id"], *cells["localization"]]
    assert not any(text.startswith(tuple("=+-@\uff1d\t\n")) for text in texts)
    assert set(cells["logit_nv"]) == {"-1"}  # a negative number stays one


def test_a_table_written_by_others_may_hold_ids_like_formulas(written):
    text = written.read_text().replace("ISIC_0000000", "=1+1")
    written.write_text(text)
    assert read_predictions(written, HAM10000)[0]["image_id"][0] == "=1+1"
