"""A network of a few hundred weights with the real normalization and a real head."""

import numpy as np
import torch
from torch import nn

from dermalyze.export.parity_images import parity_images
from dermalyze.models.backbone import Backbone
from dermalyze.models.classifier import Classifier, to_images
from dermalyze.models.heads import build_head
from serving.ham10000_taxonomy import HAM10000
from serving.prediction import open_image
from serving.preprocess import to_pixels
from serving.spec import ModelSpec

TINY_SPEC = ModelSpec(
    taxonomy=HAM10000, input_size=(16, 16), resize_filter="bilinear", temperature=1.5
)


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
    return spread(network, TINY_SPEC)


def spread(network, spec):
    """Make an untrained network answer differently for different images.

    Without this, the parity of a check would be that of two constants.  The statistics of its
    norms become those of the images that will be asked about, and what a block adds to its input
    is made small, as training starts in many recipes: a deep network of random blocks amplifies
    rounding until PyTorch does not agree with itself in double precision.
    """
    pixels = np.stack([to_pixels(open_image(data), spec) for _, data in parity_images()])
    with torch.no_grad():
        for module in network.modules():
            norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            for norm in norms:
                norm.momentum = 1.0
            if getattr(module, "has_skip", False):
                norms[-1].weight.fill_(0.1)
        network.train()(to_images(torch.from_numpy(pixels)))
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        last.weight *= 5
    return network.eval()
