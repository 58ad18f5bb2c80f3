"""Each reader on drawn data in exactly the layout that its data set is published in."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermalyze.config import DataConfig
from dermalyze.data.audit import examine_table
from dermalyze.data.readers.dataset import Dataset, open_dataset, read_image_bytes
from serving.errors import ConfigError, DataError


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


ISIC_2019_TRUTH = """\
image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK
ISIC_0000000,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0
ISIC_0000001,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0
ISIC_0012653_downsampled,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0
ISIC_0012660,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0
"""
ISIC_2019_METADATA = """\
image,age_approx,anatom_site_general,lesion_id,sex
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
        "it beside them from challenge.isic-archive.com"
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
