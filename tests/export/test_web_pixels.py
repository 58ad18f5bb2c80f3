"""What the page that needs no server makes of an image's bytes, beside Pillow."""

import struct
import zlib

import numpy as np
import pytest
from browsers import Opened, files_of
from crafted import ORIENTATION, chunk, crafted, exif, keyed_png, saved
from PIL import Image
from profiles import ADOBE, BROKEN, P3, SRGB, gray_profile, inks, rgb_profile, table_profile
from strangers import text

from serving.color_profiles import MAX_PROFILE_BYTES
from serving.errors import ImageError
from serving.preprocess import decode_image, resize
from serving.spec import RESIZE_FILTERS, RESIZE_MODES

pytestmark = pytest.mark.slow

RESIZE = """async ([text, width, height, size, mode, filter]) => {
  const { resize } = await import(new URL("resample.js", location.href));
  const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return [...resize({ data, width, height }, size, { mode, filter })];
}"""
DECODE = """async (text) => {
  const { decode } = await import(new URL("decode.js", location.href));
  try {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const { data, width, height } = await decode(new Blob([bytes]));
    return { data: [...data], width, height };
  } catch (error) {
    return { error: error.message };
  }
}"""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's kind of color
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
PASSES += [(0, 1, 1, 2)]  # of an interlaced PNG: first column and row, steps between them
JPEG_LEVELS = 6  # how far two decoders of JPEG may lie apart on noise; measured: 4


@pytest.fixture(scope="module")
def page(browser, rich_page):
    with files_of(rich_page) as address, Opened(browser, address) as page:
        yield page


def decoded(page, data):
    """Return what the page decodes: uint8 (H, W, 3), or the sentence of its error."""
    found = page.evaluate(DECODE, text(data))
    if "error" in found:
        return found["error"]
    return np.array(found["data"], np.uint8).reshape(found["height"], found["width"], 3)


def of_pillow(data):
    try:
        return np.asarray(decode_image(data))
    except ImageError as error:
        return str(error)


def noise_png(width, height, depth, color, *, interlaced=False, before=b"", after=b"", seed=0):
    """Write a PNG of noise, each row under any filter, its data in two chunks."""
    rng = np.random.default_rng([seed, depth, color, interlaced])
    rows = []
    for left, top, across, down in PASSES if interlaced else [(0, 0, 1, 1)]:
        columns, count = -(-(width - left) // across), -(-(height - top) // down)
        for _ in range(count if columns > 0 else 0):
            size = -(-columns * depth * CHANNELS[color] // 8)
            rows.append(bytes([rng.integers(0, 5), *rng.integers(0, 256, size)]))
    packed = zlib.compress(b"".join(rows))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    half = len(packed) // 2
    body = before + chunk(b"IDAT", packed[:half]) + chunk(b"IDAT", packed[half:]) + after
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def palettes(depth, color):
    """Return what may stand before the data of this kind: palettes, transparent colors."""
    rng = np.random.default_rng([depth, color])
    if color == 3:
        count = 2**depth
        full = chunk(b"PLTE", bytes(rng.integers(0, 256, 3 * count).tolist()))
        alphas = bytes(rng.integers(0, 256, count).tolist())
        one = b"\xff" * min(count - 1, 3) + b"\0"
        short = chunk(b"PLTE", bytes(rng.integers(0, 256, 3).tolist()))
        return [full, full + chunk(b"tRNS", alphas), full + chunk(b"tRNS", one), short]
    if color in (0, 2):
        key = rng.integers(0, 2**depth, CHANNELS[color])
        return [b"", chunk(b"tRNS", key.astype(">u2").tobytes())]
    return [b""]


@pytest.mark.parametrize(("color", "depth"), [(c, d) for c in DEPTHS for d in DEPTHS[c]])
def test_a_png_of_every_kind_is_decoded_to_the_byte(page, color, depth):
    for before in palettes(depth, color):
        for interlaced in (False, True):
            for width, height in ((1, 1), (7, 5), (3, 20), (33, 9)):
                data = noise_png(width, height, depth, color, interlaced=interlaced, before=before)
                np.testing.assert_array_equal(decoded(page, data), of_pillow(data))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_png_is_turned_as_its_tag_says_wherever_the_tag_stands(page, order):
    for turn in range(10):
        tag = struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, ORIENTATION, 3, 1, turn, 0, 0)
        block = chunk(b"eXIf", (b"II" if order == "<" else b"MM") + tag)
        for place in ("before", "after"):
            data = noise_png(7, 5, 8, 2, **{place: block})
            np.testing.assert_array_equal(decoded(page, data), of_pillow(data))


def test_a_damaged_png_is_refused_or_decoded_as_pillow_does(page):
    whole = noise_png(33, 9, 8, 2)
    rng = np.random.default_rng(0)
    for i in range(8, len(whole), 11):
        changed = bytearray(whole)
        changed[i] ^= rng.integers(1, 256)
        for data in (bytes(changed), whole[:i]):
            np.testing.assert_array_equal(decoded(page, data), of_pillow(data), err_msg=str(i))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("filter_name", RESIZE_FILTERS)
def test_resizing_is_pillows_to_the_byte(page, mode, filter_name):
    rng = np.random.default_rng(0)
    sizes = [(30, 40, 6, 8), (6, 8, 30, 40), (7, 50, 7, 20), (50, 7, 20, 7), (9, 9, 9, 9)]
    sizes += [(1, 1, 5, 5), (300, 2, 4, 64), (2, 300, 64, 4), (64, 64, 1, 1)]
    # One pass or the other comes first: just at the bound, and on either side of it.
    sizes += [(60, 40, 20, columns) for columns in (19, 20, 21, 39, 41)]
    sizes += [tuple(rng.integers(1, 90, 4).tolist()) for _ in range(20)]
    for height, width, rows, columns in sizes:
        pixels = rng.integers(0, 2, (height, width, 3)).astype(np.uint8) * 255  # overshoots most
        if rng.random() < 0.5:
            pixels = rng.integers(0, 256, pixels.shape).astype(np.uint8)
        expected = resize(
            Image.fromarray(pixels), (rows, columns), mode=mode, filter_name=filter_name
        )
        asked = [text(pixels.tobytes()), width, height, [rows, columns], mode, filter_name]
        found = np.array(page.evaluate(RESIZE, asked), np.uint8).reshape(rows, columns, 3)
        np.testing.assert_array_equal(found, expected, err_msg=str((height, width, rows, columns)))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_a_jpeg_is_decoded_within_few_levels_of_pillow(page, options):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    for size in ((40, 30), (37, 23), (1, 9)):
        for turn in (1, 6):
            image = Image.fromarray(small).resize(size)
            data = saved(image, "JPEG", exif=exif({ORIENTATION: turn}), **options)
            expected = of_pillow(data).astype(int)
            assert np.abs(decoded(page, data) - expected).max() <= JPEG_LEVELS


TABLE = "a table larger than the file"
RNG = np.random.default_rng(0)
COLORS = Image.fromarray(RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8))
PROFILED = {
    "P3": (COLORS, P3),
    "Adobe": (COLORS, ADOBE),
    "sRGB": (COLORS, SRGB),
    "a gamma": (COLORS, rgb_profile("P3", 1.8)),
    "a table": (COLORS, rgb_profile("P3", np.linspace(0, 1, 9) ** 2)),
    "gray": (COLORS.convert("L"), gray_profile(1.8)),
    "gray by colors": (COLORS.convert("L"), ADOBE),
    "gray with alpha": (COLORS.convert("LA"), gray_profile(1.8)),
    "a palette": (COLORS.quantize(9), P3),
    "in parts": (COLORS, P3 + bytes(150_000)),
    "inks, not by their profile": (COLORS.convert("CMYK"), P3),
} | {f"broken: {name}": (COLORS, profile) for name, profile in BROKEN.items() if name != TABLE}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("name", PROFILED)
def test_a_profile_is_converted_within_two_levels_of_python(page, name, kind):
    image, profile = PROFILED[name]
    alike = {"PNG": "L LA RGB P", "JPEG": "L RGB CMYK"}[kind].split()
    if image.mode not in alike:
        return  # there is no such file
    quality = {"quality": 100, "subsampling": 0} if image.mode in ("RGB", "CMYK") else {}
    data = saved(image, kind, icc_profile=profile, **(quality if kind == "JPEG" else {}))
    expected = of_pillow(data).astype(int)
    assert np.abs(decoded(page, data) - expected).max() <= 2
    plain = of_pillow(saved(image, kind, **(quality if kind == "JPEG" else {}))).astype(int)
    ignored = name == "sRGB" or name.startswith(("broken", "inks"))
    assert (np.abs(expected - plain).max() <= 1) == ignored
    if ignored and kind == "PNG":
        np.testing.assert_array_equal(decoded(page, data), expected)


def test_a_profile_that_needs_a_table_of_colors_or_is_too_large_is_refused(page):
    lab = np.stack(np.meshgrid(*[np.linspace(0, 90, 3)] * 3, indexing="ij"), axis=-1)
    for image, profile in (
        (COLORS, table_profile(b"RGB ", lab)),
        (COLORS, BROKEN[TABLE]),  # the page does not look into it
        (COLORS.convert("CMYK"), table_profile(b"CMYK", inks())),
    ):
        assert decoded(page, saved(image, "JPEG", icc_profile=profile)) == (
            "the image has a color profile that this page cannot convert; save the image as sRGB"
        )
    data = saved(COLORS, "JPEG", icc_profile=P3 + bytes(MAX_PROFILE_BYTES))
    assert decoded(page, data) == of_pillow(data)


@pytest.mark.parametrize(
    ("color", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)]
)
def test_a_png_is_clear_where_it_has_its_clear_color_to_the_last_bit(page, color, depth):
    data, shown = keyed_png(depth, color)
    np.testing.assert_array_equal(decoded(page, data), shown)
    data, shown = keyed_png(depth, color, profile=ADOBE)
    assert np.abs(decoded(page, data) - of_pillow(data).astype(int)).max() <= 2


def test_a_photograph_larger_than_a_part_of_it_is_put_together_rightly(page):
    """Parts are of 2,048 x 2,048 pixels; the page sends sums, as 13 million levels take long."""
    ramp = np.add.outer(np.arange(2100) // 9, np.arange(2060) // 9).astype(np.uint8)
    data = saved(Image.fromarray(np.stack([ramp, ramp, ramp], axis=2)), "JPEG", quality=95)
    found = page.evaluate(
        """async (text) => {
          const { decode } = await import(new URL("decode.js", location.href));
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const { data, width, height } = await decode(new Blob([bytes]));
          const row = (y) => Array.from({ length: width }, (_, x) => data[3 * (y * width + x)]);
          return [width, height, row(5), row(2047), row(2048), row(2099)];
        }""",
        text(data),
    )
    expected = of_pillow(data)[:, :, 0].astype(int)
    assert found[:2] == [2060, 2100]
    for row, y in zip(found[2:], (5, 2047, 2048, 2099), strict=True):
        assert np.abs(np.array(row) - expected[y]).max() <= JPEG_LEVELS


def test_a_browser_that_alters_what_a_page_reads_gets_no_answer(page):
    change = """() => {
      const real = OffscreenCanvasRenderingContext2D.prototype.getImageData;
      OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...where) {
        const image = real.apply(this, where);
        image.data[40] ^= 1;
        return image;
      };
      window.putBack = () => {
        OffscreenCanvasRenderingContext2D.prototype.getImageData = real;
      };
    }"""
    data = crafted()["plain JPEG"][0]
    page.evaluate(change)
    try:
        assert decoded(page, data) == (
            "this browser alters the pixels that a page reads; let this page read them, or send a "
            "PNG"
        )
    finally:
        page.evaluate("putBack()")
    assert not isinstance(decoded(page, data), str)
