"""The folder `evaluation/` of a run, and the same numbers as text for a terminal.

N images, C classes.  Never imports torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.evaluation import plots
from dermalyze.evaluation.metrics import confusion_matrix, normalized_confusion_matrix, score
from dermalyze.evaluation.predictions import (
    logits_of,
    predictions_table,
    targets_of,
    write_predictions,
)
from dermalyze.evaluation.scored import lesion_numbers
from serving.disk import make_folder
from serving.taxonomy import CLASS_NAMES, DISCLAIMER
from serving.whole import write_text

HEADLINES = (
    ("loss", "loss (nats)"),
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("macro_auc", "macro AUC"),
    ("ece", "calibration error (ECE)"),
)
COLUMNS = (("precision", "precision"), ("recall", "sensitivity"), ("f1", "F1"), ("auc", "AUC"))
WIDTH = 12  # characters of a column of numbers


def write_evaluation(
    folder: Path,
    manifest_rows: pd.DataFrame,
    logits: NDArray[np.floating],
    *,
    split: str,
    context: Mapping[str, object],
    measured: Mapping[str, NDArray[np.floating]] = MappingProxyType({}),
) -> dict[str, float]:
    """Judge logits (N, C) of N manifest rows; write tables and plots; return the metrics.

    The metrics carry the split in front (`test/accuracy`).  `context` is what a reader needs to
    place the numbers, such as the run id; it goes into `evaluation_metrics.json` as it stands,
    which is written last, so that a folder that has it is complete.  `measured` is as
    `predictions_table` takes it.

    Raises:
        DataError: there is no image, a label is no class, or a logit is not a finite number.
    """
    table = predictions_table(manifest_rows, logits, CLASS_NAMES, measured)
    logits = logits_of(table, CLASS_NAMES)  # as the file has them
    targets = targets_of(table, CLASS_NAMES)  # (N,)
    metrics = {
        f"{split}/{name}": value for name, value in score(logits, targets, CLASS_NAMES).items()
    }
    confusion = confusion_matrix(targets, logits.argmax(axis=1), len(CLASS_NAMES))
    summary = {
        "split": split,
        "num_images": len(table),
        "num_lesions": int(lesion_numbers(table).max()) + 1,
        "class_names": list(CLASS_NAMES),
        "metrics": metrics,
        "confusion_matrix": confusion.tolist(),  # true classes in rows, predicted in columns
        "normalized_confusion_matrix": normalized_confusion_matrix(confusion).tolist(),
        "context": dict(context),
        "disclaimer": DISCLAIMER,
    }
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    make_folder(folder)
    write_predictions(folder / "predictions.csv", table)
    plots.save_confusion_matrix(folder / "confusion_matrix.png", logits, targets, CLASS_NAMES)
    plots.save_roc_curves(folder / "roc_curves.png", logits, targets, CLASS_NAMES)
    plots.save_per_class_metrics(folder / "per_class_metrics.png", logits, targets, CLASS_NAMES)
    plots.save_calibration_curve(folder / "calibration_curve.png", logits, targets)
    write_text(folder / "evaluation_metrics.json", text)
    return metrics


def format_metrics(
    metrics: Mapping[str, float], intervals: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Lay out what `score` or `write_evaluation` returned: headlines, then a line a class.

    A number that cannot be had is shown as `-`.  `intervals`, as in judgement.json, put their
    bounds beside the headlines, or say why there are none.
    """
    split = next(key for key in metrics if key.endswith("balanced_accuracy"))
    split = split.removesuffix("balanced_accuracy")  # "test/", or nothing
    plain = {key.removeprefix(split): value for key, value in metrics.items()}
    class_names = [key.removeprefix("support/") for key in plain if key.startswith("support/")]
    num_images = sum(int(plain[f"support/{name}"]) for name in class_names)
    lines = [f"{'images':<{2 * WIDTH}}{num_images:>{WIDTH},}"]
    lines += [
        f"{title:<{2 * WIDTH}}{_cell(plain, key)}{_bounds((intervals or {}).get(key))}"
        for key, title in HEADLINES
    ]
    titles = (*(title for _, title in COLUMNS), "images")
    lines += ["", " " * (WIDTH + 2) + "".join(f"{title:>{WIDTH}}" for title in titles)]
    for name in class_names:
        cells = "".join(_cell(plain, f"{column}/{name}") for column, _ in COLUMNS)
        lines.append(f"{name:<{WIDTH + 2}}{cells}{int(plain[f'support/{name}']):>{WIDTH},}")
    for kind in ("macro", "weighted"):
        cells = "".join(_cell(plain, f"{kind}_{column}") for column, _ in COLUMNS)
        lines.append(f"{kind + ' mean':<{WIDTH + 2}}{cells}{num_images:>{WIDTH},}")
    return "\n".join(lines)


def _cell(metrics: Mapping[str, float], key: str) -> str:
    return f"{metrics[key]:>{WIDTH}.4f}" if key in metrics else f"{'-':>{WIDTH}}"


def _bounds(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    if interval["low"] is None:
        return f"   no interval: {interval['reason']}"
    return f"   {interval['low']:.4f} to {interval['high']:.4f}"
