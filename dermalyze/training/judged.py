"""All that is said of predictions: their evaluation, the report and the cards.

Everything is made from files that a run keeps, so that it can be made again without a network and
without the images, whose pictures are then missing from the report.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from dermalyze.config import Config, EvaluationConfig, TrainingConfig
from dermalyze.config_file import load_config
from dermalyze.data.splits import read_split
from dermalyze.evaluation.cards import CardInputs, data_card, model_card
from dermalyze.evaluation.evaluate import Evaluation, Predictions, evaluate, seen_priors
from dermalyze.evaluation.folder import write_folder
from dermalyze.evaluation.predictions import targets_of
from dermalyze.evaluation.report import (
    Mistake,
    ReportInputs,
    most_confident_mistakes,
    write_report,
)
from dermalyze.evaluation.scored import Scored
from dermalyze.training.job import AUDIT, CONFIG, HISTORY, SPLIT_FILES
from serving.errors import ArtifactError, DermalyzeError
from serving.preprocess import decode_image, upright_rgb
from serving.whole import write_text

REPORT = "report.html"
MODEL_CARD, DATA_CARD = "model_card.md", "data_card.md"
_DAMAGED = "expected what the training wrote; restore it from a copy or train again"
_PICTURE_SIZE = 240  # pixels, the longer side
_FACTS = {  # parameter of a run -> what the report calls it
    "resolved.backbone": "backbone",
    "resolved.pretrained": "weights at the start",
    "resolved.num_parameters": "parameters of the network",
    "resolved.num_images": "usable images in all",
    "resolved.device": "trained on",
    "resolved.precision": "precision in training",
    "resolved.data_fingerprint": "fingerprint of the images",
}

ReadImage = Callable[[str], bytes]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of the run that the predictions come from; all empty: there is none."""

    run_id: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Path | None = None  # a folder that holds what there is of config, history, splits, audit

    @property
    def demo_data(self) -> bool:
        """Whether the images are drawn."""
        return self.tags.get("dermalyze.demo_data") == "true"

    def named(self) -> dict[str, object]:
        """Return what a report lists: what it is called -> what it is."""
        facts: dict[str, object] = {"run id": self.run_id} if self.run_id else {}
        facts |= {name: self.params[key] for key, name in _FACTS.items() if key in self.params}
        if parity := self.tags.get("dermalyze.parity"):
            facts["exported file"] = parity
        return facts

    def text(self, name: str) -> str:
        """Return a file of the run; empty if it is not there."""
        path = self.files / name if self.files is not None else None
        if path is None or not path.exists():
            return ""
        return path.read_text(encoding="utf-8", errors="replace")  # what is damaged is said later


def read_json(path: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """Read a JSON file that a run keeps, a list or a dict.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path.name} of the run is damaged: {_DAMAGED}") from error
    if not isinstance(values, kind):
        raise ArtifactError(f"{path.name} of the run is damaged: {_DAMAGED}")
    return values


def read_history(path: Path) -> list[dict[str, float]]:
    """Read `training_history.json`: one entry for each epoch.

    Raises:
        ArtifactError: it is damaged.
    """
    history: list[dict[str, float]] = read_json(path, list)
    for entry in history:
        if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int):
            raise ArtifactError(f"{path.name} of the run is damaged: {_DAMAGED}")
    return history


def write_evaluation(
    folder: Path,
    predictions: Predictions,
    facts: RunFacts,
    settings: EvaluationConfig,
    read_image: ReadImage | None,
) -> Evaluation:
    """Evaluate predictions; write tables, plots, judgement.json, report.html and the cards.

    The cards are written if the run's files are all there.

    Args:
        folder: gets what is written.
        predictions: what is evaluated.
        facts: what is known of the run.
        settings: how to evaluate.
        read_image: returns an image's file by its id, for the pictures of mistakes.

    Raises:
        DataError: the calibrator would be evaluated on what it was fitted on.
        ConfigError: the prevalence is not one.
    """
    config = load_config(facts.files / CONFIG) if facts.files and facts.text(CONFIG) else None
    splits, scored = _splits(facts), predictions.scored
    apart = config is None or config.data.group_by != "none"  # else lesions may be in both
    evaluation = evaluate(
        predictions if apart else replace(predictions, validation=None),
        settings,
        None if config is None else _priors(config, splits, scored),
    )
    write_folder(folder, predictions, evaluation)
    history = read_history(facts.files / HISTORY) if facts.files and facts.text(HISTORY) else []
    best = best_epoch(history, config.training) if history and config is not None else 0
    warnings = facts.tags.get("dermalyze.warnings", "")
    write_report(
        folder / REPORT,
        ReportInputs(
            evaluation=evaluation,
            scored=scored,
            history=history,
            best_epoch=best,
            config_yaml=facts.text(CONFIG),
            facts=facts.named(),
            mistakes=_mistakes(scored, read_image),
            warnings=warnings.split("; ") if warnings else (),
            demo_data=facts.demo_data,
        ),
    )
    if config is not None and facts.files and facts.text(AUDIT) and splits and history:
        cards = CardInputs(
            evaluation=evaluation,
            config=config,
            splits=splits,
            audit=read_json(facts.files / AUDIT, dict),
            history=history,
            best_epoch=best,
            facts=facts.named(),
            demo_data=facts.demo_data,
        )
        write_text(folder / MODEL_CARD, model_card(cards))
        write_text(folder / DATA_CARD, data_card(cards))
    return evaluation


def best_epoch(history: Sequence[Mapping[str, float]], training: TrainingConfig) -> int:
    """Return the epoch, counted from 1, with the best `training.monitor`, the first if several."""
    sign = 1 if training.higher_is_better else -1
    best = max(history, key=lambda entry: (sign * entry[training.monitor], -entry["epoch"]))
    return int(best["epoch"])


def _splits(facts: RunFacts) -> dict[str, pd.DataFrame]:
    """Read the files of all three splits; nothing if one is missing."""
    if facts.files is None or not all((facts.files / name).exists() for name in SPLIT_FILES):
        return {}
    return {name.removesuffix("_split.csv"): read_split(facts.files / name) for name in SPLIT_FILES}


def _priors(config: Config, splits: Mapping[str, pd.DataFrame], scored: Scored) -> Any:
    """Return the class shares that training made the network see; folds learn from all images."""
    rows = splits.get("train", scored.table)
    return seen_priors(
        targets_of(rows, scored.taxonomy),
        len(scored.taxonomy),
        balanced=config.loss.class_weights == "balanced" or config.training.use_weighted_sampling,
    )


def _mistakes(scored: Scored, read_image: ReadImage | None) -> list[Mistake]:
    if read_image is None:
        return []
    return [
        Mistake(
            image_id=str(scored.table["image_id"].iloc[row]),
            true_label=scored.class_names[scored.targets[row]],
            predicted=scored.class_names[scored.predicted[row]],
            confidence=float(scored.probs[row].max()),
            picture=_picture(str(scored.table["image_id"].iloc[row]), read_image),
        )
        for row in most_confident_mistakes(scored)
    ]


def _picture(image_id: str, read_image: ReadImage) -> bytes:
    """Return a small JPEG; nothing if the image is gone or damaged by now."""
    try:
        image = upright_rgb(decode_image(read_image(image_id)))
    except (DermalyzeError, KeyError):
        return b""
    image.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()
