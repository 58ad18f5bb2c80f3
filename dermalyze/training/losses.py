"""What is minimized: cross entropy or focal loss, with class weights and label smoothing.

N images, C classes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dermalyze.config.schema import LossConfig
from dermalyze.data.mixing import Mix

Loss = Callable[[Tensor, Tensor, Mix | None], Tensor]


def class_weights(counts: Tensor) -> Tensor:
    """Return `total / (classes * count)` per class: int64 (C,) -> float32 (C,).

    A class without images never meets the loss; its weight is 0.
    """
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0).to(torch.float32)


def build_loss(config: LossConfig, weights: Tensor | None) -> Loss:
    """Return `loss(logits (N, C), targets int64 (N,), mix) -> scalar`, in nats.

    The mean is weighted by the class weights of the targets, as torch's own is.  Focal loss is
    Lin et al. 2017, eq. 5: `-(1 - p)^gamma log p`; with gamma 0 it is cross entropy.

    Mixed images have the losses of both targets by their shares.  Their mean is the plain one
    over images, as torch's is for targets that are probabilities.
    """

    def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits,
            targets,
            weight=weights,
            label_smoothing=config.label_smoothing,
            reduction="none",
        )  # (N,)
        if config.type == "focal":
            p = torch.softmax(logits, 1).gather(1, targets[:, None]).squeeze(1)  # (N,)
            losses = losses * (1 - p) ** config.focal_gamma
        return losses

    def loss(logits: Tensor, targets: Tensor, mix: Mix | None = None) -> Tensor:
        logits = logits.float()  # bf16 has too few digits for a logarithm
        losses = losses_of(logits, targets)
        if mix is not None:
            of_partners = losses_of(logits, targets.index_select(0, mix.partners))
            return losses.lerp(of_partners, 1 - mix.share).mean()
        if weights is None:
            return losses.mean()
        return losses.sum() / weights[targets].sum()

    return loss
