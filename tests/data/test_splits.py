import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dermalyze.config.schema import DataConfig
from dermalyze.data.preparation import prepare
from dermalyze.data.readers.dataset import open_dataset
from dermalyze.data.splits import (
    Splits,
    fold_splits,
    k_folds,
    near_duplicate_scan,
    read_splits,
    save_splits,
    source_splits,
    split_digest,
    split_groups,
)
from dermalyze.data.table_columns import with_groups
from serving.errors import DataError


def manifest_of(lesions: list[tuple[str, int]]) -> pd.DataFrame:
    """One lesion for each (label, number of images)."""
    rows = [
        (label, f"HAM_{number:05d}")
        for number, (label, num_images) in enumerate(lesions)
        for _ in range(num_images)
    ]
    manifest = pd.DataFrame(rows, columns=["label", "lesion_id"])
    manifest["image_id"] = [f"ISIC_{row:05d}" for row in range(len(rows))]
    manifest["sha256"] = [hashlib.sha256(i.encode()).hexdigest() for i in manifest["image_id"]]
    return with_groups(manifest, "lesion")


def like_ham10000() -> pd.DataFrame:
    """HAM10000's classes and imbalance, at a third; a quarter of the lesions have 2 to 6 images."""
    generator = np.random.default_rng(0)
    num_lesions = {
        "akiec": 76,
        "bcc": 109,
        "bkl": 242,
        "df": 24,
        "mel": 205,
        "nv": 1801,
        "vasc": 33,
    }
    lesions = []
    for label, number in num_lesions.items():
        several = generator.random(number) < 0.25
        sizes = np.where(several, generator.integers(2, 7, number), 1)
        lesions += [(label, int(size)) for size in sizes]
    return manifest_of(lesions)


def check_shares(manifest: pd.DataFrame, parts: list[np.ndarray], fractions: list[float]) -> None:
    """Whole lesions, every image once, and each class within 10 % or two images of its share."""
    part_of = np.full(len(manifest), -1)
    for number, rows in enumerate(parts):
        assert (np.diff(rows) > 0).all()
        assert (part_of[rows] == -1).all()
        part_of[rows] = number
    assert (part_of >= 0).all()
    lesions, _ = pd.factorize(manifest["lesion_id"])
    pairs = len(np.unique(lesions * len(parts) + part_of))
    assert pairs == lesions.max() + 1, "a lesion stands in two parts"
    classes, names = pd.factorize(manifest["label"])
    totals = np.bincount(classes)
    for rows, fraction in zip(parts, fractions, strict=True):
        share = fraction * totals
        counts = np.bincount(classes[rows], minlength=len(names))
        assert (np.abs(counts - share) <= np.maximum(2, 0.1 * share)).all()


def parts_of(splits: Splits) -> list[np.ndarray]:
    return [splits.train, splits.val, splits.test]


@pytest.mark.parametrize("real", [False, True])
def test_over_200_seeds_lesions_stay_whole_and_every_class_gets_its_share(real, request):
    manifest = like_ham10000()
    if real:
        manifest = with_groups(open_dataset(request.getfixturevalue("real_data")).rows, "lesion")
    for seed in range(200):
        splits = split_groups(manifest, val_size=0.15, test_size=0.15, seed=seed)
        check_shares(manifest, parts_of(splits), [0.7, 0.15, 0.15])


@pytest.mark.parametrize("k", [2, 5, 10])
def test_folds_follow_the_same_rule(k):
    manifest = like_ham10000()
    for seed in range(10):
        check_shares(manifest, k_folds(manifest, k, seed), [1 / k] * k)


@pytest.mark.parametrize("k", [2, 5, 10])
def test_every_fold_is_tested_once_and_the_rest_dealt_by_the_same_rule(k):
    manifest = like_ham10000()
    for seed in range(10):
        splits = fold_splits(manifest, k, val_size=0.15, seed=seed)
        check_shares(manifest, [part.test for part in splits], [1 / k] * k)
        for part in splits:
            check_shares(manifest, parts_of(part), [1 - 0.15 - 1 / k, 0.15, 1 / k])


def test_validation_that_leaves_nothing_to_train_on_is_explained():
    with pytest.raises(DataError) as caught:
        fold_splits(like_ham10000(), 2, val_size=0.6, seed=0)
    assert str(caught.value) == (
        "validation takes 60% of the images and a test fold 1 of 2, which leaves none to train "
        "on; lower data.val_size or raise the number of folds"
    )


sizes_of_lesions = st.lists(st.integers(1, 9), min_size=3, max_size=40)


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["df", "mel", "nv"]), sizes_of_lesions, min_size=1),
    st.floats(0.05, 0.45),
    st.floats(0.05, 0.45),
    st.integers(0, 2**31),
)
def test_any_lesions_are_dealt_whole_with_every_class_in_every_split(classes, val, test, seed):
    manifest = manifest_of([(name, n) for name, sizes in classes.items() for n in sizes])
    splits = split_groups(manifest, val_size=val, test_size=test, seed=seed)
    rows = np.concatenate(parts_of(splits))
    assert sorted(rows) == list(range(len(manifest)))
    for part in parts_of(splits):
        assert set(manifest["label"].iloc[part]) == set(classes)
        others = manifest.drop(index=part)
        assert not set(others["lesion_id"]) & set(manifest["lesion_id"].iloc[part])


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(60)), st.integers(0, 100))
def test_equal_seeds_give_equal_splits_and_a_lesion_with_two_labels_stays_whole(order, seed):
    manifest = manifest_of([("nv", 2)] * 15 + [("mel", 2)] * 15).iloc[list(order)]
    manifest = manifest.reset_index(drop=True)
    manifest.loc[0, "label"] = "mel" if manifest.loc[0, "label"] == "nv" else "nv"
    first = split_groups(manifest, val_size=0.2, test_size=0.2, seed=seed)
    again = split_groups(manifest, val_size=0.2, test_size=0.2, seed=seed)
    for part, same in zip(parts_of(first), parts_of(again), strict=True):
        assert part.dtype == np.int64
        np.testing.assert_array_equal(part, same)
        others = manifest.drop(index=part)
        assert not set(others["lesion_id"]) & set(manifest["lesion_id"].iloc[part])


def test_another_seed_is_another_deal_even_of_the_largest_lesions():
    manifest = like_ham10000()
    largest = manifest["lesion_id"].value_counts().index[0]
    found = set()
    for seed in range(40):
        splits = split_groups(manifest, val_size=0.15, test_size=0.15, seed=seed)
        for name, rows in zip(("train", "val", "test"), parts_of(splits), strict=True):
            if largest in set(manifest["lesion_id"].iloc[rows]):
                found.add(name)
    assert found == {"train", "val", "test"}


def test_grouped_by_none_images_are_dealt_one_by_one():
    manifest = with_groups(manifest_of([("nv", 50), ("mel", 50)]), "none")
    splits = split_groups(manifest, val_size=0.2, test_size=0.2, seed=0)
    for part, num_images in zip(parts_of(splits), (60, 20, 20), strict=True):
        assert manifest["label"].iloc[part].value_counts().to_dict() == {
            "nv": num_images // 2,
            "mel": num_images // 2,
        }


def test_a_class_with_too_few_lesions_is_named():
    manifest = manifest_of([("nv", 1)] * 9 + [("df", 4)] * 2)
    with pytest.raises(DataError) as caught:
        split_groups(manifest, val_size=0.15, test_size=0.15, seed=0)
    assert str(caught.value) == (
        "class df has 2 lesions, and train, val and test need at least one each; add some or leave "
        "the class out"
    )
    with pytest.raises(DataError) as caught:
        k_folds(manifest, 1, 0)
    assert str(caught.value) == "the number of folds must be at least 2, got 1"


def test_saved_splits_are_read_back(tmp_path):
    manifest = like_ham10000()
    splits = split_groups(manifest, val_size=0.15, test_size=0.15, seed=3)
    paths = save_splits(tmp_path, manifest, splits)
    names = ["train_split.csv", "val_split.csv", "test_split.csv"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    first = manifest.iloc[splits.train[0]]
    assert paths[0].read_text().splitlines()[:2] == [
        "image_id,label,lesion_id",
        f"{first['image_id']},{first['label']},{first['lesion_id']}",
    ]
    shuffled = manifest.sample(frac=1, random_state=0).reset_index(drop=True)
    read = read_splits(tmp_path, shuffled)
    for part, original in zip(parts_of(read), parts_of(splits), strict=True):
        assert set(shuffled["image_id"].iloc[part]) == set(manifest["image_id"].iloc[original])


def of_two_clinics() -> pd.DataFrame:
    """Six lesions; L2 was photographed in both clinics, and L3 and L4 are of one patient."""
    rows = [
        ("L1", "P1", "nv", "A"),
        ("L1", "P1", "nv", "A"),
        ("L2", "P2", "nv", "A"),
        ("L2", "P2", "nv", "B"),
        ("L3", "P3", "nv", "A"),
        ("L4", "P3", "nv", "B"),
        ("L5", "P4", "mel", "A"),
        ("L6", "P5", "mel", "A"),
        ("L7", "P6", "nv", "A"),
        ("L8", "P7", "mel", "B"),
    ]
    manifest = pd.DataFrame(rows, columns=["lesion_id", "patient_id", "label", "clinic"])
    manifest["image_id"] = [f"I{row}" for row in range(len(rows))]
    return manifest.assign(age=50.0)


@pytest.mark.parametrize(
    ("group_by", "learned_from"),
    [("lesion", [0, 1, 4, 6, 7, 8]), ("patient", [0, 1, 6, 7, 8]), ("none", [0, 1, 2, 4, 6, 7, 8])],
)
def test_a_source_is_tested_on_and_what_is_in_it_and_elsewhere_is_not_learned(
    group_by, learned_from
):
    manifest = with_groups(of_two_clinics(), group_by)
    for seed in range(20):
        splits = source_splits(manifest, "clinic=B", val_size=0.4, seed=seed)
        assert splits.test.tolist() == [3, 5, 9]
        assert sorted([*splits.train, *splits.val]) == learned_from
        groups = [set(manifest["group"].iloc[part]) for part in parts_of(splits)]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
        for part in (splits.train, splits.val):
            assert set(manifest["label"].iloc[part]) == {"nv", "mel"}


def test_the_size_of_validation_is_a_share_of_what_is_left():
    manifest = like_ham10000()
    clinic = np.where(np.arange(len(manifest)) % 10 < 8, "A", "B")
    manifest["clinic"] = manifest["lesion_id"].map(
        dict(zip(manifest["lesion_id"], clinic, strict=True))
    )
    splits = source_splits(manifest, "clinic=A", val_size=0.3, seed=0)
    rest = manifest[manifest["clinic"] == "B"]
    assert len(splits.val) == pytest.approx(0.3 * len(rest), abs=7)
    assert len(splits.train) + len(splits.val) == len(rest)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "clinik=B",
            "data.leave_out clinik=B: the data has no column clinik; expected one of lesion_id, "
            "patient_id, label, clinic, image_id, age; did you mean clinic?",
        ),
        (
            "group=L1",
            "data.leave_out group=L1: the data has no column group; expected one of lesion_id, "
            "patient_id, label, clinic, image_id, age",
        ),
        ("clinic=b", "data.leave_out clinic=b: no image has this clinic; there are A, B"),
        (
            "many=13",
            "data.leave_out many=13: no image has this many; there are a, b, c, d, e, f, g, h, i, "
            "j",
        ),
        (
            "label=mel",
            "data.leave_out label=mel leaves no image of class mel for training; leave out another "
            "source, or the class",
        ),
        (
            "clinic=A",
            "class mel has 1 lesion, and train and val need at least one each; add some or leave "
            "the class out",
        ),
    ],
)
def test_a_source_that_cannot_be_left_out_is_one_sentence(source, message):
    manifest = with_groups(of_two_clinics(), "lesion")
    if source.startswith("many"):
        manifest["many"] = list("abcdefghij")
    with pytest.raises(DataError) as caught:
        source_splits(manifest, source, val_size=0.4, seed=0)
    assert str(caught.value) == message


def test_of_many_values_twelve_are_named():
    manifest = manifest_of([("nv", 1)] * 15)
    with pytest.raises(DataError) as caught:
        source_splits(manifest, "image_id=x", val_size=0.4, seed=0)
    named = ", ".join(f"ISIC_{row:05d}" for row in range(12))
    assert str(caught.value) == (
        f"data.leave_out image_id=x: no image has this image_id; there are {named} and 3 more"
    )


SIX = manifest_of([("nv", 2), ("nv", 1), ("mel", 1), ("nv", 1), ("mel", 1)])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "val",
            None,
            "no split file at {folder}/val_split.csv; expected train_split.csv, val_split.csv and "
            "test_split.csv",
        ),
        (
            "val",
            Path(),  # a folder in its place
            "cannot read {folder}/val_split.csv: is a directory; make it readable",
        ),
        ("val", "", "{folder}/val_split.csv is not a table; expected columns image_id and label"),
        ("val", "image,x\n1,2\n", "{folder}/val_split.csv lacks the columns image_id, label"),
        (
            "val",
            "image_id,label\n",
            "{folder}/val_split.csv names no image; every split needs some",
        ),
        (
            "val",
            "image_id,label\nISIC_9,nv\n",
            "{folder}/val_split.csv names ISIC_9, which is not among the usable images; use the "
            "data that the splits were made from",
        ),
        (
            "val",
            "image_id,label\nISIC_00003,nv\n",
            "{folder}/val_split.csv has the label 'nv' for ISIC_00003, the data has 'mel'; use the "
            "data that the splits were made from",
        ),
        (
            "val",
            "image_id,label\nISIC_00000,nv\n",
            "ISIC_00000 is in train_split.csv and val_split.csv of {folder}; each image "
            "belongs in exactly one split",
        ),
        (
            "test",
            "image_id,label\nISIC_00004,nv\nISIC_00005,mel\nISIC_00004,nv\n",
            "ISIC_00004 is in test_split.csv and test_split.csv of {folder}; each image "
            "belongs in exactly one split",
        ),
        (
            "val",
            "image_id,label\nISIC_00001,nv\n",
            "lesion HAM_00000 is in train_split.csv and val_split.csv of {folder}; keep it in "
            "one split, or set data.group_by to none",
        ),
    ],
)
def test_splits_that_do_not_fit_the_data_are_one_sentence(tmp_path, name, text, message):
    rows = Splits(np.array([0, 2]), np.array([3]), np.array([4, 5]))
    save_splits(tmp_path, SIX, rows)
    path = tmp_path / f"{name}_split.csv"
    path.unlink()
    if isinstance(text, Path):
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_splits(tmp_path, SIX)
    assert str(caught.value) == message.format(folder=tmp_path)


def test_a_lesion_in_two_splits_is_read_where_that_was_asked_for(tmp_path):
    save_splits(tmp_path, SIX, Splits(np.array([0, 2]), np.array([1, 3]), np.array([4, 5])))
    read = read_splits(tmp_path, with_groups(SIX, "none"))
    np.testing.assert_array_equal(read.val, [1, 3])


def test_classes_of_any_letters_come_back_from_the_files_of_splits(tmp_path):
    names = [
        "nevus / atypical",
        'b\u00f6sartig, "x"',
        "=1+1",
        "\u9ed1\u8272\u7d20\u7624",
        "two\nlines",
    ]
    manifest = manifest_of([(name, 2) for name in names for _ in range(3)])
    splits = split_groups(manifest, val_size=0.3, test_size=0.3, seed=0)
    save_splits(tmp_path, manifest, splits)
    read = read_splits(tmp_path, manifest)
    for part, same in zip(parts_of(splits), parts_of(read), strict=True):
        np.testing.assert_array_equal(part, same)
        assert set(manifest["label"].iloc[part]) == set(names)


def test_a_digest_depends_on_content_and_not_on_order_or_other_rows():
    digest = split_digest(SIX, np.array([4, 5]))
    assert digest == split_digest(SIX.iloc[::-1].reset_index(drop=True), np.array([0, 1]))
    by_hand = "\n".join(
        "\t".join(SIX.loc[row, ["image_id", "label", "sha256"]].tolist()) for row in (4, 5)
    )
    assert digest == hashlib.sha256(by_hand.encode()).hexdigest()
    for column in ("image_id", "label", "sha256"):
        changed = SIX.copy()
        changed.loc[5, column] = "other"
        assert split_digest(changed, np.array([4, 5])) != digest


def blobs(seed: int) -> Image.Image:
    """Soft random blobs, 64 x 64: no two alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def png(image: Image.Image, level: int) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=level)
    return data.getvalue()


def test_one_photograph_in_two_splits_is_found_however_it_was_copied(tmp_path):
    mirrored = blobs(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    files = {
        "I1": png(blobs(1), 6),
        "I2 (copy)": png(blobs(1), 6),  # the same file
        "I3": png(blobs(2), 6),
        "I4": png(blobs(2), 0),  # the same pixels
        "I5": png(blobs(3), 6),
        "I6": png(mirrored.point(lambda value: value * 0.9), 6),  # nearly the same
        "I7": png(blobs(4), 6),
        "I8": png(blobs(4), 6),  # the same file, in the same split
        "I9": png(blobs(5), 6),
    }
    (tmp_path / "images").mkdir()
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for name, data in files.items():
        (tmp_path / "images" / f"{name}.png").write_bytes(data)
        lines.append(f"L{name},{name},nv,histo,50,male,back")
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join(lines))
    prepared = prepare(tmp_path, DataConfig(image_size=32), workers=1)
    splits = Splits(train=np.array([0, 2, 5, 6, 7]), val=np.array([3, 8]), test=np.array([1, 4]))
    found = near_duplicate_scan(prepared.audit, prepared.manifest, splits)
    assert sorted(photograph.in_words() for photograph in found) == [
        "I1 (train) and I2 (copy) (test)",
        "I3 (train) and I4 (val)",
        "I5 (test) and I6 (train)",
    ]
