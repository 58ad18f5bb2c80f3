"""Each reader on drawn data in exactly the layout that its data set is published in."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from isic2019 import METADATA_HEADER, TRUTH_HEADER
from PIL import Image

from dermalyze.config.schema import DataConfig
from dermalyze.data.audit import examine_table
from dermalyze.data.readers.dataset import Dataset, open_dataset, read_image_bytes
from dermalyze.data.splits import complete_splits
from serving.errors import ConfigError, DataError
from serving.taxonomy import Taxonomy


def picture(gray: int, kind: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), gray, np.uint8)).save(data, kind)
    return data.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def error_of(folder: Path, **settings: str) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        open_dataset(folder, DataConfig(**settings))
    return str(caught.value)


def files_of(dataset: Dataset) -> dict[str, bytes]:
    assert not dataset.rivals
    return {name: read_image_bytes(file) for name, file in dataset.files.items()}


ISIC_2019_TRUTH = f"""\
{TRUTH_HEADER}
ISIC_0000000,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0
ISIC_0000001,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0
ISIC_0012653_downsampled,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0
ISIC_0012660,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0
"""
ISIC_2019_METADATA = f"""\
{METADATA_HEADER}
ISIC_0000000,55.0,anterior torso,,female
ISIC_0000001,30.0,head/neck,BCN_0003884,male
ISIC_0012653_downsampled,,,MSK4_0011169,
ISIC_0012660,60.0,lower extremity,MSK4_0012268,male
"""


@pytest.mark.parametrize("packed", [True, False])
def test_isic_2019_is_read_from_its_zip_and_from_folders(tmp_path, packed):
    names = ("ISIC_0000000", "ISIC_0000001", "ISIC_0012653_downsampled", "ISIC_0012660")
    images = {f"ISIC_2019_Training_Input/{n}.jpg": picture(i) for i, n in enumerate(names)}
    license_text = {"ISIC_2019_Training_Input/LICENSE.txt": b"CC-BY-NC"}
    write(
        tmp_path,
        {
            "ISIC_2019_Training_GroundTruth.csv": ISIC_2019_TRUTH,
            "ISIC_2019_Training_Metadata.csv": ISIC_2019_METADATA,
        },
    )
    if packed:
        write_zip(tmp_path / "ISIC_2019_Training_Input.zip", images | license_text)
    else:
        write(tmp_path, images | license_text)
    dataset = open_dataset(tmp_path)
    rows = dataset.rows
    assert dataset.taxonomy.names == ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    assert rows["image_id"].tolist() == list(names[:3])
    assert rows["label"].tolist() == ["NV", "MEL", "SCC"]
    assert rows["lesion_id"].tolist() == ["", "BCN_0003884", "MSK4_0011169"]
    assert rows["age"].tolist()[:2] == [55, 30]
    assert rows["age"].isna().tolist() == [False, False, True]
    assert rows["sex"].tolist() == ["female", "male", "unknown"]
    assert rows["localization"].tolist() == ["anterior torso", "head/neck", "unknown"]
    assert files_of(dataset) == {name: picture(i) for i, name in enumerate(names)}
    assert dataset.summary() == "ISIC 2019: 3 images, 8 classes, 2 lesions, no patient ids"
    problems = {p.kind: p.items for p in examine_table(dataset).problems}
    assert problems == {  # an image of none of the classes is left out and counted
        "of_no_class": ("ISIC_0012660",),
        "without_lesion": ("ISIC_0000000",),
        "other_file": ("ISIC_2019_Training_Input/LICENSE.txt",)
        if not packed
        else ("ISIC_2019_Training_Input/ISIC_2019_Training_Input/LICENSE.txt",),
    }


def test_isic_2019_images_without_their_metadata_say_what_to_download(tmp_path):
    write(
        tmp_path,
        {
            "ISIC_2019_Training_GroundTruth.csv": ISIC_2019_TRUTH,
            "ISIC_2019_Training_Input/ISIC_0000000.jpg": picture(0),
        },
    )
    assert error_of(tmp_path) == (
        f"no ISIC_2019_Training_Metadata.csv in {tmp_path}, which has ISIC 2019 images; download "
        "it into that folder from challenge.isic-archive.com"
    )


PAD_HEADER = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,"
    "skin_cancer_history,cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,"
    "diameter_1,diameter_2,diagnostic,itch,grew,hurt,changed,bleed,elevation,img_id,biopsed\n"
)
PAD_TABLE = PAD_HEADER + (
    "PAT_1516,1765,,,,,8,,,,,,,,ARM,,,NEV,FALSE,FALSE,FALSE,FALSE,FALSE,FALSE,"
    "PAT_1516_1765_530.png,FALSE\n"
    "PAT_46,881,FALSE,FALSE,POMERANIA,POMERANIA,55,FALSE,FEMALE,TRUE,TRUE,TRUE,TRUE,3,NECK,6,5,BCC,"
    "TRUE,TRUE,FALSE,TRUE,TRUE,TRUE,PAT_46_881_939.png,TRUE\n"
    "PAT_46,882,FALSE,FALSE,POMERANIA,POMERANIA,55,FALSE,FEMALE,TRUE,TRUE,TRUE,TRUE,3,FACE,4,4,ACK,"
    "TRUE,FALSE,FALSE,FALSE,FALSE,FALSE,PAT_46_882_940.png,FALSE\n"
)
PAD_IMAGES = ("PAT_1516_1765_530", "PAT_46_881_939", "PAT_46_882_940")


@pytest.mark.parametrize("place", ["zips", "images/zips", "folders", "images/folders", "images"])
def test_pad_ufes_20_is_read_from_its_three_parts(tmp_path, place):
    write(tmp_path, {"metadata.csv": PAD_TABLE})
    above = tmp_path / "images" if "images" in place else tmp_path
    for number, name in enumerate(PAD_IMAGES, start=1):
        part = f"imgs_part_{number}"
        if "zips" in place:
            write_zip(above / f"{part}.zip", {f"{part}/{name}.png": picture(number, "PNG")})
        else:
            inner = f"{part}/{part}/" if "folders" in place else ""  # as unpacking leaves them
            write(above, {f"{inner}{name}.png": picture(number, "PNG")})
    dataset = open_dataset(tmp_path)
    rows = dataset.rows
    assert dataset.taxonomy.names == ("ACK", "BCC", "MEL", "NEV", "SCC", "SEK")
    assert dataset.taxonomy.malignant == ("BCC", "MEL", "SCC")
    assert rows["image_id"].tolist() == list(PAD_IMAGES)
    assert rows["label"].tolist() == ["NEV", "BCC", "ACK"]
    assert rows["patient_id"].tolist() == ["PAT_1516", "PAT_46", "PAT_46"]
    assert rows["lesion_id"].tolist() == ["1765", "881", "882"]
    assert rows["age"].tolist() == [8, 55, 55]
    assert rows["sex"].tolist() == ["unknown", "female", "female"]
    assert rows["localization"].tolist() == ["arm", "neck", "face"]
    assert rows["fitspatrick"].tolist() == ["unknown", "3", "3"]
    assert rows["biopsed"].tolist() == ["FALSE", "TRUE", "FALSE"]
    assert files_of(dataset) == {n: picture(i, "PNG") for i, n in enumerate(PAD_IMAGES, start=1)}
    assert dataset.summary() == "PAD-UFES-20: 3 images, 6 classes, 3 lesions, 2 patients"


def class_folders(count: int, above: str = "") -> dict[str, bytes | str]:
    return {f"{above}c{n:02d}/{i}.jpg": picture(n * 3 + i) for n in range(count) for i in (1, 2)}


@pytest.mark.parametrize("count", [2, 23])
def test_a_folder_per_class_is_read_with_each_image_as_its_own_lesion(tmp_path, count):
    write(tmp_path, class_folders(count) | {"c00/notes.txt": "words", "empty/notes.txt": "words"})
    dataset = open_dataset(tmp_path)
    assert dataset.taxonomy.names == tuple(f"c{n:02d}" for n in range(count))
    assert dataset.taxonomy.malignant == ()
    assert not dataset.splits
    # Files of one name in several folders keep the folder in their id.
    labels = dict(zip(dataset.rows["image_id"], dataset.rows["label"], strict=True))
    assert labels == {f"c{n:02d}/{i}": f"c{n:02d}" for n in range(count) for i in (1, 2)}
    assert files_of(dataset)["c01/2"] == picture(5)
    assert dataset.others == ("c00/notes.txt",)
    assert dataset.summary() == (
        f"one folder per class: {2 * count} images, {count} classes, no lesion ids, no patient ids"
    )
    assert examine_table(dataset).rows["lesion_id"].is_unique


def test_folders_of_splits_above_the_classes_become_the_splits(tmp_path):
    files = class_folders(2, "train/") | class_folders(2, "valid/") | class_folders(2, "Test/")
    dataset = open_dataset(write(tmp_path, files))
    assert dataset.taxonomy.names == ("c00", "c01")
    assert {name: dataset.splits[name] for name in ("train/c00/1", "valid/c01/2")} == {
        "train/c00/1": "train",
        "valid/c01/2": "val",
    }
    assert sorted(dataset.splits.values()) == ["test"] * 4 + ["train"] * 4 + ["val"] * 4
    assert dataset.layout == "one folder per class below Test/, train/, valid/"


def test_splits_that_the_data_lacks_are_dealt_out_of_train():
    names = [f"i{n}" for n in range(100)]
    manifest = pd.DataFrame({"image_id": names, "label": ["a", "b"] * 50, "group": names})
    given = {name: "test" if n >= 80 else "train" for n, name in enumerate(names)}
    splits = complete_splits(manifest, given, val_size=0.2, test_size=0.3, seed=0)
    assert splits.test.tolist() == list(range(80, 100))  # as the data has it
    assert len(splits.val) == 20  # a fifth of all images
    assert sorted([*splits.train, *splits.val]) == list(range(80))
    whole = given | {"i0": "val", "i1": "val"}
    splits = complete_splits(manifest, whole, val_size=0.2, test_size=0.3, seed=0)
    assert splits.val.tolist() == [0, 1]


def test_given_splits_need_each_class_in_train():
    manifest = pd.DataFrame({"image_id": ["i", "j"], "label": ["a", "b"], "group": ["i", "j"]})
    with pytest.raises(DataError) as caught:
        complete_splits(manifest, {"i": "train", "j": "test"}, val_size=0.2, test_size=0.2, seed=0)
    assert str(caught.value) == ("class b has no image in train; add some, or leave the class out")


PHOTOS = {f"photos/p{n}.jpg": picture(n) for n in (1, 2, 3, 4)}


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize(
    "written", ["p{}", "p{}.jpg", "photos/p{}.jpg", "C:\\old\\photos\\p{}.JPG", "/data/photos/p{}"]
)
def test_one_table_is_read_whatever_its_marks_and_however_it_names_the_images(
    tmp_path, mark, start, written
):
    rows = [
        ("Filename", "Diagnosis", "Gender", "Age", "Fitzpatrick"),
        (written.format(1), "Näevus / dysplastic", "F", "50", "II"),
        (written.format(2), "melanoma", "male", "", "III"),
        (written.format(3), "melanoma", "", "61", ""),
        (written.format(4), "Näevus / dysplastic", "male", "33", "IV"),
    ]
    table = start + "".join(mark.join(row) + "\n" for row in rows)
    dataset = open_dataset(write(tmp_path, {"cases.csv": table, **PHOTOS}))
    assert dataset.taxonomy.names == ("Näevus / dysplastic", "melanoma")
    assert dataset.rows["image_id"].tolist() == ["p1", "p2", "p3", "p4"]
    assert dataset.rows["label"].tolist()[:2] == ["Näevus / dysplastic", "melanoma"]
    assert dataset.rows["sex"].tolist() == ["f", "male", "unknown", "male"]
    assert dataset.rows["age"].tolist()[::3] == [50, 33]
    assert dataset.rows["fitzpatrick"].tolist() == ["II", "III", "unknown", "IV"]
    assert dataset.taxonomy.not_recorded == ()
    assert files_of(dataset) == {f"p{n}": picture(n) for n in (1, 2, 3, 4)}
    assert dataset.summary() == (
        "one table (cases.csv): 4 images, 2 classes, no lesion ids, no patient ids"
    )


def test_images_beside_the_table_in_zips_and_as_single_files_are_found(tmp_path):
    table = "image,label\np1,a\np2,b\np3,b\n"
    write(tmp_path, {"t.tsv": table, "p1.jpg": picture(1), "x/p2.png": picture(2, "PNG")})
    write_zip(tmp_path / "more.zip", {"inner/p3.jpg": picture(3)})
    assert files_of(open_dataset(tmp_path)) == {
        "p1": picture(1), "p2": picture(2, "PNG"), "p3": picture(3),
    }  # fmt: skip


STRANGE = "md5hash,nine,three,case\np1,x,a,c1\np2,y,b,c1\np3,x,a,c2\np4,z,b,c3\n"


def test_columns_of_other_names_are_told_by_options(tmp_path):
    write(tmp_path, {"t.csv": STRANGE, **PHOTOS})
    assert error_of(tmp_path) == (
        f"{tmp_path}/t.csv has no column that names the image; pass --image-column (it has "
        "md5hash, nine, three, case)"
    )
    assert error_of(tmp_path, image_column="md5hash") == (
        f"{tmp_path}/t.csv has no column that names the label; pass --label-column (it has "
        "md5hash, nine, three, case)"
    )
    assert error_of(tmp_path, image_column="MD5Hash", label_column="tree") == (
        f"{tmp_path}/t.csv has no column 'tree'; did you mean three?"
    )
    columns = {"image_column": "md5hash", "label_column": "three", "group_column": "case"}
    rows = open_dataset(tmp_path, DataConfig(**columns)).rows
    assert rows["label"].tolist() == ["a", "b", "a", "b"]
    assert rows["lesion_id"].tolist() == ["c1", "c1", "c2", "c3"]
    assert "patient_id" not in rows
    assert rows["nine"].tolist() == ["x", "y", "x", "z"]
    rows = open_dataset(tmp_path, DataConfig(**columns, group_by="patient")).rows
    assert rows["patient_id"].tolist() == ["c1", "c1", "c2", "c3"]
    assert set(rows["lesion_id"]) == {""}


def test_two_columns_that_may_be_meant_are_one_sentence_and_either_can_be_chosen(tmp_path):
    write(tmp_path, {"t.csv": "image,label,diagnosis\np1,x,a\np2,y,b\n", **PHOTOS})
    assert error_of(tmp_path) == (
        f"{tmp_path}/t.csv has several columns that may name the label: label, diagnosis; pass "
        "--label-column"
    )
    rows = open_dataset(tmp_path, DataConfig(label_column="diagnosis")).rows
    assert rows["label"].tolist() == ["a", "b"]
    assert rows["label_"].tolist() == ["x", "y"]  # the other column stays


def test_data_that_fits_several_layouts_is_one_sentence(tmp_path):
    write(tmp_path, {"t.csv": "image,label\nc00/1,a\nc01/1,b\n", **class_folders(2)})
    assert error_of(tmp_path) == (
        f"{tmp_path} matches several layouts, one folder per class and one table (t.csv); expected "
        "one: remove the others from the folder (--image-column and --label-column choose a table)"
    )
    dataset = open_dataset(tmp_path, DataConfig(label_column="label"))
    assert dataset.rows["label"].tolist() == ["a", "b"]


@pytest.mark.parametrize("name", ["image_column", "label_column", "group_column"])
def test_a_column_of_data_that_has_no_table_is_refused(tmp_path, name):
    write(tmp_path, class_folders(2))
    assert error_of(tmp_path, **{name: "x"}) == (
        f"{tmp_path} is one folder per class, which has no table to take columns from; leave out "
        f"data.{name}"
    )


def test_two_tables_of_labels_and_a_single_class_are_refused(tmp_path):
    write(tmp_path, {"a.csv": "image,label\np1,x\n", **PHOTOS})
    assert error_of(tmp_path) == f"{tmp_path}/a.csv has one class, 'x'; expected two or more"
    write(tmp_path, {"b.csv": "image,label\np1,x\n"})
    assert error_of(tmp_path) == (
        f"{tmp_path}/a.csv and {tmp_path}/b.csv both list images with labels; remove one of them"
    )


def test_a_folder_without_anything_known_lists_every_layout(tmp_path):
    write(tmp_path, {"notes.txt": "words"})
    assert error_of(tmp_path) == (
        f"found nothing known in {tmp_path}; expected HAM10000 (HAM10000_metadata beside "
        "HAM10000_images_part_1 and HAM10000_images_part_2, or beside images/), one folder of "
        "images per class, also below train/, val/ and test/, ISIC 2018 Task 3 "
        "(ISIC2018_Task3_Training_Input, ISIC2018_Task3_Training_GroundTruth and "
        "ISIC2018_Task3_Training_LesionGroupings.csv), ISIC 2019 (ISIC_2019_Training_Input, "
        "ISIC_2019_Training_GroundTruth.csv and ISIC_2019_Training_Metadata.csv), PAD-UFES-20 "
        "(metadata.csv beside imgs_part_1 to imgs_part_3, or beside images/), or one table with an "
        "image and a label column beside the images"
    )


def test_numbers_as_classes_are_in_the_order_of_numbers(tmp_path):
    write(tmp_path, {f"{n}/{n}.jpg": picture(n) for n in (10, 9, 2, 0)})
    assert open_dataset(tmp_path).taxonomy.names == ("0", "2", "9", "10")


def test_a_folder_named_in_decomposed_letters_is_the_class_of_that_name(tmp_path):
    write(tmp_path, {"Na\u0308vus /1.jpg": picture(1), "mel/2.jpg": picture(2)})
    write(tmp_path, {"taxonomy.yaml": "malignant: [mel]\norder: [mel, N\u00e4vus]\n"})
    assert open_dataset(tmp_path).taxonomy.names == ("mel", "N\u00e4vus")


TAXONOMY = """\
title: Clinic of 2024
order: [c01, c00]
descriptions:
  c00: a benign thing
malignant: c01
license: CC0
citation: nobody
not_recorded: [skin type, camera]
"""


def test_taxonomy_yaml_describes_and_orders_the_classes(tmp_path):
    taxonomy = open_dataset(
        write(tmp_path, class_folders(2) | {"taxonomy.yaml": TAXONOMY})
    ).taxonomy
    assert taxonomy == Taxonomy(
        names=("c01", "c00"),
        descriptions=("", "a benign thing"),
        malignant=("c01",),
        title="Clinic of 2024",
        license="CC0",
        citation="nobody",
        not_recorded=("skin type", "camera"),
    )


def test_taxonomy_yaml_takes_classes_that_yaml_would_read_as_something_else(tmp_path):
    write(tmp_path, {f"{name}/{i}.jpg": picture(i) for i, name in enumerate(("no", "1", "08"))})
    write(tmp_path, {"taxonomy.yaml": "order: [no, 08, 1]\nmalignant: [no]\n"})
    taxonomy = open_dataset(tmp_path).taxonomy
    assert taxonomy.names == ("no", "08", "1")
    assert taxonomy.malignant == ("no",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maligant: [c00]", " has the unknown key 'maligant'; did you mean malignant?"),
        (
            "colour: red",
            " has the unknown key 'colour'; expected title, license, citation, order, "
            "descriptions, malignant, not_recorded",
        ),
        ("- c00", " must have keys and values, such as `malignant: [mel]`"),
        ("", " must have keys and values, such as `malignant: [mel]`"),
        ("title: [a]", " has a list or mapping as title; expected text"),
        ("malignant: {c00: yes}", " must have a list of strings as malignant, such as [a, b]"),
        ("malignant: [c000]",
         " has 'c000' in malignant, which is not a class of the data; did you mean c00?"),
        ("malignant: [melanoma]",
         " has 'melanoma' in malignant, which is not a class of the data; it has c00, c01"),
        ("order: [c00]", " lacks 'c01' in order; expected each class once"),
        ("order: [c00, c01, c00]", " has 'c00' twice in order; expected each class once"),
        ("descriptions: [a, b]", " must have a text for each class as descriptions"),
        ("descriptions: {c02: a}",
         " has 'c02' in descriptions, which is not a class of the data; did you mean c01?"),
        ("title: [", " is not YAML at line 1"),
    ],
)  # fmt: skip
def test_a_taxonomy_yaml_that_does_not_fit_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "taxonomy.yaml"
    write(tmp_path, class_folders(2) | {"taxonomy.yaml": text})
    assert error_of(tmp_path) == f"{path}{message}"
