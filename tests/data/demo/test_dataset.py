import csv
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageStat
from servers import wait_for
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dermalyze.data.demo.dataset import _records, make_demo_data
from serving.errors import ConfigError, DataError
from serving.ham10000_taxonomy import HAM10000

REAL_COUNTS = {  # Tschandl et al. 2018, table 1
    "nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115
}  # fmt: skip
ZIPS = ["HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip"]
MASKS = "HAM10000_segmentations_lesion_tschandl.zip"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The smallest demo there is: 42 images."""
    return make_demo_data(tmp_path_factory.mktemp("demo") / "data", num_images=42)


def rows_of(folder):
    with (folder / "HAM10000_metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def jpegs_of(folder):
    jpegs = {}
    for name in ZIPS:
        with zipfile.ZipFile(folder / name) as file:
            jpegs |= {entry: file.read(entry) for entry in file.namelist()}
    return jpegs


def metadata_of(num_images):
    """The rows alone, as `make_demo_data` writes them: without the drawing it takes no time."""
    return _records(num_images, 0)


def digests_of(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_files_are_those_of_the_real_set(demo):
    names = sorted(path.name for path in demo.iterdir())
    assert names == [*ZIPS, "HAM10000_metadata.csv", MASKS, "demo.json"]
    first_line = (demo / "HAM10000_metadata.csv").read_bytes().split(b"\n")[0]
    assert first_line == b"lesion_id,image_id,dx,dx_type,age,sex,localization"
    assert json.loads((demo / "demo.json").read_text()) == {
        "num_images": 42,
        "seed": 0,
        "layout": "zips",
        "version": 2,
    }


def test_every_row_has_one_jpeg_of_600_by_450(demo):
    jpegs = jpegs_of(demo)
    ids = [row["image_id"] for row in rows_of(demo)]
    assert sorted(jpegs) == [f"{image_id}.jpg" for image_id in ids]
    assert ids == [f"DEMO_{number:07d}" for number in range(1, 43)]
    for data in jpegs.values():
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (600, 450))
        assert np.asarray(image).std() > 5  # something is drawn on it


def test_every_image_has_a_mask_of_its_lesion_which_has_other_colors_than_the_skin(demo):
    with zipfile.ZipFile(demo / MASKS) as file:
        masks = {name: Image.open(io.BytesIO(file.read(name))) for name in file.namelist()}
    jpegs = jpegs_of(demo)
    assert sorted(masks) == sorted(f"{name[:-4]}_segmentation.png" for name in jpegs)
    distances = []
    for name, data in jpegs.items():
        mask = masks[f"{name[:-4]}_segmentation.png"]
        assert (mask.mode, mask.size) == ("L", (600, 450))
        inside = np.asarray(mask)
        assert set(np.unique(inside)) == {0, 255}
        pixels = np.asarray(Image.open(io.BytesIO(data)), float)
        ring = np.asarray(mask.filter(ImageFilter.MaxFilter(31))) > inside  # 15 pixels around it
        distances.append(abs(pixels[inside == 255].mean(0) - pixels[ring].mean(0)).max())
    assert np.median(distances) > 20  # grey levels
    assert np.mean(np.array(distances) > 5) > 0.9


@pytest.mark.slow
def test_mean_color_does_not_tell_the_classes_apart(tmp_path):
    """Else the demo would show nothing that a table of three columns could not."""
    folder = make_demo_data(tmp_path / "demo")
    rows, jpegs = rows_of(folder), jpegs_of(folder)
    images = [Image.open(io.BytesIO(jpegs[f"{row['image_id']}.jpg"])) for row in rows]
    means = np.array([ImageStat.Stat(image).mean for image in images])
    labels = [row["dx"] for row in rows]
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=10, max_iter=2000, class_weight="balanced")
    )
    predicted = cross_val_predict(
        model, means, labels, groups=[row["lesion_id"] for row in rows], cv=StratifiedGroupKFold(4)
    )
    assert balanced_accuracy_score(labels, predicted) < 0.6


def test_folders_hold_the_very_images_that_zips_hold(demo, tmp_path):
    folder = make_demo_data(tmp_path / "folders", num_images=42, layout="folders")
    found = {path.name: path.read_bytes() for path in folder.glob("HAM10000_images_part_?/*.jpg")}
    assert found == jpegs_of(demo)
    assert len(list((folder / "HAM10000_images_part_1").iterdir())) == 21
    assert rows_of(folder) == rows_of(demo)


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(demo, tmp_path):
    again = make_demo_data(tmp_path / "again", num_images=42)
    other = make_demo_data(tmp_path / "other", num_images=42, seed=1)
    assert digests_of(again) == digests_of(demo)
    differing = {
        name for name, value in digests_of(other).items() if digests_of(demo)[name] != value
    }
    assert differing == set(digests_of(demo))


def test_a_second_call_touches_nothing(demo):
    paths = [demo.parent, demo, *demo.iterdir()]  # the parent: nothing came and went in it
    before = [path.stat().st_mtime_ns for path in paths]
    assert make_demo_data(demo, num_images=42) == demo
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    folder = make_demo_data(tmp_path / "empty", num_images=42)
    assert (folder / "demo.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # no partial folder is left


@pytest.mark.parametrize("held", ["other demo", "file in folder", "file"])
def test_what_is_there_already_is_never_overwritten(tmp_path, held):
    folder = tmp_path / "taken"
    if held == "file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / "demo.json").write_text('{"num_images": 43}' if held == "other demo" else "")
    before = digests_of(tmp_path)
    with pytest.raises(DataError) as caught:
        make_demo_data(folder, num_images=42)
    assert str(caught.value) == (
        f"{folder} holds something other than this demo data; name a new or an empty folder"
    )
    assert digests_of(tmp_path) == before


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("dermalyze.data.demo.dataset.photograph", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path / "data", num_images=42)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data", "."])
def test_what_a_killed_call_has_left_is_deleted_by_the_next(tmp_path, name):
    command = [sys.executable, "-m", "dermalyze", "demo-data", name]
    killed = subprocess.Popen([*command, "--images", "1000"], cwd=tmp_path)
    wait_for(lambda: any(tmp_path.rglob("HAM10000_metadata.csv")), 60)
    killed.kill()
    killed.wait()
    assert list(tmp_path.iterdir()) != []
    subprocess.run([*command, "--images", "42"], cwd=tmp_path, check=True)
    holder = tmp_path if name == "." else tmp_path / name
    assert {path.parent for path in tmp_path.rglob("*")} <= {tmp_path, holder}
    assert len(list(holder.iterdir())) == 5
    assert len(list(tmp_path.iterdir())) == (5 if name == "." else 1)


def test_of_two_calls_at_once_one_draws_and_both_find_the_data(tmp_path):
    command = [sys.executable, "-m", "dermalyze", "demo-data", "data", "--images", "42"]
    calls = [subprocess.Popen(command, cwd=tmp_path) for _ in range(2)]
    assert [call.wait() for call in calls] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 41}, "num_images must be at least 42, got 41"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"layout": "tar"}, "layout must be one of zips, folders, got 'tar'"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, arguments, message):
    with pytest.raises(ConfigError) as caught:
        make_demo_data(tmp_path / "data", **arguments)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_images", [42, 420, 1000])
def test_classes_have_the_real_shares_and_enough_lesions_for_three_splits(num_images):
    rows = metadata_of(num_images)
    counts = Counter(row["dx"] for row in rows)
    lesions = defaultdict(set)
    for row in rows:
        lesions[row["dx"]].add(row["lesion_id"])
    assert sum(counts.values()) == num_images
    assert set(counts) == set(HAM10000.names)
    assert min(counts.values()) >= 6
    assert min(len(ids) for ids in lesions.values()) >= 5
    if num_images >= 420:
        floor = num_images // 12  # enough lesions of each class for intervals and sets
        assert min(counts.values()) == floor
        above = [label for label in counts if counts[label] > floor]
        rest = sum(counts[label] for label in above)
        real = sum(REAL_COUNTS[label] for label in above)
        for label in above:
            assert abs(counts[label] - rest * REAL_COUNTS[label] / real) <= 1


def test_a_lesion_has_one_diagnosis_one_owner_and_sometimes_several_images():
    rows = metadata_of(420)
    about = defaultdict(set)
    for row in rows:
        about[row["lesion_id"]].add(tuple(row[key] for key in ("dx", "dx_type", "age", "sex")))
    assert all(len(facts) == 1 for facts in about.values())
    assert sorted(about) == [f"DEMO_L{number:05d}" for number in range(1, len(about) + 1)]
    images = Counter(row["lesion_id"] for row in rows)
    assert sum(count > 1 for count in images.values()) > len(images) / 8  # 1956 of 7470 in the real


def test_some_ages_sexes_and_places_are_missing_as_in_the_real_set():
    rows = metadata_of(420)
    assert 1 <= sum(row["age"] == "" for row in rows) <= 21
    assert 1 <= sum(row["sex"] == "unknown" for row in rows) <= 21
    assert 1 <= sum(row["localization"] == "unknown" for row in rows) <= 42
    assert {row["sex"] for row in rows} == {"male", "female", "unknown"}
    ages = [float(row["age"]) for row in rows if row["age"]]
    assert all(0 <= age <= 85 and age % 5 == 0 for age in ages)


def test_an_image_id_does_not_tell_the_class():
    """Half of the ids, the first part's, hold about half of the rare images."""
    rows = metadata_of(1000)
    first = sum(row["dx"] != "nv" for row in rows[:500])
    total = sum(row["dx"] != "nv" for row in rows)
    assert abs(first / total - 0.5) < 0.1  # four deviations of a fair split of some 340


def test_images_of_one_lesion_look_alike_and_are_not_equal(demo):
    """Seen at 12 x 9, another view is much nearer than another lesion of the same class."""
    jpegs, rows = jpegs_of(demo), rows_of(demo)
    images = [Image.open(io.BytesIO(jpegs[f"{row['image_id']}.jpg"])) for row in rows]
    small = np.array([np.asarray(image.resize((12, 9)), np.float64).ravel() for image in images])
    distances = np.linalg.norm(small[:, None] - small, axis=2)
    lesions = np.array([row["lesion_id"] for row in rows])
    labels = np.array([row["dx"] for row in rows])
    again = (lesions[:, None] == lesions) & ~np.eye(len(rows), dtype=bool)
    others = (labels[:, None] == labels) & (lesions[:, None] != lesions)
    assert again.sum() >= 10
    assert distances[again].min() > 10
    assert np.median(distances[again]) < 0.5 * np.median(distances[others])


def test_another_clinic_has_other_patients_colors_and_compression(demo, tmp_path):
    other = make_demo_data(tmp_path / "other", num_images=42, style="other-clinic")
    ids = [{row[name] for row in rows_of(f)} for f in (demo, other) for name in
           ("image_id", "lesion_id")]  # fmt: skip
    assert len(set.union(*ids)) == sum(map(len, ids))
    ours, theirs = jpegs_of(demo), jpegs_of(other)

    def warmth(jpegs):
        middles = [np.asarray(Image.open(io.BytesIO(j)))[150:300, 200:400] for j in jpegs.values()]
        return np.mean([m[..., 0].mean() / m[..., 2].mean() for m in middles])

    assert warmth(theirs) > 1.15 * warmth(ours)
    assert np.mean([*map(len, theirs.values())]) < 0.5 * np.mean([*map(len, ours.values())])
    corners = [np.asarray(Image.open(io.BytesIO(j)))[:10, :10].mean() for j in theirs.values()]
    assert max(corners) < 60  # a round field of view in each
    with pytest.raises(DataError):
        make_demo_data(tmp_path / "other", num_images=42)  # another demo is there
