"""What is wrong with the data, by predictions of models that had not seen the images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dermalyze.config.schema import Config
from dermalyze.data.corrections import COLUMNS, read_corrections
from dermalyze.data.image_properties import image_properties
from dermalyze.data.preparation import Prepared, prepare
from dermalyze.evaluation.label_errors import rank_labels
from dermalyze.evaluation.predictions import read_predictions, taxonomy_beside
from dermalyze.evaluation.report.data_issues import (
    PAGE,
    REVIEW,
    DataIssues,
    write_page,
    write_review,
)
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.shortcuts import shortcuts
from dermalyze.evaluation.statistics.slices import worst_slices
from dermalyze.evaluation.text import things
from dermalyze.tracking.run_folder import RunFolder
from dermalyze.workflows.finished_run import FinishedRun, open_finished
from dermalyze.workflows.report import picture_of
from dermalyze.workflows.run_context import AS_IN_THE_RUN, FOLDS_TAG, Here, prepare_again
from serving.atomic_write import whole_folder
from serving.errors import DataError

_CONFLICTS = {  # kind of problem of the audit -> what its images are, if their labels differ
    "same_file": "Equal files",
    "same_pixels": "Equal images",
    "near_duplicate": "Nearly equal images",
    "two_diagnoses": "Images of one lesion",
}


def issues_of_run(run_id: str, *, output: Path, here: Here = AS_IN_THE_RUN) -> DataIssues:
    """Examine the images that a run of folds, or the test split of another run, was evaluated on.

    Raises:
        DermalyzeError: the run or its images cannot be used.
    """
    with open_finished(run_id, here) as run:
        scored, config = run.predictions.answers, here.apply(run.require_settings())
        data = replace(config.data, allow_problems=True)
        prepared = prepare_again(run_id, run.stored.params, replace(config, data=data), here)
        folds = run.stored.tags.get(FOLDS_TAG)
        basis = (
            f"Out-of-fold predictions of run {run_id}: {folds} models, and each image was "
            "predicted by the one that had not seen its lesion."
            if folds
            else f"Predictions of run {run_id} for its test split alone; `dermalyze train --folds "
            "5` gives predictions for all images."
        )
        return _examine(scored, prepared, basis, data.corrections, output)


def issues_of_predictions(
    predictions: Sequence[Path], here: Here, corrections: str, *, output: Path
) -> DataIssues:
    """Examine images by tables in the form of `predictions.csv`, such as those of several folds.

    If the first is in the folder of a run, the images are prepared as they were for that run.

    Raises:
        DataError: a table or the images cannot be used, or an image has several predictions.
    """
    taxonomy = taxonomy_beside(predictions[0])
    table = pd.concat([read_predictions(path, taxonomy)[0] for path in predictions])
    if (twice := table["image_id"].duplicated()).any():
        raise DataError(
            f"image {table['image_id'][twice].iloc[0]!r} is in several tables of predictions; "
            "expected one prediction per image, by a model that had not seen it"
        )
    folder = predictions[0].resolve().parents[1]
    run = RunFolder(run_id="", params={}, tags={}, status="FINISHED", folder=folder)
    config = FinishedRun(run).settings or Config()
    settings = replace(config.data, prepared=here.prepared or "auto", allow_problems=True)
    if corrections != "none":
        settings = replace(settings, corrections=corrections)
    assert here.data_dir is not None
    prepared = prepare(here.data_dir, settings)
    names = ", ".join(str(path) for path in predictions)
    basis = (
        f"Predictions in {names}. What follows holds if no model had seen the images, nor other "
        "images of their lesions."
    )
    return _examine(scored_of(table, taxonomy), prepared, basis, settings.corrections, output)


def _examine(
    scored: Scored, prepared: Prepared, basis: str, corrections: str, output: Path
) -> DataIssues:
    """Find all issues, and write the page and the table to review."""
    ids = scored.table["image_id"]
    rows = pd.Index(prepared.manifest["image_id"]).get_indexer(pd.Index(ids)).astype(np.int64)
    if (rows < 0).any():
        raise DataError(
            f"image {ids[int((rows < 0).argmax())]!r} of the predictions is not in "
            f"{prepared.data_dir}; pass the folder that they were made for as --data-dir"
        )
    now = prepared.manifest["label"].to_numpy()[rows]
    if (other := now != scored.table["label"].to_numpy()).any():
        first = int(other.argmax())
        raise DataError(
            f"the predictions say that image {ids[first]!r} has the label "
            f"{scored.table['label'][first]!r}, but the data says {now[first]!r}; pass the "
            "data and the --corrections that the models were trained with"
        )
    files = [prepared.dataset.files[image_id] for image_id in ids]
    properties = image_properties(prepared.store, rows, files)
    label_of = dict(zip(prepared.manifest["image_id"], prepared.manifest["label"], strict=True))
    size = f"{things(len(scored), 'image')} of {things(scored.num_lesions, scored.group_by)}"
    issues = DataIssues(
        name=prepared.name,
        basis=f"{basis} {size}.",
        scored=scored,
        labels=rank_labels(scored),
        conflicts=_conflicts(prepared, label_of),
        slices=worst_slices(scored, properties),
        shortcuts=shortcuts(scored, properties),
        properties=properties,
        earlier=pd.DataFrame(columns=list(COLUMNS))
        if corrections == "none"
        else read_corrections(Path(corrections)),
    )
    with whole_folder(output) as folder:
        write_review(folder / REVIEW, issues)
        write_page(folder / PAGE, issues, lambda name: picture_of(name, prepared.read_image_bytes))
    return issues


def _conflicts(
    prepared: Prepared, label_of: Mapping[str, str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Return images that show the same and have different labels: why, and which."""
    return [
        (_CONFLICTS[problem.kind], finding.image_ids)
        for problem in prepared.audit.problems
        if problem.kind in _CONFLICTS
        for finding in problem.findings
        if len({label_of[name] for name in finding.image_ids if name in label_of}) > 1
    ]
