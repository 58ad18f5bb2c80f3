"""What can be done with a run that has ended: judge it again, export it, read its history."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from dermalyze.config import Config, TrainingConfig
from dermalyze.config_file import load_config
from dermalyze.data.prepare import Prepared
from dermalyze.data.splits import Splits, read_splits
from dermalyze.evaluation.fit import FitVerdict, judge_fit
from dermalyze.evaluation.folder import write_evaluation
from dermalyze.evaluation.plots import save_training_curves
from dermalyze.export.int8 import Int8Report, LabelledImages, export_int8
from dermalyze.export.onnx import export_onnx
from dermalyze.export.parity import ParityReport
from dermalyze.models.checkpoint import load_classifier
from dermalyze.models.predictor import SkinLesionPredictor
from dermalyze.tracking import add_to_run, fetched, require_run
from dermalyze.training.device import choose_device, in_full_precision
from dermalyze.training.job import (
    BEST,
    CONFIG,
    EVALUATION,
    HISTORY,
    SPLIT_FILES,
    prepare_for,
)
from dermalyze.training.loop import predict_logits
from serving.errors import DataError, ImageError, TrackingError
from serving.files import find_images
from serving.preprocess import read_bytes
from serving.taxonomy import CLASS_NAMES

Metrics = dict[str, float]


def evaluate_run(run_id: str, split: str, *, data_dir: Path | None, output: Path) -> Metrics:
    """Judge a run's best epoch on one of its splits; write it to `output` and into the run.

    Raises:
        DataError: the data is not what the run was trained on.
    """
    params = require_run(run_id)
    with fetched(run_id, (BEST, CONFIG, *SPLIT_FILES)) as (checkpoint, config_file, split_file, *_):
        config = load_config(config_file)
        prepared, splits = _data_of(run_id, params, config, data_dir, split_file.parent)
        rows = getattr(splits, split)
        classifier, _ = load_classifier(checkpoint)
        device = in_full_precision(choose_device(config.training))
        classifier.to(device.torch_device)
        logits = predict_logits(
            classifier, prepared.store, rows, config.training.batch_size, device, split
        )
    metrics = write_evaluation(
        output,
        prepared.manifest.iloc[rows],
        logits,
        split=split,
        context={"run_id": run_id, "data_fingerprint": prepared.fingerprint},
    )
    add_to_run(run_id, output, EVALUATION if split == "test" else f"{EVALUATION}_{split}", metrics)
    return metrics


def evaluate_images(run_id: str, images: Path, labels: Path, *, output: Path) -> Metrics:
    """Judge a run's best epoch on other images; the run itself is not changed.

    Args:
        run_id: the run.
        images: a folder of JPEG or PNG files, each named `<image_id>.jpg` or `.png`.
        labels: a CSV with the columns `image_id` and `label`, and those of a manifest if known.
        output: the folder to write to.

    Raises:
        DataError: the CSV or an image cannot be used.
    """
    manifest = read_labels(labels)
    files = {path.stem: path for path in find_images([images])}
    if missing := [name for name in manifest["image_id"] if name not in files]:
        raise DataError(
            f"{len(missing)} images of {labels} are not in {images}, among them {missing[0]}"
        )
    with fetched(run_id, (BEST,)) as (checkpoint,):
        predictor = SkinLesionPredictor(checkpoint)
    parts = []
    for name in manifest["image_id"]:
        try:
            pixels = predictor.pixels(read_bytes(files[name]))
        except ImageError as error:
            raise DataError(f"{files[name]}: {error}") from error
        parts.append(predictor.logits(pixels[None]))
    return write_evaluation(
        output,
        manifest,
        np.concatenate(parts),
        split="images",
        context={"run_id": run_id, "labels": labels.name},
    )


def read_labels(path: Path) -> pd.DataFrame:
    """Read a CSV of labels into a manifest; columns that it lacks are unknown."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}; expected a CSV with image_id and label") from error
    if absent := [name for name in ("image_id", "label") if name not in table.columns]:
        raise DataError(f"{path} has no column {absent[0]}; expected image_id and label")
    if unknown := sorted(set(table["label"]) - set(CLASS_NAMES)):
        raise DataError(
            f"{path} has the unknown label {unknown[0]!r}; known: {', '.join(CLASS_NAMES)}"
        )
    if table.empty:
        raise DataError(f"{path} has no row; expected one an image")
    if twice := table["image_id"][table["image_id"].duplicated()].tolist():
        raise DataError(f"{path} names the image {twice[0]} twice; expected one row an image")
    for name in ("dx_type", "sex", "localization"):
        if name not in table.columns:
            table[name] = "unknown"
    if "lesion_id" not in table.columns:
        table["lesion_id"] = table["image_id"]  # each image its own lesion
    ages = table["age"] if "age" in table.columns else pd.Series("", index=table.index)
    table["age"] = pd.to_numeric(ages, errors="coerce")
    return table


def export_run(run_id: str, output: Path) -> ParityReport:
    """Write a run's best epoch as one ONNX file, if it agrees with PyTorch."""
    with fetched(run_id, (BEST,)) as (checkpoint,):
        classifier, spec = load_classifier(checkpoint)
    return export_onnx(classifier, spec, output)


def export_run_int8(run_id: str, output: Path, *, data_dir: Path | None) -> Int8Report:
    """Write a run's best epoch as one ONNX file in int8, if it costs next to no accuracy.

    Raises:
        ArtifactError: it costs more; nothing is written.
        DataError: the data is not what the run was trained on.
    """
    params = require_run(run_id)
    with fetched(run_id, (BEST, CONFIG, *SPLIT_FILES)) as (checkpoint, config_file, split_file, *_):
        config = load_config(config_file)
        prepared, splits = _data_of(run_id, params, config, data_dir, split_file.parent)
        classifier, spec = load_classifier(checkpoint)
    targets = np.array([spec.class_names.index(label) for label in prepared.manifest["label"]])
    training, validation = (
        LabelledImages(prepared.store, rows, targets[rows]) for rows in (splits.train, splits.val)
    )
    return export_int8(classifier, spec, output, training=training, validation=validation)


def fit_of_run(run_id: str) -> FitVerdict:
    """Say whether a run over- or underfits."""
    return judge_fit(_history(run_id)[0])


def plot_run(run_id: str, output: Path) -> None:
    """Draw a run's training curves into a PNG file."""
    history, training = _history(run_id)
    values = [(entry[training.monitor], -entry["epoch"]) for entry in history]
    if not training.higher_is_better:
        values = [(-value, order) for value, order in values]
    save_training_curves(output, history, best_epoch=int(-max(values)[1]))


def _history(run_id: str) -> tuple[list[Metrics], TrainingConfig]:
    with fetched(run_id, (HISTORY, CONFIG)) as (history_file, config_file):
        history: list[Metrics] = json.loads(history_file.read_text(encoding="utf-8"))
        training = load_config(config_file).training
    if not history:
        raise TrackingError(f"run {run_id} has no finished epoch yet")
    return history, training


def _data_of(
    run_id: str, params: dict[str, str], config: Config, data_dir: Path | None, split_folder: Path
) -> tuple[Prepared, Splits]:
    """Return the images of a run and its splits.

    Raises:
        DataError: the data is not what the run was trained on.
    """
    prepared = prepare_for(config, data_dir or _logged_data_dir(run_id, params))
    known = params.get("resolved.data_fingerprint", "")
    if known != prepared.fingerprint:
        raise DataError(
            f"run {run_id} was trained on other data (fingerprint {known[:12]}, here "
            f"{prepared.fingerprint[:12]}); pass its folder as --data-dir"
        )
    lesion_aware = config.data.lesion_aware
    return prepared, read_splits(split_folder, prepared.manifest, lesion_aware=lesion_aware)


def _logged_data_dir(run_id: str, params: dict[str, str]) -> Path:
    path = Path(params.get("data.dir", ""))
    if not params.get("data.dir") or not path.is_dir():
        raise DataError(f"the data of run {run_id} is not where it was; pass --data-dir")
    return path
