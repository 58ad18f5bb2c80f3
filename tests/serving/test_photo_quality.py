"""Cheap checks of the photograph: each fires where it must, and only there."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dermalyze.evaluation.uncertainty.out_of_distribution import fit_quality, problems_of
from serving.photo_quality import Measures, QualityLimits, hints, measure

LIMITS = QualityLimits(
    min_side=64, min_sharpness=1.0, min_brightness=60.0, max_brightness=220.0, min_color=12.0
)
SIZE = (200, 150)


def skin(seed=0):
    """A sharp, well-lit picture in color: uint8 (96, 96, 3)."""
    rng = np.random.default_rng(seed)
    picture = np.array([200, 150, 140]) + rng.normal(0, 8, (96, 96, 1))
    picture[30:60, 30:60] -= 60
    return picture.clip(0, 255).astype(np.uint8)


def test_a_good_photograph_gets_no_hint():
    assert hints(skin(), SIZE, LIMITS) == ()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda pixels: np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(5))),
            "the photograph is blurred; hold still and focus on the lesion",
        ),
        (
            lambda pixels: (pixels * 0.25).astype(np.uint8),
            "the photograph is too dark; use more light",
        ),
        (
            lambda pixels: (pixels.astype(int) + 75).clip(0, 255).astype(np.uint8),
            "the photograph is too bright; use less light, and no flash on wet skin",
        ),
        (
            lambda pixels: np.repeat(pixels[..., :1], 3, axis=2),
            "the photograph has hardly any color; send one in color",
        ),
    ],
)
def test_what_is_wrong_with_a_photograph_is_said(change, sentence):
    assert sentence in hints(change(skin()), SIZE, LIMITS)


def test_a_small_photograph_is_said_with_its_size():
    assert hints(skin(), (400, 63), LIMITS) == (
        "the photograph is too small (400 x 63 pixels); send one of at least 64 pixels on its "
        "shorter side",
    )
    assert hints(skin(), (64, 64), LIMITS) == ()


def test_measures_done_by_hand():
    pixels = np.zeros((1, 3, 3, 3), np.uint8)
    pixels[0, 1, 1] = (100, 0, 0)  # luma 29.9 in the middle, its four neighbors are black
    measured = measure(pixels)
    np.testing.assert_allclose(measured.sharpness, [29.9], rtol=1e-6)
    np.testing.assert_allclose(measured.brightness, [29.9 / 9], rtol=1e-6)
    np.testing.assert_allclose(measured.color, [100 / 9], rtol=1e-6)


def test_fitted_limits_alarm_on_next_to_none_of_what_they_were_fitted_on():
    rng = np.random.default_rng(0)
    measures = Measures(
        sharpness=rng.gamma(4, 1, 3000),
        brightness=rng.normal(160, 20, 3000),
        color=rng.gamma(9, 5, 3000),
    )
    lesions = np.arange(3000)
    limits = fit_quality(measures, lesions, 128)
    share = problems_of(measures, limits).mean()
    assert 0 < share <= 0.004 + 1e-9  # four checks of one in a thousand each
    assert limits.min_side == 64


def test_problems_and_hints_are_the_same_rule():
    pixels = np.stack([skin(0), (skin(1) * 0.2).astype(np.uint8), skin(2)])
    pixels[2] = pixels[2].mean(axis=(0, 1)).astype(np.uint8)  # flat
    found = problems_of(measure(pixels), LIMITS)
    assert found.tolist() == [bool(hints(image, SIZE, LIMITS)) for image in pixels]
    assert found.tolist() == [False, True, True]
