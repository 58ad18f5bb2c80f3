"""The page of doubtful labels, weak slices and shortcuts, and the table to review.

Never imports torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.data.corrections import COLUMNS
from dermalyze.data.image_properties import PROPERTIES
from dermalyze.evaluation.predictions import write_predictions
from dermalyze.evaluation.report.figures import data_address
from dermalyze.evaluation.report.text import cell, html
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.shortcuts import MIN_AUC, Shortcut
from dermalyze.evaluation.statistics.slices import Slice
from dermalyze.evaluation.text import number, p_value, percent, things
from serving.atomic_write import write_text
from serving.taxonomy import DISCLAIMER

REVIEW = "review.csv"
PAGE = "data_issues.html"
REVIEWED_SHARE = (
    0.05  # of the images, those with the most doubtful labels; more if more are suspected
)
MAX_PICTURES, MAX_GROUPS, MAX_EXAMPLES, MAX_SLICES = 48, 24, 6, 15


@dataclass(frozen=True, kw_only=True)
class DataIssues:
    """What the predictions of models that had not seen the images say about the data."""

    name: str  # of the data
    basis: str  # which predictions these are
    scored: Scored
    labels: pd.DataFrame  # of `rank_labels`
    conflicts: Sequence[tuple[str, tuple[str, ...]]]  # what images with several labels share, they
    slices: Sequence[Slice]
    shortcuts: Sequence[Shortcut]
    properties: pd.DataFrame
    earlier: pd.DataFrame  # corrections that the labels contain already

    @property
    def num_doubtful(self) -> int:
        """How many labels are to be reviewed."""
        return max(int(self.labels["suspected"].sum()), round(REVIEWED_SHARE * len(self.labels)))

    def sentences(self) -> list[str]:
        """Say what was found, a sentence each."""
        weak = [found for found in self.slices if found.finding]
        known = [found for found in self.shortcuts if found.finding]
        return [
            f"{things(int(self.labels['suspected'].sum()), 'label')} of {len(self.labels):,} are "
            f"suspected to be wrong; the {self.num_doubtful:,} most doubtful are in {REVIEW}",
            f"{things(len(self.conflicts), 'group')} of near-duplicate images with several labels",
            f"{len(weak)} of {things(len(self.slices), 'slice')} have significantly more errors "
            "than other images of the same classes"
            + "".join(f"; {s.attribute} {s.group} ({in_words(s)})" for s in weak[:MAX_EXAMPLES]),
            f"{len(known)} of {things(len(self.shortcuts), 'simple measure')} alone tell a class"
            + "".join(f"; {s.name} tells {s.label} (AUC {number(s.auc)})" for s in known),
        ]


def in_words(found: Slice) -> str:
    """Say how often a model is wrong about a slice."""
    return f"{percent(found.error.estimate)} wrong, expected {percent(found.expected)}"


def write_review(path: Path, issues: DataIssues) -> None:
    """Write the table to review, most doubtful labels first.

    A reviewer fills in `corrected_label`; what an earlier review decided is there already.
    """
    labels, earlier = issues.labels, issues.earlier.set_index("image_id")
    of_image = labels.set_index("image_id")
    reasons = dict.fromkeys(labels["image_id"][: issues.num_doubtful], "doubtful label")
    for what, ids in issues.conflicts:
        for image_id in ids:
            others = ", ".join(other for other in ids if other != image_id)
            reason = f"{what} with another label: {others}"
            before = reasons.get(image_id)
            reasons[image_id] = f"{before}; {reason}" if before else reason
    for image_id in earlier.index:
        reasons.setdefault(image_id, "reviewed earlier")
    rows = of_image.reindex(list(reasons))
    known = earlier.reindex(rows.index)
    table = pd.DataFrame(
        {
            "image_id": rows.index,
            "label": known["label"].fillna(rows["label"]).to_numpy(),  # in the data
            "corrected_label": known["corrected_label"].fillna("").to_numpy(),
            "suggested_label": rows["suggested"].fillna("").to_numpy(),
            "quality": rows["quality"].round(4).to_numpy(),
            "reason": list(reasons.values()),
        }
    )
    assert set(COLUMNS) <= set(table)
    write_predictions(path, table)


def write_page(path: Path, issues: DataIssues, picture: Callable[[str], bytes]) -> None:
    """Write the page with pictures as one HTML file.

    Args:
        path: the file.
        issues: what was found.
        picture: returns a small JPEG of an image by its id; empty: there is none.
    """

    def shown(image_id: str, *lines: str) -> Mapping[str, Any]:
        content = picture(image_id)
        address = data_address(content, "image/jpeg") if content else ""
        return {"image_id": image_id, "address": address, "lines": lines}

    scored = issues.scored
    ids = scored.table["image_id"].tolist()
    label_of = dict(zip(ids, scored.table["label"], strict=True))
    confidence = scored.probs.max(axis=1)
    wrong = scored.predicted != scored.targets
    doubtful = issues.labels[: min(issues.num_doubtful, MAX_PICTURES)]
    slices = []
    for found in issues.slices:
        rows = found.rows[wrong[found.rows]] if found.finding else found.rows[:0]
        rows = rows[np.argsort(-confidence[rows], kind="stable")][:MAX_EXAMPLES]
        pictures = [
            shown(ids[i], f"label {label_of[ids[i]]}", f"predicted {scored.class_names[p]}")
            for i, p in zip(rows, scored.predicted[rows], strict=True)
        ]
        slices.append({"slice": found, "error": cell(found.error), "pictures": pictures})
    values = {
        "issues": issues,
        "sentences": issues.sentences(),
        "review": REVIEW,
        "disclaimer": DISCLAIMER,
        "labels": [
            shown(image_id, f"label {label}", f"rather {suggested}, {number(probability)}")
            for image_id, label, suggested, probability in zip(
                *(doubtful[name] for name in ("image_id", "label", "suggested", "probability")),
                strict=True,
            )
        ],
        "conflicts": [
            (what, [shown(image_id, f"label {label_of.get(image_id, '?')}") for image_id in found])
            for what, found in issues.conflicts[:MAX_GROUPS]
        ],
        "slices": slices[:MAX_SLICES],
        "shortcuts": [
            {
                "shortcut": found,
                "title": PROPERTIES[found.name],
                "pictures": [
                    shown(
                        ids[i],
                        f"label {found.label}",
                        f"{found.name} {issues.properties[found.name][i]:.3g}",
                    )
                    for i in (found.rows[:MAX_EXAMPLES] if found.finding else ())
                ],
            }
            for found in issues.shortcuts
        ],
        "p_value": p_value,
        "min_auc": number(MIN_AUC),
    }
    write_text(path, html("data_issues.html", values))
