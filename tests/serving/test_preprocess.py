"""The only road from bytes to pixels: every kind of image, no kind of surprise."""

import io
import re
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.errors import ImageError
from serving.ham10000_taxonomy import HAM10000
from serving.preprocess import (
    MAX_PIXELS,
    decode_image,
    read_bytes,
    resize,
    to_pixels,
    upright_rgb,
)
from serving.spec import RESIZE_FILTERS, RESIZE_MODES, ModelSpec

_ORIENTATION = 0x0112
# What a viewer has to do to show the picture upright (EXIF 2.32, table of tag 0x0112), done with
# numpy: rows and columns of the stored picture.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def noise(height=6, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def png_of_size(width, height):
    """A valid PNG header of any size with a few pixels behind it."""
    data = bytearray(encoded(Image.fromarray(noise())))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


PICTURES = [
    encoded(Image.fromarray(noise(40, 50)), kind, **options)
    for kind, options in (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}))
]


@given(data=st.binary(max_size=512))
def test_junk_is_an_image_error_and_nothing_else(data):
    with pytest.raises(ImageError):
        decode_image(data)


@settings(max_examples=150)
@given(
    data=st.sampled_from(PICTURES),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    keep=st.floats(0, 1),
)
def test_a_damaged_image_is_an_rgb_image_or_an_image_error(data, changes, keep):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of strange EXIF
            image = decode_image(bytes(damaged[: int(keep * len(damaged)) + 1]))
    except ImageError:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_exif_turn_is_undone(orientation):
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    image = decode_image(encoded(Image.fromarray(noise()), exif=exif.tobytes()))
    np.testing.assert_array_equal(np.asarray(image), UPRIGHT[orientation](noise()))


def test_deep_grey_is_scaled_to_the_nearest_level():
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    image = decode_image(encoded(Image.fromarray(deep)))
    # round(value * 255 / 65535), by hand
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert image.mode == "RGB"


def test_transparency_is_laid_on_white():
    color = np.zeros((1, 3, 4), np.uint8)
    color[0, :, 0] = 200
    color[0, :, 3] = [0, 51, 255]  # clear, one fifth, solid
    image = decode_image(encoded(Image.fromarray(color)))
    # 255 + (color - 255) * alpha / 255
    assert np.asarray(image)[0].tolist() == [[255, 255, 255], [244, 204, 204], [200, 0, 0]]


def test_a_clear_color_of_a_palette_or_of_rgb_becomes_white():
    picture = Image.new("RGB", (2, 1), (10, 20, 30))
    picture.putpixel((1, 0), (0, 0, 255))
    rgb = decode_image(encoded(picture, transparency=(10, 20, 30)))
    assert np.asarray(rgb)[0].tolist() == [[255, 255, 255], [0, 0, 255]]
    palette = picture.quantize(2)
    clear = palette.getpixel((0, 0))
    shown = np.asarray(decode_image(encoded(palette, transparency=clear)))[0].tolist()
    assert shown == [[255, 255, 255], [0, 0, 255]]


def test_cmyk_and_grey_become_rgb():
    grey = Image.new("L", (4, 4), 77)
    assert np.asarray(decode_image(encoded(grey))).tolist() == [[[77] * 3] * 4] * 4
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red, green, blue = np.asarray(decode_image(encoded(cmyk, "JPEG", quality=100)))[4, 4]
    assert (red > 250, green < 5, blue < 5) == (True, True, True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JPEG or PNG image (0 bytes)"),
        (b"hello" * 300, "not a JPEG or PNG image (1,500 bytes)"),
        (
            encoded(Image.fromarray(noise()), "GIF"),
            r"not a JPEG or PNG image \(\d+ bytes\)",
        ),
        (PICTURES[1][:700], "cannot decode the image (700 bytes): it is damaged or cut short"),
        (png_of_size(8001, 5000), "the image is 8001 x 5000; the limit is 40,000,000 pixels"),
        (png_of_size(40_000, 40_000), "the image is too large; the limit is 40,000,000 pixels"),
    ],
)
def test_what_is_wrong_with_an_image_is_said_in_one_line(data, message):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert str(caught.value) == message or re.fullmatch(message, str(caught.value))


def test_an_image_just_within_the_limit_is_not_refused_for_its_size():
    assert MAX_PIXELS == 8000 * 5000
    with pytest.raises(ImageError, match="damaged or cut short"):
        decode_image(png_of_size(8000, 5000))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError) as caught:
        read_bytes(tmp_path / "none.jpg")
    assert str(caught.value) == f"cannot read {tmp_path}/none.jpg: No such file or directory"


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("filter_name", RESIZE_FILTERS)
def test_a_flat_image_stays_flat_whatever_its_size(mode, filter_name):
    spec = ModelSpec(
        taxonomy=HAM10000, input_size=(12, 17), resize_mode=mode, resize_filter=filter_name
    )
    flat = Image.new("RGB", (40, 50), (128, 3, 250))
    expected = np.full((12, 17, 3), (128, 3, 250), np.uint8)
    np.testing.assert_array_equal(to_pixels(flat, spec), expected)


def test_an_image_of_the_right_size_is_not_touched():
    for mode in RESIZE_MODES:
        pixels = resize(Image.fromarray(noise()), (6, 9), mode=mode, filter_name="bicubic")
        np.testing.assert_array_equal(pixels, noise())


def test_center_crop_keeps_the_middle_and_squash_the_whole():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle third is white
    image = Image.fromarray(wide)
    cropped = resize(image, (10, 10), mode="center_crop", filter_name="bilinear")
    assert cropped.min() == 255
    squashed = resize(image, (10, 10), mode="squash", filter_name="bilinear")
    assert squashed[:, 0].max() == 0
    assert squashed[:, 5].min() == 255


@settings(max_examples=300)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    mode=st.sampled_from(RESIZE_MODES),
)
def test_any_size_becomes_the_size_of_the_model(width, height, size, mode):
    pixels = resize(Image.new("RGB", (width, height)), size, mode=mode, filter_name="bilinear")
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("filter_name", RESIZE_FILTERS)
def test_a_large_jpeg_is_decoded_in_full(filter_name):
    """A decoder's own down-scaling is faster, but gives other pixels and so other answers."""
    spec = ModelSpec(taxonomy=HAM10000, input_size=(64, 64), resize_filter=filter_name)
    data = encoded(Image.fromarray(noise(900, 1200)), "JPEG")
    full, small = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    small.draft("RGB", (600, 450))
    assert small.size == (600, 450)
    pixels = to_pixels(decode_image(data), spec)
    resample = Image.Resampling[filter_name.upper()]
    np.testing.assert_array_equal(pixels, np.asarray(full.resize((64, 64), resample)))
    assert (pixels != np.asarray(small.resize((64, 64), resample))).any()


def test_an_image_that_is_upright_and_rgb_is_not_copied():
    image = Image.fromarray(noise())
    assert upright_rgb(image) is image


def test_an_image_that_is_turned_leaves_the_callers_as_it_was():
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(noise()), exif=exif.tobytes())))
    assert upright_rgb(image).size == (6, 9)
    assert image.size == (9, 6)


def test_a_file_far_larger_than_an_image_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(3 * 10**9)  # without a block on the disk
    with pytest.raises(ImageError) as caught:
        read_bytes(path)
    assert str(caught.value) == f"{path} has 3,000,000,000 bytes; the limit is 268,435,456"
