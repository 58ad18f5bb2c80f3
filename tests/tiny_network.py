"""A network of a few hundred weights with the real normalization and a real head."""

import torch
from torch import nn

from dermalyze.models.backbone import Backbone
from dermalyze.models.classifier import Classifier, to_images
from dermalyze.models.heads import build_head
from serving.spec import ModelSpec

TINY_SPEC = ModelSpec(input_size=(16, 16), resize_filter="bilinear", temperature=1.5)


class _Features(nn.Module):
    output_fmt = "NCHW"

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, stride=4)
        self.norm = nn.BatchNorm2d(6)

    def forward_features(self, images):
        return torch.relu(self.norm(self.convolution(images)))


def tiny_network(seed=0, head_type="simple", features=_Features):
    """Return a `Classifier` whose answers differ from image to image."""
    torch.manual_seed(seed)
    network = Classifier(Backbone(features(), 16), build_head(head_type, 6, 7, 0.3))
    return spread(network, 16)


def spread(network, side):
    """Make an untrained network answer differently for different images.

    Without this, the parity of a check would be that of two constants.
    """
    pixels = torch.randint(0, 256, (16, side, side, 3), generator=torch.Generator().manual_seed(0))
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics become those of this one batch
    with torch.no_grad():
        network.train()(to_images(pixels.to(torch.uint8)))
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        last.weight *= 5
    return network.eval()
