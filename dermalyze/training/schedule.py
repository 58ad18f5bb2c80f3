"""The learning rate as a plain function of the step: nothing to save, nothing to forget."""

import math

from dermalyze.config.schema import SchedulerConfig


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
