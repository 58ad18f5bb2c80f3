"""Learning rate and image size as functions of step and epoch: nothing to save, or to forget."""

import math

from dermalyze.config.schema import SchedulerConfig, TrainingConfig

_SIDE_STEP = 16  # pixels: few sizes, which the strides of most networks divide
_GROWTH = 0.75  # fraction of the epochs before the last size is reached


def learning_rate(
    step: int, *, lr: float, config: SchedulerConfig, steps_per_epoch: int, epochs: int
) -> float:
    """Return the learning rate of update `step`, counted from 0 over the whole training.

    A linear warm-up over `warmup_pct` of all updates ends at `lr`; a cosine from there falls to
    `eta_min` (Loshchilov & Hutter 2017, eq. 5) at the end of the training.  With warm restarts
    there is a cosine for each period of `T_0` epochs; the first period includes the warm-up.
    """
    warmup_steps = round(config.warmup_pct * steps_per_epoch * epochs)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if config.type == "constant":
        return lr
    period = (config.T_0 if config.type == "cosine_warm_restarts" else epochs) * steps_per_epoch
    start = max(warmup_steps, step - step % period)  # of the running cosine
    end = (step // period + 1) * period
    position = (step - start) / (end - start)  # 0..1 through it
    return config.eta_min + (lr - config.eta_min) * (1 + math.cos(math.pi * position)) / 2


def image_side(epoch: int, side: int, training: TrainingConfig) -> int:
    """Return the side, in pixels, of the training images in an epoch, counted from 1.

    It grows linearly from `training.first_scale` of `side` over three quarters of the epochs, in
    steps of 16 pixels, as in Tan & Le 2021, section 4; small images cost less.
    """
    position = min(1.0, (epoch - 1) / max(1.0, _GROWTH * training.epochs))
    scale = training.first_scale + (1 - training.first_scale) * position
    return side if scale == 1 else min(side, math.ceil(scale * side / _SIDE_STEP) * _SIDE_STEP)
