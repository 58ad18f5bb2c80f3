"""How long each part of a training step takes on this machine, and how much memory."""

import itertools
import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dermalyze.config import Config
from dermalyze.data.augment import augment
from dermalyze.data.loader import num_batches, seed_of
from dermalyze.models.classifier import build_classifier, to_images
from dermalyze.training.device import choose_device, enough_memory, keep_freed_memory
from dermalyze.training.loop import training_network
from dermalyze.training.losses import build_loss
from dermalyze.training.state import new_state

_NUM_CLASSES = 7  # of the random targets; their number takes no time
WARMUP_BATCHES = 2  # not counted: the first batches choose kernels and allocate memory


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Milliseconds a batch (median), and what follows from them."""

    device: str
    precision: str
    batch_size: int
    data: float  # uint8 rows to augmented images on the device
    forward: float
    backward: float
    step: float  # clipping and optimizer
    memory_mib: float  # peak of the process, or of the GPU
    images_per_second: float
    epoch_seconds: float  # training alone, for `num_images`
    num_images: int


def time_steps(config: Config, num_timed: int, num_images: int) -> StepTimes:
    """Time `num_timed` training steps on random pixels of the configured size.

    Args:
        config: which network, batch size, precision and augmentation.
        num_timed: batches to time.
        num_images: training images of the epoch whose duration is estimated.

    Raises:
        TrainingError: there is too little memory.
    """
    device = choose_device(config.training)
    classifier, _ = build_classifier(config.model, config.data.image_size, _NUM_CLASSES)
    state = new_state(classifier, config.training, device)
    network = training_network(classifier, config, device)
    if device.torch_device.type == "cpu":
        keep_freed_memory()
    loss = build_loss(config.loss, None)
    batch_size, side = config.training.batch_size, config.data.image_size
    rng = np.random.default_rng(config.training.seed)
    with enough_memory(device, batch_size):
        pool = rng.integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    targets = torch.from_numpy(rng.integers(0, _NUM_CLASSES, batch_size))
    targets = targets.to(device.torch_device)
    laps: list[list[float]] = []
    classifier.train()
    with enough_memory(device, batch_size):
        for number in tqdm(
            range(num_timed + WARMUP_BATCHES), unit="batch", disable=None, leave=False
        ):
            generator = torch.Generator().manual_seed(seed_of(config.training.seed, 1, number))
            marks = [_now(device.torch_device)]
            images = to_images(
                torch.from_numpy(pool[rng.permutation(batch_size)]).to(device.torch_device)
            )
            images = augment(images, config.augmentation, generator)
            marks.append(_now(device.torch_device))
            with device.autocast():
                logits = network(images)
            batch_loss = loss(logits, targets)
            marks.append(_now(device.torch_device))
            state.optimizer.zero_grad(set_to_none=True)
            state.scaler.scale(batch_loss).backward()  # type: ignore[no-untyped-call]
            marks.append(_now(device.torch_device))
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(classifier.parameters(), config.training.max_grad_norm or 1e9)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            marks.append(_now(device.torch_device))
            laps.append([1000 * (b - a) for a, b in itertools.pairwise(marks)])
    data, forward, backward, step = np.median(np.array(laps[WARMUP_BATCHES:]), axis=0)
    batch_ms = float(np.median(np.array(laps[WARMUP_BATCHES:]).sum(1)))
    return StepTimes(
        device=device.torch_device.type,
        precision=device.precision,
        batch_size=batch_size,
        data=float(data),
        forward=float(forward),
        backward=float(backward),
        step=float(step),
        memory_mib=_peak_memory(device.torch_device),
        images_per_second=1000 * batch_size / batch_ms,
        epoch_seconds=num_batches(num_images, batch_size) * batch_ms / 1000,
        num_images=num_images,
    )


def format_times(times: StepTimes) -> str:
    """Write the times as a small table for a terminal."""
    parts = [("data", times.data), ("forward", times.forward), ("backward", times.backward)]
    lines = [f"{times.device}, {times.precision}, batches of {times.batch_size}"]
    lines += [f"  {name:<9}{value:10.1f} ms" for name, value in [*parts, ("step", times.step)]]
    lines += [
        f"  {times.images_per_second:.1f} images/s, peak memory {times.memory_mib:.0f} MiB",
        f"  an epoch of {times.num_images:,} images takes {times.epoch_seconds:.0f} s "
        "(training alone)",
    ]
    return "\n".join(lines)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
