"""What is wrong with the data: broken, duplicate, leaking and contradicting images, by name.

An audit depends on the data alone, never on the size at which its images are stored.  N is the
number of usable images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from dermalyze.data.pixels import ImageRecord
from dermalyze.data.readers.dataset import Dataset
from dermalyze.data.tables import UNKNOWN, with_own_lesions
from serving.taxonomy import CLASS_NAMES

MAX_BROKEN_FRACTION = 0.01
_EXAMPLES = 10  # of each problem in the summary; audit.json has all

INFORMATION, WARNING, BROKEN, CONTRADICTION = "information", "warning", "broken", "contradiction"


@dataclass(frozen=True)
class Problem:
    """One kind of finding, with everything that it was found in."""

    kind: str
    severity: str  # information, warning, broken or contradiction
    meaning: str  # one phrase for the reader
    items: tuple[str, ...]


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
    missing: dict[str, int]  # age, sex, localization, lesion_id -> usable images without
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
            {**asdict(p), "count": len(p.items), "items": list(p.items)} for p in self.problems
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
            f"{'class':<8}{'images':>8}{'lesions':>9}",
        ]
        for name in CLASS_NAMES:
            lines.append(f"{name:<8}{self.images[name]:>8,}{self.lesions[name]:>9,}")
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

    rows: pd.DataFrame  # COLUMNS, one row an image, sorted by image_id
    without_lesion: frozenset[str]  # image ids; each counts as a lesion of its own
    problems: tuple[Problem, ...]


def examine_table(dataset: Dataset) -> Table:
    """Find what can be found without decoding, and keep one row an image."""
    rows, files = dataset.rows.drop_duplicates(), dataset.files
    repeated = dataset.rows[dataset.rows.duplicated()]["image_id"]
    two_labels = _several(rows, "image_id", "label")
    two_lesions = _several(rows, "image_id", "lesion_id")
    vague = (
        set(rows["image_id"][rows["image_id"].duplicated()])
        - two_labels.keys()
        - two_lesions.keys()
    )
    unknown = rows[~rows["label"].isin(CLASS_NAMES)]
    two_diagnoses = _several(rows[rows["lesion_id"] != ""], "lesion_id", "label")
    named = set(rows["image_id"])
    problems = _problems(
        ("missing_image", BROKEN, "images have no file", sorted(named - files.keys())),
        (
            "two_labels",
            CONTRADICTION,
            "images have several labels",
            _listed(two_labels),
        ),
        (
            "two_lesions",
            CONTRADICTION,
            "images are of several lesions",
            _listed(two_lesions),
        ),
        (
            "two_diagnoses",
            CONTRADICTION,
            "lesions have several diagnoses",
            _listed(two_diagnoses),
        ),
        (
            "unknown_label",
            CONTRADICTION,
            f"rows have a label that is not one of {', '.join(CLASS_NAMES)}",
            [f"{row.image_id}: {row.label!r}" for row in unknown.itertuples()],
        ),
        (
            "two_files",
            CONTRADICTION,
            "images have two files that differ",
            [f"{i}: {files[i]} and {other}" for i, other in sorted(dataset.rivals.items())],
        ),
        (
            "image_without_row",
            WARNING,
            "image files are in no row and are left out",
            sorted(files.keys() - named),
        ),
        (
            "other_file",
            INFORMATION,
            "files are not JPEG or PNG by their names and are left out",
            sorted(dataset.others),
        ),
        (
            "without_lesion",
            WARNING,
            "images have no lesion id; each is taken for a lesion of its own",
            sorted(rows[rows["lesion_id"] == ""]["image_id"]),
        ),
        (
            "vague_image",
            WARNING,
            "images have rows that disagree in dx_type, age, sex or localization; the first counts",
            sorted(vague),
        ),
        (
            "repeated_row",
            INFORMATION,
            "rows say again what another row says",
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
    ("same_file", WARNING): "groups of byte-identical files stand in several lesions",
    ("same_file", INFORMATION): "groups of byte-identical files, each inside one lesion",
    ("same_pixels", CONTRADICTION): "groups of equal images in unequal files have several labels",
    ("same_pixels", WARNING): "groups of equal images in unequal files stand in several lesions",
    ("same_pixels", INFORMATION): "groups of equal images in unequal files, inside one lesion",
    ("near_duplicate", WARNING): "pairs of nearly equal images stand in two lesions and may leak",
    ("near_duplicate", INFORMATION): "pairs of nearly equal images, each inside one lesion",
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
    unreadable = [f"{r.image_id}: {r.problem}" for r in records if r.problem and not r.truncated]
    truncated = [f"{r.image_id}: {r.problem}" for r in records if r.truncated]
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
    duplicates: dict[tuple[str, str], list[str]] = {key: [] for key in _DUPLICATES}
    for group in sorted(copies.values()):
        if len(group) > 1:
            same_file = len({sha256_of[image_id] for image_id in group}) == 1
            kind = "same_file" if same_file else "same_pixels"
            severity = _severity(group, lesion_of, label_of)
            duplicates[kind, severity].append(_described(group, lesion_of, label_of))
    for first, second, correlation in near_pairs:
        pair = [first, second]
        severity = WARNING if lesion_of[first] != lesion_of[second] else INFORMATION
        text = f"{_described(pair, lesion_of, label_of)}: correlation {correlation:.4f}"
        duplicates["near_duplicate", severity].append(text)
    found = _problems(
        ("unreadable", BROKEN, "image files cannot be read", unreadable),
        ("truncated", BROKEN, "image files are cut short", truncated),
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
    return ", ".join(described(i, lesion_of[i], label_of[i]) for i in group)


def described(image_id: str, lesion_id: str, label: str) -> str:
    """Write an image as the items of duplicates have it."""
    return f"{image_id} ({lesion_id}, {label})"


def _several(rows: pd.DataFrame, key: str, column: str) -> dict[str, list[str]]:
    """Return each key that has several values, with them."""
    pairs = rows[[key, column]].drop_duplicates()
    several = pairs[pairs[key].duplicated(keep=False)].sort_values([key, column])
    values: dict[str, list[str]] = {}
    for name, value in several.itertuples(index=False):
        values.setdefault(name, []).append(value)
    return values


def _listed(several: Mapping[str, list[str]]) -> list[str]:
    return [f"{n}: {', '.join(v or 'none' for v in values)}" for n, values in several.items()]


def _problems(*found: tuple[str, str, str, list[str]]) -> tuple[Problem, ...]:
    return tuple(
        Problem(kind, severity, meaning, tuple(items))
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
        images={name: int(images.get(name, 0)) for name in CLASS_NAMES},
        lesions={name: int(lesions.get(name, 0)) for name in CLASS_NAMES},
        lesions_with_several_images=int((manifest["lesion_id"].value_counts() > 1).sum()),
        missing={
            "age": int(manifest["age"].isna().sum()),
            "sex": int((manifest["sex"] == UNKNOWN).sum()),
            "localization": int((manifest["localization"] == UNKNOWN).sum()),
            "lesion id": int(manifest["image_id"].isin(table.without_lesion).sum()),
        },
        problems=problems,
    )
