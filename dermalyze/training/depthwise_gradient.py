"""Strided depthwise convolutions on a CPU: the same gradient, many times faster.

oneDNN has no bf16 kernel for the gradient of a strided depthwise convolution by its input and
falls back to a reference loop: 55 ms for a layer whose forward pass takes 2 ms, half of a
MobileNetV2's whole training step.  The same sum is a convolution of stride 1, which is fast.

N images of H x W pixels, C channels, kernels of K x L.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FastDepthwiseGradients(TorchFunctionMode):
    """Within the block, strided depthwise `conv2d` calls get the fast gradient.

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
    if strides == (1, 1) or _pair(dilation) != (1, 1) or paddings > reach:
        return None
    if input.device.type != "cpu" or not input.requires_grad:
        return None
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return None
    output: Tensor = _StridedDepthwise.apply(  # type: ignore[no-untyped-call]
        input.to(torch.bfloat16), weight.to(torch.bfloat16), strides, paddings
    )
    return output


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return (values[0], values[-1])


class _StridedDepthwise(torch.autograd.Function):
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
            by_weight = torch.ops.aten.convolution_backward(
                gradient,
                images,
                weight,
                None,
                ctx.stride,
                ctx.padding,
                (1, 1),
                False,
                (0, 0),
                len(weight),
                (False, True, False),
            )[1]
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
    height, width = (size[i] + 2 * padding[i] - reach[i] for i in (0, 1))
    shape = (num, height, width, channels)  # channels-last in memory, as all else
    spread = gradient.new_zeros(shape).permute(0, 3, 1, 2)
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    rest = [reach[i] - padding[i] for i in (0, 1)]
    return F.conv2d(spread, weight.flip(2, 3), padding=rest, groups=channels)
