"""What the parts of a run share: its settings, its data, its folder and the files in it.

While a run is under way its files are in `.dermalyze/runs/<run id>`.  Each is replaced as a whole,
so that a run that is killed at any point can be resumed.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dermalyze import tracking
from dermalyze.config.schema import Config
from dermalyze.data.preparation import Prepared, prepare
from dermalyze.data.splits import Splits
from dermalyze.models.checkpoint import load_checkpoint, save_checkpoint
from dermalyze.models.ensemble import Member
from dermalyze.models.plugins import with_named_plugins
from dermalyze.tracking.untracked import UntrackedRun
from dermalyze.training.device import Device, available_devices
from dermalyze.training.state import TrainingState
from dermalyze.workflows.run_fingerprint import Began
from serving.atomic_write import copy_whole, write_text
from serving.errors import DataError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import MetadataFields
from serving.spec import ModelSpec

LATEST = "checkpoint_latest.pt"
BEST = "checkpoint_best.pt"
CONFIG = "config.yaml"
HISTORY = "training_history.json"
CURVES = "training_curves.png"
AUGMENTATION = "augmentation.png"
EVALUATION = "evaluation"
AUDIT = "audit.json"
MODEL = "model.onnx"
CORRECTIONS = "corrections.csv"
FOLDS_TAG = "dermalyze.folds"  # of a run that has one run for each fold below it
FOLD_TAG = "dermalyze.fold"  # of a run below, its number from 1
STUDY_TAG = "dermalyze.study"  # of a search, and of the runs of its trials below it: its name
TRIAL_TAG = "dermalyze.trial"  # of a run below, its number from 0
SPLIT_FILES = ("train_split.csv", "val_split.csv", "test_split.csv")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every part of a run needs to know."""

    began: Began
    prepared: Prepared
    splits: Splits
    device: Device
    run: "tracking.TrackedRun | UntrackedRun"
    metadata: MetadataFields | None = None  # what the network takes beside the image

    @property
    def folder(self) -> Path:
        """What the run keeps on this machine."""
        return self.run.folder

    @property
    def config(self) -> Config:
        """The settings, with nothing left to find out."""
        return self.began.config

    @property
    def spec(self) -> ModelSpec:
        """The contract of the weights that this run trains."""
        data = self.config.data
        return ModelSpec(
            taxonomy=self.prepared.taxonomy,
            input_size=(data.image_size, data.image_size),
            resize_mode=data.resize_mode,
            resize_filter=data.resize_filter,
            run_id=self.run.run_id,
            data_fingerprint=self.prepared.fingerprint,
            metadata=self.metadata,
        )


@dataclass(frozen=True, kw_only=True)
class Here:
    """What belongs to this machine and not to a run; empty: as the run has it, if that is here."""

    data_dir: Path | None = None  # the images
    device: str = ""
    prepared: str = ""  # a folder for what is prepared once
    pretrained: str = ""  # true, false or a file; needed only before the first checkpoint

    def apply(self, config: Config) -> Config:
        """Return the settings of a run with those of this machine in place of its own.

        Raises:
            ConfigError: a value is not allowed.
        """
        device, prepared = self.device or config.training.device, config.data.prepared
        if not self.device and device not in available_devices():
            logger.warning(f"training.device {device} is not available here; auto is used")
            device = "auto"
        if self.prepared:
            prepared = self.prepared
        elif prepared != "auto" and not Path(prepared).is_dir():
            logger.warning(f"data.prepared {prepared} does not exist here; auto is used")
            prepared = "auto"
        words: dict[str, str | bool] = {"true": True, "false": False}
        pretrained = config.model.pretrained
        if self.pretrained:
            pretrained = words.get(self.pretrained, self.pretrained)
        return dataclasses.replace(
            config,
            training=dataclasses.replace(config.training, device=device),
            data=dataclasses.replace(config.data, prepared=prepared),
            model=dataclasses.replace(config.model, pretrained=pretrained),
        )


AS_IN_THE_RUN = Here()


def usable_config(kept: Config, here: Here) -> Config:
    """Return the settings that a run has kept, for use here; code that they ask for is not run.

    Raises:
        ConfigError: they ask for a plug-in that the user has not named.
    """
    return here.apply(dataclasses.replace(kept, model=with_named_plugins(kept.model)))


def keep_corrections(run: "tracking.TrackedRun | UntrackedRun", config: Config) -> None:
    """Keep the table of corrected labels with the run, so that it can be opened without it."""
    if config.data.corrections != "none":
        copy_whole(Path(config.data.corrections), run.folder / CORRECTIONS)
        run.log_file(run.folder / CORRECTIONS)


def prepare_for(config: Config, data_dir: Path) -> Prepared:
    """Prepare the images as the settings ask for; quick where it was done before.

    Raises:
        DataError: as `prepare`; or the stored pixels are damaged.
    """
    prepared = prepare(data_dir, config.data, workers=config.training.num_workers)
    return dataclasses.replace(prepared, pixels=prepared.stored.verify())


def prepare_again(run_id: str, params: Mapping[str, str], config: Config, here: Here) -> Prepared:
    """Prepare the images of a run, given its logged parameters.

    Raises:
        DataError: the data is not what the run was trained on, or not where it was.
    """
    folder = here.data_dir or Path(params.get("data.dir", ""))
    if here.data_dir is None and (not params.get("data.dir") or not folder.is_dir()):
        raise DataError(f"the data of run {run_id} is not where it was; pass --data-dir")
    prepared = prepare_for(config, folder)
    known = params.get("resolved.data_fingerprint", prepared.fingerprint)
    if known == prepared.old_fingerprint and prepared.taxonomy.names == HAM10000.names:
        return dataclasses.replace(prepared, fingerprint=known)  # the run is of an older version
    if known != prepared.fingerprint:
        raise DataError(
            f"run {run_id} was trained on other data (fingerprint {known[:12]}, here "
            f"{prepared.fingerprint[:12]}); pass its folder as --data-dir"
        )
    return prepared


def run_name(config: Config) -> str:
    """Return what a run is called in lists."""
    return f"{config.model.timm_name}, {config.model.head_type}, {config.data.image_size} px"


def save_latest(job: Job, state: TrainingState) -> None:
    """Write the checkpoint to resume from, and the history."""
    save_checkpoint(
        job.folder / LATEST,
        state.classifier.state_dict(),
        job.config.model,
        job.spec,
        {"training": state.state_dict()},
    )
    write_text(job.folder / HISTORY, json.dumps(state.history, indent=1))


def save_best(job: Job, state: TrainingState) -> None:
    """Write the weights of this epoch as the best ones."""
    save_checkpoint(
        job.folder / BEST,
        state.validated.state_dict(),
        job.config.model,
        job.spec,
        {"training": {"epoch": state.epoch}},
    )


def save_limits(job: Job, member: Member, spec: ModelSpec) -> None:
    """Write the best checkpoint anew with what was fitted on validation images; log it."""
    epoch = load_checkpoint(job.folder / BEST)["training"]["epoch"]
    save_checkpoint(
        job.folder / BEST,
        member.classifier.state_dict(),
        job.config.model,
        spec,
        {
            "training": {"epoch": epoch},
            "scope": member.scope.state_dict() if member.scope is not None else {},
        },
    )
    job.run.log_file(job.folder / BEST)


def log_progress(job: Job, *, best: bool) -> None:
    """Log what `save_latest` and, where the epoch was the best, `save_best` wrote."""
    for name in (LATEST, HISTORY, *((BEST,) if best else ())):
        job.run.log_file(job.folder / name)
