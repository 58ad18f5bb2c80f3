"""Where the lesion is, from a backbone's features: a task beside the classes, in training only.

N images of H x W pixels, h x w places of the finest feature level that is used.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dermalyze.models.backbone import Backbone
from dermalyze.models.classifier import Classifier

_NUM_LEVELS = 3  # the last ones: an eighth of the image's sides, a sixteenth, a thirty-second
_WIDTH = 64  # channels


class MaskDecoder(nn.Module):
    """Feature levels to one logit a place: up to three of (N, F, h, w) -> (N, h, w).

    A feature pyramid (Lin et al. 2017) of width 64: each level is added to the coarser ones.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        """Take the channels of each level, finest first."""
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, _WIDTH, 1) for width in widths)
        self.mix = nn.Sequential(
            nn.BatchNorm2d(_WIDTH),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(_WIDTH),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, 1, 1),
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return logits of being inside the lesion."""
        finest = levels[0].shape[2:]
        summed = sum(
            F.interpolate(lateral(level), finest, mode="bilinear")
            for lateral, level in zip(self.lateral, levels, strict=True)
        )
        logits: Tensor = self.mix(summed)[:, 0]
        return logits


class TwoTasks(nn.Module):
    """A classifier and a decoder of its features: images -> logits (N, C), (N, h, w)."""

    def __init__(self, classifier: Classifier, decoder: MaskDecoder) -> None:
        super().__init__()
        self.classifier, self.decoder = classifier, decoder

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the backbone once for both."""
        with self.classifier.backbone_gradients():
            features, levels = self.classifier.backbone.with_levels(images, _NUM_LEVELS)
        return self.classifier.head(features, metadata), self.decoder(levels)


def build_mask_decoder(backbone: Backbone, image_size: int) -> MaskDecoder:
    """Build a decoder for a backbone's features; image_size: pixels."""
    training = backbone.training
    device = backbone.mean.device
    with torch.no_grad():
        images = torch.zeros(1, 3, image_size, image_size, device=device)
        _, levels = backbone.eval().with_levels(images, _NUM_LEVELS)
    backbone.train(training)
    return MaskDecoder([level.shape[1] for level in levels])
