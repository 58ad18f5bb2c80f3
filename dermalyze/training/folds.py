"""Train k times, so that every image is judged once by a network that never saw its lesion.

One MLflow run holds what the folds come to; below it stands an ordinary run for each fold.  C
classes, N images.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dermalyze.config import Config, require
from dermalyze.config_file import flatten, to_yaml
from dermalyze.data.prepare import Prepared
from dermalyze.data.splits import Splits, fold_splits
from dermalyze.evaluation.folder import write_evaluation
from dermalyze.evaluation.predictions import MEASURED, logits_of, read_predictions
from dermalyze.tracking import (
    WORK,
    TrackedRun,
    add_below,
    children_of,
    fetch,
    fetched,
    open_run,
    require_unfinished,
    under_way,
)
from dermalyze.training.job import (
    CONFIG,
    EVALUATION,
    FOLD_TAG,
    FOLDS_TAG,
    Say,
    prepare_again,
    prepare_for,
    run_name,
    stored_config,
)
from dermalyze.training.judged import RunFacts, interval_metrics, write_judged
from dermalyze.training.run import TrainingInterruptedError, resolve, train_in
from dermalyze.training.ship import conclude
from serving.disk import make_folder
from serving.errors import TrackingError, TrainingError
from serving.taxonomy import CLASS_NAMES
from serving.whole import write_text

MIN_FOLDS, MAX_FOLDS = 2, 20
PREDICTIONS = f"{EVALUATION}/predictions.csv"


@dataclass(frozen=True, kw_only=True)
class FoldsResult:
    """What k folds came to."""

    run_id: str
    fold_run_ids: tuple[str, ...]  # in the order of the folds
    metrics: dict[str, float]  # test/..., of all images together, each judged out of fold
    intervals: Mapping[str, Any]  # as judgement.json holds them
    caveat: str  # what the metrics do not say


@dataclass(frozen=True, kw_only=True)
class _Plan:
    config: Config
    prepared: Prepared
    data_dir: Path
    splits: Sequence[Splits]  # of each fold
    demo_data: bool


def train_folds(
    config: Config, data_dir: Path, folds: int, *, demo_data: bool, say: Say
) -> FoldsResult:
    """Train one network a fold, each tested on its fold, and judge all their answers together.

    Raises:
        ConfigError: `folds` is out of range, or the settings name splits of their own.
        DermalyzeError: as `train`.
        TrainingInterruptedError: Ctrl-C; `resume_folds` goes on.
    """
    require(MIN_FOLDS <= folds <= MAX_FOLDS, "folds", f"from {MIN_FOLDS} to {MAX_FOLDS}", folds)
    require(config.data.splits == "auto", "data.splits", "auto to train folds", config.data.splits)
    require(config.data.lesion_aware, "data.lesion_aware", "true to train folds", False)
    config = resolve(config)
    plan = _plan(config, prepare_for(config, data_dir), data_dir, folds, demo_data=demo_data)
    tags = {FOLDS_TAG: str(folds), "dermalyze.demo_data": str(demo_data).lower()}
    name = f"{folds} folds, {run_name(config)}"
    with open_run(config.tracking, name=name, tags=tags) as run:
        folder = _folder(run.run_id)
        run.log_params(
            {
                **flatten(config),
                "folds": folds,
                "data.dir": str(data_dir.resolve()),
                "resolved.data_fingerprint": plan.prepared.fingerprint,
                "resolved.num_images": len(plan.prepared.manifest),
            }
        )
        run.set_tags({"dermalyze.warnings": _caveat(folds)})
        write_text(folder / CONFIG, to_yaml(config))
        run.log_file(folder / CONFIG)
        return _finish(run, plan, say)


def resume_folds(run_id: str, data_dir: Path | None, *, say: Say) -> FoldsResult:
    """Go on with folds that were stopped or killed; what has ended well is not done again.

    Raises:
        TrackingError: there is no such run, it has no folds, or it has ended well.
        DermalyzeError: as `train_folds`.
    """
    params, tags = require_unfinished(run_id)
    if FOLDS_TAG not in tags:
        raise TrackingError(
            f"run {run_id} was not trained in folds; go on with `dermalyze train --resume {run_id}`"
        )
    folder = _folder(run_id)
    if not (folder / CONFIG).exists():
        fetch(run_id, CONFIG, folder)
    config = stored_config(folder / CONFIG)
    plan = _plan(
        config,
        prepare_again(run_id, params, config, data_dir),
        data_dir or Path(params["data.dir"]),
        int(tags[FOLDS_TAG]),
        demo_data=tags.get("dermalyze.demo_data") == "true",
    )
    with open_run(config.tracking, resume=run_id) as run:
        return _finish(run, plan, say)


def out_of_fold(manifest: pd.DataFrame, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put the folds' tables of predictions together, in the manifest's order.

    Raises:
        TrainingError: an image was judged in no fold or in several.
    """
    table = pd.concat(tables)
    if sorted(table["image_id"]) != sorted(manifest["image_id"]):
        raise TrainingError(
            f"the folds judged {table['image_id'].nunique()} images in {len(table)} answers, "
            f"expected one answer for each of {len(manifest)}; train the folds anew"
        )
    return table.set_index("image_id").loc[manifest["image_id"]].reset_index()


def _plan(
    config: Config, prepared: Prepared, data_dir: Path, folds: int, *, demo_data: bool
) -> _Plan:
    """Deal the folds, which depend on the images and the settings alone."""
    splits = fold_splits(
        prepared.manifest, folds, val_size=config.data.val_size, seed=config.training.seed
    )
    return _Plan(
        config=config, prepared=prepared, data_dir=data_dir, splits=splits, demo_data=demo_data
    )


def _finish(run: TrackedRun, plan: _Plan, say: Say) -> FoldsResult:
    """Do all that is left to do."""
    say(
        f"run {run.run_id}: {len(plan.splits)} folds; where they are stopped, "
        f"`dermalyze train --resume {run.run_id}` goes on"
    )
    run_ids = _train_folds(run, plan, say)
    metrics, intervals = _judge(run, plan, run_ids)
    caveat = _caveat(len(plan.splits))
    say(f"warning: {caveat}")
    conclude(run)
    return FoldsResult(
        run_id=run.run_id,
        fold_run_ids=run_ids,
        metrics=metrics,
        intervals=intervals,
        caveat=caveat,
    )


def _train_folds(run: TrackedRun, plan: _Plan, say: Say) -> tuple[str, ...]:
    """Train the folds that have not ended well; return the runs of all.

    Their predictions are put into the run's folder, and the tracking store is asked for the runs of
    all folds before the first one begins: it may be away later.
    """
    tracking = dataclasses.replace(plan.config.tracking, register=False)
    config = dataclasses.replace(plan.config, tracking=tracking)
    known = children_of(run.run_id, FOLD_TAG)
    children: dict[int, TrackedRun] = {}
    run_ids = []
    for number in range(1, len(plan.splits) + 1):
        title = f"fold {number} of {len(plan.splits)}"
        run_id, has_ended_well = known.get(str(number), ("", False))
        if has_ended_well:
            say(f"{title}: run {run_id} has ended well")
            if not _predictions_of(run, number).exists():
                with fetched(run_id, (PREDICTIONS,)) as (path,):
                    shutil.copyfile(path, _predictions_of(run, number))
        else:
            name, tags = f"{title}, {run_name(config)}", {FOLD_TAG: str(number)}
            children[number] = add_below(run, name=name, tags=tags, resume=run_id)
            run_id = children[number].run_id
        run_ids.append(run_id)
    for number, below in children.items():
        title, splits = f"fold {number} of {len(plan.splits)}", plan.splits[number - 1]
        try:
            with under_way(below) as child:
                say(f"{title}: run {child.run_id}")
                train_in(
                    child,
                    config,
                    plan.prepared,
                    splits,
                    data_dir=plan.data_dir,
                    demo_data=plan.demo_data,
                    say=say,
                )
                shutil.copyfile(child.folder / PREDICTIONS, _predictions_of(run, number))
        except TrainingInterruptedError as error:
            run.status = "KILLED"
            raise TrainingInterruptedError(
                f"stopped in {title}; go on with `dermalyze train --resume {run.run_id}`"
            ) from error
    return tuple(run_ids)


def _predictions_of(run: TrackedRun, number: int) -> Path:
    """Return where the predictions of a fold are kept until those of all are judged."""
    return run.folder / f"fold_{number}_predictions.csv"


def _judge(
    run: TrackedRun, plan: _Plan, run_ids: Sequence[str]
) -> tuple[dict[str, float], Mapping[str, Any]]:
    """Judge the answers of all folds together, and log it; return metrics and intervals."""
    folder = run.folder / EVALUATION
    numbers = range(1, len(run_ids) + 1)
    tables = [read_predictions(_predictions_of(run, number))[0] for number in numbers]
    manifest = plan.prepared.manifest
    table = out_of_fold(manifest, tables)
    metrics = write_evaluation(
        folder,
        manifest,
        logits_of(table, CLASS_NAMES),
        split="test",
        context={
            "run_id": run.run_id,
            "data_fingerprint": plan.prepared.fingerprint,
            "folds": len(run_ids),
            "fold_run_ids": list(run_ids),
            "caveat": _caveat(len(run_ids)),
        },
        measured={name: table[name].to_numpy() for name in MEASURED if name in table},
    )
    judgement = write_judged(
        folder,
        RunFacts(
            run_id=run.run_id,
            params=run.params,
            tags=run.tags,
            files=folder.parent,
        ),
        split="test",
        settings=plan.config.evaluation,
        read_image=plan.prepared.read_image_bytes,
    )
    metrics |= interval_metrics(judgement, metrics)
    run.log_file(folder, EVALUATION)
    run.log_metrics(metrics)
    return metrics, judgement["intervals"]


def _caveat(folds: int) -> str:
    """Say what numbers out of fold are of (Forman and Scholz, SIGKDD Explorations 12, 2010)."""
    return (
        f"out of fold: {folds} models, not one; each image was judged by the model that had not "
        "seen its lesion, so the numbers speak of the recipe, AUC ranks answers of different "
        "models, and intervals leave out that training again would give other models"
    )


def _folder(run_id: str) -> Path:
    folder = WORK / run_id
    make_folder(folder)
    return folder
