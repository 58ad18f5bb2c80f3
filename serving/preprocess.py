"""Bytes -> upright sRGB image -> uint8 pixels: the only road from a file to the model.

Training, validation, parity check and serving all come through here.  H and W are the model's
input size in pixels.  Never imports torch.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from serving.color_profiles import to_srgb
from serving.errors import ImageError, OutOfMemoryError, TooManyPixelsError
from serving.image_size import MAX_FILE_BYTES, MAX_PIXELS
from serving.os_errors import read_bounded
from serving.spec import ModelSpec

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG")
_ORIENTATION = 0x0112  # the EXIF tag
_DEEP_GRAY = ("I", "I;16", "I;16B", "I;16L")
# By how a PNG stores a sample: the bits of a clear color that count, and the step between levels.
_CLEAR = {"1": (1, 255), "L;2": (3, 85), "L;4": (15, 17), "L": (255, 1), "RGB": (255, 1)}
_PROFILED = ("L", "LA", "RGB", "RGBA", "CMYK")
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode JPEG or PNG bytes to an upright sRGB image; transparency is laid on white.

    Args:
        data: a whole file.
        max_pixels: how large the image may be, width x height, by its header.

    Raises:
        ImageError: the bytes are no such image, damaged, cut short or too large.
        OutOfMemoryError: there is not enough memory for it now.
    """
    image = None
    try:
        # Reads the header alone: an image over our limit is refused before any pixel is decoded.
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size, max_pixels)
        return upright_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # so large that Pillow does not tell its size
        raise TooManyPixelsError(
            f"the image is too large; the limit is {max_pixels:,} pixels"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"not a JPEG or PNG image ({len(data):,} bytes)") from error
    except Exception as error:  # damaged files make Pillow raise at least five types
        if isinstance(error, MemoryError) or not _has_memory(image):
            raise OutOfMemoryError(
                f"there is not enough memory to decode the image ({len(data):,} bytes); free some, "
                "or take a smaller one"
            ) from error
        if "MAX_TEXT_CHUNK" in str(error):  # of Pillow, which takes profiles of PNG for text
            raise ImageError(
                "the image has a color profile or a text of more than "
                f"{PngImagePlugin.MAX_TEXT_CHUNK:,} bytes; save it without"
            ) from error
        raise ImageError(
            f"cannot decode the image ({len(data):,} bytes): it is damaged or cut short"
        ) from error


def _has_memory(image: Image.Image | None) -> bool:
    """Say whether there is room for what decoding an opened image takes beside its pixels.

    libjpeg calls a lack of memory a broken data stream; a progressive file takes most: two bytes of
    each of three channels.
    """
    try:
        np.empty(6 * image.width * image.height if image is not None else 0, np.uint8)
    except MemoryError:
        return False
    return True


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn an opened image as its EXIF tag says and make it sRGB; one that is both is returned.

    Raises:
        ImageError: its color profile is too large.
    """
    image = _loaded(image)
    # Phones store rotation as a tag; a lesion must not depend on how the phone was held.
    if image.getexif().get(_ORIENTATION, 1) != 1:  # asked first: Pillow copies an upright image
        image = ImageOps.exif_transpose(image)
    if (profile := image.info.get("icc_profile")) is not None:
        image = to_srgb(image if image.mode in _PROFILED else image.convert("RGB"), profile)
    if image.mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _loaded(image: Image.Image) -> Image.Image:
    """Decode an opened image; gray becomes 8-bit, what can be clear gets an alpha channel."""
    stored = str(
        image.tile[0].args if isinstance(image, PngImageFile) and image.tile else image.mode
    )
    key: Any = image.info.get("transparency")  # of a palette its alphas, else the clear color
    keyed = key is not None and image.mode in ("1", "L", "RGB", *_DEEP_GRAY)
    low = None
    if isinstance(image, PngImageFile) and keyed and stored == "RGB;16B":
        low = _low_bytes(image)
    image.load()
    if image.mode == "1":
        image = image.convert("L")
    samples = np.asarray(image) if keyed or image.mode in _DEEP_GRAY else np.empty(0)
    info = image.info
    if image.mode in _DEEP_GRAY:
        # Pillow clips 16-bit gray at 255 instead of scaling it by 255 / 65535.
        gray = (samples.astype(np.int64) + 128) // 257
        image = Image.fromarray(gray.clip(0, 255).astype(np.uint8), "L")
    if keyed:
        if low is not None:
            samples = 256 * samples.astype(np.uint16) + low
        mask, step = _CLEAR.get(stored, (0xFFFF, 1))
        same = samples == step * np.bitwise_and(key, mask)
        alpha = np.where(same.all(axis=2) if same.ndim == 3 else same, 0, 255).astype(np.uint8)
        image = Image.merge(f"{image.mode}A", (*image.split(), Image.fromarray(alpha)))
    elif stored == "LA;16B" or image.mode == "La":
        image = image.convert("LA")
    elif image.mode in ("PA", "RGBa") or key is not None:
        image = image.convert("RGBA")
    if image.info is not info:  # made anew
        image.info = {name: value for name, value in info.items() if name != "transparency"}
    return image


def _low_bytes(image: PngImageFile) -> Pixels:
    """Decode the lower halves of the samples of a 16-bit PNG, of which Pillow keeps the upper ones.

    The color that is clear is one of 16 bits: another one with equal upper halves is not clear.
    """
    assert image.fp is not None  # no pixel has been decoded yet
    position = image.fp.tell()
    image.fp.seek(0)
    again = PngImageFile(io.BytesIO(image.fp.read()))
    image.fp.seek(position)
    again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]  # the bytes swapped
    return np.asarray(again)


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image whose decoding would cost too much memory."""
    if width < 1 or height < 1 or width * height > max_pixels:
        raise TooManyPixelsError(
            f"the image is {width} x {height}; the limit is {max_pixels:,} pixels"
        )


def read_bytes(path: Path) -> bytes:
    """Read a file that should hold one image.

    Raises:
        ImageError: it is missing, cannot be read, or is far larger than an image.
    """
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ImageError(f"{path} has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
        return read_bounded(path, MAX_FILE_BYTES)
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
