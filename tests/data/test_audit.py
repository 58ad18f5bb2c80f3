import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dermalyze.data.audit import Audit, audit, examine_table
from dermalyze.data.near_duplicates import near_duplicates
from dermalyze.data.pixel_store.builder import build_pixels
from dermalyze.data.pixel_store.store import Preprocessing
from dermalyze.data.readers.dataset import open_dataset

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
SMALL = Preprocessing(image_size=16, resize_mode="squash", resize_filter="bilinear")


def scene(seed: int) -> np.ndarray:
    """Soft random blobs, 96 x 128: no two alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((128, 96), Image.Resampling.BICUBIC))


def encode(pixels: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def examine(folder: Path, rows: list[str], images: dict[str, bytes]) -> tuple[Audit, list[str]]:
    """Audit rows of lesion_id,image_id,dx and images; return it and the usable image ids."""
    (folder / "images").mkdir()
    lines = [row if row.count(",") == 6 else f"{row},histo,50,male,back" for row in rows]
    (folder / "HAM10000_metadata.csv").write_text("\n".join([HEADER, *lines]))
    for name, data in images.items():
        (folder / "images" / f"{name}.png").write_bytes(data)
    dataset = open_dataset(folder)
    table = examine_table(dataset)
    files = {image_id: dataset.files[image_id] for image_id in table.rows["image_id"]}
    stored = build_pixels(files, folder / "out", SMALL, workers=1)
    ids = [record.image_id for record in stored.records if not record.problem]
    content = {record.image_id: record.pixels_sha256 for record in stored.records}
    pairs = [p for p in near_duplicates(ids, stored.thumbnails()) if content[p[0]] != content[p[1]]]
    report, manifest = audit(dataset, table, stored.records, pairs)
    assert manifest["image_id"].tolist() == ids
    return report, ids


def found(report: Audit) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(p.kind, p.severity): p.items for p in report.problems}


def test_clean_data_has_no_problem_and_right_counts(tmp_path):
    rows = ["L1,I1,nv", "L1,I2,nv", "L2,I3,mel,histo,,unknown,back", "L3,I4,df,histo,40,female,"]
    report, _ = examine(tmp_path, rows, {f"I{n}": encode(scene(n)) for n in range(1, 5)})
    assert report.problems == ()
    assert report.stop_reason == ""
    assert {name: n for name, n in report.images.items() if n} == {"nv": 2, "mel": 1, "df": 1}
    assert {name: n for name, n in report.lesions.items() if n} == {"nv": 1, "mel": 1, "df": 1}
    assert report.lesions_with_several_images == 1
    assert report.missing == {"age": 1, "sex": 1, "localization": 1, "lesion id": 0}


def test_broken_images_are_set_aside_and_listed_by_what_is_wrong(tmp_path):
    whole = encode(scene(2))
    images = {"I1": b"junk", "I2": whole[:2000], "I3": encode(scene(3))}
    report, usable = examine(tmp_path, [f"L{n},I{n},nv" for n in (1, 2, 3, 4)], images)
    assert usable == ["I3"]
    assert found(report) == {
        ("missing_image", "broken"): ("I4",),
        ("unreadable", "broken"): ("I1: not a JPEG or PNG image (4 bytes)",),
        ("truncated", "broken"): (
            "I2: cannot decode the image (2,000 bytes): it is damaged or cut short",
        ),
    }
    assert report.stop_reason == "3 of 4 images missing or broken"


def test_ids_that_meet_no_file_are_shown_beside_a_file(tmp_path):
    rows = ["L1,I1,nv", "L2,I2,mel"]
    strange = {f"photo-I{n}": encode(scene(n)) for n in (1, 2)}
    report, _ = examine(tmp_path, rows, strange)
    assert report.stop_reason == (
        "2 of 2 images missing or broken (the table has 'I1', a file is called 'photo-I1')"
    )


def test_files_of_other_kinds_are_named_and_shown_where_images_are_missing(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "I1.webp").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text(f"{HEADER}\nL1,I1,nv,histo,50,male,back\n")
    dataset = open_dataset(tmp_path)
    table = examine_table(dataset)
    report, _ = audit(dataset, table, [], [])
    assert found(report)["other_file", "information"] == ("images/I1.webp",)
    assert report.stop_reason == (
        "1 of 1 images missing or broken (the table has 'I1', a file is called 'images/I1.webp')"
    )


def test_images_without_a_lesion_id_are_lesions_of_their_own_whatever_is_written(tmp_path):
    rows = ["nan,I1,nv", "N/A,I2,nv", ",I3,nv", "-,I4,nv", "I4,I5,nv"]  # the last: a lesion's name
    report, _ = examine(tmp_path, rows, {f"I{n}": encode(scene(n)) for n in range(1, 6)})
    assert found(report)["without_lesion", "warning"] == ("I1", "I2", "I3", "I4")
    assert report.lesions["nv"] == 5
    assert report.missing["lesion id"] == 4


def test_one_broken_image_in_a_hundred_does_not_stop_and_two_do(tmp_path):
    images = {f"I{n}": encode(scene(n)) for n in range(99)}
    rows = [f"L{n},I{n},nv" for n in range(100)]
    (tmp_path / "one").mkdir()
    assert examine(tmp_path / "one", rows, images)[0].stop_reason == ""
    (tmp_path / "two").mkdir()
    del images["I0"]
    report, _ = examine(tmp_path / "two", rows, images)
    assert report.stop_reason == "2 of 100 images missing or broken"


def test_contradictions_are_named_and_stop(tmp_path):
    rows = [
        *("L1,I1,nv", "L1,I1,mel"),  # one image, two labels; and one lesion, two diagnoses
        *("L2,I2,nv", "L3,I2,nv"),  # one image of two lesions
        *("L4,I4,nv", "L4,I5,mel"),  # a lesion with two diagnoses
        "L6,I6,wart",
        "L7,I7,nv",
    ]
    images = {f"I{n}": encode(scene(n)) for n in (1, 2, 4, 5, 6, 7)}
    report, usable = examine(tmp_path, rows, images)
    assert found(report) == {
        ("two_labels", "contradiction"): ("I1: mel, nv",),
        ("two_lesions", "contradiction"): ("I2: L2, L3",),
        ("two_diagnoses", "contradiction"): ("L1: mel, nv", "L4: mel, nv"),
        ("unknown_label", "contradiction"): ("I6: 'wart'",),
    }
    assert report.stop_reason == "5 contradictions"
    assert usable == ["I4", "I5", "I7"]


def test_two_unlike_files_of_one_name_contradict_each_other(tmp_path):
    for name in ("HAM10000_images_part_1", "HAM10000_images_part_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "I1.png").write_bytes(encode(scene(10 + int(name[-1]))))
    report, usable = examine(tmp_path, ["L1,I1,nv", "L2,I2,nv"], {"I2": encode(scene(2))})
    (item,) = found(report)["two_files", "contradiction"]
    first, second = (tmp_path / f"HAM10000_images_part_{n}" / "I1.png" for n in (1, 2))
    assert item == f"I1: {first} and {second}"
    assert usable == ["I2"]


def test_what_only_deserves_a_word_is_named_and_does_not_stop(tmp_path):
    rows = [
        *("L1,I1,nv", "L1,I1,nv"),
        *("L2,I2,nv,histo,50,male,back", "L2,I2,nv,histo,60,male,back"),
        *(",I3,nv", ",I4,mel"),
    ]
    images = {f"I{n}": encode(scene(n)) for n in (1, 2, 3, 4, 5)}
    report, usable = examine(tmp_path, rows, images)
    assert found(report) == {
        ("image_without_row", "warning"): ("I5",),
        ("without_lesion", "warning"): ("I3", "I4"),
        ("vague_image", "warning"): ("I2",),
        ("repeated_row", "information"): ("I1",),
    }
    assert report.stop_reason == ""
    assert usable == ["I1", "I2", "I3", "I4"]
    assert report.missing["lesion id"] == 2
    assert sum(report.lesions.values()) == 4


def test_equal_images_weigh_more_across_lesions_and_most_with_two_labels(tmp_path):
    rows = [
        *("L1,I1,nv", "L1,I2,nv"),  # one file twice in one lesion
        *("L3,I3,nv", "L4,I4,nv"),  # one file in two lesions
        *("L5,I5,nv", "L6,I6,mel"),  # one file, two labels
        *("L7,I7,nv", "L7,I8,nv"),  # one image, packed in two ways
    ]
    images = {f"I{n}": encode(scene((n - 1) // 2)) for n in range(1, 9)}
    images["I8"] = encode(scene(3), compress_level=1)
    assert images["I8"] != images["I7"]
    report, usable = examine(tmp_path, rows, images)
    assert found(report) == {
        ("same_file", "contradiction"): ("I5 (L5, nv), I6 (L6, mel)",),
        ("same_file", "warning"): ("I3 (L3, nv), I4 (L4, nv)",),
        ("same_file", "information"): ("I1 (L1, nv), I2 (L1, nv)",),
        ("same_pixels", "information"): ("I7 (L7, nv), I8 (L7, nv)",),
    }
    assert len(usable) == 8
    assert report.stop_reason == "1 contradictions"


def test_near_duplicates_are_information_inside_a_lesion_and_a_warning_across(tmp_path):
    rows = ["L1,I1,nv", "L1,I2,nv", "L3,I3,nv", "L4,I4,mel", "L5,I5,nv"]
    images = {
        "I1": encode(scene(1)),
        "I2": encode(scene(1), "JPEG", quality=60),
        "I3": encode(scene(3)),
        "I4": encode((scene(3) * 0.8).astype(np.uint8)[:, ::-1]),  # darker and mirrored
        "I5": encode(scene(5)),
    }
    report, _ = examine(tmp_path, rows, images)
    problems = found(report)
    assert problems.keys() == {("near_duplicate", "information"), ("near_duplicate", "warning")}
    assert problems["near_duplicate", "information"][0].startswith("I1 (L1, nv), I2 (L1, nv): ")
    assert problems["near_duplicate", "warning"][0].startswith("I3 (L3, nv), I4 (L4, mel): ")
    assert report.stop_reason == ""


def test_the_summary_has_some_examples_and_the_json_all(tmp_path):
    rows = [f"L{n},I{n:02d},nv" for n in range(13)] + ["L99,I99,nv"]
    report, _ = examine(tmp_path, rows, {"I99": encode(scene(99))})
    lines = report.summary().splitlines()
    assert lines[0] == "1 usable images of 1 lesions, 0 of them with several images"
    assert lines[1] == "14 rows name 14 images; there are 1 image files"
    assert "nv             1        1" in lines
    start = lines.index("broken: images have no file: 13")
    assert lines[start + 1 : start + 12] == [
        *(f"  I{n:02d}" for n in range(10)),
        "  and 3 more in audit.json",
    ]
    assert lines[-1] == "stops: 13 of 14 images missing or broken"
    values = json.loads(report.to_json())
    assert values["stop_reason"] == "13 of 14 images missing or broken"
    assert values["images"]["nv"] == 1
    (problem,) = values["problems"]
    assert problem["count"] == 13
    assert problem["items"] == [f"I{n:02d}" for n in range(13)]


def telling(report: Audit) -> tuple[str, ...]:
    return found(report).get(("telling_column", "warning"), ())


def rows_of(values: list[tuple[str, str]]) -> list[str]:
    return [f"L{n},I{n},{dx},{dx_type},50,male,back" for n, (dx, dx_type) in enumerate(values)]


def test_a_column_filled_after_the_diagnosis_that_tells_the_class_is_a_warning(tmp_path):
    values = [*[("nv", "follow_up")] * 12, *[("nv", "histo")] * 6, *[("mel", "histo")] * 6]
    rows = rows_of(values)
    report, _ = examine(tmp_path, rows, {f"I{n}": encode(scene(n)) for n in range(len(rows))})
    # 12 of 24 by chance: 0.75 ** 12 = 0.03 is not unlikely enough; 0.5 ** 6 = 0.016 neither.
    assert telling(report) == ()
    (tmp_path / "more").mkdir()
    rows = rows_of([*values, *[("mel", "histo")] * 6, ("nv", "unknown")])
    report, _ = examine(
        tmp_path / "more", rows, {f"I{n}": encode(scene(n)) for n in range(len(rows))}
    )
    assert telling(report) == (
        "dx_type: 100% of the 12 images with 'follow_up' are nv, of all images 60%",
        "dx_type: 100% of the 12 images of mel have 'histo', of all images 60%",
    )
    assert report.stop_reason == ""


def test_a_column_known_before_the_diagnosis_is_not_named_whatever_it_tells(tmp_path):
    rows = [f"L{n},I{n},{'nv' if n % 2 else 'mel'},histo,{n % 2},male,back" for n in range(20)]
    report, _ = examine(tmp_path, rows, {f"I{n}": encode(scene(n)) for n in range(20)})
    assert telling(report) == ()


def test_findings_carry_the_ids_of_their_images(tmp_path):
    rows = ["L1,I 1,nv", "L2,I (2),nv", "L3,I3,wart", "L4,I4,mel", "L4,I5,nv"]
    images = {"I 1": encode(scene(1)), "I (2)": encode(scene(1)), "I3": encode(scene(3))}
    report, _ = examine(tmp_path, rows, {**images, "I5": encode(scene(5))})
    ids = {p.kind: [finding.image_ids for finding in p.findings] for p in report.problems}
    assert ids == {
        "two_diagnoses": [("I4", "I5")],
        "unknown_label": [("I3",)],
        "missing_image": [("I4",)],
        "same_file": [("I (2)", "I 1")],
    }
    values = {p["kind"]: p for p in json.loads(report.to_json())["problems"]}
    assert values["same_file"]["image_ids"] == [["I (2)", "I 1"]]
    assert values["same_file"]["items"] == ["I (2) (L2, nv), I 1 (L1, nv)"]
