"""What must not be split: lesions, patients or nothing."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermalyze.config.schema import Config, DataConfig
from dermalyze.data.preparation import prepare
from dermalyze.data.splits import fold_splits, split_groups
from dermalyze.data.table_columns import with_groups
from dermalyze.workflows.run_context import Here, prepare_again
from serving.errors import DataError

ROOT = Path(__file__).parents[2]
SMALL = DataConfig(image_size=16)


def test_an_image_without_a_patient_belongs_to_the_patient_of_its_lesion_or_to_its_lesion():
    manifest = pd.DataFrame(
        {
            "image_id": ["i1", "i2", "i3", "i4", "i5"],
            "lesion_id": ["a", "a", "b", "b", "P"],
            "patient_id": ["P", "", "", "", ""],
        }
    )
    assert with_groups(manifest, "patient")["group"].tolist() == ["P", "P", "b", "b", "lesion P"]
    assert with_groups(manifest, "lesion")["group"].tolist() == ["a", "a", "b", "b", "P"]
    assert with_groups(manifest, "none")["group"].tolist() == ["i1", "i2", "i3", "i4", "i5"]


def test_patients_stay_whole_in_splits_and_folds_though_their_lesions_have_several_classes():
    generator = np.random.default_rng(0)
    patients = generator.integers(0, 60, 300)
    manifest = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(300)],
            "lesion_id": [f"l{n // 2}" for n in range(300)],
            "label": generator.choice(["a", "b"], 300),
            "patient_id": [f"p{n}" for n in np.repeat(patients[::2], 2)],
        }
    )
    manifest = with_groups(manifest, "patient")
    splits = [split_groups(manifest, val_size=0.2, test_size=0.2, seed=0)]
    splits += fold_splits(manifest, 5, val_size=0.2, seed=0)
    for each in splits:
        parts = [
            set(manifest["patient_id"].iloc[rows]) for rows in (each.train, each.val, each.test)
        ]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert sum(len(each.test) for each in splits[1:]) == 300


def draw(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, 24)).save(folder / name)


def test_what_is_grouped_is_said(tmp_path):
    draw(tmp_path, ["img/i1.png", "img/i2.png", "img/i3.png"])
    table = tmp_path / "t.csv"
    table.write_text("image,label\ni1,a\ni2,b\ni3,b\n")
    assert prepare(tmp_path, SMALL).grouping == (
        "lesion: there are no lesion ids, so each image is a separate group"
    )
    table.write_text("image,label,lesion_id\ni1,a,L\ni2,b,M\ni3,b,M\n")
    assert prepare(tmp_path, SMALL).grouping == "lesion: 3 images in 2 groups"
    by_patient = dataclasses.replace(SMALL, group_by="patient")
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, by_patient)
    assert str(caught.value) == (
        f"data.group_by is patient, and {tmp_path} has no patient ids; expected lesion or none"
    )
    table.write_text("image,label,lesion_id,patient_id\ni1,a,L,P\ni2,b,,P\ni3,b,M,Q\n")
    assert prepare(tmp_path, SMALL).grouping == (
        "lesion: 3 images in 3 groups; 1 images have no lesion id, each is a separate group; "
        "patient ids exist: data.group_by patient keeps each patient in one split"
    )
    assert prepare(tmp_path, by_patient).grouping == "patient: 3 images in 2 groups"
    prepared = prepare(tmp_path, dataclasses.replace(SMALL, group_by="none"))
    assert prepared.grouping == "none: 3 images, split one by one"
    assert prepared.manifest["patient_id"].tolist() == ["P", "P", "Q"]
    assert (tmp_path / "prepared" / "labels.csv").read_text().splitlines()[:2] == [
        "image_id,label,lesion_id,dx_type,age,sex,localization,patient_id",
        "i1,a,L,unknown,,unknown,unknown,P",
    ]


def test_lesions_of_several_patients_are_a_contradiction(tmp_path):
    """As where a table numbers the lesions of each patient from 1."""
    draw(tmp_path, ["img/i1.png", "img/i2.png", "img/i3.png"])
    table = "image,label,lesion_id,patient_id\ni1,a,1,P\ni2,a,1,Q\ni3,b,2,Q\n"
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, SMALL)
    assert str(caught.value).startswith(f"{tmp_path} has 1 contradictions, listed in ")
    audit_text = (tmp_path / "prepared" / "audit.txt").read_text()
    assert "contradiction: lesions belong to several patients: 1\n  1: P, Q\n" in audit_text


def test_a_run_of_an_older_version_is_known_by_its_fingerprint_unless_the_classes_are_reordered(
    tmp_path,
):
    """It had no taxonomy in it, and its classes were those of HAM10000 in their order."""
    draw(tmp_path, ["images/i1.png", "images/i2.png"])
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"
    rows = "L1,i1,nv,histo,50,male,back,rosendahl\nL2,i2,mel,histo,50,male,back,vidir_modern\n"
    (tmp_path / "HAM10000_metadata.csv").write_text(header + rows)
    config = dataclasses.replace(Config(), data=dataclasses.replace(SMALL, resize_filter="bicubic"))
    prepared = prepare(tmp_path, config.data)
    assert prepared.manifest["dataset"].tolist() == ["rosendahl", "vidir_modern"]
    here = Here(data_dir=tmp_path)
    for known in (prepared.old_fingerprint, prepared.fingerprint):
        params = {"resolved.data_fingerprint": known}
        assert prepare_again("r", params, config, here).fingerprint == known
    (tmp_path / "taxonomy.yaml").write_text("order: [vasc, nv, mel, df, bkl, bcc, akiec]\n")
    for known in (prepared.old_fingerprint, prepared.fingerprint):
        params = {"resolved.data_fingerprint": known}
        with pytest.raises(DataError) as caught:
            prepare_again("r", params, config, here)
        assert str(caught.value).startswith(
            f"run r was trained on other data (fingerprint {known[:12]}, here "
        )


@pytest.mark.slow
def test_two_and_23_classes_are_prepared_without_the_reader_of_ham10000(tmp_path):
    for package in ("dermalyze", "serving"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "dermalyze" / "data" / "readers" / "ham10000.py").unlink()
    draw(tmp_path, [f"many/c{n:02d}/{n}_{i}.png" for n in range(23) for i in range(3)])
    draw(tmp_path, [f"two/img/i{n}.png" for n in range(6)])
    lines = [f"i{n},{label}" for n, label in enumerate(["mel", "nv / x"] * 3)]
    (tmp_path / "two" / "t.csv").write_text("\n".join(["image,label", *lines]))
    code = (
        "from pathlib import Path; from dermalyze.config.schema import DataConfig; "
        "from dermalyze.data.preparation import prepare; "
        "[print(prepare(Path(d), DataConfig(image_size=16)).dataset.summary()) "
        "for d in ('two', 'many')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "one table (t.csv): 6 images, 2 classes, no lesion ids, no patient ids",
        "one folder per class: 69 images, 23 classes, no lesion ids, no patient ids",
    ]
