"""A run from start to end: data, splits, training, evaluation, export, registration.

While a run is under way its files are in `.dermalyze/runs/<run id>`.  Each is replaced as a whole,
so that a run that is killed at any point can be resumed.
"""

import dataclasses
import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dermalyze import tracking
from dermalyze.config.loading import to_yaml
from dermalyze.config.schema import Config, flatten, require
from dermalyze.data.audit import examine_table
from dermalyze.data.augmentation import augmentation_page
from dermalyze.data.lesion_masks import read_masks
from dermalyze.data.patient_metadata import fields_of, metadata_of, words_left_out
from dermalyze.data.preparation import Prepared
from dermalyze.data.readers.dataset import open_dataset
from dermalyze.data.sampling import Rows
from dermalyze.data.splits import (
    SPLITS,
    Splits,
    complete_splits,
    near_duplicate_scan,
    read_splits,
    save_splits,
    source_column,
    source_splits,
    split_digest,
    split_groups,
)
from dermalyze.data.table_columns import with_groups
from dermalyze.evaluation.evaluate import check_settings
from dermalyze.evaluation.predictions import targets_of
from dermalyze.evaluation.statistics.noninferiority import require_metric
from dermalyze.evaluation.text import things
from dermalyze.models.backbone import resize_filter_of, takes_any_size
from dermalyze.models.checkpoint import (
    backbone_name,
    is_trained,
    load_checkpoint,
    start_from,
)
from dermalyze.models.classifier import build_classifier
from dermalyze.models.mask_decoder import build_mask_decoder
from dermalyze.models.pretrained import Weights
from dermalyze.tracking.untracked import UntrackedRun, untracked_run
from dermalyze.training import distributed
from dermalyze.training.device import choose_device, set_determinism
from dermalyze.training.loop import LearningData, fit
from dermalyze.training.signals import stop_on_signal
from dermalyze.training.state import TrainingState, new_state
from dermalyze.workflows.artifacts import (
    furthest_checkpoint,
    kept_splits,
    mend_checkpoints,
    reopen,
    repair_best,
)
from dermalyze.workflows.finish import RunResult, ship
from dermalyze.workflows.run_context import (
    AS_IN_THE_RUN,
    AUGMENTATION,
    BEST,
    CONFIG,
    LATEST,
    STUDY_TAG,
    Here,
    Job,
    keep_corrections,
    log_progress,
    prepare_again,
    prepare_for,
    run_name,
    save_best,
    save_latest,
)
from dermalyze.workflows.run_fingerprint import Began, began_with
from dermalyze.workflows.run_lock import hold, lock, open_held
from serving.atomic_write import whole_file, write_text
from serving.errors import TrackingError, TrainingError
from serving.os_errors import make_folder, temporary_folder
from serving.spec import ModelSpec

_END_SECONDS = 10.0  # in which process 0 reports an error of all, and torchrun ends the others
_MASK_SIDE = 64  # pixels: twice what a decoder gives at 256

logger = logging.getLogger(__name__)


class TrainingInterruptedError(TrainingError):
    """The user stopped the training by a signal; it can be resumed."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal_number = number


def train(config: Config, data_dir: Path) -> RunResult:
    """Train, evaluate, export and register a model as one MLflow run.

    Raises:
        DermalyzeError: a setting, the data, the tracking server or the training itself.
        TrainingInterruptedError: Ctrl-C; the run is marked KILLED and can be resumed.
    """
    began = _begin(config, data_dir)
    config = began.config
    tracking.reach_store(config.tracking, began.tags())
    prepared = prepare_for(config, data_dir)
    splits = make_splits(config, prepared)
    began = began.with_data(prepared, splits)
    with open_held(config.tracking, name=run_name(config), tags=began.tags()) as run:
        return train_in(run, began, prepared, splits)


def train_untracked(config: Config, data_dir: Path, folder: Path) -> RunResult:
    """Do what `train` does without MLflow: all that the run keeps is in a folder.

    With the folder of a run that was stopped or killed, the same settings continue it.

    Raises:
        TrackingError: the folder holds something else, or a finished run.
        TrainingError: another process works in it, or its run began with other settings.
        DermalyzeError: as `train`.
    """
    began = _begin(config, data_dir)
    config = began.config
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    with lock(name, f"folder {folder}"):
        run = untracked_run(folder)
        if run.status == "FINISHED":
            raise TrackingError(f"the run in {folder} is already finished; name another folder")
        then = began_with(run.tags)
        if then is not None:
            then.require_same_config(config, "the command")
        prepared = prepare_again(run.run_id, run.params, config, Here(data_dir=data_dir))
        splits = make_splits(config, prepared)
        if then is not None:
            then.require_same_data(prepared, splits)
        began = began.with_data(prepared, splits)
        run.tags |= began.tags()
        with run.under_way():
            return train_in(run, began, prepared, splits)


def _begin(config: Config, data_dir: Path) -> Began:
    """Resolve the settings; refuse sources that are not there before images are decoded."""
    config = resolve(config)
    leaves_out, evens = config.data.leave_out != "none", config.training.even_sources != "none"
    if leaves_out or evens:
        rows = examine_table(open_dataset(data_dir, config.data)).rows
        if leaves_out:
            _split_by_source(config, with_groups(rows, config.data.group_by))
        if evens:
            _sources_of(config, rows)
    return Began.here(config, data_dir)


def train_in(
    run: "tracking.TrackedRun | UntrackedRun", began: Began, prepared: Prepared, splits: Splits
) -> RunResult:
    """Do in an open run what `train` does; a run that was stopped continues where it was.

    Args:
        run: new, or resumed with the settings, images and splits that it began with.
        began: what that is; its settings as they are used here, with nothing left to find out.
        prepared: the images.
        splits: which of them to learn from, to choose the best epoch by, and to test on.
    """
    config = began.config
    require_metric(config.tracking.champion_metric, prepared.taxonomy)
    check_settings(config.evaluation, prepared.manifest.iloc[splits.val], prepared.taxonomy)
    job, state = set_up(run, began, prepared, splits)
    distributed.remember_run(run.run_id)
    if distributed.size() > 1:
        logger.info(f"processes: {distributed.size()}")
        tags = began.with_data(prepared, splits).tags()
        distributed.meet(distributed.PREPARING_SECONDS)
        distributed.from_first((tags, splits, (job.folder / LATEST).read_bytes()))
    with stop_on_signal() as should_stop:
        for epoch in fit(state, learning_data(job), config, job.device, should_stop):
            save_latest(job, state)
            if epoch.is_best:
                save_best(job, state)
            run.log_epoch(epoch.index, epoch.metrics)
            log_progress(job, best=epoch.is_best)
            logger.info(epoch_line(state, config.training.epochs))
        if should_stop() and state.epoch < config.training.epochs and not state.stopped_early:
            save_latest(job, state)
            log_progress(job, best=False)
            run.status = "KILLED"
            untracked = isinstance(run, UntrackedRun)
            again = "the same command" if untracked else f"`dermalyze train --resume {run.run_id}`"
            raise TrainingInterruptedError(
                f"stopped in epoch {state.epoch + 1} of {config.training.epochs}; "
                f"continue with {again}",
                should_stop.number,
            )
    distributed.leave()
    if state.stopped_early:
        logger.info(
            f"stopped early: {config.training.monitor} was best in epoch {state.best_epoch}"
        )
    return ship(job, state)


def follow() -> None:
    """Train beside the first of several processes, which alone writes the run.

    It says what to train: its settings, images, splits and checkpoint.

    Raises:
        DermalyzeError: as `train`.
    """
    distributed.meet(distributed.PREPARING_SECONDS)
    nothing: tuple[dict[str, str], Any, bytes] = ({}, None, b"")
    tags, splits, content = distributed.from_first(nothing)
    began = began_with(tags)
    assert began is not None
    prepared = prepare_for(began.config, began.data_dir)
    began.require_same_data(prepared, splits)
    with temporary_folder() as folder:
        (folder / LATEST).write_bytes(content)
        checkpoint = load_checkpoint(folder / LATEST)
        spec = ModelSpec.from_json(checkpoint["spec"])
        job = Job(
            began=began,
            prepared=prepared,
            splits=splits,
            device=choose_device(began.config.training),
            run=UntrackedRun(folder=folder, run_id=spec.run_id),
            metadata=spec.metadata,
        )
        state, _ = _build_state(job, checkpoint)
    try:
        with stop_on_signal() as should_stop:
            for _ in fit(state, learning_data(job), began.config, job.device, should_stop):
                pass
    except TrainingError:
        time.sleep(_END_SECONDS)
        raise
    distributed.leave()


def set_up(
    run: "tracking.TrackedRun | UntrackedRun", began: Began, prepared: Prepared, splits: Splits
) -> tuple[Job, TrainingState]:
    """Log what an open run trains with; return that, and the state to train from.

    Args: as `train_in`.
    """
    config = began.config
    job = Job(
        began=began,
        prepared=prepared,
        splits=splits,
        device=choose_device(config.training),
        run=run,
    )
    _log_settings(job)
    checkpoint = furthest_checkpoint(job) if run.resumed else None
    if config.model.use_metadata:
        fields = (
            fields_of(prepared.manifest.iloc[splits.train])
            if checkpoint is None
            else ModelSpec.from_json(checkpoint["spec"]).metadata  # which its weights are made for
        )
        job = dataclasses.replace(job, metadata=fields)
    return job, _first_state(job, checkpoint)


def learning_data(job: Job) -> LearningData:
    """Return what `fit` takes of the images of a run; the test images are not among it."""
    prepared, splits = job.prepared, job.splits
    return LearningData(
        store=prepared.store,
        class_names=prepared.taxonomy.names,
        targets=targets_of(prepared.manifest, prepared.taxonomy),
        train=splits.train,
        val=splits.val,
        metadata=None if job.metadata is None else metadata_of(prepared.manifest, job.metadata),
        metadata_parts=() if job.metadata is None else job.metadata.parts,
        masks=_masks_of(job) if job.config.loss.mask_weight else None,
        sources=_sources_of(job.config, prepared.manifest),
    )


def _sources_of(config: Config, manifest: pd.DataFrame) -> Rows | None:
    """Number the source of every image, if the settings name a column for it."""
    column = config.training.even_sources
    if column == "none":
        return None
    values = source_column(manifest, column, f"training.even_sources {column}")
    return pd.factorize(values)[0].astype(np.int64)


def resume(run_id: str, here: Here = AS_IN_THE_RUN) -> RunResult:
    """Continue a run that was stopped or killed, with the settings that it began with.

    A run that was killed before its first checkpoint starts again.

    Raises:
        TrackingError: there is no such run, it is finished, or nothing is known of it.
        TrainingError: another process works on it, or it is not what it was.
        DermalyzeError: as `train`.
    """
    with hold(run_id):
        kept = reopen(run_id, here)
        config, prepared = kept.now.config, kept.prepared
        splits = kept_splits(run_id, prepared)
        if splits is None:
            if parent := kept.tags.get("mlflow.parentRunId"):
                raise TrackingError(
                    f"run {run_id} was killed before it had any file; resume run {parent}, which "
                    "it belongs to"
                )
            splits = make_splits(config, prepared)
        if kept.began is not None:
            kept.began.require_same_data(prepared, splits)
        mend_checkpoints(run_id)
        with open_held(config.tracking, resume=run_id) as run:
            if kept.began is None or not kept.began.splits:
                run.set_tags(kept.now.with_data(prepared, splits).tags())
            return train_in(run, kept.now, prepared, splits)


def warn_of_place(run: "tracking.TrackedRun") -> None:
    """Say where the files of a run go, unless it is below this folder or on a server."""
    try:
        place = tracking.local_artifacts(run.run_id)
    except tracking.StoreAwayError:  # it has just gone away, and the run continues without it
        return
    if place is not None and not place.is_relative_to(Path.cwd()):
        experiment = place.parents[1]
        missing = "" if experiment.is_dir() else ", which does not exist"
        logger.warning(
            f"the files of this run go to {experiment}{missing}, not below this folder: "
            "MLflow chose the place when the experiment was created; for another one pass "
            "--experiment with a new name"
        )


def resolve(config: Config) -> Config:
    """Replace what is left to find out by what was found; files become absolute."""
    data, model = config.data, config.model
    pretrained = model.pretrained
    if Path(str(pretrained)).suffix in (".pt", ".safetensors"):
        pretrained = str(Path(str(pretrained)).resolve())
    if is_trained(pretrained):  # read now, not after the images are decoded
        name = backbone_name(_trained(str(pretrained)))
        model = dataclasses.replace(model, name=name if model.name == "auto" else model.name)
    if data.resize_filter == "auto":
        data = dataclasses.replace(data, resize_filter=resize_filter_of(model))
    first_scale = config.training.first_scale
    if not takes_any_size(model):
        require(first_scale == 1, "training.first_scale", f"1 with {model.timm_name}", first_scale)
    plugins = tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in model.plugins)
    if data.prepared != "auto":
        data = dataclasses.replace(data, prepared=str(Path(data.prepared).resolve()))
    model = dataclasses.replace(model, plugins=plugins, pretrained=pretrained)
    teachers = tuple(str(Path(file).resolve()) for file in config.loss.distill_from)
    for file in teachers:  # now, not after the images are decoded
        load_checkpoint(Path(file))
    loss = dataclasses.replace(config.loss, distill_from=teachers)
    return dataclasses.replace(config, data=data, model=model, loss=loss)


def _trained(pretrained: str) -> dict[str, Any]:
    """Read the trained network that `model.pretrained` names."""
    if pretrained == "reference":
        from dermalyze.models.reference import load_reference  # with onnx, which may be missing

        return load_reference()
    if not pretrained.startswith("run:"):
        return load_checkpoint(Path(pretrained))
    with temporary_folder() as folder:
        return load_checkpoint(tracking.fetch(pretrained.removeprefix("run:"), BEST, folder))


def make_splits(config: Config, prepared: Prepared) -> Splits:
    """Read the splits that the settings name, or deal the images into new ones."""
    data = config.data
    if data.splits != "auto":
        return read_splits(Path(data.splits), prepared.manifest)
    if data.leave_out != "none":
        if prepared.dataset.splits:
            logger.warning("data.leave_out is set; the splits that the data names are not used")
        return _split_by_source(config, prepared.manifest)
    sizes = {"val_size": data.val_size, "test_size": data.test_size}
    if prepared.dataset.splits:
        given = prepared.dataset.splits
        return complete_splits(prepared.manifest, given, seed=config.training.seed, **sizes)
    return split_groups(prepared.manifest, seed=config.training.seed, **sizes)


def _split_by_source(config: Config, manifest: pd.DataFrame) -> Splits:
    data = config.data
    seed = config.training.seed
    return source_splits(manifest, data.leave_out, val_size=data.val_size, seed=seed)


def _log_settings(job: Job) -> None:
    """Log the settings and the splits, and keep them in the run's folder."""
    run, began = job.run, job.began
    make_folder(job.folder)
    if not (isinstance(run, UntrackedRun) or run.is_below or STUDY_TAG in run.tags):
        warn_of_place(run)
    run.log_params({**flatten(job.config), "data.dir": str(began.data_dir.resolve())})
    run.set_tags({"dermalyze.demo_data": str(began.demo_data).lower()})
    if (source := job.config.data.leave_out) != "none":
        run.set_tags({"dermalyze.left_out": source})
    write_text(job.folder / CONFIG, to_yaml(job.config))
    run.log_file(job.folder / CONFIG)
    keep_corrections(run, job.config)
    for path in save_splits(job.folder, job.prepared.manifest, job.splits):
        run.log_file(path)


def _masks_of(job: Job) -> NDArray[np.uint8]:
    image_ids = job.prepared.manifest["image_id"].tolist()
    size, mode = (_MASK_SIDE, _MASK_SIDE), job.config.data.resize_mode
    return read_masks(job.began.data_dir, image_ids, size, mode=mode)


def _build_state(job: Job, checkpoint: dict[str, Any] | None) -> tuple[TrainingState, Weights]:
    """Return the state of a new training, or of a checkpoint, and which weights it starts from."""
    config = job.config
    set_determinism(deterministic=not config.training.fast_mode)
    torch.manual_seed(config.training.seed)
    model = config.model
    if checkpoint is not None:  # it has all weights
        model = dataclasses.replace(model, pretrained=False)
    trained = None
    if is_trained(model.pretrained):
        trained = _trained(str(model.pretrained))
        model = dataclasses.replace(model, pretrained=False)
    taxonomy = job.prepared.taxonomy
    classifier, weights = build_classifier(
        model, config.data.image_size, len(taxonomy), job.metadata
    )
    if trained is not None:
        taken = start_from(classifier, trained, model.timm_name, taxonomy.names)
        weights = Weights(source=f"{config.model.pretrained}: {taken}")
    decoder = None
    if config.loss.mask_weight:
        decoder = build_mask_decoder(classifier.backbone, config.data.image_size)
    state = new_state(classifier, config.training, job.device, decoder)
    if checkpoint is not None:
        state.load_state_dict(checkpoint["weights"], checkpoint["training"])
    return state, weights


def _first_state(job: Job, checkpoint: dict[str, Any] | None) -> TrainingState:
    """Return the state to train from, and log it."""
    run = job.run
    state, weights = _build_state(job, checkpoint)
    if checkpoint is None:
        if run.resumed:
            logger.info(f"run {run.run_id} had saved no checkpoint; it starts again with epoch 1")
        _log_start(job, weights, sum(p.numel() for p in state.classifier.parameters()))
        save_latest(job, state)
        return state
    repair_best(job, state)
    save_latest(job, state)
    log_progress(job, best=state.best_epoch > 0)  # a kill may have come between disk and upload
    for entry in state.history:  # likewise
        metrics = {name: value for name, value in entry.items() if name != "epoch"}
        run.log_epoch(int(entry["epoch"]), metrics)
    logger.info(f"resumed run {run.run_id} after {state.epoch} epochs and {state.step} steps")
    return state


def _log_start(job: Job, weights: Weights, num_parameters: int) -> None:
    """Log and print what was resolved, before anything can go wrong."""
    config, run, prepared = job.config, job.run, job.prepared
    resolved = {
        "resolved.backbone": config.model.timm_name,
        "resolved.pretrained": weights.source,
        "resolved.device": job.device.torch_device.type,
        "resolved.precision": job.device.precision,
        "resolved.data_fingerprint": prepared.fingerprint,
        "resolved.num_parameters": num_parameters,
        "resolved.num_images": len(prepared.manifest),
        "resolved.data": prepared.dataset.summary(),
        "resolved.grouped_by": prepared.grouping,
    }
    if (source := config.data.leave_out) != "none":
        unused = len(prepared.manifest) - sum(len(getattr(job.splits, name)) for name in SPLITS)
        resolved["resolved.left_out"] = (
            f"{source}: {things(len(job.splits.test), 'image')}; {things(unused, 'other image')} "
            "in no split, of groups that are also in this source"
        )
    run.log_params(resolved)
    for name, value in resolved.items():
        logger.info(f"{name.removeprefix('resolved.')}: {value}")
    warnings = []
    if weights.reason:
        warnings.append(f"training from scratch, no pretrained weights: {weights.reason}")
    if config.training.use_weighted_sampling and config.loss.class_weights != "none":
        warnings.append(
            "training.use_weighted_sampling and loss.class_weights both correct the imbalance; "
            "rare classes are weighted twice"
        )
    if config.data.group_by == "none":
        warnings.append(
            "data.group_by is none: images of one lesion are in several splits, and the metrics "
            "are too good"
        )
    if shared := near_duplicate_scan(prepared.audit, prepared.manifest, job.splits):
        warnings.append(
            f"photographs that are in several splits under different names: {len(shared)}, such "
            f"as {shared[0].in_words()}; `dermalyze leakage` lists them"
        )
    if job.metadata is not None:
        warnings += words_left_out(job.prepared.manifest, job.metadata)
    for warning in warnings:
        logger.warning(warning)
    run.set_tags(
        {
            "dermalyze.pretrained": weights.source,
            **({"dermalyze.warnings": "\n".join(warnings)} if warnings else {}),
        }
    )
    source = str(prepared.folder)
    columns = ["image_id", "label", "lesion_id"]
    for split in ("train", "val", "test"):
        rows = getattr(job.splits, split)
        run.log_split(
            prepared.manifest.iloc[rows][columns],
            split=split,
            name=prepared.name,
            source=source,
            digest=split_digest(prepared.manifest, rows),
        )
    page = augmentation_page(
        prepared.store.batch(job.splits.train[:6]), config.augmentation, config.training.seed
    )
    with whole_file(job.folder / AUGMENTATION) as partial:
        page.save(partial, "PNG")
    run.log_file(job.folder / AUGMENTATION)


def epoch_line(state: TrainingState, epochs: int) -> str:
    """Say what the last epoch came to."""
    last = state.history[-1]
    seconds = sum(entry["epoch_seconds"] for entry in state.history) / len(state.history)
    left = round(seconds * (epochs - state.epoch))
    parts = [
        f"epoch {state.epoch}/{epochs}",
        f"train loss {last['train/loss']:.4f}",
        f"val loss {last['val/loss']:.4f}",
        f"val balanced accuracy {last['val/balanced_accuracy']:.4f}",
        *([f"val macro AUC {last['val/macro_auc']:.4f}"] if "val/macro_auc" in last else []),
        f"{last['images_per_second']:.0f} images/s",
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left",
    ]
    return "  ".join(parts) + ("  best" if state.best_epoch == state.epoch else "")
