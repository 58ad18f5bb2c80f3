"""What is minimized: cross entropy or focal loss, with corrections of the imbalance.

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


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """Return one over the effective number of images per class: int64 (C,) -> float32 (C,).

    Cui et al. 2019, eq. 2: `(1 - beta^n) / (1 - beta)` for n images.  The weights are scaled to a
    mean of 1 over the training images.
    """
    numbers = counts.double()
    weights = torch.where(counts > 0, (1 - beta) / (1 - beta**numbers).clamp(min=1 - beta), 0.0)
    return (weights * numbers.sum() / (weights * numbers).sum()).float()


def logit_shift(counts: Tensor, tau: float) -> Tensor:
    """Return what is added to the logits in training: int64 (C,) -> float32 (C,).

    Menon et al. 2021, eq. 10: `tau log prior`.  A class without images counts as one with one.
    """
    numbers = counts.double().clamp(min=1)
    return (tau * (numbers / numbers.sum()).log()).float()


def distillation_loss(logits: Tensor, probs: Tensor, temperature: float) -> Tensor:
    """Return how far logits (N, C) are from a teacher's softened probabilities (N, C), in nats.

    Hinton et al. 2015: the mean divergence KL(teacher, student), both softened, times the square
    of the temperature, which keeps the size of its gradients.
    """
    softened = torch.log_softmax(logits.float() / temperature, 1)
    return F.kl_div(softened, probs, reduction="batchmean") * temperature**2


def build_loss(config: LossConfig, weights: Tensor | None, shift: Tensor | None = None) -> Loss:
    """Return `loss(logits (N, C), targets int64 (N,), mix) -> scalar`, in nats.

    The mean is weighted by the class weights of the targets, as torch's own is.  Focal loss is
    Lin et al. 2017, eq. 5: `-(1 - p)^gamma log p`; with gamma 0 it is cross entropy.

    Mixed images have the losses of both targets by their shares.  Their mean is the plain one
    over images, as torch's is for targets that are probabilities.

    Args:
        config: which loss.
        weights: of the classes, float32 (C,).
        shift: added to the logits, float32 (C,).
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
        if shift is not None:
            logits = logits + shift
        losses = losses_of(logits, targets[: len(logits)])
        if mix is not None:
            of_partners = losses_of(logits, targets.index_select(0, mix.partners))
            return losses.lerp(of_partners, 1 - mix.share).mean()
        if weights is None:
            return losses.mean()
        return losses.sum() / weights[targets].sum()

    return loss


def mask_loss(logits: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    """Cross entropy plus Dice loss (Milletari et al. 2016), a mean over the images with a mask.

    Args:
        logits: of being inside, (N, h, w).
        masks: how much of a place is inside, 0 to 1, float32 (N, h, w).
        known: whether there is a mask, bool (N,).
    """
    logits = logits.float()
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2))
    inside = torch.sigmoid(logits)
    both, each = (inside * masks).sum((1, 2)), (inside + masks).sum((1, 2))
    losses = entropy + 1 - (2 * both + 1) / (each + 1)
    return (losses * known).sum() / known.sum().clamp(min=1)
