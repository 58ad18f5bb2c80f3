"""Is the photograph itself fit to be judged?  Cheap checks: size, sharpness, light, color.

N images of H x W pixels.  Never imports torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.uncertainty import SpecPart, is_number, require_part

_LUMA = (np.float32(0.299), np.float32(0.587), np.float32(0.114))  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class QualityLimits(SpecPart):
    """Beyond which a photograph is called poor; levels are those of 0..255."""

    min_side: int  # pixels, the shorter side of the photograph
    min_sharpness: float  # levels, as `measure` has it
    min_brightness: float  # levels
    max_brightness: float  # levels
    min_color: float  # levels

    def __post_init__(self) -> None:
        """Refuse what no predictor could use."""
        for name in ("min_side", "min_sharpness", "min_brightness", "max_brightness", "min_color"):
            value = getattr(self, name)
            require_part(
                is_number(value) and value >= 0, f"quality.{name}", "a number of 0 or more", value
            )


@dataclass(frozen=True)
class Measures:
    """What is measured of N images, float64 (N,) each, in levels."""

    sharpness: NDArray[np.float64]  # mean distance of a pixel from the mean of its 4 neighbors
    brightness: NDArray[np.float64]  # mean luma
    color: NDArray[np.float64]  # mean distance between the largest and the smallest channel


def measure(pixels: NDArray[np.uint8]) -> Measures:
    """Measure what the network sees: uint8 (N, H, W, 3), RGB."""
    # Plane by plane: with the colors side by side it would take twenty times as long.
    red, green, blue = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    color = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    luma = sum(
        plane.astype(np.float32) * weight
        for plane, weight in zip((red, green, blue), _LUMA, strict=True)
    )
    luma = np.asarray(luma)  # (N, H, W)
    neighbors = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return Measures(
        sharpness=_mean(np.abs(luma[:, 1:-1, 1:-1] - neighbors / 4)),
        brightness=_mean(luma),
        color=_mean(color),
    )


def hints(
    pixels: NDArray[np.uint8], size: tuple[int, int], limits: QualityLimits
) -> tuple[str, ...]:
    """Say what is wrong with a photograph, a sentence each; nothing is the usual case.

    Args:
        pixels: uint8 (H, W, 3), what the network sees of it.
        size: width and height of the photograph, pixels.
        limits: of the model.
    """
    measured = measure(pixels[None])
    brightness = float(measured.brightness[0])
    said = []
    if min(size) < limits.min_side:
        said.append(
            f"the photograph is too small ({size[0]} x {size[1]} pixels); send one of at least "
            f"{limits.min_side} pixels on its shorter side"
        )
    if brightness < limits.min_brightness:
        said.append("the photograph is too dark; use more light")
    if brightness > limits.max_brightness:
        said.append("the photograph is too bright; use less light, and no flash on wet skin")
    if measured.color[0] < limits.min_color:
        said.append("the photograph has hardly any color; send one in color")
    if measured.sharpness[0] < limits.min_sharpness:
        said.append("the photograph is blurred; hold still and focus on the lesion")
    return tuple(said)


def _mean(values: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)
    return mean
