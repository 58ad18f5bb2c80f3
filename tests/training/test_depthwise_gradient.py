"""The fast gradient against PyTorch's own, in double precision."""

import contextlib

import pytest
import torch
from torch import nn

import dermalyze.models.torchvision_operators  # noqa: F401  isort: skip  before timm
from timm.layers import Conv2dSame

from dermalyze.training.depthwise_gradient import FastDepthwiseGradients

BF16_STEP = 2.0**-8  # the relative distance of neighboring bf16 numbers


def gradients(layer, images, upstream, *, fast, bf16=True):
    """Return the output's gradient function, and the gradients by images and by weight."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    with (
        torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext(),
        FastDepthwiseGradients() if fast else contextlib.nullcontext(),
    ):
        output = layer(images)
    output.backward(upstream.to(output.dtype))
    return output, images.grad, layer.weight.grad


def example(layer, size):
    """Images and an upstream gradient, both of values that bf16 holds exactly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, layer.in_channels, *size, generator=generator).bfloat16().float()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16().float())
        shape = layer(images).shape
    upstream = torch.randn(shape, generator=generator).bfloat16().float()
    return images.contiguous(memory_format=torch.channels_last), upstream


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), (16, 16)),
        (nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), (15, 10)),
        (nn.Conv2d(4, 4, 5, 2, 2, groups=4, bias=False), (13, 16)),
        (nn.Conv2d(4, 4, (3, 5), (2, 3), (0, 2), groups=4, bias=False), (12, 17)),
        (nn.Conv2d(4, 4, 2, 2, 0, groups=4, bias=False), (9, 8)),
        (Conv2dSame(4, 4, 3, 2, groups=4, bias=False), (16, 15)),
        (nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False), (9, 12)),
        (nn.Conv2d(8, 8, 7, 1, 3, groups=8, bias=False), (9, 12)),
        (nn.Conv2d(4, 4, (4, 2), 1, (0, 1), groups=4, bias=False), (9, 12)),
    ],
)
def test_the_gradients_are_those_of_double_precision_up_to_bf16s_rounding(layer, size):
    images, upstream = example(layer, size)
    output, by_images, by_weight = gradients(layer, images, upstream, fast=True)
    assert "_Depthwise" in output.grad_fn.name()
    plain, _, _ = gradients(layer, images, upstream, fast=False)
    assert torch.equal(output, plain)
    exact = layer.double()
    _, true_by_images, true_by_weight = gradients(
        exact, images.double(), upstream.double(), fast=False, bf16=False
    )
    layer.float()
    scale = true_by_images.abs().max()
    assert (by_images - true_by_images).abs().max() <= BF16_STEP * scale
    assert (by_weight - true_by_weight).abs().max() <= BF16_STEP * true_by_weight.abs().max()


@pytest.mark.parametrize(
    ("layer", "bf16"),
    [
        (nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), True),  # fast as it is
        (nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=True), True),
        (nn.Conv2d(4, 4, 3, 2, 1, groups=2, bias=False), True),
        (nn.Conv2d(4, 8, 3, 2, 1, groups=4, bias=False), True),
        (nn.Conv2d(4, 4, 3, 2, 1, groups=1, bias=False), True),
        (nn.Conv2d(4, 4, 3, 2, 2, dilation=2, groups=4, bias=False), True),
        (nn.Conv2d(4, 4, 3, 2, 3, groups=4, bias=False), True),  # more padding than kernel
        (nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), False),
    ],
)
def test_every_other_convolution_is_left_alone(layer, bf16):
    images, upstream = example(layer, (12, 12))
    output, by_images, by_weight = gradients(layer, images, upstream, fast=True, bf16=bf16)
    assert "_Depthwise" not in output.grad_fn.name()
    _, expected_by_images, expected_by_weight = gradients(
        layer, images, upstream, fast=False, bf16=bf16
    )
    assert torch.equal(by_images, expected_by_images)
    assert torch.equal(by_weight, expected_by_weight)


def test_frozen_weights_get_no_gradient():
    layer = nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False).requires_grad_(False)
    images, upstream = example(layer, (8, 8))
    output, by_images, by_weight = gradients(layer, images, upstream, fast=True)
    assert "_Depthwise" in output.grad_fn.name()
    assert by_weight is None
    assert by_images.shape == images.shape
