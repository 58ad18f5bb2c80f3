"""What a run has kept, here and among its artifacts: the copy that is good is used.

A copy that cannot be read is passed over with a warning.  One that can be read but is not what the
run began with, or is of another run, was changed by somebody, and is refused.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml

from dermalyze import tracking
from dermalyze.config.loading import load_config, setting_names
from dermalyze.config.schema import Config
from dermalyze.data.preparation import Prepared
from dermalyze.data.splits import Splits, read_split, read_splits
from dermalyze.models.checkpoint import load_checkpoint
from dermalyze.tracking.untracked import UntrackedRun
from dermalyze.training.state import TrainingState
from dermalyze.workflows.run_context import (
    BEST,
    CONFIG,
    LATEST,
    SPLIT_FILES,
    STUDY_TAG,
    Here,
    Job,
    prepare_again,
    save_best,
    usable_config,
)
from dermalyze.workflows.run_fingerprint import Began, began_with
from serving.atomic_write import copy_whole
from serving.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DermalyzeError,
    TrackingError,
    TrainingError,
)
from serving.spec import ModelSpec

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Copy:
    """A file of a run, here or fetched from its artifacts."""

    path: Path
    where: str  # for messages


def copies(run_id: str, name: str) -> Iterator[Copy]:
    """Yield the copy of a file in the run's folder, then that among its artifacts, if there.

    Raises:
        StoreAwayError: there is none here, and the tracking store is away.
    """
    folder = tracking.WORK / run_id
    is_here = (folder / name).exists()
    if is_here:
        yield Copy(folder / name, str(folder / name))
    try:
        if name not in tracking.artifact_names(run_id):
            return
        fetched = tracking.fetch(run_id, name, folder / "fetched")
    except tracking.StoreAwayError:
        if is_here:
            return
        raise
    yield Copy(fetched, f"{name} among the artifacts of run {run_id}")


def _copies_of(job: Job, name: str) -> Iterator[Copy]:
    """Yield the copies of a file of an open run; without MLflow there is one at most."""
    path = job.folder / name
    if not isinstance(job.run, UntrackedRun):
        yield from copies(job.run.run_id, name)
    elif path.exists():
        yield Copy(path, str(path))


def read_copies(found: Iterable[Copy], read: Callable[[Copy], Item]) -> tuple[Copy, Item] | None:
    """Read the first copy of a file of a run that can be read; None: there is no copy.

    Raises:
        DermalyzeError: there are copies, and `read` refuses all of them; or it raises a
            TrainingError, which says that a copy can be read and must not be used.
    """
    refused: list[tuple[Copy, DermalyzeError]] = []
    for copy in found:
        try:
            item = read(copy)
        except (ArtifactError, ConfigError, DataError) as error:
            refused.append((copy, error))
            continue
        for damaged, _ in refused:
            logger.warning(f"{damaged.where} cannot be used; {copy.where} is used instead")
        return copy, item
    if refused:
        raise refused[0][1]
    return None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run that is to be resumed."""

    tags: Mapping[str, str]
    began: Began | None  # None: an older version made the run
    now: Began  # the same as it is here
    prepared: Prepared


def reopen(run_id: str, here: Here) -> Kept:
    """Read what is needed to resume a run, of which nothing is changed.

    Raises:
        TrackingError: there is no such run, it is finished, or nothing is known of it.
        TrainingError: its settings are not what they were.
        DataError: the images or the stored pixels are not those of the run.
    """
    params, tags = tracking.require_unfinished(run_id)
    if other := tags.get("dermalyze.run_id"):
        raise TrackingError(f"run {run_id} only refers to the training run; resume {other}")
    if study := tags.get(STUDY_TAG):
        raise TrackingError(
            f"run {run_id} belongs to study {study}, which only `dermalyze tune` continues; repeat "
            "the command that started it"
        )
    here_already = (tracking.WORK / run_id / LATEST).exists()
    if not here_already and tracking.is_place_missing(run_id) and tracking.has_epochs(run_id):
        # Says where they belong; else it would start again.
        tracking.fetch(run_id, LATEST, tracking.WORK / run_id)
    began = began_with(tags)
    kept = kept_config(run_id, began)
    if kept is None:
        raise TrackingError(
            f"the settings of run {run_id} are unknown, because it was killed before it began; "
            "train a new run"
        )
    config = usable_config(kept, here)
    demo_data = tags.get("dermalyze.demo_data") == "true"
    if began is not None:
        params.setdefault("data.dir", str(began.data_dir))
        demo_data = began.demo_data
    prepared = prepare_again(run_id, params, config, here)
    if began is not None:
        began.require_same_pixels(prepared)
    now = Began(config=config, data_dir=prepared.data_dir, demo_data=demo_data)
    return Kept(tags=tags, began=began, now=now, prepared=prepared)


def kept_config(run_id: str, began: Began | None) -> Config | None:
    """Return the settings that a run has kept or began with; None: neither is known.

    Raises:
        ConfigError: no copy can be read, and an older version made the run.
        TrainingError: somebody has changed them.
    """

    def read(copy: Copy) -> Config:
        config = load_config(copy.path)
        names = setting_names(yaml.safe_load(copy.path.read_text(encoding="utf-8")))
        known = ["tracking.register"] if began is None else began.settings
        if missing := [name for name in known if name not in names]:
            raise ConfigError(f"{copy.where} has no {missing[0]}; it is damaged")
        if began is not None:
            began.require_same_config(config, copy.where)
        return config

    try:
        found = read_copies(copies(run_id, CONFIG), read)
    except ConfigError:
        if began is None:
            raise
        logger.warning(
            f"{CONFIG} cannot be used; the original settings of the run are used instead"
        )
        found = None
    if found is not None:
        return found[1]
    return None if began is None else began.config


def kept_splits(run_id: str, prepared: Prepared) -> Splits | None:
    """Return the splits that a run has kept; None: it had not come that far.

    Raises:
        DataError: no copy of one can be read, or they contradict each other.
    """
    known = set(prepared.manifest["image_id"])

    def read(copy: Copy) -> pd.DataFrame:
        table = read_split(copy.path)
        if not copy.path.read_bytes().endswith(b"\n") or not known.issuperset(table["image_id"]):
            raise DataError(f"{copy.where} is damaged; train a new run")
        return table

    for name in SPLIT_FILES:
        found = read_copies(copies(run_id, name), read)
        if found is None:
            return None
        path = tracking.WORK / run_id / name
        if found[0].path != path:
            copy_whole(found[0].path, path)
    return read_splits(tracking.WORK / run_id, prepared.manifest)


def furthest_checkpoint(job: Job) -> dict[str, Any] | None:
    """Return the checkpoint that came furthest, on this machine or with the run; None: neither.

    Raises:
        ArtifactError: no copy can be read.
        TrainingError: a copy is of another run.
    """
    run_id = job.run.run_id
    found, damaged = [], []
    for copy in _copies_of(job, LATEST):
        try:
            content = own_checkpoint(copy, run_id)
            if "step" not in content["training"]:
                raise ArtifactError(f"{copy.where} has no training state; train a new run")
            found.append((copy, content))
        except ArtifactError as error:
            damaged.append((copy, error))
    if not found:
        if damaged:
            raise damaged[0][1]
        return None
    copy, furthest = max(found, key=lambda c: (c[1]["training"]["epoch"], c[1]["training"]["step"]))
    for bad, _ in damaged:
        logger.warning(f"{bad.where} cannot be used; {copy.where} is used instead")
    return furthest


def mend_checkpoints(run_id: str) -> None:
    """Replace damaged checkpoints here before the run is opened, which delivers what is here.

    Raises:
        ArtifactError: no copy of the one to resume from can be read.
        TrainingError: a copy is of another run.
    """
    for name in (LATEST, BEST):
        path = tracking.WORK / run_id / name
        if not path.exists():
            continue
        try:
            found = read_copies(copies(run_id, name), lambda copy: own_checkpoint(copy, run_id))
        except ArtifactError:
            if name == LATEST:
                raise
            path.unlink()  # it may be made again from the other
            continue
        if found is not None and found[0].path != path:
            copy_whole(found[0].path, path)


def own_checkpoint(copy: Copy, run_id: str) -> dict[str, Any]:
    """Read a checkpoint of a run.

    Raises:
        ArtifactError: it cannot be read.
        TrainingError: it is of another run.
    """
    content = load_checkpoint(copy.path)
    owner = ModelSpec.from_json(content["spec"]).run_id
    if owner != run_id:
        raise TrainingError(
            f"{copy.where} belongs to run {owner}, not to run {run_id}; restore the right file, or "
            "delete it if there is another copy"
        )
    return content


def repair_best(job: Job, state: TrainingState) -> None:
    """Make sure that the best checkpoint is here, and the one that the state names.

    A kill may fall between the two files; then the weights just loaded are the best ones.

    Raises:
        TrainingError: it is lost, or a copy is of another run.
    """
    if state.best_epoch == 0:
        return
    run_id = job.run.run_id

    def read(copy: Copy) -> None:
        if own_checkpoint(copy, run_id)["training"].get("epoch") != state.best_epoch:
            raise ArtifactError(f"{copy.where} is not from epoch {state.best_epoch}")

    try:
        found = read_copies(_copies_of(job, BEST), read)
    except ArtifactError:
        found = None
    path = job.folder / BEST
    if found is not None:
        if found[0].path != path:
            copy_whole(found[0].path, path)
    elif state.best_epoch == state.epoch and state.step == 0:
        save_best(job, state)
    else:
        raise TrainingError(f"run {run_id} has lost {BEST}; train a new run")
