"""What benchmarks show to the scope score: each corruption does what its name says."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from benchmarks import foreign
from dermalyze.data.corruptions import CORRUPTIONS, STRENGTHS


def lesion(seed=0):
    """A dark spot on grainy skin: uint8 (64, 64, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((64, 64)) - 32
    spot = np.exp(-(rows**2 + columns**2) / 200)[..., None]
    skin = np.array([205, 160, 150]) - 90 * spot + rng.normal(0, 6, (64, 64, 1))
    return skin.clip(0, 255).astype(np.uint8)


def corrupted(name, strength):
    return CORRUPTIONS[name](lesion(), strength, np.random.default_rng(1)).astype(float)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_greater_strength_leads_further_from_the_image(name):
    distances = [np.abs(corrupted(name, strength) - lesion()).mean() for strength in STRENGTHS]
    assert distances[0] > 0
    assert distances == sorted(distances)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_gives_pixels_and_leaves_the_image_alone(name):
    image = lesion()
    found = CORRUPTIONS[name](image, 3, np.random.default_rng(1))
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, lesion())
    np.testing.assert_array_equal(found, CORRUPTIONS[name](image, 3, np.random.default_rng(1)))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_light_goes_the_way_it_is_named(strength):
    """Nothing wraps around at 0 or 255, which pictures of bytes do unasked."""
    assert (corrupted("brightness", strength) >= lesion()).all()
    assert (corrupted("darkness", strength) <= lesion()).all()
    assert np.ptp(corrupted("contrast", strength)) < np.ptp(lesion())


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_blur_takes_detail_and_leaves_the_light(name, strength):
    found, image = corrupted(name, strength), lesion().astype(float)

    def detail(pixels):
        return np.abs(pixels - gaussian_filter(pixels, (1, 1, 0))).mean()

    assert detail(found) < 0.7 * detail(image)
    assert found[8:-8, 8:-8].mean() == pytest.approx(image[8:-8, 8:-8].mean(), rel=0.08)


def test_the_greatest_desaturation_leaves_no_color():
    assert np.ptp(corrupted("desaturate", 5), axis=2).max() == 0
    assert np.ptp(corrupted("saturate", 1), axis=2).mean() > np.ptp(lesion(), axis=2).mean()


def test_noise_is_as_strong_as_stated():
    flat = np.full((200, 200, 3), 128, np.uint8)
    rng = np.random.default_rng(0)
    noisy = CORRUPTIONS["gaussian_noise"](flat, 2, rng).astype(float)
    assert noisy.std() == pytest.approx(14, rel=0.02)
    # A count of k photons has variance k: 15 at full brightness, so 15 * 128 / 255 here.
    shot = CORRUPTIONS["shot_noise"](flat, 3, rng).astype(float)
    assert shot.std() == pytest.approx(np.sqrt(15 * 128 / 255) * 255 / 15, rel=0.05)
    hit = (CORRUPTIONS["impulse_noise"](flat, 4, rng) != 128).all(axis=2)
    assert hit.mean() == pytest.approx(0.18, abs=0.01)


@pytest.mark.parametrize("name", ["text_pages", "screenshots", "noise", "sample_images"])
def test_foreign_pictures_come_in_the_size_asked_for_and_differ(name):
    pictures = getattr(foreign, name)(20, 48, np.random.default_rng(0))
    assert (pictures.shape, pictures.dtype) == ((20, 48, 48, 3), np.uint8)
    assert len(np.unique(pictures.reshape(20, -1), axis=0)) == 20


def test_a_clinical_view_shows_the_lesion_small_on_a_field_of_its_skin():
    """The lesion is blue here, so that shadows and what lies beside it cannot be taken for it."""
    image = lesion()
    image[20:44, 20:44] = (60, 60, 200)
    views = foreign.clinical_views(np.stack([image] * 12), np.random.default_rng(0))
    assert (views.shape, views.dtype) == ((12, 64, 64, 3), np.uint8)
    for view in views:
        blue = view[..., 2] > view[..., 0].astype(int) + 10
        assert 0 < blue.mean() < 0.5 * (24 / 64) ** 2
        assert len(np.unique(view[~blue], axis=0)) > 100  # skin, no flat color
