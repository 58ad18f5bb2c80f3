import colorsys
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

import dermalyze.models.torchvision_operators  # noqa: F401  # before torchvision
from dermalyze.config.schema import AugmentationConfig
from dermalyze.data.augmentation import augment, augment_masks, augmentation_page

PROBABILITIES = (
    "horizontal_flip", "vertical_flip", "rotation", "color_jitter", "blur", "affine", "cutout"
)  # fmt: skip
NOTHING = dict.fromkeys(PROBABILITIES, 0.0)
STILL = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
ROUNDING = 1e-5  # float32 against float64, a few operations deep


def only(level="custom", **settings):
    """A configuration in which nothing happens but what is named."""
    return AugmentationConfig(level=level, **{**NOTHING, **settings})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(num=8, height=24, width=24):
    return torch.rand((num, 3, height, width), generator=generator(99))


def smooth(num=6, height=48, width=64):
    """Images without detail of a pixel's size: resamplers agree on them."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    waves = [
        torch.sin(x + 0.7 * k) * torch.cos(y * (1 + 0.2 * k)) / 2 + 0.5 for k in range(3 * num)
    ]
    return torch.stack(waves).view(num, 3, height, width)


def fits(image, candidates):
    """The candidate nearest to `image`, and its largest difference."""
    differences = [float((image - candidate).abs().max()) for candidate in candidates]
    return int(np.argmin(differences)), min(differences)


@pytest.mark.parametrize(
    ("names", "dimensions"),
    [
        (["horizontal_flip"], [3]),
        (["vertical_flip"], [2]),
        (["horizontal_flip", "vertical_flip"], [2, 3]),
    ],
)
def test_a_flip_moves_pixels_exactly(names, dimensions):
    images = noise()
    flipped = augment(images, only(**dict.fromkeys(names, 1.0)), generator())
    assert torch.equal(flipped, images.flip(dimensions))


@pytest.mark.parametrize("size", [(48, 64), (64, 64)])
def test_rotation_turns_by_up_to_the_angle_as_pillow_does(size):
    """Bilinear in both; Pillow rounds to 8 bits, and has no reflection, so the middle counts."""
    images = smooth(12, *size)
    turned = augment(images, only(rotation=1.0, rotation_degrees=30.0), generator())
    found = []
    for image, result in zip(images, turned, strict=True):
        references = []
        angles = np.arange(-30, 30.01, 0.5)
        pillow = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())
        for angle in angles:
            picture = np.asarray(pillow.rotate(angle, Image.Resampling.BILINEAR))
            references.append(torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255)
        middle = (slice(None), slice(14, 34), slice(20, 44))
        best, difference = fits(result[middle], [reference[middle] for reference in references])
        assert difference < 0.02  # 8 bits twice, and a quarter of a degree at 16 pixels
        found.append(angles[best])
    assert min(found) < -10
    assert max(found) > 10


def test_affine_turns_zooms_and_shifts_within_its_limits():
    """A least-squares fit of where three ramps went gives each image's transformation back."""
    size = 200
    at = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) / size
    ramp_x, ramp_y = at.expand(size, size), at[:, None].expand(size, size)
    image = torch.stack([ramp_x / 4 + 0.5, ramp_y / 4 + 0.5, torch.full((size, size), 0.5)])
    config = only(
        affine=1.0,
        affine_degrees=10.0,
        affine_translate=0.1,
        affine_scale_min=0.8,
        affine_scale_max=1.25,
    )
    results = augment(image.expand(60, -1, -1, -1), config, generator())
    angles, zooms, shifts = [], [], []
    middle = slice(70, 130)  # reflected at no edge
    design = np.stack(
        [np.ones(3600), ramp_x[middle, middle].flatten(), ramp_y[middle, middle].flatten()], axis=1
    )
    for result in results.numpy():
        source = (result[:2, middle, middle].reshape(2, -1).T - 0.5) * 4
        (offset, *matrix), residual = np.linalg.lstsq(design, source, rcond=None)[:2]
        assert residual.max() < 1e-6
        back = np.array(matrix).T  # output to source
        forward = np.linalg.inv(back)
        zoom = math.sqrt(np.linalg.det(forward))
        np.testing.assert_allclose(forward @ forward.T, np.eye(2) * zoom**2, atol=1e-3)
        angles.append(math.degrees(math.atan2(forward[1, 0], forward[0, 0])))
        zooms.append(zoom)
        shifts.append(-forward @ offset)
    for values, low, high in (
        (angles, -10, 10),
        (zooms, 0.8, 1.25),
        (np.array(shifts)[:, 0], -0.1, 0.1),
        (np.array(shifts)[:, 1], -0.1, 0.1),
    ):
        span = high - low  # of 60 uniform draws all miss a tenth with probability 0.002
        assert low - 0.01 * span <= min(values) < low + 0.1 * span
        assert high - 0.1 * span < max(values) <= high + 0.01 * span


def test_a_flip_comes_before_the_rotation():
    images = smooth(4, 40, 56)
    rotated = only(rotation=1.0)
    both = dataclasses.replace(rotated, horizontal_flip=1.0, vertical_flip=0.0)
    expected = augment(images.flip(3), rotated, generator(3))
    torch.testing.assert_close(augment(images, both, generator(3)), expected, atol=1e-4, rtol=0)


def test_a_rotation_shows_no_black_corner():
    white = torch.ones(8, 3, 32, 32)
    turned = augment(white, only(rotation=1.0, rotation_degrees=180.0), generator())
    torch.testing.assert_close(turned, white, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_color_factor_does_what_torchvision_does(name):
    """Each factor is found from the result; the whole image has to follow from it."""
    from torchvision.transforms import functional

    adjust = getattr(functional, f"adjust_{name}")
    images = 0.3 + 0.4 * noise(32)  # the strongest change stays inside 0..1
    jittered = augment(images, only(color_jitter=1.0, **{**STILL, name: 0.4}), generator())
    factors = []
    for image, result in zip(images, jittered, strict=True):
        nothing, double = adjust(image, 0.0), adjust(image, 2.0)  # both ends of a straight line
        direction = (adjust(image, 1.0) - nothing).flatten()
        factor = float((result - nothing).flatten() @ direction / (direction @ direction))
        torch.testing.assert_close(result, adjust(image, factor), atol=ROUNDING, rtol=0)
        assert not torch.equal(nothing, double)
        factors.append(factor)
    assert 0.6 - ROUNDING <= min(factors) < 0.75
    assert 1.25 < max(factors) <= 1.4 + ROUNDING


def test_colors_change_in_torchvisions_order():
    """The same seed draws the same factors, so each is first found alone."""
    from torchvision.transforms import functional

    images = 0.3 + 0.4 * noise(8)
    factors = {}
    for name in ("brightness", "contrast", "saturation"):
        adjust = getattr(functional, f"adjust_{name}")
        alone = augment(images, only(color_jitter=1.0, **{**STILL, name: 0.2}), generator())
        nothing = torch.stack([adjust(image, 0.0) for image in images])
        direction = (images - nothing).flatten(1)
        found = ((alone - nothing).flatten(1) * direction).sum(1) / direction.square().sum(1)
        factors[name] = found.tolist()
    together = only(
        color_jitter=1.0, **{**STILL, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    )
    expected = []
    for image, brightness, contrast, saturation in zip(images, *factors.values(), strict=True):
        image = functional.adjust_brightness(image, brightness)
        image = functional.adjust_contrast(image, contrast)
        expected.append(functional.adjust_saturation(image, saturation))
    result = augment(images, together, generator())
    # torchvision's grey weights come to 0.9999, so what contrast adds is not quite grey to it.
    torch.testing.assert_close(result, torch.stack(expected), atol=1e-4, rtol=0)


def test_blur_sees_colors_that_are_cut_at_white_already():
    images = noise()
    colors = {"color_jitter": 1.0, **STILL, "brightness": 1.0}
    bright = augment(images, only(**colors), generator())
    expected = augment(bright, only(blur=1.0), generator())
    result = augment(images, only(blur=1.0, **colors), generator())
    torch.testing.assert_close(result, expected, atol=ROUNDING, rtol=0)


def test_white_stays_within_the_range_though_weights_are_rounded():
    white = torch.ones(32, 3, 32, 32)
    assert augment(white, only(rotation=1.0, blur=1.0), generator()).max() <= 1


def test_too_bright_is_cut_at_white_as_torchvision_does():
    from torchvision.transforms import functional

    images = torch.full((16, 3, 8, 8), 0.8)
    bright = augment(images, only(color_jitter=1.0, **{**STILL, "brightness": 0.9}), generator())
    assert bright.max() == 1.0
    for result in bright:
        factor = float(result[0, 0, 0]) / 0.8
        torch.testing.assert_close(result, functional.adjust_brightness(images[0], factor))


def test_hue_turns_about_the_grey_axis_of_yiq():
    """colorsys rounds the YIQ of NTSC to two digits: hence 0.02."""
    images = 0.4 + 0.2 * noise(16, 4, 4)
    shifted = augment(images, only(color_jitter=1.0, **{**STILL, "hue": 0.2}), generator())
    turns = np.linspace(-0.2, 0.2, 161) * 2 * math.pi
    found = []
    for image, result in zip(images.numpy(), shifted, strict=True):
        references = np.empty((len(turns), 3, 4, 4), np.float32)
        for row, column in itertools.product(range(4), range(4)):
            luma, i, q = colorsys.rgb_to_yiq(*image[:, row, column].tolist())
            for n, turn in enumerate(turns):
                chroma = complex(i, q) * complex(math.cos(turn), -math.sin(turn))
                references[n, :, row, column] = colorsys.yiq_to_rgb(luma, chroma.real, chroma.imag)
        best, difference = fits(result, torch.from_numpy(references))
        assert difference < 0.02
        found.append(turns[best] / (2 * math.pi))
    assert min(found) < -0.1
    assert max(found) > 0.1


def test_hue_goes_the_way_of_torchvisions_and_keeps_grey():
    from torchvision.transforms import functional

    skin = torch.tensor([0.8, 0.6, 0.5])[:, None, None].expand(16, 3, 4, 4)
    shifted = augment(skin, only(color_jitter=1.0, **{**STILL, "hue": 0.1}), generator())
    for result in shifted:
        candidates = [functional.adjust_hue(skin[0], shift) for shift in (-0.1, -0.05, 0.05, 0.1)]
        best, _ = fits(result, candidates)
        # More green than before is towards yellow, which torchvision reaches by a positive shift.
        redder = float(result[1, 0, 0]) < 0.6
        assert (best < 2) == redder
    grey = torch.full((4, 3, 4, 4), 0.5)
    unchanged = augment(grey, only(color_jitter=1.0, **{**STILL, "hue": 0.5}), generator())
    torch.testing.assert_close(unchanged, grey, atol=ROUNDING, rtol=0)


def test_blur_is_torchvisions_gaussian_of_some_sigma():
    """Sigma is read off the red channel: beside a lone dot a Gaussian has exp(-1 / (2 sigma^2))."""
    from torchvision.transforms import functional

    images = noise(48, 32, 40)
    images[:, 0] = 0.0
    images[:, 0, 16, 20] = 1.0
    blurred = augment(images, only(blur=1.0, blur_sigma_max=2.0), generator())
    sigmas = []
    for image, result in zip(images, blurred, strict=True):
        ratio = float(result[0, 16, 21] / result[0, 16, 20])
        sigma = math.sqrt(-1 / (2 * math.log(max(ratio, 1e-7))))
        reference = functional.gaussian_blur(image, 13, sigma)  # six pixels: three sigma at most
        torch.testing.assert_close(result, reference, atol=1e-4, rtol=0)  # sigma is a quotient
        sigmas.append(sigma)
    assert min(sigmas) < 0.4
    assert 1.7 < max(sigmas) <= 2.0 + ROUNDING


def test_a_blur_wider_than_the_image_still_works():
    blurred = augment(noise(4, 16, 16), only(blur=1.0, blur_sigma_max=10.0), generator())
    assert blurred.shape == (4, 3, 16, 16)
    assert blurred.isfinite().all()


def test_cutout_hides_one_square_under_the_mean_color():
    images = noise(40, 30, 50)
    cut = augment(images, only(cutout=1.0, cutout_scale=0.2), generator())
    places = set()
    for image, result in zip(images, cut, strict=True):
        rows, columns = torch.nonzero((image != result).any(dim=0), as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        assert len(rows) == 6 * 6  # a fifth of the shorter side, 30
        assert (int(rows.max()), int(columns.max())) == (top + 5, left + 5)
        expected = image.mean(dim=(1, 2))[:, None, None].expand(3, 6, 6)
        torch.testing.assert_close(result[:, top : top + 6, left : left + 6], expected)
        places.add((top, left))
    assert len(places) > 30


@pytest.mark.parametrize("name", PROBABILITIES)
@pytest.mark.parametrize(("level", "scale"), [("light", 0.5), ("medium", 1), ("heavy", 1.5)])
def test_each_operation_happens_as_often_as_its_level_says(name, level, scale):
    num, probability = 2000, 0.4
    images = noise(1, 8, 8).expand(num, -1, -1, -1)
    result = augment(images, only(level, **{name: probability}), generator(5))
    changed = int((result != images).flatten(1).any(dim=1).sum())
    expected = probability * scale
    deviation = math.sqrt(num * expected * (1 - expected))
    assert abs(changed - num * expected) < 4 * deviation


def test_a_scaled_probability_stops_at_one():
    images = noise()
    assert torch.equal(
        augment(images, only("heavy", horizontal_flip=0.9), generator()), images.flip(3)
    )


def test_custom_takes_the_numbers_as_medium_does():
    images = noise()
    medium = augment(images, AugmentationConfig(level="medium"), generator())
    assert torch.equal(augment(images, AugmentationConfig(level="custom"), generator()), medium)


def test_level_none_gives_the_very_same_object_back():
    images = noise()
    assert augment(images, AugmentationConfig(level="none"), generator()) is images


def test_zero_probabilities_change_nothing():
    images = noise()
    assert torch.equal(augment(images, only("heavy"), generator()), images)


def test_equal_seeds_give_equal_images_and_other_seeds_others():
    images, config = noise(16), AugmentationConfig(level="heavy")
    first = augment(images, config, generator(1))
    assert torch.equal(augment(images, config, generator(1)), first)
    assert not torch.equal(augment(images, config, generator(2)), first)


def test_images_of_a_batch_fare_differently():
    images = noise(1).expand(16, -1, -1, -1)
    result = augment(images, AugmentationConfig(level="heavy"), generator())
    assert len({tuple(image.flatten().tolist()) for image in result}) > 12


def test_an_image_fares_the_same_whatever_its_neighbors():
    images, config = noise(16), AugmentationConfig(level="heavy")
    others = images.clone()
    others[1:] = others[1:].flip(0)
    whole = augment(images, config, generator(1))
    torch.testing.assert_close(augment(others, config, generator(1))[0], whole[0])
    torch.testing.assert_close(augment(images[:5], config, generator(1)), whole[:5])


@pytest.mark.parametrize("images", [noise(32), noise(32).round()])
def test_the_range_stays_and_the_input_too(images):
    before = images.clone()
    result = augment(images, AugmentationConfig(level="heavy", brightness=0.9), generator())
    assert torch.equal(images, before)
    assert 0 <= result.min() < result.max() <= 1
    assert (result.shape, result.dtype, result.device) == (
        images.shape,
        torch.float32,
        images.device,
    )


def test_channels_last_stays_and_changes_no_number():
    images, config = noise(), AugmentationConfig(level="heavy")
    planes = augment(images, config, generator())
    interleaved = augment(images.contiguous(memory_format=torch.channels_last), config, generator())
    assert interleaved.is_contiguous(memory_format=torch.channels_last)
    assert planes.is_contiguous()
    assert torch.equal(interleaved, planes)


def test_the_page_shows_each_original_first_then_its_versions():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    pixels.setflags(write=False)  # as the pixel store's are
    page = augmentation_page(pixels, only(horizontal_flip=1.0), 0)
    assert page.mode == "RGB"
    assert page.size == (4 + 8 * 100, 40 + 3 * 100)
    shown = np.asarray(page)
    for row in range(3):
        tiles = [shown[40 + 100 * row :][:96, 4 + 100 * column :][:, :96] for column in range(8)]
        np.testing.assert_array_equal(tiles[0], pixels[row])
        for tile in tiles[1:]:
            np.testing.assert_array_equal(tile, pixels[row, :, ::-1])
    assert (shown[:40] < 128).any()  # its heading


def test_a_page_of_tiny_images_is_scaled_up_so_that_they_can_be_seen():
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    assert augmentation_page(pixels, only(), 0).size == (4 + 8 * 100, 40 + 100)


def test_a_page_of_large_images_is_scaled_down():
    page = augmentation_page(np.zeros((1, 448, 448, 3), np.uint8), only(), 0)
    assert page.size == (4 + 8 * 228, 40 + 228)


def test_masks_move_as_their_images_do():
    """A mask that is a channel of its image stays equal to it."""
    images = smooth()
    moves = only(horizontal_flip=0.5, vertical_flip=0.5, rotation=0.5, affine=0.5)
    moved = augment(images, moves, generator())
    masks = augment_masks(images[:, :1], moves, generator())
    torch.testing.assert_close(masks, moved[:, :1])
    assert not torch.equal(masks, images[:, :1])
    colored = only(color_jitter=1.0, cutout=1.0)
    assert torch.equal(augment_masks(images[:, :1], colored, generator()), images[:, :1])
