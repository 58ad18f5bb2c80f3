"""Depthwise convolutions on a CPU: the same gradients, many times faster.

oneDNN has no bf16 kernel for two gradients of depthwise convolutions and falls back to reference
loops: 55 ms for a layer whose forward pass takes 2 ms.  The gradient by the input of a strided
convolution is the same sum as a convolution of stride 1, which is fast.  The gradient by a kernel
wider than 3 pixels is computed in parts of 3 x 3, for which there is a fast kernel.

N images of H x W pixels, C channels, kernels of K x L.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FastDepthwiseGradients(TorchFunctionMode):
    """Within the block, strided and wide depthwise `conv2d` calls get the fast gradients.

    Only where the slow one would be taken: in bf16 autocast on a CPU.  Every other call passes.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the call where `_replaced` can."""
        kwargs = kwargs or {}
        result = _replaced(*args, **kwargs) if func is torch.conv2d else None
        return func(*args, **kwargs) if result is None else result


_PART = 3  # pixels: the widest kernel with a fast gradient
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}  # of conv2d


def _replaced(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """`torch.conv2d` with the fast gradient: (N, C, H, W) -> (N, C, h, w); None: not this one."""
    given = {**_DEFAULTS, **dict(zip(_DEFAULTS, args, strict=False)), **kwargs}
    bias, stride, padding, dilation, groups = given.values()
    depthwise = input.ndim == 4 and groups > 1 and groups == input.shape[1] == weight.shape[0]
    if not depthwise or bias is not None or isinstance(padding, str):
        return None
    strides, paddings = _pair(stride), _pair(padding)
    reach = (weight.shape[2] - 1, weight.shape[3] - 1)
    if strides == (1, 1) and max(reach) < _PART:
        return None
    if _pair(dilation) != (1, 1) or any(map(operator.gt, paddings, reach)):
        return None
    if input.device.type != "cpu" or not input.requires_grad:
        return None
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return None
    output: Tensor = _Depthwise.apply(  # type: ignore[no-untyped-call]
        input.to(torch.bfloat16), weight.to(torch.bfloat16), strides, paddings
    )
    return output


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return (values[0], values[-1])


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of bf16 (N, C, H, W) with bf16 (C, 1, K, L)."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(images, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_images = by_weight = None
        if ctx.needs_input_grad[0]:
            by_images = _gradient_by_images(
                gradient, weight, images.shape[2:], ctx.stride, ctx.padding
            )
        if ctx.needs_input_grad[1]:
            by_weight = _gradient_by_weight(gradient, images, weight, ctx.stride, ctx.padding)
        return by_images, by_weight, None, None


def _gradient_by_images(
    gradient: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Sum over the kernel, backwards: (N, C, h, w) -> (N, C, H, W).

    The gradient's values stand `stride` pixels apart among zeros, and the turned kernel is moved
    over them pixel by pixel; Dumoulin & Visin 2016, section 4.6.
    """
    num, channels = gradient.shape[:2]
    reach = [side - 1 for side in weight.shape[2:]]
    rest = [reach[i] - padding[i] for i in (0, 1)]
    turned = weight.flip(2, 3)
    if stride == (1, 1):
        return F.conv2d(gradient, turned, padding=rest, groups=channels)
    height, width = (size[i] + 2 * padding[i] - reach[i] for i in (0, 1))
    shape = (num, height, width, channels)  # channels-last in memory, as all else
    spread = gradient.new_zeros(shape).permute(0, 3, 1, 2)
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    return F.conv2d(spread, turned, padding=rest, groups=channels)


def _gradient_by_weight(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Sum over images and pixels: (N, C, h, w) -> (C, 1, K, L), `_PART` x `_PART` at a time."""
    height, width = (min(side, _PART) for side in weight.shape[2:])
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    rows, columns = (stride[i] * (gradient.shape[2 + i] - 1) for i in (0, 1))
    whole = torch.empty_like(weight)
    for top in _starts(weight.shape[2]):
        for left in _starts(weight.shape[3]):
            part = padded[:, :, top : top + rows + height, left : left + columns + width]
            whole[:, :, top : top + height, left : left + width] = (
                torch.ops.aten.convolution_backward(
                    gradient,
                    part.contiguous(memory_format=torch.channels_last),
                    weight[:, :, :height, :width].contiguous(),
                    None,
                    stride,
                    (0, 0),
                    (1, 1),
                    False,
                    (0, 0),
                    len(weight),
                    (False, True, False),
                )[1]
            )
    return whole


def _starts(side: int) -> list[int]:
    """Where the parts of a kernel begin that cover it; the last one may overlap."""
    return [max(0, min(start, side - _PART)) for start in range(0, side, _PART)]
