"""Augmentation of whole batches, on the device that trains; in shapes N images of H x W pixels.

All chance is drawn on the CPU, so a seed means the same on every device and no device is waited
for.  Image i's fate depends on its own row of draws, not on its neighbors.  Never reads files.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dermalyze.config.schema import AugmentationConfig
from dermalyze.data import camera
from dermalyze.data.sampling import Share

LEVEL_SCALES = {"none": 0.0, "light": 0.5, "medium": 1.0, "heavy": 1.5, "custom": 1.0}
GREY = (0.2989, 0.587, 0.114)  # weights of R, G, B in brightness: ITU-R 601, as torchvision has it
BLUR_SIGMA_MIN = 0.1  # pixels
APERTURE_SHIFT = 0.05  # of the center, fraction of the side
PAGE_VERSIONS = 7  # augmented versions of each image on a page
PAGE_MIN_SIDE, PAGE_MAX_SIDE = 96, 224  # of an image on a page, pixels


class _Draws(NamedTuple):
    """Numbers in [0, 1), float64 (N,) each: `..._or_not` against a probability, others scaled."""

    horizontal_flip_or_not: Tensor
    vertical_flip_or_not: Tensor
    rotation_or_not: Tensor
    rotation: Tensor
    affine_or_not: Tensor
    affine_rotation: Tensor
    shift_x: Tensor
    shift_y: Tensor
    zoom: Tensor
    color_or_not: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    blur_or_not: Tensor
    blur_sigma: Tensor
    cutout_or_not: Tensor
    cutout_top: Tensor
    cutout_left: Tensor
    illuminant_or_not: Tensor
    red: Tensor
    green: Tensor
    blue: Tensor
    aperture_or_not: Tensor
    aperture_radius: Tensor
    aperture_x: Tensor
    aperture_y: Tensor
    shade: Tensor
    resample_or_not: Tensor
    resample: Tensor
    noise_or_not: Tensor
    noise: Tensor
    noise_seed: Tensor
    jpeg_or_not: Tensor
    jpeg: Tensor


def augment(
    images: Tensor,
    config: AugmentationConfig,
    generator: torch.Generator,
    share: Share | None = None,
) -> Tensor:
    """Augment each image by its own chance: float32 (N, 3, H, W) in 0..1 -> the same.

    Device and memory format stay.  The order is flips, rotation and affine (one resampling for
    all three, none for flips alone), light and colors, field of view, blur, fewer pixels, noise,
    JPEG, cutout.

    Args:
        images: never changed; returned as they are at level none.
        config: what, how much and how often.
        generator: a CPU generator; it alone decides.
        share: which images of a batch these are; None: all.
    """
    scale = LEVEL_SCALES[config.level]
    if scale == 0:
        return images
    draws = _draw(len(images), generator, share)
    channels_last = not images.is_contiguous() and images.is_contiguous(
        memory_format=torch.channels_last
    )
    # Planes are faster to work on: 0.5 ms for the way there and 0.5 ms back, 3 ms saved between.
    augmented = images.clone(memory_format=torch.contiguous_format)
    augmented = _move(augmented, draws, config, scale)
    augmented = _recolor(augmented, draws, config, scale)
    augmented = _narrow(augmented, draws, config, scale)
    augmented = _blur(augmented, draws, config, scale)
    augmented = _degrade(augmented, draws, config, scale)
    augmented = _cut_out(augmented, draws, config, scale)
    augmented = augmented.clamp_(0, 1)
    return augmented.contiguous(memory_format=torch.channels_last) if channels_last else augmented


def augment_masks(
    masks: Tensor,
    config: AugmentationConfig,
    generator: torch.Generator,
    share: Share | None = None,
) -> Tensor:
    """Move masks as `augment` moves images, of the same generator state: float32 (N, 1, H, W)."""
    scale = LEVEL_SCALES[config.level]
    if scale == 0:
        return masks
    return _move(masks.clone(), _draw(len(masks), generator, share), config, scale)


def _draw(num: int, generator: torch.Generator, share: Share | None) -> _Draws:
    shape = (num if share is None else share.total, len(_Draws._fields))
    draws = torch.rand(shape, generator=generator, dtype=torch.float64)
    return _Draws(*(draws if share is None else draws[share.rows]).unbind(1))


def _happens(draw: Tensor, probability: float, scale: float) -> Tensor:
    """(N,) draws -> bool (N,)."""
    return draw < min(1.0, probability * scale)


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + draw * (high - low)


def _rows(chosen: Tensor) -> Tensor:
    """Bool (N,) -> int64 (n,), on the CPU."""
    return chosen.nonzero().flatten()


def _onto(values: Tensor, images: Tensor) -> Tensor:
    """Copy small CPU values to the device of `images` without waiting for its queue."""
    if values.is_floating_point():
        values = values.to(images.dtype)
    if images.is_cuda:
        values = values.pin_memory()
    return values.to(images.device, non_blocking=True)


def _move(images: Tensor, draws: _Draws, config: AugmentationConfig, scale: float) -> Tensor:
    """Flip, rotate, shift and zoom; changes `images`."""
    mirrored = _happens(draws.horizontal_flip_or_not, config.horizontal_flip, scale)
    upturned = _happens(draws.vertical_flip_or_not, config.vertical_flip, scale)
    rotated = _happens(draws.rotation_or_not, config.rotation, scale)
    warped = _happens(draws.affine_or_not, config.affine, scale)
    resampled = rotated | warped
    for chosen, dimensions in (
        (mirrored & ~upturned, (3,)),
        (upturned & ~mirrored, (2,)),
        (mirrored & upturned, (2, 3)),
    ):
        rows = _onto(_rows(chosen & ~resampled), images)
        if len(rows):  # a flip moves pixels and invents none
            images.index_copy_(0, rows, images.index_select(0, rows).flip(dimensions))
    rows = _rows(resampled)
    if not len(rows):
        return images
    height, width = images.shape[2:]
    turn, tilt = math.radians(config.rotation_degrees), math.radians(config.affine_degrees)
    angle = rotated * _between(draws.rotation, -turn, turn)
    angle += warped * _between(draws.affine_rotation, -tilt, tilt)
    zoom = _between(draws.zoom, config.affine_scale_min, config.affine_scale_max)
    zoom = torch.where(warped, zoom, 1.0)
    reach = config.affine_translate
    shift_x = warped * _between(draws.shift_x, -reach, reach) * width  # pixels
    shift_y = warped * _between(draws.shift_y, -reach, reach) * height
    shift, flipped = torch.stack([shift_x, shift_y], 1), torch.stack([mirrored, upturned], 1)
    sources = _source_matrices(angle, zoom, shift, flipped, (height, width))
    grid = _grid(_onto(sources[rows], images), height, width)
    rows = _onto(rows, images)
    moved = F.grid_sample(
        images.index_select(0, rows),
        grid,
        mode="bilinear",
        padding_mode="reflection",  # black corners would tell the network that it is training
        align_corners=False,
    )
    return images.index_copy_(0, rows, moved)


def _source_matrices(
    angle: Tensor, zoom: Tensor, shift: Tensor, flipped: Tensor, size: tuple[int, int]
) -> Tensor:
    """Where each output pixel comes from, in grid_sample's -1..1 coordinates: (N,) -> (N, 2, 3).

    Forward, an image is flipped, turned clockwise by `angle` (radians), zoomed about its center
    and shifted (pixels); this is the way back.  `shift` and `flipped` are (N, 2): x and y.
    """
    height, width = size
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    sign_x, sign_y = (1.0 - 2.0 * flipped.double()).unbind(1)
    from_x = torch.stack([sign_x * cosine, -sign_y * sine], dim=1)  # (N, 2): x and y of source
    from_y = torch.stack([sign_x * sine, sign_y * cosine], dim=1)
    constant = -(from_x * shift[:, :1] + from_y * shift[:, 1:])
    pixels = torch.stack([from_x, from_y, constant], dim=2)  # centered pixels to centered pixels
    half = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    return pixels * torch.cat([half, half.new_ones(1)]) / half[:, None]


def _grid(sources: Tensor, height: int, width: int) -> Tensor:
    """(n, 2, 3) -> (n, H, W, 2); what F.affine_grid gives, in a fifth of its time on a CPU."""
    x, y = (
        (torch.arange(side, device=sources.device, dtype=sources.dtype) * 2 + 1) / side - 1
        for side in (width, height)
    )
    from_x = sources[:, None, :, 0] * x[:, None]  # (n, W, 2)
    from_y = sources[:, None, :, 1] * y[:, None] + sources[:, None, :, 2]  # (n, H, 2)
    return from_x[:, None] + from_y[:, :, None]


def _recolor(images: Tensor, draws: _Draws, config: AugmentationConfig, scale: float) -> Tensor:
    """Change the light's color, brightness, contrast, saturation and hue, by one matrix an image.

    Brightness, contrast and saturation are torchvision's, without its clamps in between, which
    flatten highlights that the next step would have kept.  Hue is a rotation about the grey axis
    in YIQ: linear, so it joins the matrix, and unlike a shift in HSV it keeps the luma and never
    jumps where a color is nearly grey.
    """
    lit = _happens(draws.illuminant_or_not, config.illuminant, scale)
    chosen = _happens(draws.color_or_not, config.color_jitter, scale)
    if not (chosen | lit).any():  # on the CPU
        return images
    brightness = _between(draws.brightness, 1 - config.brightness, 1 + config.brightness)
    contrast = _between(draws.contrast, 1 - config.contrast, 1 + config.contrast)
    saturation = _between(draws.saturation, 1 - config.saturation, 1 + config.saturation)
    turn = _between(draws.hue, -config.hue, config.hue) * 2 * math.pi
    identity = torch.eye(3, dtype=torch.float64)
    grey = torch.tensor(GREY, dtype=torch.float64)
    greys = grey.expand(3, 3)  # R, G, B -> grey, grey, grey
    matrices = _hue_matrices(turn) @ (
        greys + saturation[:, None, None] * (identity - greys)
    )  # (N, 3, 3)
    matrices = matrices * (brightness * contrast)[:, None, None]
    matrices = torch.where(chosen[:, None, None], matrices, identity)
    reach = math.log1p(config.illuminant_gain)
    light = _between(torch.stack([draws.red, draws.green, draws.blue], 1), -reach, reach).exp()
    light = torch.where(lit[:, None], light, 1.0)  # (N, 3)
    matrices = matrices * light[:, None]
    # Contrast blends with the mean grey of the brightened image; grey has neither hue nor
    # saturation, so what it adds passes the later steps unchanged.
    lift = torch.where(chosen, (1 - contrast) * brightness, 0.0)
    columns = _onto(matrices.transpose(1, 2)[..., None, None], images).unbind(1)  # 3 x (N, 3, 1, 1)
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    weights = _onto(lift[:, None] * grey * light, images)  # (N, 3)
    offset = (images.mean(dim=(2, 3)) * weights).sum(1)  # (N,)
    # No matmul: on a GPU it might round to TF32, and an image not chosen has to stay as it is.
    recolored: Tensor = columns[0] * red
    recolored.addcmul_(columns[1], green).addcmul_(columns[2], blue)
    return recolored.add_(offset[:, None, None, None]).clamp_(0, 1)


def _hue_matrices(turn: Tensor) -> Tensor:
    """(N,) radians, red towards green -> (N, 3, 3) on R, G, B."""
    to_yiq = torch.tensor(
        [GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64
    )  # NTSC's; grey has neither I nor Q, so no turn changes it
    cosine, sine = torch.cos(turn), torch.sin(turn)
    rotation = torch.zeros(len(turn), 3, 3, dtype=torch.float64)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1], rotation[:, 1, 2] = cosine, sine
    rotation[:, 2, 1], rotation[:, 2, 2] = -sine, cosine
    matrices: Tensor = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return matrices


def _blur(images: Tensor, draws: _Draws, config: AugmentationConfig, scale: float) -> Tensor:
    """Blur the chosen images, each by its own Gaussian, first down, then across."""
    rows = _rows(_happens(draws.blur_or_not, config.blur, scale))
    if not len(rows):
        return images
    num, height, width = len(rows), *images.shape[2:]
    # From the configuration, not from the sigmas drawn: neighbors must not matter.
    radius = min(math.ceil(3 * config.blur_sigma_max), height - 1, width - 1)
    sigma = _between(draws.blur_sigma[rows], BLUR_SIGMA_MIN, config.blur_sigma_max)
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)  # (3n, taps)
    kernel = _onto(taps, images)[:, None, :, None]
    rows = _onto(rows, images)
    planes = images.index_select(0, rows)
    planes = F.pad(planes, (radius,) * 4, mode="reflect").flatten(0, 1)[None]  # (1, 3n, ...)
    planes = F.conv2d(planes, kernel, groups=3 * num)
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=3 * num)
    return images.index_copy_(0, rows, planes.view(num, 3, height, width))


def _narrow(images: Tensor, draws: _Draws, config: AugmentationConfig, scale: float) -> Tensor:
    """Show the chosen images through a round field of view, darker towards its edge."""
    rows = _rows(_happens(draws.aperture_or_not, config.aperture, scale))
    if not len(rows):
        return images
    shift = torch.stack([draws.aperture_x, draws.aperture_y], 1)[rows]
    on = _onto(rows, images)
    narrowed = camera.narrow(
        images.index_select(0, on),
        _between(draws.aperture_radius[rows], config.aperture_min, 1),
        _between(shift, -APERTURE_SHIFT, APERTURE_SHIFT),
        draws.shade[rows] * config.aperture_shade,
    )
    return images.index_copy_(0, on, narrowed)


def _degrade(images: Tensor, draws: _Draws, config: AugmentationConfig, scale: float) -> Tensor:
    """Take pixels from some images, add noise to some, compress some."""
    fraction = _between(draws.resample, config.resample_min, 1)
    quality = _between(draws.jpeg, config.jpeg_min, 100)
    for draw, probability, change, numbers in (
        (draws.resample_or_not, config.resample, camera.coarsen, (fraction,)),
        (
            draws.noise_or_not,
            config.noise,
            camera.add_noise,
            (draws.noise * config.noise_max, draws.noise_seed),
        ),
        (draws.jpeg_or_not, config.jpeg, camera.compress, (quality,)),
    ):
        rows = _rows(_happens(draw, probability, scale))
        if len(rows):
            on = _onto(rows, images)
            changed = change(images.index_select(0, on), *(number[rows] for number in numbers))
            images.index_copy_(0, on, changed)
    return images


def _cut_out(images: Tensor, draws: _Draws, config: AugmentationConfig, scale: float) -> Tensor:
    """Hide one square of each chosen image, whole inside it, under the image's mean color."""
    rows = _rows(_happens(draws.cutout_or_not, config.cutout, scale))
    height, width = images.shape[2:]
    side = round(config.cutout_scale * min(height, width))
    if not len(rows) or side == 0:
        return images
    tops = (draws.cutout_top[rows] * (height - side + 1)).long().tolist()
    lefts = (draws.cutout_left[rows] * (width - side + 1)).long().tolist()
    means = images.index_select(0, _onto(rows, images)).mean(dim=(2, 3))  # (n, 3)
    for row, top, left, mean in zip(rows.tolist(), tops, lefts, means, strict=True):
        images[row, :, top : top + side, left : left + side] = mean[:, None, None]
    return images


def augmentation_page(
    pixels: NDArray[np.uint8], config: AugmentationConfig, seed: int
) -> Image.Image:
    """Draw a page to look at: uint8 (N, H, W, 3) -> a row each, the original and 7 versions."""
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255  # a copy
    generator = torch.Generator().manual_seed(seed)
    columns = [images, *(augment(images, config, generator) for _ in range(PAGE_VERSIONS))]
    height, width = images.shape[2:]
    side = max(height, width)
    scale = min(max(side, PAGE_MIN_SIDE), PAGE_MAX_SIDE) / side
    height, width = round(height * scale), round(width * scale)
    gap, header = 4, 40
    size = (len(columns) * (width + gap) + gap, header + len(images) * (height + gap))
    page = Image.new("RGB", size, "white")
    text, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    title = (
        f"augmentation: {config.level}; first the original, then {PAGE_VERSIONS} augmented versions"
    )
    text.text((gap, 4), title, fill="black", font=font)
    for column, versions in enumerate(columns):
        left = gap + column * (width + gap)
        name = f"version {column}" if column else "original"
        text.text((left, 22), name, fill="black", font=font)
        for row, version in enumerate((versions * 255).round().byte().permute(0, 2, 3, 1)):
            tile = Image.fromarray(version.numpy()).resize((width, height))
            page.paste(tile, (left, header + row * (height + gap)))
    return page
