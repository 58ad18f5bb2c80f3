"""Which file a row of a table means."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.image_matching import match, plain_id


def met(ids, files):
    """Return the files of each id, by name."""
    found = match(ids, files).files
    return {name: [files[i] for i in some] for name, some in zip(ids, found, strict=True)}


@pytest.mark.parametrize(
    "written",
    [
        "ISIC_1",
        "ISIC_1.jpg",
        "ISIC_1.JPG",
        "isic_1",
        "images/ISIC_1.jpg",
        "./ISIC_1",
        r"C:\old\images\ISIC_1.jpg",
        " ISIC_1.jpg ",
        "ISIC_1.jpg.jpg",
        "ISIC_1_downsampled",
        "ISIC_1.png",
    ],
)
def test_an_id_and_a_file_may_be_written_in_many_ways(written):
    assert met([written], ["/data/ISIC_1.jpg", "/data/ISIC_10.jpg"]) == {
        written: ["/data/ISIC_1.jpg"]
    }
    assert met(["ISIC_1"], [written, "ISIC_10"]) == {"ISIC_1": [written]}


def test_an_accent_is_one_however_it_is_encoded():
    two = unicodedata.normalize("NFD", "Bein_müller")
    assert met(["Bein_Müller"], [f"{two}.jpg"]) == {"Bein_Müller": [f"{two}.jpg"]}


@pytest.mark.parametrize("files", [["/d/x.jpg", "/d/x.png"], ["/d/a/x.jpg", "/d/b/x.jpg"]])
def test_what_nothing_tells_apart_is_several(files):
    assert met(["x"], files) == {"x": files}


def test_the_suffix_of_an_id_tells_files_apart():
    assert met(["x.PNG"], ["/d/x.jpg", "/d/x.png"]) == {"x.PNG": ["/d/x.png"]}


def test_the_folders_of_an_id_tell_files_apart():
    files = ["/d/a/0001.jpg", "/d/b/0001.jpg"]
    assert met(["b/0001"], files) == {"b/0001": [files[1]]}
    assert met(["a/0001.jpg", "b/0001.jpg"], files) == {
        "a/0001.jpg": [files[0]],
        "b/0001.jpg": [files[1]],
    }
    assert met(["./0001", "b/0001"], ["/d/0001.jpg", files[1]]) == {
        "./0001": ["/d/0001.jpg"],
        "b/0001": [files[1]],
    }
    # A file of another folder is not that of the row, if rows tell folders apart.
    assert met(["a/0001", "b/0001"], [files[0], "/d/c/0001.jpg"]) == {
        "a/0001": [files[0]],
        "b/0001": [],
    }


def test_ids_that_differ_by_case_alone_get_the_files_that_are_written_like_them():
    files = ["/d/a1.jpg", "/d/A1.jpg"]
    assert met(["A1", "a1"], files) == {"A1": [files[1]], "a1": [files[0]]}
    assert met(["A1", "a1"], files[:1]) == {"A1": [], "a1": [files[0]]}
    assert met(["A1"], files) == {"A1": files}


def test_rows_that_mean_one_file_are_told():
    assert match(["x", "x.jpg", "y"], ["/d/x.jpg", "/d/z.jpg"]).ids == ((0, 1), ())


NAMES = st.tuples(
    *map(st.sampled_from, (["", "b/", "B\\", "./", "/d/"], "aA1", ["", ".jpg", ".PNG"]))
)
WRITTEN = NAMES.map("".join) | st.text("aAbB1/._\\ ", max_size=6)


@given(st.lists(WRITTEN, unique=True, max_size=6), st.lists(WRITTEN, max_size=6))
def test_no_file_belongs_to_more_rows_than_mean_it_and_none_is_invented(ids, files):
    found = match(ids, files)
    assert [len(part) for part in (found.files, found.ids)] == [len(ids), len(files)]
    pairs = {(i, file) for i, some in enumerate(found.files) for file in some}
    assert pairs == {(i, file) for file, some in enumerate(found.ids) for i in some}


def test_a_plain_id_has_neither_folder_nor_suffix():
    assert plain_id(r"C:\images\ISIC_1.jpg.JPG") == ("ISIC_1", "C:/images/ISIC_1")
    assert plain_id("ISIC_1") == ("ISIC_1", "ISIC_1")
