"""All that is said of predictions: their evaluation, the report and the cards.

Everything is made from files that a run keeps, so that it can be made again without a network and
without the images, whose pictures are then missing from the report.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from dermalyze.config.schema import Config, DataConfig, EvaluationConfig
from dermalyze.data.readers.dataset import open_dataset, read_image_bytes
from dermalyze.evaluation.evaluate import Evaluation, Predictions, evaluate, seen_priors
from dermalyze.evaluation.predictions import targets_of
from dermalyze.evaluation.report.cards import CardInputs, data_card, model_card
from dermalyze.evaluation.report.folder import write_folder
from dermalyze.evaluation.report.html import (
    NUM_MISTAKES,
    Mistake,
    ReportInputs,
    most_confident_mistakes,
    write_report,
)
from dermalyze.evaluation.scores import Scored, read_scored
from dermalyze.workflows.finished_run import FinishedRun, open_finished
from dermalyze.workflows.run_context import (
    AS_IN_THE_RUN,
    CONFIG,
    Here,
)
from serving.atomic_write import whole_folder, write_text
from serving.errors import DataError, DermalyzeError
from serving.preprocess import decode_image, upright_rgb

REPORT = "report.html"
MODEL_CARD, DATA_CARD = "model_card.md", "data_card.md"
_PICTURE_SIZE = 240  # pixels, the longer side
ReadImage = Callable[[str], bytes]


def write_evaluation(
    folder: Path,
    predictions: Predictions,
    run: FinishedRun | None,
    settings: EvaluationConfig,
    read_image: ReadImage | None,
) -> Evaluation:
    """Evaluate predictions; write tables, plots, judgement.json, report.html and the cards.

    The cards are written if the run's files are all there; else those of before are deleted.

    Args:
        folder: gets what is written.
        predictions: what is evaluated.
        run: the run that they come from; None: there is none.
        settings: how to evaluate.
        read_image: returns an image's file by its id, for the pictures of mistakes.

    Raises:
        DataError: the calibrator would be evaluated on what it was fitted on.
        ConfigError: the prevalence is not one.
    """
    config = None if run is None else run.settings
    if config is not None and config.data.leave_out != "none" and predictions.split == "test":
        predictions = replace(predictions, left_out=config.data.leave_out)
    splits, scored = {} if run is None else run.split_tables, predictions.answers
    apart = config is None or config.data.group_by != "none"  # else lesions may be in both
    evaluation = evaluate(
        predictions if apart else replace(predictions, validation=None),
        settings,
        None if config is None else _priors(config, splits, scored),
    )
    write_folder(folder, predictions, evaluation)
    write_report(
        folder / REPORT,
        ReportInputs(
            evaluation=evaluation,
            scored=scored,
            mistakes=mistakes_of(scored, read_image),
            **({} if run is None else _of_run(run)),
        ),
    )
    for name in (MODEL_CARD, DATA_CARD):  # of what was evaluated there before
        (folder / name).unlink(missing_ok=True)
    if run is not None and config is not None and run.audit and splits and run.history:
        cards = CardInputs(
            evaluation=evaluation,
            config=config,
            splits=splits,
            audit=run.audit,
            history=run.history,
            best_epoch=run.best_epoch,
            facts=run.facts,
            demo_data=run.demo_data,
        )
        write_text(folder / MODEL_CARD, model_card(cards))
        write_text(folder / DATA_CARD, data_card(cards))
    return evaluation


def _of_run(run: FinishedRun) -> dict[str, Any]:
    """Return what the report says of the run beside its predictions."""
    path = run.stored.find(CONFIG)
    return {
        "history": run.history,
        "best_epoch": run.best_epoch,
        "config_yaml": "" if path is None else path.read_text(encoding="utf-8", errors="replace"),
        "facts": run.facts,
        "warnings": run.warnings,
        "demo_data": run.demo_data,
    }


def _priors(config: Config, splits: Mapping[str, pd.DataFrame], scored: Scored) -> Any:
    """Return the class shares that training made the network see; folds learn from all images."""
    rows = splits.get("train", scored.table)
    return seen_priors(targets_of(rows, scored.taxonomy), len(scored.taxonomy), config)


def mistakes_of(
    scored: Scored, read_image: ReadImage | None, number: int = NUM_MISTAKES
) -> list[Mistake]:
    """Return the most confident mistakes with their pictures; none where no image is at hand."""
    if read_image is None:
        return []
    return [
        Mistake(
            image_id=str(scored.table["image_id"].iloc[row]),
            true_label=scored.class_names[scored.targets[row]],
            predicted=scored.class_names[scored.predicted[row]],
            confidence=float(scored.probs[row].max()),
            picture=picture_of(str(scored.table["image_id"].iloc[row]), read_image),
        )
        for row in most_confident_mistakes(scored, number)
    ]


def picture_of(image_id: str, read_image: ReadImage) -> bytes:
    """Return a small JPEG; nothing if the image is gone or damaged by now."""
    try:
        image = upright_rgb(decode_image(read_image(image_id)))
    except (DermalyzeError, KeyError):
        return b""
    image.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def report_run(run_id: str, *, output: Path, here: Here = AS_IN_THE_RUN) -> Evaluation:
    """Make a run's report and cards again from the files that it keeps; the run is not changed.

    Without its images, which are looked for where the run found them, pictures are missing.
    """
    with open_finished(run_id, here) as run:
        data_dir = here.data_dir or Path(run.stored.params.get("data.dir", ""))
        config = run.require_settings()
        read_image = _reader(data_dir, config.data)
        with whole_folder(output) as folder:
            return write_evaluation(folder, run.predictions, run, config.evaluation, read_image)


def report_predictions(
    predictions: Path, validation: Path | None, *, settings: EvaluationConfig, output: Path
) -> Evaluation:
    """Make a report of anybody's predictions in the form of `predictions.csv`."""
    evaluated = Predictions(
        scored=read_scored(predictions),
        split="predictions",
        validation=None if validation is None else read_scored(validation),
    )
    with whole_folder(output) as folder:
        return write_evaluation(folder, evaluated, None, settings, None)


def _reader(folder: Path, settings: DataConfig) -> ReadImage | None:
    """Return what reads the images of a data folder; None if it cannot be opened."""
    try:
        files = open_dataset(folder, settings).files
    except DataError:
        return None
    return lambda name: read_image_bytes(files[name])
