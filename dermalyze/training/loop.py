"""The training loop: `fit` yields after each epoch, the caller decides what becomes of it.

N images per batch, C classes.  Knows nothing of MLflow, files or the command line.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from dermalyze.config.schema import AugmentationConfig, Config, require
from dermalyze.data.augmentation import augment, augment_masks
from dermalyze.data.lesion_masks import UNKNOWN
from dermalyze.data.mixing import Mix, draw_mix, partners_of
from dermalyze.data.pixel_store.store import PixelStore
from dermalyze.data.sampling import (
    Rows,
    Share,
    batches_of,
    draw_weights,
    epoch_order,
    num_batches,
    seed_of,
)
from dermalyze.evaluation.metrics.classification import score
from dermalyze.models.classifier import Classifier, to_images
from dermalyze.models.mask_decoder import MaskDecoder, TwoTasks
from dermalyze.training import distributed
from dermalyze.training.depthwise_gradient import FastDepthwiseGradients
from dermalyze.training.device import Device, enough_memory
from dermalyze.training.feed import Batch, Feed, open_feed
from dermalyze.training.losses import (
    Loss,
    build_loss,
    class_weights,
    distillation_loss,
    effective_weights,
    logit_shift,
    mask_loss,
)
from dermalyze.training.mixstyle import mixed_styles
from dermalyze.training.schedule import image_side, learning_rate
from dermalyze.training.state import Metrics, TrainingState
from dermalyze.training.teachers import Teacher, open_teachers
from serving.errors import ConfigError, TrainingError
from serving.machine import keep_freed_memory

FINITE_CHECK_STEPS = 20  # how often the loss is looked at; each look makes a GPU wait


@dataclass(frozen=True, kw_only=True)
class LearningData:
    """The images to learn from and those to validate on."""

    store: PixelStore
    class_names: tuple[str, ...]
    targets: Rows  # class index of every image in the store, int64 (num_images,)
    train: Rows  # row numbers in the store
    val: Rows
    metadata: NDArray[np.float32] | None = None  # (num_images, K), for a network that takes it
    metadata_parts: tuple[slice, ...] = ()  # its columns of age, of sex, of site
    masks: NDArray[np.uint8] | None = None  # of `read_masks`, for a second task
    sources: Rows | None = None  # number of every image's source, (num_images,), to draw evenly


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """What every step and epoch needs, beside the state that they change."""

    config: Config
    device: Device
    data: LearningData
    # images (N, 3, H, W), metadata (N, K) or None -> logits (N, C), or what `TwoTasks` gives
    network: Callable[..., Any]
    feed: Feed
    targets: Tensor  # of every image in the store, int64 (num_images,); on the device
    metadata: Tensor | None  # (num_images, K); on the device
    loss: Loss
    teacher: Teacher | None
    draw_weights: NDArray[np.float64] | None  # of the training images
    image_weights: NDArray[np.float64]  # of every image in the store, in the mean loss of a batch
    masks: Tensor | None  # of every image in the store, as `read_masks` has them; on the device


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a batch is in the update of the weights that it belongs to."""

    seed: int  # of augmentation and dropout
    side: int  # of its images in training, pixels
    mixes: bool = False  # whether its images are mixed
    share: float = 1.0  # of the update's mean loss
    image_share: float = 1.0  # of the update's images
    ends_update: bool = True
    # Of this process, where there are several:
    images: Share | None = None  # its images; None: all of the batch
    own_share: float = 1.0  # of the batch's mean loss
    own_image_share: float = 1.0  # of the batch's images


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one pass over the training data gave."""

    index: int  # from 1
    metrics: Metrics
    is_best: bool


def open_context(
    classifier: Classifier,
    data: LearningData,
    config: Config,
    device: Device,
    decoder: MaskDecoder | None = None,
) -> TrainingContext:
    """Move to the device what training needs there, beside the networks."""
    counts = torch.from_numpy(
        np.bincount(data.targets[data.train], minlength=len(data.class_names))
    )
    weights = None
    if config.loss.class_weights == "balanced":
        weights = class_weights(counts)
    elif config.loss.class_weights == "effective":
        weights = effective_weights(counts, config.loss.effective_beta)
    shift = None
    if config.loss.logit_adjustment:
        shift = logit_shift(counts, config.loss.logit_adjustment).to(device.torch_device)
    image_weights = np.ones(len(data.targets))
    if weights is not None:
        image_weights = weights.double().numpy()[data.targets]
        weights = weights.to(device.torch_device)
    if device.torch_device.type == "cpu":
        keep_freed_memory()
    return TrainingContext(
        config=config,
        device=device,
        data=data,
        network=training_network(classifier, config, device, decoder),
        feed=open_feed(data.store, device.torch_device, passes=config.training.epochs),
        targets=torch.tensor(data.targets, device=device.torch_device),
        metadata=on_device(data.metadata, device),
        loss=build_loss(config.loss, weights, shift),
        teacher=open_teachers(config.loss, data.class_names, device),
        draw_weights=draw_weights(
            data.targets[data.train],
            None if data.sources is None else data.sources[data.train],
            classes_equally=config.training.use_weighted_sampling,
        ),
        image_weights=image_weights,
        masks=None if data.masks is None else torch.from_numpy(data.masks).to(device.torch_device),
    )


def fit(
    state: TrainingState,
    data: LearningData,
    config: Config,
    device: Device,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Epoch]:
    """Train from where `state` is; yield after each epoch.

    Ends after `training.epochs`, by early stopping, or within one step of `should_stop()` turning
    true; then `state` is in the middle of an epoch, and can be saved and resumed.

    Raises:
        TrainingError: the loss is not a finite number, or there is too little memory.
        ConfigError: `training.monitor` names no metric.
    """
    distributed.meet(distributed.PREPARING_SECONDS)
    context = open_context(state.classifier, data, config, device, state.decoder)

    def stops() -> bool:
        return distributed.any_of(should_stop())

    while state.epoch < config.training.epochs and not state.stopped_early:
        distributed.meet()  # the first process may still save the last epoch
        with distributed.others_needed(), enough_memory(device, config.training.batch_size):
            if not _train_epoch(state, context, stops):
                return
            started = time.perf_counter()
            distributed.share_buffers(state.validated)
            parts = []
            for part in val_logits(state.validated, context):
                if stops():  # the epoch's training is kept, its validation is done again
                    return
                parts.append(part)
            logits = torch.cat(distributed.in_order(parts)).cpu().numpy()
            val_metrics = val_scores(logits, data) if distributed.rank() == 0 else {}
            epoch = _close_epoch(state, val_metrics, time.perf_counter() - started, config)
        yield epoch


def training_network(
    classifier: Classifier, config: Config, device: Device, decoder: MaskDecoder | None = None
) -> Callable[..., Any]:
    """Return what is called in training, fast on this device; the weights are the networks'."""
    if config.training.sync_batch_norm and distributed.size() > 1:
        on_gpu = device.torch_device.type == "cuda"
        require(on_gpu, "training.sync_batch_norm", "false on a CPU", True)
        from timm.layers.norm_act import convert_sync_batchnorm  # after the operators that it needs

        convert_sync_batchnorm(classifier)  # type: ignore[no-untyped-call]
    tasks = classifier if decoder is None else TwoTasks(classifier, decoder)
    network = distributed.sharing_gradients(tasks, config.training)
    if config.training.use_torch_compile:
        # On one GPU CUDA graphs spare each launch.
        alone_on_gpu = device.torch_device.type == "cuda" and distributed.size() == 1
        compiled: Callable[..., Any] = torch.compile(
            network, mode="reduce-overhead" if alone_on_gpu else None
        )
        return compiled

    def eager(images: Tensor, metadata: Tensor | None = None) -> Any:
        with contextlib.ExitStack() as around:
            if device.is_bf16_cpu:
                around.enter_context(FastDepthwiseGradients())
            if config.training.mixstyle:
                around.enter_context(mixed_styles(classifier.backbone, config.training.mixstyle))
            return network(images, metadata)

    return eager


def _train_epoch(
    state: TrainingState, context: TrainingContext, should_stop: Callable[[], bool]
) -> bool:
    """Train the rest of the epoch under way; False if stopped before its end."""
    training, data, device = context.config.training, context.data, context.device.torch_device
    epoch = state.epoch + 1
    order = epoch_order(data.train, context.draw_weights, seed=training.seed, epoch=epoch)
    steps_per_epoch = num_batches(len(order), training.batch_size)
    if steps_per_epoch == 0:
        raise TrainingError("there are fewer than two training images; see data.val_size")
    started, seconds_before = time.perf_counter(), state.seconds
    # On the device, where adding up makes nothing wait.
    precise = torch.float64 if device.type != "mps" else torch.float32
    is_first = distributed.rank() == 0  # the others add to what an interrupted epoch had
    loss_sum = torch.tensor(state.loss_sum if is_first else 0, dtype=precise, device=device)
    num_correct = torch.tensor(state.num_correct if is_first else 0, device=device)
    in_warmup = state.epoch < training.head_warmup_epochs
    state.classifier.freeze_backbone = context.config.model.freeze_backbone or in_warmup
    state.classifier.train()
    stopped = False
    with tqdm(
        total=steps_per_epoch,
        initial=state.step,
        desc=f"epoch {epoch}/{training.epochs}",
        unit="step",
        leave=False,
        disable=None if is_first else True,
    ) as bar:
        batches = list(batches_of(order, training.batch_size))
        parts = parts_of(batches, context, epoch)
        updates_per_epoch = sum(part.ends_update for part in parts)
        left = [
            rows if part.images is None else rows[part.images.rows]
            for rows, part in zip(batches, parts, strict=True)
        ][state.step :]
        for step, batch in enumerate(context.feed.batches(left), state.step):
            if should_stop():
                stopped = True
                break
            lr = learning_rate(
                state.epoch * updates_per_epoch + step // training.accumulate,
                lr=training.lr,
                config=training.scheduler,
                steps_per_epoch=updates_per_epoch,
                epochs=training.epochs,
            )
            for group in state.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            batch_loss, batch_correct = train_step(state, context, batch, parts[step])
            batch_size = len(batches[step])
            loss_sum += batch_loss * batch_size
            if parts[step].own_image_share:
                num_correct += batch_correct
            state.num_images += batch_size
            state.step = step + 1
            bar.update()
            looked_at = state.step % FINITE_CHECK_STEPS == 0 or state.step == steps_per_epoch
            if looked_at and not math.isfinite(float(distributed.total(loss_sum))):
                raise TrainingError(
                    f"the training loss is not a finite number in epoch {epoch}; "
                    "try a lower training.lr, or training.use_amp=false"
                )
    state.loss_sum = float(distributed.total(loss_sum))
    state.num_correct = int(distributed.total(num_correct))
    state.seconds = seconds_before + time.perf_counter() - started
    return not stopped


def parts_of(batches: Sequence[Rows], context: TrainingContext, epoch: int) -> list[Part]:
    """Say what each batch of an epoch, counted from 1, is in its update.

    The loss of an update is the mean over all its images, as if they were one batch, weighted by
    their classes as the loss of a batch is.  The last update has the batches that are left.
    """
    training, augmentation = context.config.training, context.config.augmentation
    mixes = augmentation.mixes and epoch <= training.epochs - augmentation.off_last_epochs
    side = image_side(epoch, context.config.data.image_size, training)
    sizes = [len(rows) for rows in batches]
    weights = np.ones_like(context.image_weights) if mixes else context.image_weights
    sums = [weights[rows].sum() for rows in batches]
    parts = []
    for number in range(len(batches)):
        first = number - number % training.accumulate
        update = slice(first, min(first + training.accumulate, len(batches)))
        part = Part(
            seed=seed_of(training.seed, epoch, number + 1),
            side=side,
            mixes=mixes,
            share=float(sums[number] / sum(sums[update])),
            image_share=sizes[number] / sum(sizes[update]),
            ends_update=number == update.stop - 1,
        )
        if distributed.size() > 1:
            part = _own_part(part, weights[batches[number]], augmentation)
        parts.append(part)
    return parts


def _own_part(part: Part, weights: NDArray[np.float64], augmentation: AugmentationConfig) -> Part:
    """Return what this process does of a batch, given the weights of its images, (N,)."""
    own, counts = distributed.training_share(len(weights))
    rows = own
    if part.mixes:
        rows = np.concatenate([own, partners_of(len(weights), augmentation, part.seed)[own]])
    return dataclasses.replace(
        part,
        images=Share(rows=rows, total=len(weights)),
        own_share=float(weights[own].sum() / weights.sum()) if counts else 0.0,
        own_image_share=len(own) / len(weights) if counts else 0.0,
    )


def train_step(
    state: TrainingState,
    context: TrainingContext,
    batch: Batch,
    part: Part,
    end_part: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Learn from a batch; return the loss and how many answers were right, on the device.

    The last batch of an update changes the weights; the others only add to the gradients.  Of
    several processes, each returns its share.

    Args:
        state: the weights and the optimizer, whose learning rate is set.
        context: what is the same for all steps.
        batch: from the context's feed.
        part: what the batch is in its update.
        end_part: called when the images, the forward pass, the backward pass and the update are
            done.
    """
    pixels, rows = batch
    config, scaler = context.config, state.scaler
    generator = torch.Generator().manual_seed(part.seed)
    torch.manual_seed(part.seed + distributed.rank())  # dropout's
    targets = context.targets.index_select(0, rows)  # (N,)
    images = _network_images(pixels, context.device)
    if part.side < images.shape[2]:  # first: augmentation costs less, too
        images = F.interpolate(images, part.side, mode="bilinear", antialias=True)
    images = augment(images, config.augmentation, generator, part.images)
    metadata = None  # (N, K)
    if context.metadata is not None:
        metadata = context.metadata.index_select(0, rows)
        parts, dropout = context.data.metadata_parts, config.model.metadata_dropout
        metadata = without_some(metadata, parts, dropout, generator, part.images)
    mix = None
    if part.mixes:
        mix = draw_mix(images, config.augmentation, part.seed, part.images)
        images = mix.images(images)
        metadata = None if metadata is None else mix.blend(metadata)
    end_part()
    with context.device.autocast():
        answer = context.network(images, metadata)
    logits, places = (answer, None) if state.decoder is None else answer  # (N, C), (N, h, w)
    loss = context.loss(logits, targets, mix) * part.own_share
    shared_loss = loss * part.share
    if context.teacher is not None:
        weight, temperature = config.loss.distill_weight, config.loss.distill_temperature
        distance = distillation_loss(logits, context.teacher(images), temperature)
        distance = distance * part.own_image_share
        loss = loss.lerp(distance, weight)
        shared_loss = shared_loss.lerp(distance * part.image_share, weight)
    if places is not None:
        masks, known = _masks_of(context, rows, images.shape[2:], part, mix)
        masks = F.adaptive_avg_pool2d(masks, places.shape[1:])[:, 0]
        distance = config.loss.mask_weight * mask_loss(places, masks, known)
        if part.images is not None:
            num_known = known.sum() * bool(part.own_image_share)
            distance = distance * num_known / distributed.total(num_known).clamp(min=1)
        loss, shared_loss = loss + distance, shared_loss + distance * part.image_share
    end_part()
    shared_loss = shared_loss * distributed.size()  # the gradients become their mean
    scaler.scale(shared_loss).backward()  # type: ignore[no-untyped-call]
    end_part()
    if part.ends_update:
        if config.training.max_grad_norm:
            scaler.unscale_(state.optimizer)
            weights = [weight for _, weight in state.named_weights()]
            nn.utils.clip_grad_norm_(weights, config.training.max_grad_norm)
        scaler.step(state.optimizer)
        scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None:
            state.ema.update_parameters(state.classifier)
    end_part()
    answers = logits.detach().argmax(1)
    return loss.detach(), (answers == (mix.main_targets(targets) if mix else targets)).sum()


def _masks_of(
    context: TrainingContext, rows: Tensor, size: Sequence[int], part: Part, mix: Mix | None
) -> tuple[Tensor, Tensor]:
    """Give masks what happened to the images: float32 (N, 1, H, W), and which are known: (N,)."""
    assert context.masks is not None
    stored = context.masks.index_select(0, rows)[:, None]  # (N, 1, M, M)
    known = stored[:, 0, 0, 0] != UNKNOWN
    masks = F.interpolate(stored.clamp(max=1).float(), tuple(size), mode="bilinear")
    generator = torch.Generator().manual_seed(part.seed)
    masks = augment_masks(masks, context.config.augmentation, generator, part.images)
    if mix is not None:
        masks = mix.images(masks)
        known = known[: len(mix.partners)] & known[mix.partners]
    return masks, known


def without_some(
    metadata: Tensor,
    parts: Sequence[slice],
    dropout: float,
    generator: torch.Generator,
    share: Share | None = None,
) -> Tensor:
    """Leave out each of three parts, and all of them, with a probability: (N, K) -> (N, K).

    So the network learns what to do without any of them.
    """
    num = len(metadata) if share is None else share.total
    drawn = torch.rand((num, 4), generator=generator) >= dropout  # (N, 4)
    drawn = drawn if share is None else drawn[share.rows]
    kept = torch.ones_like(metadata)
    for part, keeps in zip(parts, drawn[:, :3].T, strict=True):
        kept[:, part] = (keeps & drawn[:, 3]).to(metadata)[:, None]
    return metadata * kept


def on_device(metadata: NDArray[np.float32] | None, device: Device) -> Tensor | None:
    """Move metadata (num_images, K) to the device, if there is any."""
    return None if metadata is None else torch.tensor(metadata, device=device.torch_device)


def _network_images(pixels: Tensor, device: Device) -> Tensor:
    images = to_images(pixels)  # NHWC storage, so channels-last costs nothing
    return images if device.channels_last else images.contiguous()


def val_logits(classifier: Classifier, context: TrainingContext) -> Iterator[Tensor]:
    """Run a classifier over the validation images: yields float32 (N, C), batch by batch.

    They stay on the device: fetching each would make it wait.  Of several processes, each has a
    part of every batch, which may be empty.
    """
    classifier.eval()
    rows, size = context.data.val, context.config.training.batch_size
    parts = [
        distributed.share_of(rows[start : start + size]) for start in range(0, len(rows), size)
    ]
    disable = None if distributed.rank() == 0 else True
    progress = tqdm(parts, desc="validate", unit="batch", leave=False, disable=disable)
    for pixels, numbers in context.feed.batches(progress):
        if not len(numbers):
            yield torch.zeros((0, len(context.data.class_names)), device=numbers.device)
            continue
        metadata = None if context.metadata is None else context.metadata.index_select(0, numbers)
        with torch.inference_mode(), context.device.autocast():
            logits = classifier(_network_images(pixels, context.device), metadata)
        yield logits.float()


def val_scores(logits: NDArray[np.float32], data: LearningData) -> Metrics:
    """Score logits (N, C) of the validation images: what is logged per epoch, with its names.

    Of the scores of single classes only the sensitivities: a run's page stays readable.
    """
    return {
        f"val/{name}": value
        for name, value in score(logits, data.targets[data.val], data.class_names).items()
        if "/" not in name or name.startswith("recall/")
    }


def require_monitor(monitor: str, metrics: Metrics) -> None:
    """Refuse a `training.monitor` that is not among the metrics of an epoch.

    Raises:
        ConfigError: it is not.
    """
    if monitor not in metrics:
        known = ", ".join(
            name for name in metrics if name.startswith("val/") and name.count("/") == 1
        )
        raise ConfigError(
            f"training.monitor must be a metric that is logged, got {monitor!r}; known: {known}"
        )


def _close_epoch(
    state: TrainingState, val_metrics: Metrics, val_seconds: float, config: Config
) -> Epoch:
    """Write the epoch into the history and decide whether it is the best so far."""
    training = config.training
    metrics: Metrics = {
        "train/loss": state.loss_sum / state.num_images,
        "train/accuracy": state.num_correct / state.num_images,
        **val_metrics,
        "lr": float(state.optimizer.param_groups[0]["lr"]),
        "epoch_seconds": state.seconds + val_seconds,
        "images_per_second": state.num_images / max(state.seconds, 1e-9),  # of training
    }
    metrics = distributed.from_first(metrics)
    require_monitor(training.monitor, metrics)
    value = metrics[training.monitor]
    is_best = state.best_epoch == 0 or (
        value > state.best_value if training.higher_is_better else value < state.best_value
    )
    state.epoch += 1
    if is_best:
        state.best_epoch, state.best_value, state.epochs_without_better = state.epoch, value, 0
    else:
        state.epochs_without_better += 1
    patience = training.early_stopping_patience
    state.stopped_early = bool(patience) and state.epochs_without_better >= patience
    state.history.append({"epoch": state.epoch, **metrics})
    state.step, state.loss_sum, state.num_correct, state.num_images = 0, 0.0, 0, 0
    state.seconds = 0.0
    return Epoch(index=state.epoch, metrics=metrics, is_best=is_best)
