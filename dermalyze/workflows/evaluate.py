"""Evaluate a finished run: on one of its splits, or on other labeled images."""

import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from dermalyze.data.pixel_store.store import Pixels
from dermalyze.data.table_columns import FACTS, tidy_facts, with_groups, with_own_lesions
from dermalyze.evaluation.evaluate import Evaluation
from dermalyze.evaluation.robustness import Robustness, choose_images, measure_robustness
from dermalyze.evaluation.scores import Scored
from dermalyze.models.ensemble import ShippedNetwork
from dermalyze.models.torch_predictor import SkinLesionPredictor
from dermalyze.tracking import add_to_run
from dermalyze.workflows.finished_run import open_finished
from dermalyze.workflows.report import REPORT, write_evaluation
from dermalyze.workflows.run_context import AS_IN_THE_RUN, AUDIT, BEST, EVALUATION, Here
from dermalyze.workflows.uncertainty import with_limits
from serving.atomic_write import whole_folder
from serving.base_predictor import AnyPredictor, Case
from serving.batch import find_images
from serving.errors import DataError
from serving.image_matching import match_files
from serving.metadata import COLUMNS, Metadata, MetadataFields
from serving.os_errors import reason_of, temporary_folder
from serving.prediction import Prediction
from serving.table_files import read_table, table_bytes
from serving.taxonomy import Taxonomy

logger = logging.getLogger(__name__)


def evaluate_run(
    run_id: str,
    split: str,
    *,
    output: Path,
    here: Here = AS_IN_THE_RUN,
    corruptions: bool = False,
) -> Evaluation:
    """Evaluate a run's best epoch on one of its splits; write it to `output` and into the run.

    On the test split a calibrator, fitted on the validation split, is evaluated as well; with
    `corruptions`, some images of the split are corrupted and evaluated again.

    Raises:
        DataError: the data is not what the run was trained on.
    """
    with open_finished(run_id, here) as run, ExitStack() as stack:
        network, prepared = ShippedNetwork([run.member]), run.prepared
        limited = with_limits(network, run.spec, run.runner, run.splits.val)
        context = {"run_id": run_id, "data_fingerprint": prepared.fingerprint}
        rows = getattr(run.splits, split)
        predictions = run.runner.predictions(limited, rows, split, context)
        if corruptions:
            chosen = choose_images(predictions.scored.targets)
            part, fields = predictions.scored.take(chosen), run.spec.metadata
            facts = None if fields is None else facts_of(part.table, fields)
            predictor = SkinLesionPredictor(run.stored.file(BEST))
            pixels = prepared.store.batch(rows[chosen])
            found = robustness_of(predictor, pixels, part, facts)
            predictions = replace(predictions, robustness=found)
        run.stored.replace(AUDIT, prepared.audit.to_json())
        copy = stack.enter_context(temporary_folder())  # other commands may write to `output` next
        with whole_folder(output) as folder:
            evaluation = write_evaluation(
                folder, predictions, run, run.config.evaluation, prepared.read_image_bytes
            )
            shutil.copytree(folder, copy, dirs_exist_ok=True)
        place = EVALUATION if split == "test" else f"{EVALUATION}_{split}"
        add_to_run(run.stored, copy, place, evaluation.logged())
        if split == "test":
            top = stack.enter_context(temporary_folder())
            shutil.copyfile(copy / REPORT, top / REPORT)
            add_to_run(run.stored, top, "", {})
    return evaluation


def robustness_of(
    predictor: AnyPredictor, pixels: Pixels, scored: Scored, facts: Sequence[Metadata] | None
) -> Robustness:
    """Let a model answer for corrupted images: uint8 (N, H, W, 3); `facts` it may know of them."""
    height, width = predictor.spec.input_size
    progress = tqdm(total=76 * len(pixels), desc="corruptions", leave=False, disable=None)

    def answer(images: Pixels) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        answers: list[Prediction] = []
        for start in range(0, len(images), 8):
            part = slice(start, start + 8)
            known = [None] * len(images[part]) if facts is None else facts[part]
            cases = [
                Case(image, (width, height), item)
                for image, item in zip(images[part], known, strict=True)
            ]
            answers += predictor.answer(cases)
            progress.update(len(cases))
        alarms = [answer.decision == "out_of_scope" for answer in answers]
        return logits_of_answers(answers), np.array(alarms)

    return measure_robustness(pixels, scored.targets, answer)


def logits_of_answers(answers: Sequence[Prediction]) -> NDArray[np.float32]:
    """Return the logits of answers: (N, C)."""
    return np.array([list((answer.logits or {}).values()) for answer in answers], np.float32)


def facts_of(rows: pd.DataFrame, fields: MetadataFields) -> list[Metadata]:
    """Return what a model may know of each image beside its pixels."""
    facts = zip(*(rows[name] for name in COLUMNS), strict=True)
    return [Metadata.of(dict(zip(COLUMNS, row, strict=True))).known_to(fields) for row in facts]


def read_labels(path: Path, taxonomy: Taxonomy, group_by: str) -> pd.DataFrame:
    """Read a CSV of labels into a manifest; what it lacks is unknown, each image its own lesion.

    A class is named as it is, or in other letter case.  Intervals draw what `group_by` names;
    without patient ids that is lesions.

    Raises:
        DataError: it cannot be read, a label is not a class, or an image has two rows.
    """
    required, known = ("image_id", "label"), ("lesion_id", "patient_id", *FACTS)
    try:
        table = pd.DataFrame(read_table(table_bytes(path), path, required, known))
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise DataError(
            f"cannot read {path}: {reason}; expected a CSV with image_id and label"
        ) from error
    if absent := [name for name in required if name not in table.columns]:
        raise DataError(f"{path} has no column {absent[0]}; expected image_id and label")
    if table.empty:
        raise DataError(f"{path} has no rows; expected one per image")
    table = tidy_facts(table, path)
    names = {name.casefold(): name for name in taxonomy.names} | {n: n for n in taxonomy.names}
    for image_id, label in zip(table["image_id"], table["label"], strict=True):
        if label not in names and label.casefold() not in names:
            raise DataError(
                f"{path} has the label {label!r} for {image_id}; expected one of "
                f"{', '.join(taxonomy.names)}"
            )
    table["label"] = [names.get(label) or names[label.casefold()] for label in table["label"]]
    if twice := table["image_id"][table["image_id"].duplicated()].tolist():
        raise DataError(f"{path} names the image {twice[0]} twice; expected one row per image")
    if group_by == "patient" and not any(table.get("patient_id", ())):
        logger.warning(f"{path} has no patient ids: intervals are drawn by lesion")
        group_by = "lesion"
    return with_groups(with_own_lesions(table), group_by)


def files_of_rows(image_ids: Sequence[str], images: Path, labels: Path) -> dict[str, Path]:
    """Return the file that each row of a table means: image_id -> path.

    Raises:
        DataError: a row has no file or several, or two rows mean one.
    """
    files = find_images([images])
    found = match_files(image_ids, files, labels)
    for path, rows in zip(files, found.ids, strict=True):
        if len(rows) > 1:
            raise DataError(
                f"{labels} has two rows for {path}: {image_ids[rows[0]]!r} and "
                f"{image_ids[rows[1]]!r}; expected one row per image"
            )
    if missing := [name for name, of_row in zip(image_ids, found.files, strict=True) if not of_row]:
        rest = [path for path, rows in zip(files, found.ids, strict=True) if not rows]
        example = f", where a file without a row is {rest[0].name}" if rest else ""
        raise DataError(
            f"{len(missing)} images of {labels} are not in {images}, among them {missing[0]}"
            f"{example}"
        )
    return {name: files[at[0]] for name, at in zip(image_ids, found.files, strict=True)}
