"""The folder `evaluation/` of a run, and the same numbers as text for a terminal.

Never imports torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dermalyze.evaluation.evaluate import JUDGEMENT, Evaluation, Predictions
from dermalyze.evaluation.metrics.classification import normalized_confusion_matrix
from dermalyze.evaluation.predictions import write_predictions, write_taxonomy
from dermalyze.evaluation.report import figures
from dermalyze.evaluation.saliency_check import read_explanations, write_explanations
from dermalyze.evaluation.scores import read_scored
from dermalyze.evaluation.statistics.bootstrap import Interval
from dermalyze.evaluation.text import TITLES, padded, width_of
from serving.atomic_write import write_text
from serving.errors import one_line
from serving.os_errors import make_folder
from serving.taxonomy import DISCLAIMER, Taxonomy

PREDICTIONS = "predictions.csv"
VALIDATION = "val_predictions.csv"  # what the calibrator is fitted on
CONFUSION = "confusion_matrix.png"
SUMMARY = "evaluation_metrics.json"
HEADLINES = ("loss", "accuracy", "balanced_accuracy", "macro_auc", "ece")
COLUMNS = (("precision", "precision"), ("recall", "sensitivity"), ("f1", "F1"), ("auc", "AUC"))
WIDTH = 12  # characters of a column of numbers


def read_folder(folder: Path, split: str) -> Predictions:
    """Read the predictions that `write_folder` has written.

    Raises:
        DataError: a table is missing or damaged.
    """
    fitted_on, summary = folder / VALIDATION, folder / SUMMARY
    context = json.loads(summary.read_text(encoding="utf-8"))["context"] if summary.exists() else {}
    judged = folder / JUDGEMENT
    measured = judged.read_text(encoding="utf-8") if judged.exists() else None
    return Predictions(
        scored=read_scored(folder / PREDICTIONS),
        split=split,
        validation=read_scored(fitted_on) if fitted_on.exists() else None,
        explanations=read_explanations(folder),
        context=context,
        robustness=None if measured is None else Evaluation.from_json(measured).robustness,
    )


def write_folder(folder: Path, predictions: Predictions, evaluation: Evaluation) -> None:
    """Write predictions and their evaluation as tables, plots and JSON.

    `evaluation_metrics.json` is written last, so that a folder that has it is complete.
    """
    make_folder(folder)
    scored = predictions.scored
    write_taxonomy(folder, scored.taxonomy)
    write_predictions(folder / PREDICTIONS, scored.table)
    if predictions.validation is None:
        (folder / VALIDATION).unlink(missing_ok=True)
    else:
        write_predictions(folder / VALIDATION, predictions.validation.table)
    write_explanations(folder, predictions.explanations)
    for name, figure in (
        (CONFUSION, figures.confusion(scored)),
        ("roc_curves.png", figures.roc(scored)),
        ("per_class_metrics.png", figures.per_class(scored)),
        ("calibration_curve.png", figures.reliability(scored)),
    ):
        figures.save_png(folder / name, figure)
    write_text(folder / JUDGEMENT, evaluation.to_json())
    shares = normalized_confusion_matrix(np.array(evaluation.confusion_matrix))
    summary = {
        "split": evaluation.split,
        "num_images": evaluation.num_images,
        "num_lesions": evaluation.num_lesions,
        "class_names": list(evaluation.taxonomy.names),
        "metrics": {f"{evaluation.split}/{k}": v for k, v in evaluation.metrics.items()},
        "confusion_matrix": evaluation.confusion_matrix,  # true classes in rows
        "normalized_confusion_matrix": shares.tolist(),
        "context": evaluation.context,
        "disclaimer": DISCLAIMER,
    }
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_text(folder / SUMMARY, text)


def format_metrics(
    metrics: Mapping[str, float],
    taxonomy: Taxonomy,
    intervals: Mapping[str, Interval] | None = None,
) -> str:
    """Lay out what `score` or `Evaluation.logged` returned: headlines, then a line per class.

    Classes have the names of `taxonomy`; one without a number of images is left out.  A number
    that is not defined is shown as `-`.  `intervals` put their bounds beside the headlines, or say
    why there are none.
    """
    split = next(key for key in metrics if key.endswith("balanced_accuracy"))
    split = split.removesuffix("balanced_accuracy")  # "test/", or nothing
    plain = {key.removeprefix(split): value for key, value in metrics.items()}
    classes = {
        key: one_line(name)
        for key, name in zip(taxonomy.keys, taxonomy.names, strict=True)
        if f"support/{key}" in plain
    }
    num_images = sum(int(plain[f"support/{key}"]) for key in classes)
    lines = [f"{'images':<{2 * WIDTH}}{num_images:>{WIDTH},}"]
    lines += [
        f"{TITLES[key]:<{2 * WIDTH}}{_cell(plain, key)}{_bounds((intervals or {}).get(key))}"
        for key in HEADLINES
    ]
    width = max((WIDTH, *map(width_of, classes.values()))) + 2
    titles = (*(title for _, title in COLUMNS), "images")
    lines += ["", " " * width + "".join(f"{title:>{WIDTH}}" for title in titles)]
    for key, name in classes.items():
        cells = "".join(_cell(plain, f"{column}/{key}") for column, _ in COLUMNS)
        lines.append(f"{padded(name, width)}{cells}{int(plain[f'support/{key}']):>{WIDTH},}")
    for kind in ("macro", "weighted"):
        cells = "".join(_cell(plain, f"{kind}_{column}") for column, _ in COLUMNS)
        lines.append(f"{kind + ' mean':<{width}}{cells}{num_images:>{WIDTH},}")
    return "\n".join(lines)


def _cell(metrics: Mapping[str, float], key: str) -> str:
    return f"{metrics[key]:>{WIDTH}.4f}" if key in metrics else f"{'-':>{WIDTH}}"


def _bounds(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low is None:
        return f"   no interval: {interval.reason}"
    return f"   {interval.low:.4f} to {interval.high:.4f}"
