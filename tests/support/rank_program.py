"""What torchrun starts in tests: trains a network on images in memory, and writes its history.

`torchrun rank_program.py OUTPUT CASES`: CASES is JSON of pairs, settings and whether there is batch
norm.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dermalyze.config.loading import config_from
from dermalyze.models.backbone import Backbone
from dermalyze.models.classifier import Classifier
from dermalyze.models.heads import build_head
from dermalyze.training import distributed
from dermalyze.training.device import choose_device, set_determinism
from dermalyze.training.loop import LearningData, fit
from dermalyze.training.state import new_state
from serving.ham10000_taxonomy import HAM10000


class MemoryStore:
    """A pixel store without a file."""

    def __init__(self, pixels):
        self.pixels = pixels

    def batch(self, rows):
        return self.pixels[rows]


class Plain(nn.Module):
    """Features with and without batch norm."""

    output_fmt = "NCHW"

    def __init__(self, norm):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, stride=4)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()

    def forward_features(self, images):
        return torch.relu(self.norm(self.convolution(images)))


class PlainHead(nn.Module):
    """Features and metadata to classes, without batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6 + 3, 7)

    def forward(self, features, metadata):
        return self.linear(torch.cat([features.mean((2, 3)), metadata], 1))


def learning_data():
    """Images of three classes in unequal numbers, so that weighted losses differ by rank."""
    rng = np.random.default_rng(0)
    targets = np.repeat([3, 4, 5], [5, 11, 27])
    pixels = rng.normal(40 * targets[:, None, None, None] - 50, 40, (43, 24, 24, 3))
    rows = rng.permutation(43)
    return LearningData(
        store=MemoryStore(np.clip(pixels, 0, 255).astype(np.uint8)),
        class_names=HAM10000.names,
        targets=targets,
        train=rows[:32],
        val=rows[32:],
        metadata=rng.random((43, 3), dtype=np.float32),
        metadata_parts=(slice(0, 1), slice(1, 2), slice(2, 3)),
    )


def train(values, *, norm=False):
    """Train on a CPU; return the metrics of each epoch."""
    config = config_from(values)
    device = choose_device(config.training)
    set_determinism(deterministic=True)
    torch.manual_seed(0)
    head = build_head("simple", 6, 7, config.model.dropout_rate, 3) if norm else PlainHead()
    network = Classifier(Backbone(Plain(norm), 24), head)
    state = new_state(network, config.training, device)
    return [epoch.metrics for epoch in fit(state, learning_data(), config, device)]


if __name__ == "__main__":
    distributed.join()
    output, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    history = [train(values, norm=norm) for values, norm in cases]
    if distributed.rank() == 0:
        output.write_text(json.dumps(history))
    distributed.leave()
    os._exit(0)  # Python's own end takes a second
