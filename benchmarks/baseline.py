"""The training that a good engineer writes by hand in PyTorch: what ours is measured against.

`Dataset`, Pillow, torchvision's transforms for each image, `DataLoader` workers; float32, eager,
no channels-last.  The kinds of augmentation, their sizes and probabilities are the configuration's.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import dermalyze.models.torchvision_operators  # noqa: F401  isort: skip  before torchvision
from torchvision import transforms

from dermalyze.config.schema import AugmentationConfig, Config
from dermalyze.data.augmentation import LEVEL_SCALES
from dermalyze.models.classifier import build_classifier
from dermalyze.training.losses import class_weights
from dermalyze.training.schedule import learning_rate
from serving.ham10000_taxonomy import HAM10000

FILTERS = {
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "lanczos": transforms.InterpolationMode.LANCZOS,
}


class Lesions(Dataset):
    """JPEG files and their class indices."""

    def __init__(
        self, files: Sequence[Path], targets: Sequence[int], transform: transforms.Compose
    ) -> None:
        self.files, self.targets, self.transform = files, targets, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB")), self.targets[index]


def augmenting(config: AugmentationConfig) -> list[nn.Module | object]:
    """Torchvision's counterpart of each of our augmentations."""
    scale = LEVEL_SCALES[config.level]

    def chance(probability: float) -> float:
        return min(1.0, probability * scale)

    return [
        transforms.RandomHorizontalFlip(chance(config.horizontal_flip)),
        transforms.RandomVerticalFlip(chance(config.vertical_flip)),
        transforms.RandomApply(
            [
                transforms.RandomRotation(
                    config.rotation_degrees, transforms.InterpolationMode.BILINEAR
                )
            ],
            chance(config.rotation),
        ),
        transforms.RandomApply(
            [
                transforms.RandomAffine(
                    config.affine_degrees,
                    (config.affine_translate, config.affine_translate),
                    (config.affine_scale_min, config.affine_scale_max),
                    interpolation=transforms.InterpolationMode.BILINEAR,
                )
            ],
            chance(config.affine),
        ),
        transforms.RandomApply(
            [
                transforms.ColorJitter(
                    config.brightness, config.contrast, config.saturation, config.hue
                )
            ],
            chance(config.color_jitter),
        ),
        transforms.RandomApply(
            [
                transforms.GaussianBlur(
                    2 * math.ceil(3 * config.blur_sigma_max) + 1, (0.1, config.blur_sigma_max)
                )
            ],
            chance(config.blur),
        ),
        transforms.ToTensor(),
        transforms.RandomErasing(
            chance(config.cutout), (config.cutout_scale**2, config.cutout_scale**2), (1.0, 1.0)
        ),
    ]


def train(
    config: Config,
    train_data: tuple[Sequence[Path], Sequence[int]],
    val_data: tuple[Sequence[Path], Sequence[int]],
    workers: int,
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield, after each epoch, its seconds and the validation logits (N, C)."""
    training, side = config.training, config.data.image_size
    torch.manual_seed(training.seed)
    network, _ = build_classifier(config.model, side, len(HAM10000))
    resize = transforms.Resize((side, side), FILTERS[config.data.resize_filter])
    train_loader = DataLoader(
        Lesions(*train_data, transforms.Compose([resize, *augmenting(config.augmentation)])),
        training.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        drop_last=len(train_data[0]) % training.batch_size == 1,  # batch norm needs two
    )
    val_loader = DataLoader(
        Lesions(*val_data, transforms.Compose([resize, transforms.ToTensor()])),
        training.batch_size,
        num_workers=workers,
        persistent_workers=True,
    )
    counts = np.bincount(train_data[1], minlength=7)
    weights = class_weights(torch.from_numpy(counts))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=training.lr, weight_decay=training.weight_decay
    )
    for epoch in range(training.epochs):
        started = time.perf_counter()
        network.train()
        for step, (images, targets) in enumerate(train_loader):
            loss = F.cross_entropy(network(images), targets, weight=weights)
            lr = learning_rate(
                epoch * len(train_loader) + step,
                lr=training.lr,
                config=training.scheduler,
                steps_per_epoch=len(train_loader),
                epochs=training.epochs,
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), training.max_grad_norm)
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            logits = torch.cat([network(images) for images, _ in val_loader])
        yield time.perf_counter() - started, logits.numpy()
