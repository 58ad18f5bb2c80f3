"""What goes wrong with a photograph, at five strengths, after Hendrycks & Dietterich (2019).

Each takes uint8 pixels (H, W, 3), a strength from 1 to 5 and a random generator, and returns
pixels.  Strengths are ours: chosen by eye for images of 128 pixels.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter, map_coordinates, zoom

from dermalyze.data.pixel_store.decoder import Pixels

Random = np.random.Generator
STRENGTHS = (1, 2, 3, 4, 5)


def gaussian_noise(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Add noise of a sensor in little light."""
    sigma = (8, 14, 22, 34, 50)[strength - 1]
    return _uint8(pixels + rng.normal(0, sigma, pixels.shape))


def shot_noise(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Draw photons: bright places get more noise."""
    photons = (60, 30, 15, 8, 4)[strength - 1]  # at full brightness
    return _uint8(rng.poisson(pixels / 255 * photons) * 255 / photons)


def impulse_noise(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Set some pixels to black or white."""
    share = (0.02, 0.05, 0.1, 0.18, 0.3)[strength - 1]
    hit = rng.random(pixels.shape[:2]) < share
    noisy = pixels.copy()
    noisy[hit] = rng.choice([0, 255], (int(hit.sum()), 1))
    return noisy


def defocus_blur(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Blur as a lens out of focus does."""
    radius = (1.5, 2.5, 4, 6, 9)[strength - 1]
    side = np.arange(-int(radius + 1), int(radius + 1) + 1)
    disk = (side[:, None] ** 2 + side**2 <= radius**2).astype(float)
    return _uint8(convolve(pixels.astype(float), (disk / disk.sum())[..., None], mode="nearest"))


def motion_blur(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Blur along a line, as a moving hand does."""
    length = (5, 7, 11, 15, 23)[strength - 1]  # odd: an even one shifts the image
    angle = rng.uniform(0, np.pi)
    line = np.zeros((length, length))
    steps = np.linspace(-(length - 1) / 2, (length - 1) / 2, 4 * length)
    middle = (length - 1) / 2
    line[
        (middle + steps * np.sin(angle)).round().astype(int),
        (middle + steps * np.cos(angle)).round().astype(int),
    ] = 1
    return _uint8(convolve(pixels.astype(float), (line / line.sum())[..., None], mode="nearest"))


def zoom_blur(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Blur towards the middle."""
    largest = (1.08, 1.15, 1.25, 1.4, 1.6)[strength - 1]
    layers = [_zoomed(pixels, factor) for factor in np.linspace(1, largest, 8)]
    return _uint8(np.mean(layers, axis=0))


def brightness(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Add light."""
    return _uint8(pixels.astype(float) + (20, 40, 60, 80, 105)[strength - 1])


def darkness(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Take light."""
    return _uint8(pixels * (0.75, 0.6, 0.45, 0.3, 0.18)[strength - 1])


def contrast(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Pull all levels to their mean."""
    factor = (0.7, 0.5, 0.35, 0.2, 0.1)[strength - 1]
    return _uint8((pixels - pixels.mean()) * factor + pixels.mean())


def saturate(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Strengthen colors."""
    factor = (1.5, 2.0, 2.8, 4.0, 6.0)[strength - 1]
    grey = pixels.mean(axis=2, keepdims=True)
    return _uint8(grey + (pixels - grey) * factor)


def desaturate(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Weaken colors."""
    factor = (0.7, 0.5, 0.3, 0.15, 0.0)[strength - 1]
    grey = pixels.mean(axis=2, keepdims=True)
    return _uint8(grey + (pixels - grey) * factor)


def jpeg(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Save as a small JPEG."""
    return np.asarray(saved(Image.fromarray(pixels), (30, 20, 12, 7, 3)[strength - 1]))


def pixelate(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Leave few large pixels."""
    factor = (0.6, 0.45, 0.3, 0.2, 0.12)[strength - 1]
    height, width = pixels.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    image = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def fog(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Lay white clouds over the image."""
    share = (0.2, 0.35, 0.5, 0.65, 0.8)[strength - 1]
    layers = [gaussian_filter(rng.random(pixels.shape[:2]), s) * s for s in (2, 5, 12, 30)]
    clouds = np.sum(layers, axis=0)
    clouds = (clouds - clouds.min()) / np.ptp(clouds)
    return _uint8(pixels * (1 - share) + 255 * share * (0.4 + 0.6 * clouds[..., None]))


def glass(pixels: Pixels, strength: int, rng: Random) -> Pixels:
    """Shift each pixel at random."""
    reach = (1, 2, 3, 5, 8)[strength - 1]
    shape = pixels.shape[:2]
    rows, columns = np.indices(shape) + rng.uniform(-reach, reach, (2, *shape))
    planes = [
        map_coordinates(pixels[..., i].astype(float), [rows, columns], order=1, mode="nearest")
        for i in range(3)
    ]
    return _uint8(np.stack(planes, axis=-1))


CORRUPTIONS: Mapping[str, Callable[[Pixels, int, Random], Pixels]] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        motion_blur,
        zoom_blur,
        glass,
        brightness,
        darkness,
        contrast,
        saturate,
        desaturate,
        fog,
        jpeg,
        pixelate,
    )
}


def saved(image: Image.Image, quality: int) -> Image.Image:
    """Save an image as JPEG, and read it again."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def _zoomed(pixels: Pixels, factor: float) -> NDArray[np.float64]:
    """Enlarge around the middle; the shape stays."""
    height, width = pixels.shape[:2]
    large = zoom(pixels.astype(float), (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])


def _uint8(values: NDArray[np.floating[Any]]) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
