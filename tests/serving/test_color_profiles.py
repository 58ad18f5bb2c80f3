"""Colors of any profile become sRGB, as the definitions of the color spaces say."""

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from crafted import ORIENTATION, chunk, exif, keyed_png, png_of_samples, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from profiles import (
    ADOBE,
    ADOBE_GAMMA,
    BROKEN,
    P3,
    SRGB,
    SRGB_CURVE,
    from_srgb,
    gray_profile,
    in_srgb,
    inks,
    lab_levels,
    rgb_profile,
    srgb_levels,
    table_profile,
)

from serving.color_profiles import MAX_PROFILE_BYTES
from serving.errors import ImageError
from serving.preprocess import decode_image, upright_rgb

NEAR = 1.6  # levels; one of the conversion in whole numbers, half a one of rounding, and a margin
COLORS = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
PHOTOGRAPH = Image.fromarray(COLORS)


def decoded(image, profile, kind="PNG", **options):
    return np.asarray(decode_image(saved(image, kind, icc_profile=profile, **options))).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_color_stored_as_display_p3_is_read_as_the_color_that_it_is(kind):
    stored = np.round(from_srgb([180, 90, 70], "P3", SRGB_CURVE))
    assert stored.tolist() == [168, 95, 75]
    image = Image.new("RGB", (16, 16), tuple(stored.astype(int).tolist()))
    found = decoded(image, P3, kind, **({"quality": 100} if kind == "JPEG" else {}))
    assert np.abs(found - [180, 90, 70]).max() <= 2


@pytest.mark.parametrize(
    ("profile", "primaries", "curve"),
    [
        (P3, "P3", SRGB_CURVE),
        (ADOBE, "Adobe", ADOBE_GAMMA),
        (rgb_profile("sRGB", 1.8), "sRGB", 461 / 256),  # as a gamma is stored
        (rgb_profile("sRGB", np.linspace(0, 1, 5) ** 2), "sRGB", None),
    ],
)
def test_colors_of_a_profile_are_those_of_its_definition(profile, primaries, curve):
    if curve is None:  # a table, straight between its entries
        values = np.interp(COLORS / 255, np.linspace(0, 1, 5), np.linspace(0, 1, 5) ** 2)
        expected = srgb_levels(values)
    else:
        expected = in_srgb(COLORS, primaries, curve)
    assert np.abs(expected - COLORS).max() > 15
    assert np.abs(decoded(PHOTOGRAPH, profile) - expected).max() <= NEAR


def test_a_gray_image_is_converted_by_a_gray_profile_or_one_of_colors():
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    levels = np.asarray(gray)[..., None] / 255
    linear_gray = srgb_levels(levels.repeat(3, axis=2) ** (461 / 256))
    assert np.abs(decoded(gray, gray_profile(1.8)) - linear_gray).max() <= NEAR
    adobe = srgb_levels(levels.repeat(3, axis=2) ** ADOBE_GAMMA)
    assert np.abs(decoded(gray, ADOBE) - adobe).max() <= NEAR
    deep = np.asarray(gray).astype(np.uint16)[..., None] * 257
    icc = chunk(b"iCCP", b"p\0\0" + zlib.compress(gray_profile(1.8)))
    found = np.asarray(decode_image(png_of_samples(deep, 16, 0, icc)))
    assert np.abs(found - linear_gray).max() <= NEAR
    clear = np.concatenate([deep, np.full_like(deep, 65535)], axis=2)
    found = np.asarray(decode_image(png_of_samples(clear, 16, 4, icc)))
    assert np.abs(found - linear_gray).max() <= NEAR


def test_inks_are_converted_by_the_table_of_their_profile():
    profile = table_profile(b"CMYK", inks())
    mixtures = np.stack(np.meshgrid(*[[0, 255]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    for mixture in mixtures:  # each a corner of the table, where nothing is between entries
        image = Image.new("CMYK", (8, 8), tuple(mixture.tolist()))
        found = decoded(image, profile, "JPEG", quality=100)
        expected = lab_levels(inks()[tuple(mixture // 255 * 4)])
        assert np.abs(found - expected).max() <= 2, mixture
    plain = np.asarray(decode_image(saved(image, "JPEG", quality=100)))
    assert np.abs(plain - found).max() > 20


def test_of_two_tables_the_first_counts_as_in_browsers():
    gray = np.full_like(inks(), [50, 0, 0])
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    found = decoded(image, table_profile(b"CMYK", inks(), gray), "JPEG", quality=100)
    assert np.abs(found - lab_levels(inks()[4, 0, 0, 0])).max() <= 2


def test_a_photograph_with_inks_and_a_profile_is_converted_within_its_table():
    """Between entries of the table a converter may take one path or another."""
    image = PHOTOGRAPH.convert("CMYK")
    found = decoded(image, table_profile(b"CMYK", inks()), "JPEG", quality=100)
    expected = lab_levels(inks())
    assert (found >= np.floor(expected.min(axis=(0, 1, 2, 3))) - 2).all()
    assert (found <= np.ceil(expected.max(axis=(0, 1, 2, 3))) + 2).all()


@pytest.mark.parametrize(
    "profile",
    [None, SRGB, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
)
def test_an_image_in_srgb_keeps_every_level(profile):
    np.testing.assert_array_equal(decoded(PHOTOGRAPH, profile), COLORS)


@pytest.mark.parametrize("name", BROKEN)
def test_a_profile_that_is_broken_or_for_other_pixels_is_ignored_as_browsers_do(name):
    np.testing.assert_array_equal(decoded(PHOTOGRAPH, BROKEN[name]), COLORS)


def test_a_profile_that_is_too_large_is_refused():
    data = saved(PHOTOGRAPH, "JPEG", icc_profile=P3 + bytes(MAX_PROFILE_BYTES))
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert str(caught.value) == (
        f"the image has a color profile of {MAX_PROFILE_BYTES + len(P3):,} bytes; the limit is "
        "4,194,304"
    )


def test_a_png_with_a_large_profile_is_not_called_damaged():
    data = saved(PHOTOGRAPH, "PNG", icc_profile=P3 + bytes(2**20))
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert str(caught.value) == (
        "the image has a color profile or a text of more than 1,048,576 bytes; save it without"
    )


@settings(max_examples=100)
@given(
    profile=st.sampled_from([P3, ADOBE, gray_profile(1.8), table_profile(b"CMYK", inks())]),
    changes=st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=4)), max_size=6),
    keep=st.floats(0.5, 1),
)
def test_a_damaged_profile_gives_an_image_of_the_same_size(profile, changes, keep):
    damaged = bytearray(profile)
    for place, values in changes:
        at = place % (len(damaged) - 4)
        damaged[at : at + len(values)] = values
    mode = {b"GRAY": "L", b"CMYK": "CMYK"}.get(profile[16:20], "RGB")
    image = Image.new(mode, (4, 3))
    image.info["icc_profile"] = bytes(damaged[: int(keep * len(damaged))])
    found = upright_rgb(image)
    assert (found.mode, found.size) == ("RGB", (4, 3))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_table_that_says_to_be_huge_costs_no_memory():
    """Its reader makes room for 255 x 255 x 255 entries before it looks for them: 95 MB."""
    image = Image.new("RGB", (4, 3))
    image.info["icc_profile"] = BROKEN["a table larger than the file"] + b"."  # not yet seen
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_kilobytes()
    upright_rgb(image)
    assert peak_kilobytes() - before < 20_000


def peak_kilobytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_transparency_is_laid_on_white_after_the_conversion():
    alphas = np.random.default_rng(1).integers(0, 256, (30, 40, 1)).astype(np.uint8)
    image = Image.fromarray(np.concatenate([COLORS, alphas], axis=2))
    opaque = in_srgb(COLORS, "P3", SRGB_CURVE)
    expected = 255 + (opaque - 255) * (alphas / 255)
    assert np.abs(decoded(image, P3) - expected).max() <= NEAR
    data, shown = keyed_png(8, 2, profile=P3)
    expected = np.where(shown == 255, 255, in_srgb(shown, "P3", SRGB_CURVE))
    assert np.abs(np.asarray(decode_image(data)) - expected).max() <= NEAR


def test_a_turned_image_is_converted_too():
    image = Image.fromarray(COLORS)
    found = decoded(image, P3, exif=exif({ORIENTATION: 6}))
    expected = np.rot90(in_srgb(COLORS, "P3", SRGB_CURVE), -1)
    assert np.abs(found - expected).max() <= NEAR


def test_an_image_is_converted_once_however_often_it_is_opened():
    image = Image.fromarray(COLORS)
    image.info["icc_profile"] = P3
    once = upright_rgb(image)
    assert np.abs(np.asarray(once) - in_srgb(COLORS, "P3", SRGB_CURVE)).max() <= NEAR
    assert upright_rgb(once) is once
    assert image.info["icc_profile"] == P3  # the caller's is as it was


@pytest.mark.parametrize(
    ("color", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)]
)
def test_a_png_is_clear_where_it_has_its_clear_color_to_the_last_bit(color, depth):
    data, shown = keyed_png(depth, color)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.asarray(decode_image(data)), shown)
