"""What is wrong with the data: broken, duplicate, leaking and contradicting images, by name.

An audit depends on the data alone, never on the size at which its images are stored.  N is the
number of usable images.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.data.pixel_store.store import ImageRecord
from dermalyze.data.readers.dataset import Dataset
from dermalyze.data.table_columns import UNKNOWN, with_own_lesions

MAX_BROKEN_FRACTION = 0.01
_EXAMPLES = 10  # of each problem in the summary; audit.json has all
# Columns that are filled once the diagnosis is known: how it was confirmed, what was done for it.
_AFTER_DIAGNOSIS = re.compile(
    "dx|diagnos|biops|confirm|histo(?!ry)|patholog|excis|treat|follow|malignan"
    "|mel_(class|mitotic|thick|type|ulcer)|nevus_type"
)
_TELLING_SHARE = 0.95
_TELLING_CHANCE = 0.01  # that a column which tells nothing comes as far

INFORMATION, WARNING, BROKEN, CONTRADICTION = "information", "warning", "broken", "contradiction"


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    text: str
    image_ids: tuple[str, ...] = ()  # what it was found in


@dataclass(frozen=True)
class Problem:
    """One kind of finding, with everything that it was found in."""

    kind: str
    severity: str  # information, warning, broken or contradiction
    meaning: str  # one phrase for the reader
    findings: tuple[Finding, ...]

    @property
    def items(self) -> tuple[str, ...]:
        """Each finding in words."""
        return tuple(finding.text for finding in self.findings)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The state of a data folder."""

    num_rows: int  # lines of the table
    num_files: int  # image files
    num_usable: int  # images that can be trained on
    num_named: int  # different images that the table names
    images: dict[str, int]  # class -> usable images
    lesions: dict[str, int]  # class -> lesions with a usable image
    lesions_with_several_images: int
    missing: dict[str, int]  # age, sex, localization, lesion id -> usable images without
    problems: tuple[Problem, ...]

    def count(self, severity: str) -> int:
        """Count the findings of one severity."""
        return sum(len(p.items) for p in self.problems if p.severity == severity)

    @property
    def stop_reason(self) -> str:
        """Say why training on this data must not go on; empty where it may."""
        broken, contradictions = self.count(BROKEN), self.count(CONTRADICTION)
        reasons = []
        if broken > MAX_BROKEN_FRACTION * self.num_named:
            found = f"{broken:,} of {self.num_named:,} images missing or broken"
            reasons.append(f"{found}{self._example}")
        if contradictions:
            reasons.append(f"{contradictions:,} contradictions")
        return " and ".join(reasons)

    @property
    def _example(self) -> str:
        """Show one id beside one file name, where rows have no file and files have no row."""
        items = {problem.kind: problem.items for problem in self.problems}
        if "missing_image" not in items:
            return ""
        missing = items["missing_image"][0]
        for kind in ("image_without_row", "other_file"):
            if kind in items:
                return f" (the table has {missing!r}, a file is called {items[kind][0]!r})"
        return "" if self.num_files else f" (the table has {missing!r}, and there is no image file)"

    def to_json(self) -> str:
        """Write everything, each list in full."""
        values = {**asdict(self), "stop_reason": self.stop_reason}
        values["problems"] = [
            {
                "kind": problem.kind,
                "severity": problem.severity,
                "meaning": problem.meaning,
                "items": list(problem.items),
                "image_ids": [list(finding.image_ids) for finding in problem.findings],
                "count": len(problem.findings),
            }
            for problem in self.problems
        ]
        return json.dumps(values, indent=2) + "\n"

    def summary(self) -> str:
        """Write what a person wants to know, with some examples of each problem."""
        lines = [
            f"{self.num_usable:,} usable images of {sum(self.lesions.values()):,} lesions, "
            f"{self.lesions_with_several_images:,} of them with several images",
            f"{self.num_rows:,} rows name {self.num_named:,} images; there are {self.num_files:,} "
            "image files",
            "",
        ]
        width = max(8, *(len(name) + 1 for name in self.images))
        lines.append(f"{'class':<{width}}{'images':>8}{'lesions':>9}")
        for name, num_images in self.images.items():
            lines.append(f"{name:<{width}}{num_images:>8,}{self.lesions[name]:>9,}")
        lines += ["", "images without " + ", ".join(f"{k}: {v:,}" for k, v in self.missing.items())]
        for problem in self.problems:
            lines += ["", f"{problem.severity}: {problem.meaning}: {len(problem.items):,}"]
            lines += [f"  {item}" for item in problem.items[:_EXAMPLES]]
            if (more := len(problem.items) - _EXAMPLES) > 0:
                lines.append(f"  and {more:,} more in audit.json")
        verdict = f"stops: {self.stop_reason}" if self.stop_reason else "fit for training"
        return "\n".join([*lines, "", verdict, ""])


@dataclass(frozen=True)
class Table:
    """The rows that name one image with one known label, and what was wrong with the others."""

    rows: pd.DataFrame  # COLUMNS, one row per image, sorted by image_id
    without_lesion: frozenset[str]  # image ids; each counts as a lesion of its own
    problems: tuple[Problem, ...]


def examine_table(dataset: Dataset) -> Table:
    """Find what can be found without decoding, and keep one row per image."""
    rows, files = dataset.rows.drop_duplicates(), dataset.files
    repeated = dataset.rows[dataset.rows.duplicated()]["image_id"]
    two_labels = _several(rows, "image_id", "label")
    two_lesions = _several(rows, "image_id", "lesion_id")
    vague = (
        set(rows["image_id"][rows["image_id"].duplicated()])
        - two_labels.keys()
        - two_lesions.keys()
    )
    class_names = dataset.taxonomy.names
    unknown = rows[~rows["label"].isin(class_names)]
    owners = rows.reindex(columns=["lesion_id", "patient_id"], fill_value="")
    two_patients = _several(owners[(owners != "").all(axis=1)], "lesion_id", "patient_id")
    two_diagnoses = _several(rows[rows["lesion_id"] != ""], "lesion_id", "label")
    named = set(rows["image_id"])
    excluded = dataset.corrections.keys() - named
    known = named | set(dataset.left_out) | excluded
    problems = _problems(
        ("missing_image", BROKEN, "images have no file", sorted(named - files.keys())),
        (
            "two_labels",
            CONTRADICTION,
            "images have several labels",
            _listed(two_labels, rows, "image_id"),
        ),
        (
            "two_lesions",
            CONTRADICTION,
            "images belong to several lesions",
            _listed(two_lesions, rows, "image_id"),
        ),
        (
            "two_diagnoses",
            CONTRADICTION,
            "lesions have several diagnoses",
            _listed(two_diagnoses, rows, "lesion_id"),
        ),
        (
            "two_patients",
            CONTRADICTION,
            "lesions belong to several patients",
            _listed(two_patients, rows, "lesion_id"),
        ),
        (
            "unknown_label",
            CONTRADICTION,
            f"rows have a label that is not one of {', '.join(class_names)}",
            [
                Finding(f"{image_id}: {label!r}", (image_id,))
                for image_id, label in zip(unknown["image_id"], unknown["label"], strict=True)
            ],
        ),
        (
            "two_files",
            CONTRADICTION,
            "images have two files that differ",
            [
                Finding(f"{image_id}: {files[image_id]} and {other}", (image_id,))
                for image_id, other in sorted(dataset.rivals.items())
            ],
        ),
        (
            "image_without_row",
            WARNING,
            "image files have no row in the table and are left out",
            sorted(files.keys() - known),
        ),
        (
            "of_no_class",
            INFORMATION,
            "images belong to none of the classes and are left out",
            sorted(dataset.left_out),
        ),
        (
            "other_file",
            INFORMATION,
            "files do not have a JPEG or PNG suffix and are left out",
            [Finding(name) for name in sorted(dataset.others)],
        ),
        (
            "corrected",
            INFORMATION,
            "labels were corrected by data.corrections",
            sorted(dataset.corrections.keys() & named),
        ),
        (
            "excluded",
            INFORMATION,
            "images were excluded by data.corrections",
            sorted(excluded),
        ),
        (
            "without_lesion",
            WARNING,
            "images have no lesion id; each counts as a separate lesion",
            sorted(rows[rows["lesion_id"] == ""]["image_id"]),
        ),
        (
            "vague_image",
            WARNING,
            "images have rows that differ in another column; the first row is used",
            sorted(vague),
        ),
        (
            "repeated_row",
            INFORMATION,
            "duplicate rows",
            sorted(repeated),
        ),
    )
    unusable = two_labels.keys() | two_lesions.keys() | set(unknown["image_id"])
    unusable |= dataset.rivals.keys() | (named - files.keys())
    kept = rows[~rows["image_id"].isin(unusable)].drop_duplicates("image_id").copy()
    without_lesion = kept["lesion_id"] == ""
    kept = with_own_lesions(kept)
    lonely = frozenset(kept["image_id"][without_lesion])
    return Table(kept.sort_values("image_id", ignore_index=True), lonely, problems)


_DUPLICATES = {  # kind, severity -> meaning
    ("same_file", CONTRADICTION): "groups of byte-identical files have several labels",
    ("same_file", WARNING): "groups of byte-identical files have several lesion ids",
    ("same_file", INFORMATION): "groups of byte-identical files, each within one lesion",
    ("same_pixels", CONTRADICTION): "groups of equal images in different files have several labels",
    ("same_pixels", WARNING): "groups of equal images in different files have several lesion ids",
    ("same_pixels", INFORMATION): "groups of equal images in different files, within one lesion",
    ("near_duplicate", WARNING): "pairs of nearly equal images have two lesion ids and may leak",
    ("near_duplicate", INFORMATION): "pairs of nearly equal images, each within one lesion",
}


def audit(
    dataset: Dataset,
    table: Table,
    records: Sequence[ImageRecord],
    near_pairs: Sequence[tuple[str, str, float]],
) -> tuple[Audit, pd.DataFrame]:
    """Judge the data; return the audit and the usable rows, with a column sha256.

    Args:
        dataset: what the folder claims.
        table: what `examine_table` found in it.
        records: one for each image of `table.rows`, in that order.
        near_pairs: two image ids and their correlation, from `near_duplicates`.
    """
    assert [record.image_id for record in records] == table.rows["image_id"].tolist()
    broken = [
        (record.truncated, Finding(f"{record.image_id}: {record.problem}", (record.image_id,)))
        for record in records
        if record.problem
    ]
    usable = np.array([not record.problem for record in records], bool)
    manifest = table.rows[usable].reset_index(drop=True)
    manifest["sha256"] = [record.sha256 for record in records if not record.problem]
    lesion_of = dict(zip(manifest["image_id"], manifest["lesion_id"], strict=True))
    label_of = dict(zip(manifest["image_id"], manifest["label"], strict=True))
    copies: dict[str, list[str]] = {}
    for record in records:
        if not record.problem:
            copies.setdefault(record.pixels_sha256, []).append(record.image_id)
    sha256_of = {record.image_id: record.sha256 for record in records}
    duplicates: dict[tuple[str, str], list[Finding]] = {key: [] for key in _DUPLICATES}
    for group in sorted(copies.values()):
        if len(group) > 1:
            same_file = len({sha256_of[image_id] for image_id in group}) == 1
            kind = "same_file" if same_file else "same_pixels"
            severity = _severity(group, lesion_of, label_of)
            text = _described(group, lesion_of, label_of)
            duplicates[kind, severity].append(Finding(text, tuple(group)))
    for first, second, correlation in near_pairs:
        pair = [first, second]
        severity = WARNING if lesion_of[first] != lesion_of[second] else INFORMATION
        text = f"{_described(pair, lesion_of, label_of)}: correlation {correlation:.4f}"
        duplicates["near_duplicate", severity].append(Finding(text, (first, second)))
    found = _problems(
        ("unreadable", BROKEN, "image files cannot be read", [f for cut, f in broken if not cut]),
        ("truncated", BROKEN, "image files are cut short", [f for cut, f in broken if cut]),
        (
            "telling_column",
            WARNING,
            "columns known only after the diagnosis reveal the class; do not use them as inputs",
            _telling(manifest),
        ),
        *(
            (kind, severity, _DUPLICATES[kind, severity], items)
            for (kind, severity), items in duplicates.items()
        ),
    )
    order = (CONTRADICTION, BROKEN, WARNING, INFORMATION)
    problems = sorted((*table.problems, *found), key=lambda p: order.index(p.severity))
    return _count(dataset, table, manifest, tuple(problems)), manifest


def _severity(group: list[str], lesion_of: Mapping[str, str], label_of: Mapping[str, str]) -> str:
    if len({label_of[image_id] for image_id in group}) > 1:
        return CONTRADICTION
    return WARNING if len({lesion_of[image_id] for image_id in group}) > 1 else INFORMATION


def _described(group: list[str], lesion_of: Mapping[str, str], label_of: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({lesion_of[name]}, {label_of[name]})" for name in group)


def _telling(manifest: pd.DataFrame) -> list[Finding]:
    """Say where the value of a column nearly tells the class, or the class the value.

    Only columns that are filled once the diagnosis is known; not where it may well be chance.
    """
    found = []
    for column in filter(_AFTER_DIAGNOSIS.search, manifest.columns):
        known = manifest[~manifest[column].isin((UNKNOWN, ""))]
        table = pd.crosstab(known[column], known["label"])
        both = table.to_numpy(np.int64)  # (values, classes)
        of_value, of_label = both.sum(1, keepdims=True), both.sum(0, keepdims=True)
        total = both.sum()
        tells_label = _is_telling(both, of_value, of_label / total)
        tells_value = _is_telling(both, of_label, of_value / total) & ~tells_label
        for row, number in np.argwhere(tells_label | tells_value):
            value, label, hits = table.index[row], table.columns[number], both[row, number]
            if tells_label[row, number]:
                of, rest = of_value[row, 0], of_label[0, number]
                text = f"{hits / of:.0%} of the {of:,} images with {value!r} are {label}"
            else:
                of, rest = of_label[0, number], of_value[row, 0]
                text = f"{hits / of:.0%} of the {of:,} images of {label} have {value!r}"
            found.append(Finding(f"{column}: {text}, of all images {rest / total:.0%}"))
    return found


def _is_telling(
    hits: NDArray[np.int64], number: NDArray[np.int64], share: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Say whether nearly all of `number` images are hits, which is unlikely if a `share` is."""
    return (hits >= _TELLING_SHARE * number) & (share**number < _TELLING_CHANCE)


def _several(rows: pd.DataFrame, key: str, column: str) -> dict[str, list[str]]:
    """Return each key that has several values, with them."""
    pairs = rows[[key, column]].drop_duplicates()
    several = pairs[pairs[key].duplicated(keep=False)].sort_values([key, column])
    values: dict[str, list[str]] = {}
    for name, value in several.itertuples(index=False):
        values.setdefault(name, []).append(value)
    return values


def _listed(several: Mapping[str, list[str]], rows: pd.DataFrame, key: str) -> list[Finding]:
    images = rows[rows[key].isin(several)].groupby(key)["image_id"].unique()
    return [
        Finding(f"{name}: {', '.join(value or 'none' for value in values)}", tuple(images[name]))
        for name, values in several.items()
    ]


def _problems(*found: tuple[str, str, str, Sequence[str | Finding]]) -> tuple[Problem, ...]:
    """Make a problem of each kind that was found; a text alone is the id of an image."""
    return tuple(
        Problem(
            kind,
            severity,
            meaning,
            tuple(Finding(item, (item,)) if isinstance(item, str) else item for item in items),
        )
        for kind, severity, meaning, items in found
        if items
    )


def _count(
    dataset: Dataset, table: Table, manifest: pd.DataFrame, problems: tuple[Problem, ...]
) -> Audit:
    images = manifest["label"].value_counts()
    lesions = manifest.groupby("lesion_id")["label"].first().value_counts()
    return Audit(
        num_rows=len(dataset.rows),
        num_files=len(dataset.files),
        num_usable=len(manifest),
        num_named=dataset.rows["image_id"].nunique(),
        images={name: int(images.get(name, 0)) for name in dataset.taxonomy.names},
        lesions={name: int(lesions.get(name, 0)) for name in dataset.taxonomy.names},
        lesions_with_several_images=int((manifest["lesion_id"].value_counts() > 1).sum()),
        missing={
            "age": int(manifest["age"].isna().sum()),
            "sex": int((manifest["sex"] == UNKNOWN).sum()),
            "localization": int((manifest["localization"] == UNKNOWN).sum()),
            "lesion id": int(manifest["image_id"].isin(table.without_lesion).sum()),
        },
        problems=problems,
    )
