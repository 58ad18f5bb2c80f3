"""Images of every kind that a file can hold, drawn for the parity check."""

import io
from typing import Any

import numpy as np
from PIL import Image

NamedImage = tuple[str, bytes]
_ORIENTATION = 0x0112  # the EXIF tag


def parity_images(seed: int = 0) -> list[NamedImage]:
    """Draw the images: all sizes, color modes, EXIF turns, qualities; same seed, same bytes."""
    rng = np.random.default_rng(seed)
    return [
        *_sizes(rng),
        *_modes(rng),
        *_turned(rng),
        *_qualities(rng),
        *_patterns(rng),
    ]


def _sizes(rng: np.random.Generator) -> list[NamedImage]:
    sizes = [(600, 450), (450, 600), (451, 301), (97, 203), (333, 77), (224, 224), (17, 31)]
    tiny = [(1, 1), (2, 3), (3, 2), (1, 50), (50, 1), (7, 7)]
    images = [(f"jpeg {w}x{h}", _jpeg(_scene(rng, w, h))) for w, h in sizes + tiny]
    images += [(f"png {w}x{h}", _png(_scene(rng, w, h))) for w, h in sizes[2:] + tiny]
    images.append(("jpeg 4000x3000", _jpeg(_scene(rng, 4000, 3000))))
    images.append(("png 2501x1999", _png(_scene(rng, 2501, 1999, noise=0))))
    return images


def _modes(rng: np.random.Generator) -> list[NamedImage]:
    scene = _scene(rng, 120, 90)
    grey = scene.convert("L")
    alpha = _scene(rng, 120, 90).convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257 + rng.integers(0, 200, (90, 120), np.uint16)
    see_through = scene.copy()
    see_through.putalpha(alpha)
    grey_see_through = grey.copy()
    grey_see_through.putalpha(alpha)
    return [
        ("jpeg grey", _jpeg(grey)),
        ("jpeg CMYK", _jpeg(scene.convert("CMYK"))),
        ("png grey", _png(grey)),
        ("png 16-bit grey", _png(Image.fromarray(deep.clip(0, 65535).astype(np.uint16)))),
        ("png 1-bit", _png(grey.convert("1"))),
        ("png RGBA", _png(see_through)),
        ("png grey and alpha", _png(grey_see_through)),
        ("png palette", _png(scene.quantize(64))),
        ("png palette with a clear color", _png(scene.quantize(16), transparency=3)),
        ("png RGB with a clear color", _png(_flat((9, 99, 199)), transparency=(9, 99, 199))),
    ]


def _turned(rng: np.random.Generator) -> list[NamedImage]:
    images = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        images.append(
            (f"jpeg orientation {orientation}", _jpeg(_scene(rng, 90, 60), exif=exif.tobytes()))
        )
    images.append(("png orientation 8", _png(_scene(rng, 90, 60), exif=exif.tobytes())))
    return images


def _qualities(rng: np.random.Generator) -> list[NamedImage]:
    images = [
        (f"jpeg quality {quality}", _jpeg(_scene(rng, 200, 150), quality=quality))
        for quality in (1, 10, 30, 60, 80, 100)
    ]
    images.append(("jpeg progressive", _jpeg(_scene(rng, 200, 150), progressive=True)))
    images.append(("jpeg 4:4:4", _jpeg(_scene(rng, 201, 151), subsampling=0)))
    images.append(("jpeg 4:2:2", _jpeg(_scene(rng, 201, 151), subsampling=1)))
    return images


def _patterns(rng: np.random.Generator) -> list[NamedImage]:
    colors = [
        (0, 0, 0),
        (255, 255, 255),
        (128, 128, 128),
        (224, 172, 145),
        (255, 0, 0),
        (0, 0, 255),
    ]
    images = [(f"png flat {color}", _png(_flat(color))) for color in colors]
    for i in range(6):
        noise = rng.integers(0, 256, (150, 200, 3), np.uint8)
        images.append((f"png noise {i}", _png(Image.fromarray(noise))))
    board = np.indices((150, 200)).sum(axis=0) % 2 * 255
    ramp = np.broadcast_to(np.linspace(0, 255, 200), (150, 200))
    for name, values in (("checkerboard", board), ("ramp", ramp)):
        images.append((f"png {name}", _png(Image.fromarray(values.astype(np.uint8)))))
    return images


def _scene(rng: np.random.Generator, width: int, height: int, noise: float = 6.0) -> Image.Image:
    """Draw blurred spots of color with some noise (standard deviation in levels of 256)."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = (rng.standard_normal((211, 307, 3), np.float32) * noise).astype(np.int16)
    tiles = (-(-height // 211), -(-width // 307), 1)  # one tile of noise, repeated: drawn faster
    grainy = smooth + np.tile(grain, tiles)[:height, :width]
    return Image.fromarray(grainy.clip(0, 255).astype(np.uint8))


def _flat(color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (60, 45), color)


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", **({"quality": 90} | options))
    return data.getvalue()


def _png(image: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", **({"compress_level": 1} | options))
    return data.getvalue()
