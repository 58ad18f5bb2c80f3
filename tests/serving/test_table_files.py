"""One reader for every table, however it was written."""

import re

import pytest

from dermalyze.data.splits import read_split
from dermalyze.evaluation.predictions import read_predictions
from serving.batch import read_metadata
from serving.errors import DataError, MetadataError
from serving.ham10000_taxonomy import HAM10000
from serving.table_files import read_table, table_bytes

KNOWN = (("image_id",), ("age", "sex", "localization"))
TABLE = "image_id,age,localization\nISIC_1,40,lower extremity\nISIC_2,,Rücken\n"
COLUMNS = {
    "image_id": ["ISIC_1", "ISIC_2"],
    "age": ["40", ""],
    "localization": ["lower extremity", "Rücken"],
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_reads_alike_however_it_was_saved(encoding, mark, end):
    text = TABLE.replace(",", mark).replace("\n", end)
    assert read_table(text.encode(encoding), "t.csv", ("image_id",)) == COLUMNS


@pytest.mark.parametrize(
    "text",
    [
        TABLE.replace(",", ", "),
        TABLE.replace("image_id,age", "Image_ID ,AGE"),
        TABLE.replace("ISIC_1,", '"ISIC_1", '),
        re.sub(r",([^,\n]*)", r', "\1"', TABLE),
        "\n\n" + TABLE.replace("\n", "\n\n") + ",,\n",
    ],
)
def test_case_and_spaces_of_names_quotes_and_empty_lines_change_nothing(text):
    assert read_table(text.encode(), "t.csv", ("image_id",)) == COLUMNS


def test_a_value_may_hold_the_mark_that_other_tables_use():
    data = b'image_id;localization;a, b, c\nISIC_1;"back; left";\nISIC_2;back, right;\n'
    assert read_table(data, "t.csv", ("image_id",))["localization"] == ["back; left", "back, right"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"\x89PNG\r\n\x1a\n\xff", "it is not text"),
        ("image_id\n".encode("utf-16-le"), "it is not text"),
        (b"image_id,age\nISIC_1\n", "a line has more or fewer values than there are names"),
        (b"image_id\nISIC_1,4\n", "a line has more or fewer values than there are names"),
        (b'image_id,age\nISIC_1,"4\nISIC_2,5\n', "unexpected end of data"),
    ],
)
def test_what_is_no_table_is_refused(data, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        read_table(data, "t.csv", ("image_id",))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("age_approx", "age"),
        ("patient age", "age"),
        ("patientAge", "age"),
        ("gender", "sex"),
        ("localisation", "localization"),
        ("anatom_site_general", "localization"),
    ],
)
def test_a_column_that_looks_like_a_missing_one_is_refused(name, meant):
    with pytest.raises(DataError) as caught:
        read_table(f"image_id,{name}\n".encode(), "t.csv", *KNOWN)
    found = name.lower()
    assert str(caught.value) == f"t.csv has the unknown column {found!r}; did you mean {meant}?"
    read_table(f"image_id,{name},{meant}\n".encode(), "t.csv", *KNOWN)  # nothing is passed over


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(DataError) as caught:
        read_table(b"image_id,age,Age\n", "t.csv", *KNOWN)
    assert str(caught.value) == "t.csv has two columns 'age'; remove or rename one"


def test_other_columns_are_nobodys_business():
    others = b"image_id,dataset,stage,dx,patient_id,,,image_type,notes,notes\n"
    assert list(read_table(others, "t.csv", *KNOWN))[:2] == ["image_id", "dataset"]


def test_a_file_that_is_no_table_by_its_size_is_not_read(tmp_path):
    path = tmp_path / "labels.csv"
    with path.open("wb") as file:
        file.truncate(3 * 10**9)  # without a block on the disk
    refused = (
        f"{path} has 3,000,000,000 bytes; expected a table of images of at most 134,217,728; "
        "download it again"
    )

    def read_ham10000(path):
        return read_predictions(path, HAM10000)

    for read in (table_bytes, read_split, read_ham10000, read_metadata):
        with pytest.raises((DataError, MetadataError)) as caught:
            read(path)
        assert str(caught.value) == refused
