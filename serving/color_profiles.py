"""Colors that an ICC profile describes -> sRGB, as browsers convert them.

Relative colorimetric, without black point compensation.  As in browsers, a profile that is broken,
or made for other pixels than those of its image, is ignored.  Never imports torch.
"""

import io
import struct
from functools import lru_cache
from math import prod

import numpy as np
from PIL import Image, ImageCms

from serving.errors import ImageError

MAX_PROFILE_BYTES = 4 * 2**20  # those of printers take up to 3 MB

_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # the pixels that a profile is made for
_DEVICES = (b"mntr", b"scnr", b"prtr", b"spac")
_COLORS = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC", b"kTRC")
_TABLES = (b"A2B0", b"A2B1")  # from pixels to colors; the first that is there counts, in browsers
_MAX_TAGS = 100
_SAME = 1  # level; a profile that moves no color further is one of sRGB
_PROBED = np.linspace(0, 255, 9).round().astype(np.uint8)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an image of mode L, LA, RGB, RGBA or CMYK by its profile; sRGB is returned as it is.

    Raises:
        ImageError: the profile is too large.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        raise ImageError(
            f"the image has a color profile of {len(profile):,} bytes; the limit is "
            f"{MAX_PROFILE_BYTES:,}"
        )
    mode, has_alpha = _MODES.get(profile[16:20]), image.mode.endswith("A")
    if mode == "RGB" and image.mode in ("L", "LA"):  # colors that happen to be gray
        image = image.convert("RGBA" if has_alpha else "RGB")
    if mode != image.mode.removesuffix("A") or (transform := _transform(profile)) is None:
        return image
    converted = transform.apply(image.convert(mode) if has_alpha else image)
    del converted.info["icc_profile"]  # of sRGB
    if has_alpha:
        converted.putalpha(image.getchannel("A"))
    return converted


@lru_cache(maxsize=4)  # photographs of one camera have one profile
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return what converts to sRGB, or None where nothing is to be converted."""
    usable = _usable(profile)
    if usable is None:
        return None
    mode = _MODES[profile[16:20]]
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(usable)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except (OSError, ImageCms.PyCMSError):  # broken in a way that only its reader sees
        return None
    return None if mode != "CMYK" and _keeps_colors(transform, mode) else transform


def _keeps_colors(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    colors = np.stack(np.meshgrid(_PROBED, _PROBED, _PROBED), axis=-1).reshape(1, -1, 3)
    grays = np.arange(256, dtype=np.uint8).reshape(1, -1, 1).repeat(3, axis=2)
    probes = Image.fromarray(grays if mode == "L" else np.concatenate([colors, grays], axis=1))
    found = np.asarray(transform.apply(probes.convert(mode)), np.int16)
    return bool(np.abs(found - np.asarray(probes, np.int16)).max() <= _SAME)


def _usable(profile: bytes) -> bytes | None:
    """Return the profile with those tags alone that browsers read, or None where it is broken.

    What is left needs time and memory in proportion to its size: a table that says to be larger
    than its tag is not there.
    """
    if len(profile) < 132 or profile[36:40] != b"acsp" or profile[12:16] not in _DEVICES:
        return None
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > _MAX_TAGS or 132 + 12 * count > len(profile):
        return None
    entries = {
        name: (start, length)
        for name, start, length in struct.iter_unpack(">4sII", profile[132 : 132 + 12 * count])
        if start + length <= len(profile)
    }
    tables = [name for name in _TABLES if name in entries][:1]
    kept = [*tables, *(name for name in _COLORS if name in entries)]
    for name in tables:
        start, length = entries[name]
        if not _fits(profile[start : start + length]):
            return None
    table = b"".join(name + struct.pack(">II", *entries[name]) for name in kept)
    # The tags stay where they are: the table of their places only becomes shorter.
    head = profile[:128] + struct.pack(">I", len(kept)) + table
    return head + bytes(132 + 12 * count - len(head)) + profile[132 + 12 * count :]


def _fits(tag: bytes) -> bool:
    """Say whether a table of colors has as many of them as it says."""
    kind, inputs, outputs = tag[:4], *tag[8:10].ljust(2, b"\0")
    if kind in (b"mft1", b"mft2"):
        return len(tag) > 10 and tag[10] ** inputs * outputs <= len(tag)
    if kind != b"mAB " or len(tag) < 28:
        return False
    (start,) = struct.unpack_from(">I", tag, 24)
    sides = tag[start : start + inputs]
    return start == 0 or (len(sides) == inputs and prod(sides) * outputs <= len(tag))
