"""What a run would have claimed if images of its test lesions had been in its training set.

A second network is trained in the same way, but also on siblings: the further images of each test
lesion.  Both are evaluated on the images that remain, one of each test lesion.
"""

import dataclasses
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.data.preparation import Prepared
from dermalyze.data.splits import SharedPhotograph, Splits, near_duplicate_scan
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.comparison import Comparison, compare, table
from dermalyze.tracking import add_to_run, children_of, clear_finished, tags_of
from dermalyze.workflows.finished_run import open_finished
from dermalyze.workflows.run_context import (
    AS_IN_THE_RUN,
    FOLDS_TAG,
    Here,
    run_name,
)
from dermalyze.workflows.run_fingerprint import Began, began_with
from dermalyze.workflows.run_lock import lock, open_held
from dermalyze.workflows.train import TrainingInterruptedError, train_in
from serving.atomic_write import write_text
from serving.errors import DataError
from serving.os_errors import temporary_folder

logger = logging.getLogger(__name__)

LEAKAGE = "leakage.json"
LEAKAGE_TAG = "dermalyze.leakage_of"  # of the second run: the id of the first
METRICS = ("balanced_accuracy", "accuracy", "macro_auc")
NAMES = ("as it is", "with siblings")
CONDITIONS = (
    "both networks have the settings, the seed, the validation images and the evaluated images in "
    "common; the second one also saw the siblings, so its training set is larger; each was trained "
    "once, so the randomness of training affects the difference but not its interval"
)


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What siblings in the training set would have made of a run."""

    run_id: str
    leaky_run_id: str
    num_train: int  # images that the run learned from
    num_siblings: int  # images that the second run learned from beside them
    of_leaked: Comparison  # on the lesions whose siblings the second network saw
    of_all: Comparison  # on all test lesions, as a random split mixes them
    shared: tuple[SharedPhotograph, ...]  # across the splits of the run as it is

    def to_dict(self) -> dict[str, Any]:
        """Return what `leakage.json` holds."""
        return {
            **asdict(self),
            "of_leaked": self.of_leaked.to_dict(),
            "of_all": self.of_all.to_dict(),
            "conditions": CONDITIONS,
        }

    def in_words(self) -> str:
        """Lay it out for a terminal."""
        lines = [
            f"run {self.run_id} was trained on {self.num_train:,} images; run {self.leaky_run_id} "
            f"also on {self.num_siblings:,} siblings of its test images",
            "",
            "test lesions with another image in the second training set, one image each:",
            table(self.of_leaked),
            "",
            "all test lesions, as a random split would mix them, one image each:",
            table(self.of_all),
            "",
            CONDITIONS,
            "",
            f"photographs that are in several splits under different names: {len(self.shared)}",
            *(f"  {photograph.in_words()}" for photograph in self.shared),
        ]
        return "\n".join(lines)


def leakage_of(run_id: str, here: Here = AS_IN_THE_RUN) -> Leakage:
    """Train a network that knows siblings of the test images, compare, and log `leakage.json`.

    That network has a run of its own, shown below the first.  Where it is stopped or killed,
    calling again continues it; once it is finished, calling again only compares.

    Raises:
        DataError: no test lesion has a second image, the data is not what the run was trained on,
            or its training set holds siblings already.
        TrackingError: there is no such run, or it has no predictions for its test split.
        TrainingError: another process does the same.
        TrainingInterruptedError: Ctrl-C.
    """
    with open_finished(run_id, here) as run:
        if FOLDS_TAG in run.stored.tags:
            raise DataError(
                f"run {run_id} consists of several folds; pass the run id of one of them"
            )
        config = run.config
        if config.data.group_by == "none":
            raise DataError(
                f"run {run_id} was trained with siblings of its test images already; pass one with "
                "data.group_by lesion"
            )
        clean, prepared, splits = run.predictions.scored, run.prepared, run.splits
    manifest = prepared.manifest
    leaky_splits = with_siblings(manifest, splits)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, group_by="none", leave_out="none"),
        tracking=dataclasses.replace(config.tracking, register=False),
    )
    began = Began(config=config, data_dir=prepared.data_dir, demo_data=run.demo_data)
    with lock(f"{run_id}.leakage", f"the leakage of run {run_id}"):
        leaky_run_id = _train_leaky(run_id, began, prepared, leaky_splits)
    with open_finished(leaky_run_id) as second:
        leaky = second.predictions.scored
    siblings = np.setdiff1d(leaky_splits.train, splits.train)
    kept = manifest.iloc[leaky_splits.test]
    leaked = kept[kept["group"].isin(manifest["group"].iloc[siblings])]
    result = Leakage(
        run_id=run_id,
        leaky_run_id=leaky_run_id,
        num_train=len(splits.train),
        num_siblings=len(siblings),
        of_leaked=_compare(clean, leaky, leaked),
        of_all=_compare(clean, leaky, kept),
        shared=near_duplicate_scan(prepared.audit, manifest, splits),
    )
    with temporary_folder() as folder:
        write_text(folder / LEAKAGE, json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")
        add_to_run(run.stored, folder, "", {})
    return result


def with_siblings(manifest: pd.DataFrame, splits: Splits) -> Splits:
    """Keep one image of each test lesion, the first by its id, and give the others to train.

    Raises:
        DataError: no test lesion has a second image.
    """
    test = manifest.iloc[splits.test].assign(row=splits.test).sort_values("image_id")
    is_sibling = test["group"].duplicated().to_numpy()
    if not is_sibling.any():
        raise DataError(
            f"none of the {len(test):,} test lesions has a second image, so there is nothing to "
            "leak; use data with several images of some lesions"
        )
    rows = test["row"].to_numpy(np.int64)
    train = np.sort(np.concatenate([splits.train, rows[is_sibling]]))
    return Splits(train=train, val=splits.val, test=np.sort(rows[~is_sibling]))


def _train_leaky(run_id: str, began: Began, prepared: Prepared, splits: Splits) -> str:
    """Train the second network as far as it is not trained yet; return its run."""
    leaky_run_id, is_finished = children_of(run_id, LEAKAGE_TAG).get(run_id, ("", False))
    if is_finished:
        clear_finished(leaky_run_id)
        logger.info(f"run {leaky_run_id}, with siblings, is already finished")
        return leaky_run_id
    began, tags = began.with_data(prepared, splits), {LEAKAGE_TAG: run_id}
    if not leaky_run_id:
        tags |= began.tags()
    elif (before := began_with(tags_of(leaky_run_id))) is not None:
        before.require_same_data(prepared, splits)
    try:
        with open_held(
            began.config.tracking,
            name=f"with siblings, {run_name(began.config)}",
            resume=leaky_run_id,
            parent=run_id,
            tags=tags,
        ) as run:
            logger.info(f"run {run.run_id}, with siblings of the test images of run {run_id}")
            train_in(run, began, prepared, splits)
            return run.run_id
    except TrainingInterruptedError as error:
        raise TrainingInterruptedError(
            f"stopped; continue with `dermalyze leakage --run-id {run_id}`", error.signal_number
        ) from error


def _compare(clean: Scored, leaky: Scored, images: pd.DataFrame) -> Comparison:
    """Compare both networks on some images, the same for both."""
    models = [
        scored.take(scored.table["image_id"].isin(images["image_id"]).to_numpy(bool))
        for scored in (clean, leaky)
    ]
    return compare(NAMES, models, metrics=METRICS)
