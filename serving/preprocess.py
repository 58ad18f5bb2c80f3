"""Bytes -> upright RGB image -> uint8 pixels: the only road from a file to the model.

Training, validation, parity check and serving all come through here.  H and W are the model's
input size in pixels.  Never imports torch.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from serving.errors import ImageError
from serving.sizes import MAX_PIXELS
from serving.spec import ModelSpec

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG")
_ORIENTATION = 0x0112  # the EXIF tag
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode JPEG or PNG bytes to an upright RGB image; transparency is laid on white.

    Args:
        data: a whole file.
        max_pixels: how large the image may be, width x height, by its header.

    Raises:
        ImageError: the bytes are no such image, damaged, cut short or too large.
    """
    try:
        # Reads the header alone: an image over our limit is refused before any pixel is decoded.
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size, max_pixels)
        return upright_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # so large that Pillow does not tell its size
        raise ImageError(f"the image is too large; the limit is {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"not a JPEG or PNG image ({len(data):,} bytes)") from error
    except Exception as error:  # damaged files make Pillow raise at least five types
        raise ImageError(
            f"cannot decode the image ({len(data):,} bytes): it is damaged or cut short"
        ) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn an opened image as its EXIF tag says and make it RGB; one that is both is returned."""
    image.load()
    # Phones store rotation as a tag; a lesion must not depend on how the phone was held.
    if image.getexif().get(_ORIENTATION, 1) != 1:  # asked first: Pillow copies an upright image
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        # Pillow clips 16-bit grey at 255 instead of scaling it by 255 / 65535.
        grey = (np.asarray(image).astype(np.int64) + 128) // 257
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8), "L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image whose decoding would cost too much memory."""
    if width < 1 or height < 1 or width * height > max_pixels:
        raise ImageError(f"the image is {width} x {height}; the limit is {max_pixels:,} pixels")


def read_bytes(path: Path) -> bytes:
    """Read a file that should hold one image.

    Raises:
        ImageError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or 'no such file'}") from error


def resize(image: Image.Image, size: tuple[int, int], *, mode: str, filter_name: str) -> Pixels:
    """Resize an RGB image to uint8 (H, W, 3); `size` is (H, W)."""
    height, width = size
    resample = _FILTERS[filter_name]
    if mode == "center_crop":
        # The largest middle part that has the target's shape; nothing is distorted.
        scale = min(image.width / width, image.height / height)
        crop_width = min(width * scale, image.width)  # rounding may put it just outside
        crop_height = min(height * scale, image.height)
        left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
        box = (left, top, left + crop_width, top + crop_height)
        resized = image.resize((width, height), resample, box=box)
    else:
        resized = image.resize((width, height), resample)
    return np.asarray(resized, np.uint8)


def to_pixels(image: Image.Image, spec: ModelSpec) -> Pixels:
    """RGB image -> uint8 (H, W, 3), as the model of `spec` expects it."""
    return resize(image, spec.input_size, mode=spec.resize_mode, filter_name=spec.resize_filter)
