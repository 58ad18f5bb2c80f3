"""Everything that a training carries from one step to the next, and its way to disk and back.

Random numbers are no part of it: every step draws from generators seeded by (seed, epoch, step),
so that a resumed step draws what the uninterrupted one would have drawn.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dermalyze.models import torchvision_operators  # noqa: F401  isort: skip  before timm

import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dermalyze.config.schema import TrainingConfig
from dermalyze.models.classifier import Classifier
from dermalyze.models.mask_decoder import MaskDecoder
from dermalyze.training.device import Device
from serving.errors import ConfigError, TrainingError

Metrics = dict[str, float]


@dataclass(kw_only=True)
class TrainingState:
    """The network, its optimizer, and how far the training has come."""

    classifier: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    decoder: MaskDecoder | None = None  # of the second task, see `loss.mask_weight`
    epoch: int = 0  # complete epochs
    step: int = 0  # batches done in the epoch under way
    loss_sum: float = 0.0  # over the images of the epoch under way
    num_correct: int = 0  # likewise
    num_images: int = 0  # likewise
    seconds: float = 0.0  # of training, spent in the epoch under way
    history: list[Metrics] = field(default_factory=list)
    best_epoch: int = 0  # 0: none yet
    best_value: float = math.nan  # of `training.monitor`
    epochs_without_better: int = 0
    stopped_early: bool = False

    @property
    def validated(self) -> Classifier:
        """The weights that are validated and shipped: the moving average where there is one."""
        if self.ema is None:
            return self.classifier
        module = self.ema.module
        assert isinstance(module, Classifier)
        return module

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all weights that a training may change, those of the classifier first."""
        yield from self.classifier.named_parameters()
        if self.decoder is not None:
            yield from self.decoder.named_parameters(prefix="decoder")

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs beside the classifier's weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
            "decoder": self.decoder.state_dict() if self.decoder else {},
            "gradients": {  # of an update under way, see `training.accumulate`
                name: parameter.grad
                for name, parameter in self.named_weights()
                if parameter.grad is not None
            },
            **{name: getattr(self, name) for name in _PROGRESS},
        }

    def load_state_dict(self, weights: dict[str, Any], state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            TrainingError: the checkpoint belongs to another network or holds no training state.
        """
        try:
            self.classifier.load_state_dict(weights)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            gradients = state.get("gradients", {})  # older checkpoints have none
            if self.decoder is not None:
                self.decoder.load_state_dict(state["decoder"])
            for name, weight in self.named_weights():
                gradient = gradients.get(name)
                weight.grad = None if gradient is None else gradient.to(weight.device)
            for parameter, moments in self.optimizer.state.items():
                for moment in moments.values():  # torch would find out in the next step
                    if moment.ndim and moment.shape != parameter.shape:
                        raise ValueError(moment.shape)
            for name in _PROGRESS:
                if not isinstance(state[name], type(getattr(self, name))):
                    raise TypeError(name)
                setattr(self, name, state[name])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(
                "the checkpoint does not fit this training; resume with the settings it began with"
            ) from error


_PROGRESS = (
    "epoch",
    "step",
    "loss_sum",
    "num_correct",
    "num_images",
    "seconds",
    "history",
    "best_epoch",
    "best_value",
    "epochs_without_better",
    "stopped_early",
)


def new_state(
    classifier: Classifier,
    config: TrainingConfig,
    device: Device,
    decoder: MaskDecoder | None = None,
) -> TrainingState:
    """Move the networks to the device and give them a fresh optimizer."""
    for network in filter(None, (classifier, decoder)):
        network.to(device.torch_device)
        if device.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainingState(
        classifier=classifier,
        decoder=decoder,
        optimizer=_optimizer(classifier, decoder, config),
        scaler=torch.amp.GradScaler(device.torch_device.type, enabled=device.needs_scaler),
        ema=_moving_average(classifier, config.ema_decay) if config.ema_decay else None,
    )


def _moving_average(classifier: Classifier, decay: float) -> AveragedModel:
    """Average the weights and the batch statistics over about the last 1 / (1 - decay) updates.

    The decay of update t is at most (1 + t) / (10 + t), as in Inception and EfficientNet, or the
    untrained head would be a part of the average for long.
    """

    @torch.no_grad()
    def average(averages: Any, current: Any, _: Any) -> None:
        updates = int(average_of.n_averaged)  # on the CPU: no device is waited for
        kept = min(decay, (1 + updates) / (10 + updates))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, 1 - kept)
        else:
            torch._foreach_copy_(averages, current)  # numbers of batches

    average_of = AveragedModel(classifier, multi_avg_fn=average, use_buffers=True)
    return average_of


def _optimizer(
    classifier: Classifier, decoder: MaskDecoder | None, config: TrainingConfig
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases and norms, the vectors, are not decayed.

    With `layer_decay`, timm's groups of the backbone's layers have an `lr_scale`; the first group
    is always of the full rate.
    """
    layered = config.layer_decay < 1
    parts = classifier.head if layered else classifier, *filter(None, [decoder])
    trained = [p for part in parts for p in part.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if layered:
        layers = param_groups_layer_decay(
            classifier.backbone.network, config.weight_decay, layer_decay=config.layer_decay
        )
        if all(group["lr_scale"] == 1 for group in layers):
            raise ConfigError(
                f"training.layer_decay {config.layer_decay} has no effect on this network: timm "
                "finds no layers to train in its backbone; set it to 1.0"
            )
        groups += layers
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
