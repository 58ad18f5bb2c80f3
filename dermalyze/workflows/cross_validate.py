"""Cross-validation: every image is evaluated once by a network that never saw its lesion.

One MLflow run holds the results of all folds; an ordinary run for each fold is nested in it.  C
classes, N images.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dermalyze.config.loading import to_yaml
from dermalyze.config.schema import Config, flatten, require
from dermalyze.data.preparation import Prepared
from dermalyze.data.splits import Splits, fold_splits
from dermalyze.evaluation.evaluate import Evaluation, Predictions
from dermalyze.evaluation.predictions import read_predictions
from dermalyze.evaluation.scores import scored_of
from dermalyze.evaluation.statistics.bootstrap import Interval
from dermalyze.tracking import (
    TrackedRun,
    add_below,
    children_of,
    reach_store,
    tags_of,
    under_way,
)
from dermalyze.tracking.run_folder import RunFolder
from dermalyze.workflows.artifacts import mend_checkpoints, reopen
from dermalyze.workflows.finish import conclude, log_evaluation
from dermalyze.workflows.finished_run import FinishedRun, open_finished
from dermalyze.workflows.report import write_evaluation
from dermalyze.workflows.run_context import (
    AS_IN_THE_RUN,
    CONFIG,
    EVALUATION,
    FOLD_TAG,
    FOLDS_TAG,
    Here,
    keep_corrections,
    prepare_for,
    run_name,
)
from dermalyze.workflows.run_fingerprint import Began, began_with
from dermalyze.workflows.run_lock import heartbeat, hold, open_held
from dermalyze.workflows.train import TrainingInterruptedError, resolve, train_in, warn_of_place
from serving.atomic_write import copy_whole, write_text
from serving.errors import TrackingError, TrainingError
from serving.os_errors import make_folder
from serving.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

MIN_FOLDS, MAX_FOLDS = 2, 20
PREDICTIONS = f"{EVALUATION}/predictions.csv"


@dataclass(frozen=True, kw_only=True)
class FoldsResult:
    """What k folds came to."""

    run_id: str
    fold_run_ids: tuple[str, ...]  # in the order of the folds
    metrics: dict[str, float]  # test/..., of all images together, each evaluated out of fold
    intervals: Mapping[str, Interval]
    taxonomy: Taxonomy
    caveat: str  # what the metrics do not say


@dataclass(frozen=True, kw_only=True)
class _Plan:
    began: Began
    prepared: Prepared
    splits: Sequence[Splits]  # of each fold

    @property
    def config(self) -> Config:
        return self.began.config


def train_folds(config: Config, data_dir: Path, folds: int) -> FoldsResult:
    """Train one network per fold, each tested on its fold, and evaluate all answers together.

    Raises:
        ConfigError: `folds` is out of range, or the settings name splits of their own.
        DermalyzeError: as `train`.
        TrainingInterruptedError: Ctrl-C; `resume_folds` continues.
    """
    require(MIN_FOLDS <= folds <= MAX_FOLDS, "folds", f"from {MIN_FOLDS} to {MAX_FOLDS}", folds)
    require(config.data.splits == "auto", "data.splits", "auto to train folds", config.data.splits)
    source = config.data.leave_out
    require(source == "none", "data.leave_out", "none to train folds", source)
    group_by = config.data.group_by
    require(group_by != "none", "data.group_by", "lesion or patient to train folds", group_by)
    config = resolve(config)
    began = Began.here(config, data_dir)
    tags = {FOLDS_TAG: str(folds), "dermalyze.demo_data": str(began.demo_data).lower()}
    reach_store(config.tracking, {**tags, **began.tags()})
    prepared = prepare_for(config, data_dir)
    if prepared.dataset.splits:
        logger.warning("cross-validation makes new splits; the splits of the data are ignored")
    plan = _plan(began, prepared, folds)
    tags |= dataclasses.replace(began, pixels=prepared.pixels).tags()
    name = f"{folds} folds, {run_name(config)}"
    with open_held(config.tracking, name=name, tags=tags) as run:
        return _finish(run, plan)


def resume_folds(run_id: str, here: Here = AS_IN_THE_RUN) -> FoldsResult:
    """Continue folds that were stopped or killed; finished folds are not trained again.

    Raises:
        TrackingError: there is no such run, it has no folds, or it is finished.
        DermalyzeError: as `train_folds`.
    """
    with hold(run_id):
        if FOLDS_TAG not in tags_of(run_id):
            raise TrackingError(
                f"run {run_id} was not trained in folds; continue with "
                f"`dermalyze train --resume {run_id}`"
            )
        kept = reopen(run_id, here)
        for child, is_finished in children_of(run_id, FOLD_TAG).values():
            if not is_finished:
                with hold(child):  # or it would be found out only in the middle
                    mend_checkpoints(child)
        plan = _plan(kept.now, kept.prepared, int(kept.tags[FOLDS_TAG]))
        with open_held(plan.config.tracking, resume=run_id) as run:
            return _finish(run, plan)


def out_of_fold(manifest: pd.DataFrame, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put the folds' tables of predictions together, in the manifest's order.

    Raises:
        TrainingError: an image was evaluated in no fold or in several.
    """
    table = pd.concat(tables)
    if sorted(table["image_id"]) != sorted(manifest["image_id"]):
        raise TrainingError(
            f"the folds evaluated {table['image_id'].nunique()} images in {len(table)} answers, "
            f"expected one answer for each of {len(manifest)}; train the folds again"
        )
    return table.set_index("image_id").loc[manifest["image_id"]].reset_index()


def _plan(began: Began, prepared: Prepared, folds: int) -> _Plan:
    """Deal the folds, which depend on the images and the settings alone."""
    config = began.config
    splits = fold_splits(
        prepared.manifest, folds, val_size=config.data.val_size, seed=config.training.seed
    )
    return _Plan(began=began, prepared=prepared, splits=splits)


def _finish(run: TrackedRun, plan: _Plan) -> FoldsResult:
    """Do all that is left to do."""
    config, folds, folder = plan.config, len(plan.splits), run.folder
    make_folder(folder)
    warn_of_place(run)
    run.log_params(
        {
            **flatten(config),
            "folds": folds,
            "data.dir": str(plan.began.data_dir.resolve()),
            "resolved.data_fingerprint": plan.prepared.fingerprint,
            "resolved.num_images": len(plan.prepared.manifest),
        }
    )
    run.set_tags({"dermalyze.warnings": _caveat(folds)})
    write_text(folder / CONFIG, to_yaml(config))
    run.log_file(folder / CONFIG)
    keep_corrections(run, config)
    logger.info(
        f"run {run.run_id}: {folds} folds; if they are stopped, "
        f"`dermalyze train --resume {run.run_id}` continues"
    )
    run_ids = _train_folds(run, plan)
    evaluation = _evaluate(run, plan, run_ids)
    caveat = _caveat(folds)
    logger.warning(caveat)
    conclude(run)
    return FoldsResult(
        run_id=run.run_id,
        fold_run_ids=run_ids,
        metrics=evaluation.logged(),
        intervals=evaluation.intervals,
        taxonomy=evaluation.taxonomy,
        caveat=caveat,
    )


def _train_folds(run: TrackedRun, plan: _Plan) -> tuple[str, ...]:
    """Train the folds that are not finished; return the runs of all.

    Their predictions are put into the run's folder, and the tracking store is asked for the runs of
    all folds before the first one begins: it may be away later.
    """
    tracking = dataclasses.replace(plan.config.tracking, register=False)
    config = dataclasses.replace(plan.config, tracking=tracking)
    began = dataclasses.replace(plan.began, config=config)
    known = children_of(run.run_id, FOLD_TAG)
    children: dict[int, TrackedRun] = {}
    run_ids = []
    with ExitStack() as holds:
        for number, splits in enumerate(plan.splits, start=1):
            title = f"fold {number} of {len(plan.splits)}"
            run_id, is_finished = known.get(str(number), ("", False))
            if is_finished:
                logger.info(f"{title}: run {run_id} is already finished")
                if not _predictions_of(run, number).exists():
                    with open_finished(run_id) as fold:
                        path = fold.stored.file(PREDICTIONS)
                        copy_whole(path, _predictions_of(run, number))
            else:
                of_fold = began.with_data(plan.prepared, splits)
                children[number] = below = add_below(
                    run,
                    name=f"{title}, {run_name(began.config)}",
                    tags={FOLD_TAG: str(number), **of_fold.tags()},
                    resume=run_id,
                )
                if (before := began_with(below.tags)) is not None:
                    before.require_same_data(plan.prepared, splits)
                run_id = below.run_id
                holds.enter_context(hold(run_id))
            run_ids.append(run_id)
        for number, below in children.items():
            title, splits = f"fold {number} of {len(plan.splits)}", plan.splits[number - 1]
            try:
                with under_way(below) as child, heartbeat(child):
                    logger.info(f"{title}: run {child.run_id}")
                    train_in(child, began, plan.prepared, splits)
                    copy_whole(child.folder / PREDICTIONS, _predictions_of(run, number))
            except TrainingInterruptedError as error:
                run.status = "KILLED"
                raise TrainingInterruptedError(
                    f"stopped in {title}; continue with `dermalyze train --resume {run.run_id}`",
                    error.signal_number,
                ) from error
    return tuple(run_ids)


def _predictions_of(run: TrackedRun, number: int) -> Path:
    """Return where the predictions of a fold are kept until those of all are evaluated."""
    return run.folder / f"fold_{number}_predictions.csv"


def _evaluate(run: TrackedRun, plan: _Plan, run_ids: Sequence[str]) -> Evaluation:
    """Evaluate the answers of all folds together, and log it."""
    folder, taxonomy = run.folder / EVALUATION, plan.prepared.taxonomy
    tables = [
        read_predictions(_predictions_of(run, number), taxonomy)[0]
        for number in range(1, len(run_ids) + 1)
    ]
    predictions = Predictions(
        scored=scored_of(out_of_fold(plan.prepared.manifest, tables), taxonomy),
        split="test",
        context={
            "run_id": run.run_id,
            "data_fingerprint": plan.prepared.fingerprint,
            "folds": len(run_ids),
            "fold_run_ids": list(run_ids),
            "caveat": _caveat(len(run_ids)),
        },
    )
    finished = FinishedRun(RunFolder.of(run))
    evaluation = write_evaluation(
        folder, predictions, finished, plan.config.evaluation, plan.prepared.read_image_bytes
    )
    log_evaluation(run, evaluation)
    run.log_metrics(evaluation.logged())
    return evaluation


def _caveat(folds: int) -> str:
    """Say what numbers out of fold are of (Forman and Scholz, SIGKDD Explorations 12, 2010)."""
    return (
        f"out of fold: {folds} models, not one; each image was evaluated by the model that had not "
        "seen its lesion, so these metrics describe the training procedure, not one model; AUC "
        "ranks answers of different models, and the intervals do not cover repeated training"
    )
