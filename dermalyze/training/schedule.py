"""The learning rate as a plain function of the step: nothing to save, nothing to forget."""

import math

from dermalyze.config.schema import SchedulerConfig


def learning_rate(
    step: int, *, lr: float, config: SchedulerConfig, steps_per_epoch: int, epochs: int
) -> float:
    """Return the learning rate of update `step`, counted from 0 over the whole training.

    A linear warm-up over `warmup_pct` of all updates ends at `lr`; then come cosines from `lr` to
    `eta_min` of `T_0` epochs each (Loshchilov & Hutter 2017, eq. 5, with T_mult 1).
    """
    warmup_steps = round(config.warmup_pct * steps_per_epoch * epochs)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if config.type == "constant":
        return lr
    period = config.T_0 * steps_per_epoch
    position = (step - warmup_steps) % period / period  # 0..1 through the running cosine
    return config.eta_min + (lr - config.eta_min) * (1 + math.cos(math.pi * position)) / 2
