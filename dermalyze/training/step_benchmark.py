"""How long each part of a training step takes on this machine, and how much memory."""

import itertools
import resource
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from dermalyze.config.schema import Config
from dermalyze.data.pixel_store.journal import PIXELS
from dermalyze.data.pixel_store.store import PixelStore
from dermalyze.data.sampling import num_batches, seed_of
from dermalyze.models.classifier import build_classifier
from dermalyze.training.device import choose_device, enough_memory
from dermalyze.training.loop import LearningData, Part, open_context, train_step
from dermalyze.training.state import new_state
from serving.os_errors import temporary_folder

_NUM_CLASSES = 7  # of the random targets; their number takes no time
WARMUP_BATCHES = 2  # not counted: the first batches choose kernels and allocate memory


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Milliseconds per batch (median), and what follows from them."""

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

    Metadata is left out: its few numbers per image take no time.  So are teachers.

    Args:
        config: which network, batch size, precision and augmentation.
        num_timed: batches to time.
        num_images: training images of the epoch whose duration is estimated.

    Raises:
        TrainingError: there is too little memory.
    """
    config = replace(config, loss=replace(config.loss, distill_from=()))
    device = choose_device(config.training)
    names = tuple(map(str, range(_NUM_CLASSES)))
    classifier, _ = build_classifier(config.model, config.data.image_size, len(names))
    state = new_state(classifier, config.training, device)
    batch_size, side = config.training.batch_size, config.data.image_size
    rng = np.random.default_rng(config.training.seed)
    rows = np.arange(batch_size)
    laps: list[list[float]] = []
    with enough_memory(device, batch_size), temporary_folder() as folder:
        np.save(folder / PIXELS, rng.integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8))
        data = LearningData(
            store=PixelStore(folder / PIXELS),
            class_names=names,
            targets=rng.integers(0, len(names), batch_size),
            train=rows,
            val=rows,
        )
        context = open_context(classifier, data, config, device)
        classifier.train()
        numbers = tqdm(range(num_timed + WARMUP_BATCHES), unit="batch", disable=None, leave=False)
        marks = [_now(device.torch_device)]
        batches = context.feed.batches(rng.permutation(rows) for _ in numbers)
        for number, batch in enumerate(batches):
            seed = seed_of(config.training.seed, 1, number)
            part = Part(seed=seed, side=config.data.image_size, mixes=config.augmentation.mixes)
            train_step(state, context, batch, part, lambda: marks.append(_now(device.torch_device)))
            laps.append([1000 * (b - a) for a, b in itertools.pairwise(marks)])
            marks[:] = [_now(device.torch_device)]
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
