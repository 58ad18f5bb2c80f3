"""One self-contained `report.html` of a run, made from stored files alone: no GPU, no network.

The page has no script and asks for nothing from elsewhere.  What it has no data for, it says.
N images, C classes.  Never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dermalyze.evaluation import report_pictures as pictures
from dermalyze.evaluation.metrics import Counts, confusion_matrix, normalized_confusion_matrix
from dermalyze.evaluation.plots import BLUE
from dermalyze.evaluation.report_figures import data_address
from dermalyze.evaluation.report_limits import known_limits, known_maps
from dermalyze.evaluation.scored import Scored
from dermalyze.evaluation.words import (
    AT_POINTS,
    CALIBRATION,
    NO_SKIN_TYPE,
    PER_CLASS,
    Judgement,
    cell,
    gap_sentences,
    group_columns,
    headlines,
    html,
    number,
    reasons,
    things,
    title_of,
)
from serving.taxonomy import CLASS_DESCRIPTIONS, DATA_LICENSE, DISCLAIMER, MALIGNANT
from serving.whole import write_text

NUM_MISTAKES = 12
_TILES = ("balanced_accuracy", "recall/mel", "malignant_auc", "ece")


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that the model was wrong about."""

    image_id: str
    true_label: str
    predicted: str
    confidence: float  # fraction
    picture: bytes = b""  # JPEG; empty: it is not at hand


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """All that a report is made of; an empty part leaves its section with one sentence."""

    judgement: Judgement  # as judgement.json holds it
    scored: Scored
    calibrated: Scored | None = None  # the same images with calibrated logits
    history: Sequence[Mapping[str, float]] = ()  # one mapping an epoch
    best_epoch: int = 0  # 0: not known
    config_yaml: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)  # what it is called -> what it is
    mistakes: Sequence[Mistake] = ()
    warnings: Sequence[str] = ()
    demo_data: bool = False  # drawn images: the numbers mean nothing


def write_report(path: Path, inputs: ReportInputs) -> None:
    """Write the report as one HTML file, whole or not at all."""
    write_text(path, html("report.html", _page(inputs)))


def most_confident_mistakes(scored: Scored, number: int = NUM_MISTAKES) -> Counts:
    """Return the rows of the wrong answers given with most confidence, int64 (<= number,).

    Most confident first; of each lesion only its most confident mistake.
    """
    confidence = scored.probs.max(axis=1)
    wrong = np.flatnonzero(scored.predicted != scored.targets)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    _, first = np.unique(scored.lesions[wrong], return_index=True)
    return np.asarray(wrong[np.sort(first)][:number], np.int64)


def shade(share: float) -> str:
    """Return the style of a cell of the confusion matrix: blue by its share, text that is seen."""
    red, green, blue = (
        round(255 + share * (int(BLUE[start : start + 2], 16) - 255)) for start in (1, 3, 5)
    )
    text = "#ffffff" if share > 0.93 else "#000000"
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{text}"


def _page(inputs: ReportInputs) -> dict[str, Any]:
    """Collect what the template prints."""
    judgement, scored = inputs.judgement, inputs.scored
    known = judgement["intervals"]
    return {
        "inputs": inputs,
        "judgement": judgement,
        "disclaimer": DISCLAIMER,
        "license": DATA_LICENSE,
        "no_skin_type": NO_SKIN_TYPE,
        "basis": f"{things(judgement['num_images'], 'image')} of "
        f"{things(judgement['num_lesions'], 'lesion')}",
        "tiles": [(title_of(name), cell(known[name])) for name in _TILES if name in known],
        "headlines": headlines(judgement),
        "per_class": _class_table(inputs, PER_CLASS),
        "at_points": _class_table(inputs, AT_POINTS),
        "confusion": _confusion(scored),
        "curves": pictures.roc(judgement, scored),
        "precision_recall": pictures.precision_recall(judgement, scored),
        "calibration": _calibration(judgement),
        "calibration_figure": pictures.reliability(judgement, scored, inputs.calibrated),
        "decision": pictures.decision(judgement),
        "known": known_limits(judgement),
        "maps": known_maps(judgement),
        "groups": _groups(judgement),
        "group_columns": [title_of(name) for name in group_columns(judgement)],
        "gaps": gap_sentences(judgement),
        "mistakes": [_shown(mistake) for mistake in inputs.mistakes],
        "num_wrong": int((scored.predicted != scored.targets).sum()),
        "training": pictures.training(inputs.history, inputs.best_epoch),
        "histopathology": int((scored.table["dx_type"] == "histo").sum()),
    }


def _class_table(inputs: ReportInputs, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of intervals for each class, and why some are missing."""
    scored, known = inputs.scored, inputs.judgement["intervals"]
    present = [name for name in columns if any(key.startswith(f"{name}/") for key in known)]
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(scored.class_names):
        of_class = scored.targets == index
        rows.append(
            {
                "name": name,
                "description": CLASS_DESCRIPTIONS.get(name, ""),
                "malignant": name in MALIGNANT,
                "num_images": int(of_class.sum()),
                "num_lesions": len(np.unique(scored.lesions[of_class])),
                "cells": [cell(known.get(f"{column}/{name}")) for column in present],
            }
        )
    return {
        "columns": [columns[name] for name in present],
        "rows": rows,
        "reasons": reasons([(row["name"], row["cells"]) for row in rows])
        + [f"{row['name']}: no image in this split" for row in rows if row["num_images"] == 0],
    }


def _confusion(scored: Scored) -> list[dict[str, Any]]:
    counts = confusion_matrix(scored.targets, scored.predicted, len(scored.class_names))
    shares = normalized_confusion_matrix(counts)
    return [
        {
            "name": name,
            "num_images": int(counts[row].sum()),
            "cells": [
                {"count": int(count), "share": float(share), "style": shade(float(share))}
                for count, share in zip(counts[row], shares[row], strict=True)
            ],
        }
        for row, name in enumerate(scored.class_names)
    ]


def _calibration(judgement: Judgement) -> dict[str, Any] | None:
    part = judgement.get("calibration")
    if part is None:
        return None
    return {
        "rows": [
            (title, number(part["before"][name]), number(part["after"][name]))
            for name, title in CALIBRATION.items()
            if name in part["before"]
        ],
        "kind": part["calibrator"]["kind"],
        "numbers": [  # a temperature; not the many of a matrix
            f"{name} {value:.3f}"
            for name, value in part["calibrator"]["parameters"].items()
            if isinstance(value, int | float)
        ],
        "fitted_on": part["calibrator"]["fitted_on"],
    }


def _groups(judgement: Judgement) -> dict[str, list[dict[str, Any]]]:
    """Sort the subgroups by attribute, each with its cells."""
    columns = group_columns(judgement)
    sorted_groups: dict[str, list[dict[str, Any]]] = {}
    for group in judgement["subgroups"]["groups"]:
        cells = [cell(group["intervals"].get(name)) for name in columns]
        sorted_groups.setdefault(group["attribute"], []).append({**group, "cells": cells})
    return sorted_groups


def _shown(mistake: Mistake) -> dict[str, Any]:
    return {
        "mistake": mistake,
        "address": data_address(mistake.picture, "image/jpeg") if mistake.picture else "",
        "missed": mistake.true_label in MALIGNANT and mistake.predicted not in MALIGNANT,
    }
