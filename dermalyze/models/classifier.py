"""The network: a backbone and a head, with normalization inside.

N images of H x W pixels, C classes.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dermalyze.config.schema import ModelConfig
from dermalyze.models.backbone import Backbone, build_backbone
from dermalyze.models.heads import AcrnnHead, SimpleHead, build_head
from dermalyze.models.pretrained import Weights
from serving.metadata import MetadataFields


def to_images(pixels: Tensor) -> Tensor:
    """Turn stored pixels into network input: uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in 0..1."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0


class Classifier(nn.Module):
    """Images to logits: float32 (N, 3, H, W) in 0..1 -> float (N, C)."""

    def __init__(
        self, backbone: Backbone, head: SimpleHead | AcrnnHead, *, freeze_backbone: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.freeze_backbone = freeze_backbone  # may change between epochs
        if freeze_backbone:
            backbone.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Classifier":
        """Switch to training; a frozen backbone stays in evaluation, batch norm and all."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def backbone_gradients(self) -> AbstractContextManager[object]:
        """Run the backbone within this block: a frozen one gets no gradients in training."""
        return torch.no_grad() if self.training and self.freeze_backbone else nullcontext()

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return logits.

        Args:
            images: float32 (N, 3, H, W) in 0..1.
            metadata: float32 (N, K), where the head takes it; None: nothing is known.
        """
        with self.backbone_gradients():
            features = self.backbone(images)
        logits: Tensor = self.head(features, metadata)
        return logits


def build_classifier(
    config: ModelConfig, image_size: int, num_classes: int, metadata: MetadataFields | None = None
) -> tuple[Classifier, Weights]:
    """Build the network that `config` describes, and say which weights it starts from.

    Args:
        config: the backbone and the head.
        image_size: height and width of its images, pixels.
        num_classes: C.
        metadata: what the head takes beside the image; None: nothing.
    """
    backbone, weights = build_backbone(config, image_size)
    head = build_head(
        config.head_type,
        backbone.num_features,
        num_classes,
        config.dropout_rate,
        0 if metadata is None else metadata.width,
    )
    classifier = Classifier(backbone, head, freeze_backbone=config.freeze_backbone)
    return classifier, weights
