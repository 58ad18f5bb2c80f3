"""Whole groups are dealt, class by class, into train, val and test, or into k folds.

A group is what the manifest's column `group` has: the images of one lesion, of one patient, or one
image.  N is the number of images; rows are row numbers of the manifest and of the pixel store.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.config.schema import did_you_mean
from dermalyze.data.audit import Audit
from serving.atomic_write import whole_file
from serving.errors import DataError
from serving.os_errors import reason_of
from serving.table_files import read_table, table_bytes

Rows = NDArray[np.int64]

SPLITS = ("train", "val", "test")
COLUMNS = ("image_id", "label", "lesion_id")
MAX_VALUES = 12  # of a column, named in an error
DUPLICATE_KINDS = ("same_file", "same_pixels", "near_duplicate")  # the audit's words


@dataclass(frozen=True)
class Splits:
    """Row numbers of each split, int64 (n,), ascending."""

    train: Rows
    val: Rows
    test: Rows


def split_groups(manifest: pd.DataFrame, *, val_size: float, test_size: float, seed: int) -> Splits:
    """Deal whole groups of images into three splits, stratified by class.

    Every class comes as near to its share in every split as its groups allow.

    Args:
        manifest: columns label and group.
        val_size: fraction of the images.
        test_size: fraction of the images.
        seed: another seed, another deal.

    Raises:
        DataError: a class has too few groups to be in every split.
    """
    fractions = (1 - val_size - test_size, val_size, test_size)
    part = _deal(manifest, fractions, SPLITS, seed)
    return Splits(*(np.flatnonzero(part == number) for number in range(3)))


def complete_splits(
    manifest: pd.DataFrame,
    given: Mapping[str, str],
    *,
    val_size: float,
    test_size: float,
    seed: int,
) -> Splits:
    """Return the splits that the data names; what it lacks of val and test is dealt out of train.

    Args:
        manifest: columns image_id, label and group.
        given: image_id -> split.
        val_size: fraction of all images.
        test_size: likewise.
        seed: another seed, another deal.

    Raises:
        DataError: a class has too few images in train.
    """
    split_of = manifest["image_id"].map(given).to_numpy()
    train = np.flatnonzero(split_of == "train")
    labels = manifest["label"]
    if absent := sorted(set(labels) - set(labels.iloc[train])):
        raise DataError(
            f"class {absent[0]} has no image in train; add some, or leave the class out"
        )
    sizes = {"val": val_size, "test": test_size}
    shares = {
        name: size * len(manifest) / len(train)
        for name, size in sizes.items()
        if not (split_of == name).any()
    }
    if sum(shares.values()) >= 1:
        raise DataError(
            f"{' and '.join(shares)} would take all {len(train)} images of train; lower "
            f"{' and '.join(f'data.{name}_size' for name in shares)}"
        )
    if shares:
        names = ("train", *shares)
        fractions = (1 - sum(shares.values()), *shares.values())
        part = _deal(manifest.iloc[train], fractions, names, seed)
        split_of[train] = np.array(names, object)[part]
    return Splits(*(np.flatnonzero(split_of == name) for name in SPLITS))


def kind_of_groups(manifest: pd.DataFrame) -> str:
    """Say what a group of the manifest is: image, lesion or patient."""
    columns = (name for name in ("image_id", "lesion_id") if name in manifest)
    same = [name for name in columns if manifest["group"].equals(manifest[name])]
    return same[0].removesuffix("_id") if same else "patient"


def k_folds(manifest: pd.DataFrame, k: int, seed: int) -> list[Rows]:
    """Deal whole groups into k folds of equal shares of every class; rows of each, ascending.

    Raises:
        DataError: k is less than 2, or a class has fewer than k groups.
    """
    if k < 2:
        raise DataError(f"the number of folds must be at least 2, got {k!r}")
    names = tuple(f"fold {number}" for number in range(1, k + 1))
    part = _deal(manifest, (1 / k,) * k, names, seed)
    return [np.flatnonzero(part == number) for number in range(k)]


def fold_splits(manifest: pd.DataFrame, k: int, *, val_size: float, seed: int) -> list[Splits]:
    """Return k splits: each tests on one of `k_folds` and deals the rest into train and val.

    `val_size` is a fraction of all images, as for `split_groups`.

    Raises:
        DataError: as `k_folds`; or nothing is left to train on, or a class has too few groups.
    """
    splits = []
    for test in k_folds(manifest, k, seed):
        rest = np.setdiff1d(np.arange(len(manifest)), test)
        share = val_size * len(manifest) / len(rest)
        if share >= 1:
            raise DataError(
                f"validation takes {val_size:.0%} of the images and a test fold 1 of {k}, which "
                "leaves none to train on; lower data.val_size or raise the number of folds"
            )
        part = _deal(manifest.iloc[rest], (1 - share, share), SPLITS[:2], seed)
        splits.append(Splits(train=rest[part == 0], val=rest[part == 1], test=test))
    return splits


def source_column(manifest: pd.DataFrame, column: str, setting: str) -> "pd.Series[str]":
    """Return a column that tells sources apart, as text.

    Raises:
        DataError: there is no such column; `setting` names it.
    """
    known = [str(name) for name in manifest if name not in ("group", "sha256")]
    if column not in known:
        raise DataError(
            f"{setting}: the data has no column {column}; expected one of "
            f"{', '.join(known)}{did_you_mean(column, known)}"
        )
    return manifest[column].astype(str)


def source_splits(manifest: pd.DataFrame, source: str, *, val_size: float, seed: int) -> Splits:
    """Test on all images of a source; deal the groups without any image of it into train and val.

    Images of other sources whose group is also in this one are in no split: the group is tested on.

    Args:
        manifest: columns label and group, and the one that tells the sources apart.
        source: COLUMN=VALUE.
        val_size: fraction of the images that are dealt.
        seed: another seed, another deal.

    Raises:
        DataError: there is no such column or value, or a class has too few groups elsewhere.
    """
    column, _, value = source.partition("=")
    values = source_column(manifest, column, f"data.leave_out {source}")
    is_test = (values == value).to_numpy()
    if not is_test.any():
        found = sorted(set(values))
        more = f" and {len(found) - MAX_VALUES:,} more" if len(found) > MAX_VALUES else ""
        raise DataError(
            f"data.leave_out {source}: no image has this {column}; there are "
            f"{', '.join(found[:MAX_VALUES])}{more}"
        )
    rest = np.flatnonzero(~manifest["group"].isin(manifest["group"][is_test]))
    labels = manifest["label"]
    if absent := sorted(set(labels) - set(labels.iloc[rest])):
        raise DataError(
            f"data.leave_out {source} leaves no image of class {absent[0]} for training; leave "
            "out another source, or the class"
        )
    part = _deal(manifest.iloc[rest], (1 - val_size, val_size), SPLITS[:2], seed)
    return Splits(train=rest[part == 0], val=rest[part == 1], test=np.flatnonzero(is_test))


@dataclass(frozen=True)
class SharedPhotograph:
    """Images that show one photograph and are in several splits."""

    image_ids: tuple[str, ...]
    splits: tuple[str, ...]  # of each image

    def in_words(self) -> str:
        """Name each image and its split."""
        pairs = zip(self.image_ids, self.splits, strict=True)
        return " and ".join(f"{image_id} ({split})" for image_id, split in pairs)


def near_duplicate_scan(
    audit: Audit, manifest: pd.DataFrame, splits: Splits
) -> tuple[SharedPhotograph, ...]:
    """Return what the audit found to be one photograph, exactly or nearly, across splits."""
    split_of = {row: name for name in SPLITS for row in np.asarray(getattr(splits, name)).tolist()}
    row_of = {image_id: row for row, image_id in enumerate(manifest["image_id"])}
    found = []
    for problem in audit.problems:
        if problem.kind in DUPLICATE_KINDS:
            for finding in problem.findings:
                ids = tuple(name for name in finding.image_ids if row_of.get(name) in split_of)
                names = tuple(split_of[row_of[image_id]] for image_id in ids)
                if len(set(names)) > 1:
                    found.append(SharedPhotograph(ids, names))
    return tuple(found)


def save_splits(folder: Path, manifest: pd.DataFrame, splits: Splits) -> tuple[Path, Path, Path]:
    """Write train_split.csv, val_split.csv and test_split.csv, and return their paths."""
    paths = []
    for name in SPLITS:
        path = folder / f"{name}_split.csv"
        rows = manifest.iloc[getattr(splits, name)]
        with whole_file(path) as partial:
            rows[list(COLUMNS)].to_csv(partial, index=False, lineterminator="\n")
        paths.append(path)
    train, val, test = paths
    return train, val, test


def read_splits(folder: Path, manifest: pd.DataFrame) -> Splits:
    """Read what `save_splits` wrote, for the same images or more.

    Raises:
        DataError: a file is missing or malformed, disagrees with the manifest, or an image or a
            group is in two splits.
    """
    row_of = {image_id: row for row, image_id in enumerate(manifest["image_id"])}
    label_of = manifest["label"].tolist()
    group_of = manifest["group"].tolist()
    rows: dict[str, Rows] = {}
    split_of_image: dict[str, str] = {}
    split_of_group: dict[str, str] = {}
    for name in SPLITS:
        path = folder / f"{name}_split.csv"
        table = read_split(path)
        found: list[int] = []
        for image_id, label in zip(table["image_id"], table["label"], strict=True):
            if image_id not in row_of:
                raise DataError(
                    f"{path} names {image_id}, which is not among the usable images; use the data "
                    "that the splits were made from"
                )
            row = row_of[image_id]
            if label != label_of[row]:
                raise DataError(
                    f"{path} has the label {label!r} for {image_id}, the data has "
                    f"{label_of[row]!r}; use the data that the splits were made from"
                )
            if image_id in split_of_image:
                raise DataError(
                    f"{image_id} is in {split_of_image[image_id]}_split.csv and "
                    f"{name}_split.csv of {folder}; each image belongs in exactly one split"
                )
            group = group_of[row]
            if (other := split_of_group.setdefault(group, name)) != name:
                raise DataError(
                    f"{kind_of_groups(manifest)} {group} is in {other}_split.csv and "
                    f"{name}_split.csv of {folder}; keep it in one split, or set data.group_by to "
                    "none"
                )
            split_of_image[image_id] = name
            found.append(row)
        rows[name] = np.sort(np.array(found, np.int64))
    return Splits(**rows)


def split_digest(manifest: pd.DataFrame, rows: Rows) -> str:
    """Return the sha256, hex, of what a split holds, whatever its order."""
    columns = ["image_id", "label", "sha256"]
    lines = sorted("\t".join(row) for row in manifest.iloc[rows][columns].itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_split(path: Path) -> pd.DataFrame:
    """Read the file of one split: texts, image_id and label at least.

    Raises:
        DataError: it is missing, malformed or empty, or cannot be read.
    """
    try:
        table = pd.DataFrame(read_table(table_bytes(path), path, ("image_id", "label")))
    except FileNotFoundError as error:
        raise DataError(
            f"no split file at {path}; expected train_split.csv, val_split.csv and test_split.csv"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason_of(error)}; make it readable") from error
    except ValueError as error:
        raise DataError(f"{path} is not a table; expected columns image_id and label") from error
    if missing := [column for column in ("image_id", "label") if column not in table]:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}")
    if table.empty:
        raise DataError(f"{path} names no image; every split needs some")
    return table


def _deal(
    manifest: pd.DataFrame, fractions: Sequence[float], names: Sequence[str], seed: int
) -> NDArray[np.int64]:
    """Return the part of every image, int64 (N,): 0 for the first fraction, and so on."""
    group_of_image, _ = pd.factorize(manifest["group"])
    classes, class_names = pd.factorize(manifest["label"], sort=True)
    num_groups = int(group_of_image.max(initial=-1)) + 1
    sizes = np.bincount(group_of_image, minlength=num_groups)
    # A group with several classes, such as a patient, counts for the one of most of its images.
    votes = np.zeros((num_groups, len(class_names)), np.int64)
    np.add.at(votes, (group_of_image, classes), 1)
    class_of_group = votes.argmax(1)
    generator = np.random.default_rng(seed)
    part_of_group = np.full(num_groups, -1, np.int64)
    for number, label in enumerate(class_names):
        groups = np.flatnonzero(class_of_group == number)
        if len(groups) < len(fractions):
            kind = kind_of_groups(manifest) + ("" if len(groups) == 1 else "s")
            raise DataError(
                f"class {label} has {len(groups)} {kind}, and "
                f"{', '.join(names[:-1])} and {names[-1]} need at least one each; add some or "
                "leave the class out"
            )
        groups = generator.permutation(groups)
        groups = groups[np.argsort(-sizes[groups], kind="stable")]  # large ones first
        draws = generator.random(len(groups))
        part_of_group[groups] = _deal_class(sizes[groups], fractions, draws)
    return part_of_group[group_of_image]


def _deal_class(
    sizes: NDArray[np.int64], fractions: Sequence[float], draws: NDArray[np.float64]
) -> list[int]:
    """Deal the groups of one class, in order; return the part of each.

    A group goes where there is room for it, by lot, weighted by the room; where there is room
    nowhere, it goes where most is left.  Small groups come last and fill what remains.
    """
    room = [float(sizes.sum()) * fraction for fraction in fractions]
    parts: list[int] = []
    for size, draw in zip(sizes.tolist(), draws.tolist(), strict=True):
        fitting = [space if space >= size else 0.0 for space in room]
        total = sum(fitting)
        if total > 0:
            mark, chosen = draw * total, 0
            while mark >= fitting[chosen] and chosen < len(room) - 1:
                mark -= fitting[chosen]
                chosen += 1
            while fitting[chosen] == 0:  # rounding put the mark at the very end
                chosen -= 1
        else:
            chosen = max(range(len(room)), key=room.__getitem__)
        room[chosen] -= size
        parts.append(chosen)
    return _fill_empty(parts, len(room))


def _fill_empty(parts: list[int], num_parts: int) -> list[int]:
    """Give every empty part the smallest group of the part that has most groups."""
    for empty in range(num_parts):
        if empty not in parts:
            counts = [parts.count(part) for part in range(num_parts)]
            fullest = counts.index(max(counts))
            last = len(parts) - 1 - parts[::-1].index(fullest)
            parts[last] = empty
    return parts
