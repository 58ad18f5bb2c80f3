import io
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermalyze.data.readers.dataset import ImageReader, open_dataset, read_image_bytes
from serving.errors import DataError, ImageError

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
TABLE = (
    HEADER
    + "HAM_1,ISIC_1,nv,histo,80.0,male,back\n"
    + "HAM_1,ISIC_2,nv,histo,80.0,male,back\n"
    + "HAM_2,ISIC_3,mel,follow_up,,unknown,unknown\n"
)


def jpeg(gray: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), gray, np.uint8)).save(data, "JPEG")
    return data.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_folder(folder: Path, members: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in members.items():
        (folder / name).write_bytes(data)


def check_three_images(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert dataset.rows["image_id"].tolist() == ["ISIC_1", "ISIC_2", "ISIC_3"]
    assert dataset.rows["label"].tolist() == ["nv", "nv", "mel"]
    assert dataset.rows["lesion_id"].tolist() == ["HAM_1", "HAM_1", "HAM_2"]
    assert not dataset.rivals
    for number in (1, 2, 3):
        assert read_image_bytes(dataset.files[f"ISIC_{number}"]) == jpeg(number)
    assert len(dataset.files) == 3


def error_of(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(folder)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".csv", ".tab"])
def test_the_dataverse_record_is_read_from_its_zips(tmp_path, suffix):
    text = TABLE.replace(",", "\t") if suffix == ".tab" else TABLE
    (tmp_path / f"HAM10000_metadata{suffix}").write_text(text)
    write_zip(tmp_path / "HAM10000_images_part_1.zip", {"ISIC_1.jpg": jpeg(1)})
    write_zip(
        tmp_path / "HAM10000_images_part_2.zip",
        {
            "inner/ISIC_2.JPEG": jpeg(2),
            "inner/ISIC_3.jpg": jpeg(3),
            "__MACOSX/inner/ISIC_3.jpg": b"resource fork",
            "inner/.ISIC_3.jpg": b"hidden",
            "inner/LICENSE.txt": b"words",
        },
    )
    masks = {"ISIC_1_segmentation.png": b"mask"}
    write_zip(tmp_path / "HAM10000_segmentations_lesion_tschandl.zip", masks)
    check_three_images(tmp_path)


def test_a_quoted_table_with_tabs_and_a_byte_order_mark_is_read(tmp_path):
    lines = ["\t".join(f'"{value}"' for value in line.split(",")) for line in TABLE.splitlines()]
    (tmp_path / "HAM10000_metadata.tab").write_text("\n".join(lines), encoding="utf-8-sig")
    write_folder(tmp_path / "images", {f"ISIC_{n}.jpg": jpeg(n) for n in (1, 2, 3)})
    check_three_images(tmp_path)


def test_kaggles_folders_are_read_and_their_lower_case_copies_are_no_second_files(tmp_path):
    (tmp_path / "HAM10000_metadata.csv").write_text(TABLE)
    first = {"ISIC_1.jpg": jpeg(1), "ISIC_2.jpg": jpeg(2)}
    write_folder(tmp_path / "HAM10000_images_part_1", first)
    write_folder(tmp_path / "HAM10000_images_part_2", {"ISIC_3.jpg": jpeg(3)})
    (tmp_path / "ham10000_images_part_1").mkdir(exist_ok=True)  # one and the same on some disks
    for name, data in first.items():
        (tmp_path / "ham10000_images_part_1" / name).write_bytes(data)
    check_three_images(tmp_path)


def test_images_and_a_metadata_csv_whose_ids_are_file_names_are_read(tmp_path):
    table = TABLE.replace("ISIC_1", "ISIC_1.jpg").replace(",nv,", ", NV ,")
    (tmp_path / "metadata.csv").write_text(table)
    write_folder(tmp_path / "images", {f"ISIC_{n}.jpg": jpeg(n) for n in (1, 2, 3)})
    check_three_images(tmp_path)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ISIC_{}", "inner\\ISIC_{}.jpg"),
        ("images/ISIC_{}.jpg", "ISIC_{}.jpg"),
        ("C:\\old\\ISIC_{}", "ISIC_{}.JPEG"),
        ("ISIC_{}", "isic_{}.jfif"),
        ("ISIC_{}", "ISIC_{}.jpg.jpg"),
        ("ISIC_{}", "ISIC_{}_downsampled.jpe"),
    ],
)
def test_ids_and_files_are_brought_to_one_form(tmp_path, written, name):
    table = TABLE
    for number in (1, 2, 3):
        table = table.replace(f"ISIC_{number}", written.format(number))
    (tmp_path / "HAM10000_metadata (1).csv").write_text(table)
    write_zip(tmp_path / "HAM10000_images_part_1.zip", {name.format(1): jpeg(1)})
    rest = {name.format(number): jpeg(number) for number in (2, 3)}
    rest |= {
        "inner\\": b"",
        "__MACOSX\\inner\\._ISIC_2.jpg": b"",
    }  # as Windows may pack a Mac's folder
    write_zip(tmp_path / "HAM10000_images_part_2 (1).zip", rest)
    check_three_images(tmp_path)
    assert open_dataset(tmp_path).others == ()
    assert set(open_dataset(tmp_path).files) == {"ISIC_1", "ISIC_2", "ISIC_3"}


def test_two_tables_of_one_name_are_one_or_refused(tmp_path):
    (tmp_path / "HAM10000_metadata.csv").write_text(TABLE)
    (tmp_path / "HAM10000_metadata (1).csv").write_text(TABLE)
    write_folder(tmp_path / "images", {f"ISIC_{n}.jpg": jpeg(n) for n in (1, 2, 3)})
    check_three_images(tmp_path)
    (tmp_path / "HAM10000_metadata.csv").write_text(TABLE.replace("mel", "nv"))
    assert error_of(tmp_path) == (
        f"{tmp_path}/HAM10000_metadata (1).csv and {tmp_path}/HAM10000_metadata.csv differ; "
        "remove one of them"
    )


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_the_table_may_be_saved_by_a_spreadsheet(tmp_path, mark, encoding):
    text = TABLE.replace("unknown\n", "Gesäß\n").replace(",", mark)
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    write_folder(tmp_path / "images", {f"ISIC_{n}.jpg": jpeg(n) for n in (1, 2, 3)})
    check_three_images(tmp_path)
    assert open_dataset(tmp_path).rows["localization"].tolist() == ["back", "back", "gesäß"]


def test_folders_in_ids_tell_files_of_one_name_apart(tmp_path):
    table = HEADER + "HAM_1,a/0001.jpg,nv,histo,80,male,back\nHAM_2,b/0001.jpg,mel,histo,,,\n"
    (tmp_path / "metadata.csv").write_text(table)
    for number, place in enumerate("ab"):
        (tmp_path / "images" / place).mkdir(parents=True)
        (tmp_path / "images" / place / "0001.jpg").write_bytes(jpeg(number))
    dataset = open_dataset(tmp_path)
    assert dataset.rows["image_id"].tolist() == ["a/0001", "b/0001"]
    for number, image_id in enumerate(("a/0001", "b/0001")):
        assert read_image_bytes(dataset.files[image_id]) == jpeg(number)
    assert not dataset.rivals


@pytest.mark.parametrize("second", ["b/ISIC_1.jpg", "a/ISIC_1.png", "a/isic_1.jpg"])
def test_two_files_that_one_row_may_mean_are_rivals_though_they_are_of_one_size(tmp_path, second):
    (tmp_path / "metadata.csv").write_text(TABLE)
    for name, data in (("a/ISIC_1.jpg", b"one"), (second, b"two")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    dataset = open_dataset(tmp_path)
    found = {read_image_bytes(file) for file in (dataset.files["ISIC_1"], dataset.rivals["ISIC_1"])}
    assert found == {b"one", b"two"}


ISIC_TRUTH = (
    "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    "ISIC_1,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n"
    "ISIC_2,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n"
    "ISIC_3,1.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
)
ISIC_LESIONS = (
    "image,lesion_id,diagnosis_confirm_type\n"
    "ISIC_1,HAM_1,histopathology\n"
    "ISIC_2,HAM_1,single image expert consensus\n"
    "ISIC_3,HAM_2,serial imaging showing no change\n"
)


@pytest.mark.parametrize("packed", [True, False])
def test_isic_2018_task_3_is_read_from_zips_and_from_folders(tmp_path, packed):
    name = "ISIC2018_Task3_Training_"
    images = {f"ISIC_{n}.jpg": jpeg(n) for n in (1, 2, 3)}
    (tmp_path / f"{name}LesionGroupings.csv").write_text(ISIC_LESIONS)
    if packed:
        inside = {f"{name}Input/{key}": data for key, data in images.items()}
        write_zip(tmp_path / f"{name}Input.zip", inside)
        truth = {f"{name}GroundTruth/{name}GroundTruth.csv": ISIC_TRUTH.encode()}
        write_zip(tmp_path / f"{name}GroundTruth.zip", truth)
    else:
        write_folder(tmp_path / f"{name}Input", images)
        truth = {f"{name}GroundTruth.csv": ISIC_TRUTH.encode()}
        write_folder(tmp_path / f"{name}GroundTruth", truth)
    check_three_images(tmp_path)
    rows = open_dataset(tmp_path).rows
    assert rows["dx_type"].tolist() == ["histo", "consensus", "follow_up"]
    assert rows["sex"].tolist() == ["unknown"] * 3
    assert rows["age"].isna().all()


def test_isics_two_tables_may_write_an_image_differently(tmp_path):
    name = "ISIC2018_Task3_Training_"
    (tmp_path / f"{name}GroundTruth.csv").write_text(ISIC_TRUTH.replace("\nISIC", "\nisic"))
    lesions = ISIC_LESIONS.replace(",HAM_", ".jpg,HAM_")
    (tmp_path / f"{name}LesionGroupings (1).csv").write_text(lesions)
    write_folder(tmp_path / f"{name}Input", {f"ISIC_{n}.jpg": jpeg(n) for n in (1, 2, 3)})
    dataset = open_dataset(tmp_path)
    assert dataset.rows["lesion_id"].tolist() == ["HAM_1", "HAM_1", "HAM_2"]
    assert set(dataset.rows["image_id"]) == set(dataset.files)


def test_a_ground_truth_that_is_no_number_is_refused(tmp_path):
    name = "ISIC2018_Task3_Training_"
    (tmp_path / f"{name}GroundTruth.csv").write_text(ISIC_TRUTH.replace("ISIC_2,0.0", "ISIC_2,o"))
    (tmp_path / f"{name}LesionGroupings.csv").write_text(ISIC_LESIONS)
    write_folder(tmp_path / f"{name}Input", {"ISIC_1.jpg": jpeg(1)})
    path = tmp_path / f"{name}GroundTruth.csv"
    assert error_of(tmp_path) == f"{path} has mel 'o' for ISIC_2; expected 0 or 1"


def test_one_hot_rows_with_two_ones_or_none_survive_as_labels_of_no_class(tmp_path):
    truth = ISIC_TRUTH.replace("ISIC_1,0.0,1.0", "ISIC_1,1.0,1.0")
    truth = truth.replace("ISIC_2,0.0,1.0", "ISIC_2,0.0,0.0")
    (tmp_path / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(truth)
    (tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(ISIC_LESIONS)
    write_folder(tmp_path / "ISIC2018_Task3_Training_Input", {"ISIC_1.jpg": jpeg(1)})
    assert open_dataset(tmp_path).rows["label"].tolist() == ["mel+nv", "", "mel"]


def test_isic_images_without_lesion_groupings_say_what_to_download(tmp_path):
    (tmp_path / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(ISIC_TRUTH)
    write_folder(tmp_path / "ISIC2018_Task3_Training_Input", {"ISIC_1.jpg": jpeg(1)})
    assert error_of(tmp_path) == (
        f"no ISIC2018_Task3_Training_LesionGroupings.csv in {tmp_path}, which has ISIC 2018 Task 3 "
        "images; download it into that folder from challenge.isic-archive.com"
    )


def test_contradicting_rows_survive_to_the_audit(tmp_path):
    (tmp_path / "HAM10000_metadata.csv").write_text(
        TABLE + "HAM_1,ISIC_1,mel,histo,80.0,male,back\nHAM_9,ISIC_9,wart,histo,1,male,back\n"
    )
    write_folder(tmp_path / "images", {"ISIC_1.jpg": jpeg(1)})
    assert open_dataset(tmp_path).rows["label"].tolist() == ["nv", "nv", "mel", "mel", "wart"]


@pytest.mark.parametrize("second", ["part_2", "part_1 (1)"])
def test_two_files_of_one_name_and_other_content_are_kept_apart(tmp_path, second):
    (tmp_path / "HAM10000_metadata.csv").write_text(TABLE)
    write_zip(tmp_path / "HAM10000_images_part_1.zip", {"ISIC_1.jpg": b"first"})
    write_zip(tmp_path / f"HAM10000_images_{second}.zip", {"ISIC_1.jpg": b"other"})
    dataset = open_dataset(tmp_path)
    found = {read_image_bytes(file) for file in (dataset.files["ISIC_1"], dataset.rivals["ISIC_1"])}
    assert found == {b"first", b"other"}


def test_a_missing_folder_says_where_images_come_from(tmp_path):
    assert error_of(tmp_path / "nowhere") == (
        f"no data folder at {tmp_path}/nowhere; download HAM10000 into it "
        "(doi:10.7910/DVN/DBW86T), or draw images with `dermalyze demo-data`"
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("notes.txt", "nothing known"),
        ("HAM10000_metadata.csv", "a table without images"),
        ("images/ISIC_1.jpg", "images without a table"),
    ],
)
def test_an_unknown_layout_names_the_known_ones(tmp_path, name, found):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(TABLE)
    assert error_of(tmp_path).startswith(
        f"found {found} in {tmp_path}; expected HAM10000 (HAM10000_metadata beside "
        "HAM10000_images_part_1 and HAM10000_images_part_2, or beside images/), "
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image_id,age\nISIC_1,4\n",
            "{path} lacks the columns lesion_id, dx; it has image_id, age",
        ),
        (
            "",
            "{path} is not a table; expected columns lesion_id, image_id, dx and the same number "
            "of values in every line",
        ),
        (
            HEADER + "HAM_1,ISIC_1,nv,histo,80.0,male,back,more\n,,,\n1,2,3,4,5,6,7,8,9\n",
            "{path} is not a table; expected columns lesion_id, image_id, dx and the same number "
            "of values in every line",
        ),
        (
            HEADER + "HAM_1,ISIC_1,nv,histo,80.0,male,back,\n",
            "{path} is not a table; expected columns lesion_id, image_id, dx and the same number "
            "of values in every line",
        ),
        (HEADER, "{path} has a header and no rows; expected one row per image"),
        (
            HEADER + "HAM_1,,nv,histo,80.0,male,back\n",
            "{path} has 1 rows without an image id; complete or remove them",
        ),
        (
            TABLE.replace(",80.0,", ",old,"),
            "{path} has the age 'old' for ISIC_1; expected years from 0 to 120, or nothing",
        ),
        (
            "\x89PNG\r\n\x1a\n\xff",
            "{path} is not a table; expected columns lesion_id, image_id, dx and the same number "
            "of values in every line",
        ),
    ],
)
def test_a_malformed_table_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "HAM10000_metadata.csv"
    path.write_bytes(text.encode("latin-1"))
    (tmp_path / "images").mkdir()
    assert error_of(tmp_path) == message.format(path=path)


def test_a_zip_cut_short_asks_for_another_download(tmp_path):
    (tmp_path / "HAM10000_metadata.csv").write_text(TABLE)
    path = tmp_path / "HAM10000_images_part_1.zip"
    write_zip(path, {"ISIC_1.jpg": jpeg(1)})
    path.write_bytes(path.read_bytes()[:-30])
    assert error_of(tmp_path) == f"{path} is not a zip file or was cut short; download it again"


def test_a_damaged_member_is_an_image_error(tmp_path):
    (tmp_path / "HAM10000_metadata.csv").write_text(TABLE)
    path = tmp_path / "HAM10000_images_part_1.zip"
    write_zip(path, {"ISIC_1.jpg": b"stored without compression"})
    path.write_bytes(path.read_bytes().replace(b"without", b"wibhout"))
    dataset = open_dataset(tmp_path)
    with ImageReader() as reader, pytest.raises(ImageError) as caught:
        reader.read(dataset.files["ISIC_1"])
    assert str(caught.value) == (
        "cannot read HAM10000_images_part_1.zip/ISIC_1.jpg: the zip is damaged there"
    )


def write_bomb(path: Path, name: str, *, says: int | None = None) -> None:
    """Write a zip of 3 MB whose member unpacks to 3 GB; it may say that it is smaller."""
    chunk, times = 2**20, 2861
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(bytes(chunk)) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = block * times + deflate.flush()
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo(name)
        archive.writestr(entry, data)
    raw = bytearray(path.read_bytes())
    for mark, method, size in ((b"PK\1\2", 10, 24), (b"PK\3\4", 8, 22)):
        start = raw.find(mark)
        raw[start + method : start + method + 2] = (8).to_bytes(2, "little")  # deflated
        raw[start + size : start + size + 4] = (says or chunk * times).to_bytes(4, "little")
    path.write_bytes(raw)


def test_a_table_zipped_to_3_mb_that_unpacks_to_3_gb_is_refused_by_its_size(tmp_path):
    name = "ISIC2018_Task3_Training_GroundTruth"
    write_folder(tmp_path / "ISIC2018_Task3_Training_Input", {"ISIC_1.jpg": jpeg(1)})
    write_bomb(tmp_path / f"{name}.zip", f"{name}.csv")
    assert (tmp_path / f"{name}.zip").stat().st_size < 3.5e6
    assert error_of(tmp_path) == (
        f"{tmp_path}/{name}.zip/{name}.csv has 2,999,975,936 bytes; expected a table of images of "
        "at most 134,217,728; download it again"
    )


def test_a_table_of_that_size_that_is_not_zipped_is_refused_as_well(tmp_path):
    path = tmp_path / "HAM10000_metadata.csv"
    with path.open("wb") as file:
        file.truncate(3 * 10**9)  # without a block on the disk
    (tmp_path / "images").mkdir()
    assert error_of(tmp_path) == (
        f"{path} has 3,000,000,000 bytes; expected a table of images of at most 134,217,728; "
        "download it again"
    )


@pytest.mark.parametrize("kind", ["table", "image"])
def test_no_more_is_unpacked_than_the_zip_gives_a_file_as_its_size(tmp_path, kind):
    truth = "ISIC2018_Task3_Training_GroundTruth"
    if kind == "table":
        write_folder(tmp_path / "ISIC2018_Task3_Training_Input", {"ISIC_1.jpg": jpeg(1)})
        write_bomb(tmp_path / f"{truth}.zip", f"{truth}.csv", says=1000)
    else:
        (tmp_path / "HAM10000_metadata.csv").write_text(TABLE)
        write_bomb(tmp_path / "HAM10000_images_part_1.zip", "ISIC_1.jpg", says=1000)
    tracemalloc.start()
    try:
        if kind == "table":
            message = error_of(tmp_path)
        else:
            with pytest.raises(ImageError) as caught:
                read_image_bytes(open_dataset(tmp_path).files["ISIC_1"])
            message = str(caught.value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    table = tmp_path / f"{truth}.zip" / f"{truth}.csv"
    assert (
        message
        == {
            "table": f"{table} is damaged in its zip; download the zip again",
            "image": "cannot read HAM10000_images_part_1.zip/ISIC_1.jpg: the zip is damaged there",
        }[kind]
    )
    assert peak < 20e6  # bytes; all of it would be 2 GB at once


def test_an_encrypted_table_is_one_sentence(tmp_path):
    name = "ISIC2018_Task3_Training_GroundTruth"
    write_folder(tmp_path / "ISIC2018_Task3_Training_Input", {"ISIC_1.jpg": jpeg(1)})
    path = tmp_path / f"{name}.zip"
    write_zip(path, {f"{name}.csv": ISIC_TRUTH.encode()})
    raw = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        raw[raw.find(mark) + flags] |= 1
    path.write_bytes(raw)
    assert error_of(tmp_path) == (
        f"cannot read {path}/{name}.csv: encrypted or packed in an unknown way"
    )


def test_a_file_gone_since_is_an_image_error(tmp_path):
    (tmp_path / "HAM10000_metadata.csv").write_text(TABLE)
    write_folder(tmp_path / "images", {"ISIC_1.jpg": jpeg(1)})
    file = open_dataset(tmp_path).files["ISIC_1"]
    file.path.unlink()
    with pytest.raises(ImageError) as caught:
        read_image_bytes(file)
    assert str(caught.value) == f"cannot read {file.path}: No such file or directory"


def test_the_real_table_has_the_published_counts(real_data):
    dataset = open_dataset(real_data)
    rows = dataset.rows
    assert rows["label"].value_counts().to_dict() == {
        "nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115,
    }  # fmt: skip
    assert int((rows["lesion_id"].value_counts() > 1).sum()) == 1956
    assert rows["lesion_id"].nunique() == 7470
    assert len(dataset.files) == 10015
    assert int(rows["age"].isna().sum()) == 57
    assert int((rows["sex"] == "unknown").sum()) == 57
    assert int((rows["localization"] == "unknown").sum()) == 234
