"""One self-contained `report.html` of a run, made from stored files alone: no GPU, no network.

The page has no script and asks for nothing from elsewhere.  What it has no data for, it says.
N images, C classes.  Never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dermalyze.evaluation.evaluate import Evaluation
from dermalyze.evaluation.metrics.classification import (
    Counts,
    commonest_malignant,
    confusion_matrix,
    normalized_confusion_matrix,
)
from dermalyze.evaluation.report import captions
from dermalyze.evaluation.report.figures import BLUE, data_address
from dermalyze.evaluation.report.text import (
    CALIBRATION,
    MIN_ANSWERED,
    cell,
    elsewhere_sentences,
    gap_sentences,
    group_columns,
    headlines,
    html,
    reasons,
    referral_sentences,
)
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.text import AT_POINTS, PER_CLASS, not_recorded, number, things, title_of
from serving.atomic_write import write_text
from serving.taxonomy import DISCLAIMER, Taxonomy

NUM_MISTAKES = 12
MAX_MATRIX = 30  # classes; a table with more cells is not read, and slow


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

    evaluation: Evaluation
    scored: Scored
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
    evaluation, scored = inputs.evaluation, inputs.scored
    taxonomy, known = evaluation.taxonomy, evaluation.intervals
    tiles = ["balanced_accuracy", "malignant_auc", "ece"]
    if (key := commonest_malignant(scored)) is not None:
        tiles.insert(1, f"recall/{key}")
    unit = evaluation.group_by
    basis = things(evaluation.num_images, "image")
    if unit != "image":
        basis += f" of {things(evaluation.num_lesions, unit)}"
    return {
        "inputs": inputs,
        "evaluation": evaluation,
        "taxonomy": taxonomy,
        "unit": unit,
        "disclaimer": DISCLAIMER,
        "not_recorded": not_recorded(taxonomy),
        "basis": basis,
        "tiles": [(title_of(n, taxonomy), cell(known[n])) for n in tiles if n in known],
        "headlines": headlines(evaluation),
        "elsewhere": elsewhere_sentences(evaluation),
        "per_class": _class_table(inputs, PER_CLASS),
        "at_points": _class_table(inputs, AT_POINTS),
        "confusion": _confusion(scored) if len(taxonomy) <= MAX_MATRIX else _confused(scored),
        "has_matrix": len(taxonomy) <= MAX_MATRIX,
        "curves": captions.roc(evaluation, scored),
        "precision_recall": captions.precision_recall(evaluation, scored),
        "calibration": _calibration(evaluation),
        "calibration_figure": captions.reliability(evaluation, scored),
        "decision": captions.decision(evaluation),
        "limits": _limits(evaluation),
        "maps": _maps(evaluation),
        "external": evaluation.external,
        "robustness": evaluation.robustness,
        "groups": _groups(evaluation),
        "group_columns": [title_of(name) for name in group_columns(evaluation)],
        "gaps": gap_sentences(evaluation),
        "mistakes": [shown(mistake, taxonomy) for mistake in inputs.mistakes],
        "num_wrong": int((scored.predicted != scored.targets).sum()),
        "training": captions.training(inputs.history, inputs.best_epoch),
        "histopathology": int((scored.table["dx_type"] == "histo").sum()),
        "confirmed": bool((scored.table["dx_type"] != "unknown").any()),
        "largest_share": float(np.bincount(scored.targets).max() / len(scored)),
        "largest": scored.class_names[int(np.bincount(scored.targets).argmax())],
    }


def _class_table(inputs: ReportInputs, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of intervals for each class, and why some are missing."""
    scored, known = inputs.scored, inputs.evaluation.intervals
    taxonomy = scored.taxonomy
    present = [name for name in columns if any(key.startswith(f"{name}/") for key in known)]
    rows: list[dict[str, Any]] = []
    for index, (name, key) in enumerate(zip(taxonomy.names, taxonomy.keys, strict=True)):
        of_class = scored.targets == index
        rows.append(
            {
                "name": name,
                "description": taxonomy.descriptions[index],
                "malignant": name in taxonomy.malignant,
                "num_images": int(of_class.sum()),
                "num_lesions": len(np.unique(scored.lesions[of_class])),
                "cells": [cell(known.get(f"{column}/{key}")) for column in present],
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


def _confused(scored: Scored) -> list[dict[str, Any]]:
    """Return the classes that are confused most often: for more classes than a matrix can show."""
    num_classes = len(scored.taxonomy)
    counts = confusion_matrix(scored.targets, scored.predicted, num_classes)
    wrong = counts * ~np.eye(num_classes, dtype=bool)
    most = np.argsort(-wrong, axis=None, kind="stable")[:MAX_MATRIX]
    return [
        {
            "true": scored.class_names[row],
            "predicted": scored.class_names[column],
            "count": int(wrong[row, column]),
            "share": float(wrong[row, column] / counts[row].sum()),
        }
        for row, column in zip(*np.unravel_index(most, wrong.shape), strict=True)
        if wrong[row, column]
    ]


def _calibration(evaluation: Evaluation) -> dict[str, Any] | None:
    part = evaluation.calibration
    if part is None:
        return None
    return {
        "rows": [
            (title, number(getattr(part.before, name)), number(getattr(part.after, name)))
            for name, title in CALIBRATION.items()
        ],
        "kind": part.calibrator.kind,
        "numbers": [  # a temperature; not the many of a matrix
            f"{name} {value:.3f}"
            for name, value in part.calibrator.parameters.items()
            if isinstance(value, int | float)
        ],
        "fitted_on": part.calibrator.fitted_on,
    }


def _limits(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return what the section on sets, decisions and scope prints; None: nothing was fitted."""
    limits = evaluation.limits
    if limits is None:
        return None
    referral = limits.referral
    return {
        "referral": referral,
        "referral_sentences": referral_sentences(referral, evaluation.group_by) if referral else [],
        "sets": limits.prediction_sets,
        "classes": [
            (name, found, cell(found.coverage))
            for name, found in limits.prediction_sets.classes.items()
        ],
        "curve": captions.risk_coverage(limits.abstention),
        "sentences": captions.limits_sentences(
            limits,
            evaluation.group_by,
            0.0 if evaluation.elsewhere is None else MIN_ANSWERED,
        ),
    }


def _maps(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return what the section on maps prints; None where there are no masks."""
    maps = evaluation.explanations
    if maps is None:
        return None
    rows = []
    for name, title in captions.MAP_MEASURES.items():
        measure = getattr(maps, name)
        shown = (measure.map, measure.center, measure.uniform, measure.over_center)
        rows.append((title, [cell(interval) for interval in shown]))
    return {"check": maps, "sentences": captions.map_sentences(maps), "rows": rows}


def _groups(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Sort the subgroups by attribute, each with its cells."""
    columns = group_columns(evaluation)
    sorted_groups: dict[str, list[dict[str, Any]]] = {}
    for group in evaluation.subgroups.groups:
        cells = [cell(group.intervals.get(name)) for name in columns]
        sorted_groups.setdefault(group.attribute, []).append({"group": group, "cells": cells})
    return sorted_groups


def shown(mistake: Mistake, taxonomy: Taxonomy) -> dict[str, Any]:
    """Return what a page prints of a mistake."""
    true, predicted = (n in taxonomy.malignant for n in (mistake.true_label, mistake.predicted))
    return {
        "mistake": mistake,
        "address": data_address(mistake.picture, "image/jpeg") if mistake.picture else "",
        "missed": true and not predicted,
    }
