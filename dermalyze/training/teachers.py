"""Trained networks that another one learns from, beside the labels.

Teachers see what the network sees, augmented and mixed: Beyer et al. 2022 found that this is what
makes distillation work.  N images of H x W pixels, C classes.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dermalyze.config.schema import LossConfig
from dermalyze.models.checkpoint import load_member
from dermalyze.training.device import Device
from serving.errors import ConfigError

Teacher = Callable[[Tensor], Tensor]  # float32 (N, 3, H, W) in 0..1 -> probabilities (N, C)


def open_teachers(
    config: LossConfig, class_names: tuple[str, ...], device: Device
) -> Teacher | None:
    """Load the checkpoints that `distill_from` names onto the device; None: it names none.

    Several teachers answer with the mean of their probabilities, each softened by the temperature.
    Images are resized to the size that a teacher knows; of metadata it is told nothing.

    Raises:
        ArtifactError: a file is missing or not a checkpoint.
        ConfigError: a teacher knows other classes.
    """
    teachers = []
    for file in config.distill_from:
        member, spec = load_member(Path(file))
        names = spec.taxonomy.names
        if names != class_names:
            raise ConfigError(
                f"the teacher {file} knows the classes {', '.join(names)}, and the training data "
                f"has {', '.join(class_names)}; name teachers with the same classes in the same "
                "order in loss.distill_from"
            )
        network = member.classifier.to(device.torch_device)
        if device.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        teachers.append((network, spec.input_size))

    @torch.no_grad()
    def probs_of(images: Tensor) -> Tensor:
        total = torch.zeros((), device=images.device)
        for network, size in teachers:
            seen = images
            if seen.shape[2:] != size:
                seen = F.interpolate(images, size, mode="bilinear", antialias=True)
            with device.autocast():
                logits = network(seen)
            total = total + torch.softmax(logits.float() / config.distill_temperature, 1)
        return total / len(teachers)

    return probs_of if teachers else None
