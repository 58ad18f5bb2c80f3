"""Images made to harm or confuse, each with whether it still is one that can be answered."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from strangers import header_of_a_large_png, png

ORIENTATION, SOFTWARE = 0x0112, 0x0131  # EXIF tags
TIFF_HEADER = b"II*\x00\x08\x00\x00\x00"  # of EXIF; the first directory follows


def crafted():
    """Return name -> (bytes, whether it can be answered)."""
    photograph = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    )
    jpeg, small = saved(photograph, "JPEG"), png(0)
    made = {
        "plain JPEG": (jpeg, True),
        "progressive JPEG": (saved(photograph, "JPEG", progressive=True), True),
        "grey JPEG": (saved(photograph.convert("L"), "JPEG"), True),
        "CMYK JPEG": (saved(photograph.convert("CMYK"), "JPEG"), True),
        "1-bit PNG": (saved(photograph.convert("1"), "PNG"), True),
        "16-bit grey PNG": (saved(photograph.convert("L").convert("I;16"), "PNG"), True),
        "palette PNG with transparency": (
            saved(photograph.convert("P"), "PNG", transparency=3),
            True,
        ),
        "grey PNG with alpha": (saved(photograph.convert("LA"), "PNG"), True),
        "one pixel": (saved(photograph.resize((1, 1)), "PNG"), True),
        "long and thin": (saved(photograph.resize((8000, 1)), "PNG"), True),
        "animated PNG": (
            saved(photograph, "PNG", save_all=True, append_images=[photograph] * 3),
            True,
        ),
        "two pictures in one JPEG": (
            saved(photograph, "MPO", save_all=True, append_images=[photograph]),
            True,
        ),
        "JPEG with more behind it": (jpeg + b"PK\x03\x04" + bytes(5000), True),
        "PNG with a page behind it": (small + b"<script>alert(1)</script>", True),
        "page before a PNG": (b"<html>" + small, False),
        "GIF that says JPEG": (b"GIF89a" + jpeg, False),
        "GIF": (saved(photograph, "GIF"), False),
        "BMP": (saved(photograph, "BMP"), False),
        "TIFF": (saved(photograph, "TIFF"), False),
        "WebP": (saved(photograph, "WEBP"), False),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', False),
        "HEIC by its first bytes": (b"\x00\x00\x00\x18ftypheic" + bytes(100), False),
        "ZIP": (b"PK\x03\x04" + bytes(100), False),
        "nothing": (b"", False),
        "zeros": (bytes(1000), False),
        "JPEG's first bytes alone": (b"\xff\xd8\xff", False),
        "PNG's first bytes alone": (b"\x89PNG\r\n\x1a\n", False),
        "41 megapixels by its header": (header_of_a_large_png(8200, 5000), False),
        "four billion pixels by its header": (header_of_a_large_png(2**16, 2**16), False),
        "the largest header": (header_of_a_large_png(2**31 - 1, 2**31 - 1), False),
        "no width": (header_of_a_large_png(0, 10), False),
        "JPEG of 65,535 x 65,535 by its header": (with_size(jpeg, 65_535, 65_535), False),
        "JPEG without width": (with_size(jpeg, 0, 40), False),
        "39 megapixels of one color": (flat_png(7800, 5000), True),
        "text that unpacks to 100 MB": (with_text(small, 100_000_000), False),
        "chunk longer than the file": (small[:33] + b"\x7f\xff\xff\xffIDAT" + small[41:], True),
        "wrong checksum": (small[:-16] + bytes(4) + small[-12:], True),
        "50,000 tiny chunks": (with_chunks(small, 50_000), True),
        "giant EXIF": (saved(photograph, "JPEG", exif=exif({SOFTWARE: "x" * 60_000})), True),
        "EXIF that turns by nine": (saved(photograph, "JPEG", exif=exif({ORIENTATION: 9})), True),
        "EXIF that turns by text": (with_exif(jpeg, TIFF_HEADER + turned_by_text()), True),
        "EXIF that points to itself": (with_exif(jpeg, TIFF_HEADER + ring()), True),
        "EXIF of noise": (with_exif(jpeg, np.random.default_rng(1).bytes(500)), True),
        "EXIF cut short": (with_exif(jpeg, b"MM\x00*"), True),
        "ICC profile of noise": (saved(photograph, "JPEG", icc_profile=bytes(range(256))), True),
        "giant ICC profile": (saved(photograph, "PNG", icc_profile=bytes(2_000_000)), False),
        "PNG without its end": (small[:-12], True),
        "JPEG without its end": (jpeg[:-2], False),
    }
    for i in range(1, 20):
        made[f"JPEG cut after {i} twentieths"] = (jpeg[: len(jpeg) * i // 20], False)
        made[f"PNG cut after {i} twentieths"] = (small[: len(small) * i // 20], False)
    return made


def saved(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def exif(tags):
    made = Image.Exif()
    made.update(tags)
    return made


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(data, count):
    """Put chunks behind the header of a PNG."""
    return data[:33] + chunk(b"teXt", b"") * count + data[33:]


def with_text(data, size):
    text = b"k\x00\x00" + zlib.compress(bytes(size), 9)
    return data[:33] + chunk(b"zTXt", text) + data[33:]


def png_of_samples(samples, depth, color, before=b""):
    """Write samples (H, W, channels) as a PNG of any depth and kind of color, unfiltered."""
    height, width, _ = samples.shape
    bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1  # the highest first
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = header + before + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def keyed_png(depth, color, *, profile=b""):
    """Return a PNG with one clear color, and what it shows on white: levels 0..255, (1, W, 3).

    Next to the clear color are those that differ from it in the lowest bit of a sample.
    """
    channels = {0: 1, 2: 3}[color]
    largest = 2**depth - 1
    key = np.array([largest // 3, largest // 5, largest // 2][:channels])
    near = [key ^ np.eye(channels, dtype=int)[i] for i in range(channels)]
    samples = np.array([[key, *near, key, [largest] * channels, [0] * channels]])
    before = chunk(b"tRNS", key.astype(">u2").tobytes())
    if profile:
        before = chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)) + before
    if depth == 16 and color == 2:
        shown = samples >> 8  # as Pillow does
    else:
        shown = np.floor(samples * 255 / largest + 0.5).astype(int)
    shown = np.broadcast_to(shown, (*shown.shape[:2], 3)).copy()
    shown[(samples == key).all(axis=2)] = 255
    return png_of_samples(samples, depth, color, before), shown


def flat_png(width, height):
    """Write a large PNG of one color without holding it."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\x00" + b"\x80" * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def with_size(data, width, height):
    """Change width and height in the header of a JPEG."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def with_exif(data, content):
    block = b"Exif\x00\x00" + content
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def ring():
    """Return a directory of one orientation tag whose next directory is itself."""
    return struct.pack("<HHHII", 1, ORIENTATION, 3, 1, 6) + struct.pack("<I", 8)


def turned_by_text():
    return struct.pack("<HHHI4s", 1, ORIENTATION, 2, 4, b"abc") + struct.pack("<I", 0)
