"""What the parts of a run share: its settings, its data, its folder and the files in it.

What is written while a run goes on lies in `.dermalyze/runs/<run id>`, each file whole, so that a
run killed at any point can be gone on with.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermalyze.config import Config
from dermalyze.config_file import load_config
from dermalyze.data.loader import Rows
from dermalyze.data.prepare import Prepared, prepare
from dermalyze.data.splits import Splits
from dermalyze.models.checkpoint import load_checkpoint, save_checkpoint
from dermalyze.models.plugins import with_named_plugins
from dermalyze.models.shipped import Member
from dermalyze.tracking import StoreAwayError, TrackedRun, fetch
from dermalyze.training.device import Device
from dermalyze.training.state import TrainingState
from serving.errors import ArtifactError, TrackingError, TrainingError
from serving.metadata import MetadataFields
from serving.spec import ModelSpec
from serving.whole import write_text

LATEST = "checkpoint_latest.pt"
BEST = "checkpoint_best.pt"
CONFIG = "config.yaml"
HISTORY = "training_history.json"
CURVES = "training_curves.png"
AUGMENTATION = "augmentation.png"
EVALUATION = "evaluation"
AUDIT = "audit.json"
MODEL = "model.onnx"
FOLDS_TAG = "dermalyze.folds"  # of a run that has one run for each fold below it
FOLD_TAG = "dermalyze.fold"  # of a run below, its number from 1
SPLIT_FILES = ("train_split.csv", "val_split.csv", "test_split.csv")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every part of a run needs to know."""

    config: Config
    prepared: Prepared
    splits: Splits
    targets: Rows  # of every stored image, int64 (num_images,)
    device: Device
    folder: Path
    run: TrackedRun
    say: Say

    @property
    def spec(self) -> ModelSpec:
        """The contract of the weights that this run trains."""
        data = self.config.data
        return ModelSpec(
            input_size=(data.image_size, data.image_size),
            resize_mode=data.resize_mode,
            resize_filter=data.resize_filter,
            run_id=self.run.run_id,
            data_fingerprint=self.prepared.fingerprint,
            metadata=MetadataFields() if self.config.model.use_metadata else None,
        )


def stored_config(path: Path) -> Config:
    """Read the settings that a run has kept; code that they ask for is not run.

    Raises:
        ConfigError: they cannot be read, or ask for a plug-in that the user has not named.
    """
    config = load_config(path)
    return dataclasses.replace(config, model=with_named_plugins(config.model))


def prepare_for(config: Config, data_dir: Path) -> Prepared:
    """Prepare the images as the settings ask for; quick where it was done before."""
    data = config.data
    return prepare(
        data_dir,
        output=None if data.prepared == "auto" else Path(data.prepared),
        image_size=data.image_size,
        resize_mode=data.resize_mode,
        resize_filter=data.resize_filter,
        workers=config.training.num_workers,
        allow_problems=data.allow_problems,
    )


def prepare_again(
    run_id: str, params: Mapping[str, str], config: Config, data_dir: Path | None
) -> Prepared:
    """Prepare the images of a run that goes on, given its logged parameters.

    Raises:
        TrainingError: the data is not what the run began with.
    """
    prepared = prepare_for(config, data_dir or Path(params["data.dir"]))
    known = params.get("resolved.data_fingerprint", prepared.fingerprint)
    if known != prepared.fingerprint:
        raise TrainingError(
            f"run {run_id} was trained on other data (fingerprint {known[:12]}, here "
            f"{prepared.fingerprint[:12]}); pass the folder it began with as --data-dir"
        )
    return prepared


def run_name(config: Config) -> str:
    """Return what a run is called in lists."""
    return f"{config.model.timm_name}, {config.model.head_type}, {config.data.image_size} px"


def save_latest(job: Job, state: TrainingState) -> None:
    """Write the checkpoint to go on from, and the history."""
    save_checkpoint(
        job.folder / LATEST,
        state.classifier.state_dict(),
        job.config.model,
        job.spec,
        state.state_dict(),
    )
    write_text(job.folder / HISTORY, json.dumps(state.history, indent=1))


def save_best(job: Job, state: TrainingState) -> None:
    """Write the weights that are judged now as the best ones."""
    save_checkpoint(
        job.folder / BEST,
        state.judged.state_dict(),
        job.config.model,
        job.spec,
        {"epoch": state.epoch},
    )


def save_limits(job: Job, member: Member, spec: ModelSpec) -> None:
    """Write the best checkpoint anew with what was fitted on validation images; log it."""
    epoch = load_checkpoint(job.folder / BEST)["training"]["epoch"]
    save_checkpoint(
        job.folder / BEST,
        member.classifier.state_dict(),
        job.config.model,
        spec,
        {"epoch": epoch},
        scope=member.scope.state_dict() if member.scope is not None else None,
    )
    job.run.log_file(job.folder / BEST)


def log_progress(job: Job, *, best: bool) -> None:
    """Log what `save_latest` and, where the epoch was the best, `save_best` wrote."""
    for name in (LATEST, HISTORY, *((BEST,) if best else ())):
        job.run.log_file(job.folder / name)


def furthest_checkpoint(job: Job) -> dict[str, Any] | None:
    """Return the checkpoint that came furthest, on this machine or with the run; None: neither."""
    found = []
    if (job.folder / LATEST).exists():
        found.append(load_checkpoint(job.folder / LATEST))
    try:
        found.append(load_checkpoint(fetch(job.run.run_id, LATEST, job.folder / "fetched")))
    except StoreAwayError:
        if not found:
            raise
    except (TrackingError, ArtifactError):
        if not found:
            return None
    return max(found, key=lambda c: (c["training"]["epoch"], c["training"]["step"]))


def repair_best(job: Job, state: TrainingState) -> None:
    """Make sure that the best checkpoint is the one the state speaks of.

    A kill may fall between the two files; then the weights just loaded are the best ones.
    """
    if state.best_epoch == 0:
        return
    path = job.folder / BEST
    for fetch_first in (False, True):
        try:
            if fetch_first:
                fetch(job.run.run_id, BEST, job.folder)
            if load_checkpoint(path)["training"]["epoch"] == state.best_epoch:
                return
        except (TrackingError, ArtifactError):
            continue
    if state.best_epoch == state.epoch and state.step == 0:
        save_best(job, state)
        job.run.log_file(path)
        return
    raise TrainingError(f"run {job.run.run_id} has lost {BEST}; train anew")
