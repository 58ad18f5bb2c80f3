"""Pictures that no dermatoscope takes: everyday ones, text, screenshots, noise, clinical views."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WORDS = "the quick report of a long day says that nothing here is skin and none of it is a lesion"
SAMPLES = (  # of scikit-image, in color; those that come with the package
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "retina",
    "immunohistochemistry",
    "hubble_deep_field",
    "brick",
    "grass",
    "gravel",
    "camera",
    "coins",
    "moon",
    "page",
    "text",
    "clock",
    "cell",
    "horse",
)


def sample_images(num_images, side, rng):
    """Cut squares out of scikit-image's sample images: uint8 (n, side, side, 3)."""
    from skimage import data

    pictures = []
    for name in SAMPLES:
        picture = np.asarray(getattr(data, name)())
        if picture.dtype == bool:
            picture = picture.astype(np.uint8) * 255
        if picture.ndim == 2:
            picture = np.stack([picture] * 3, axis=-1)
        pictures.append(Image.fromarray(picture[..., :3].astype(np.uint8)))
    cut = []
    for i in range(num_images):
        picture = pictures[i % len(pictures)]
        length = int(min(picture.size) * rng.uniform(0.4, 1))
        left = rng.integers(0, picture.width - length + 1)
        top = rng.integers(0, picture.height - length + 1)
        square = picture.crop((left, top, left + length, top + length))
        cut.append(np.asarray(square.resize((side, side), Image.Resampling.BILINEAR)))
    return np.stack(cut)


def text_pages(num_images, side, rng):
    """Draw pages of text."""
    pages = []
    for _ in range(num_images):
        paper = int(rng.integers(225, 256))
        page = Image.new("RGB", (4 * side, 4 * side), (paper, paper, paper - int(rng.integers(25))))
        draw, size = ImageDraw.Draw(page), int(rng.integers(14, 40))
        font = ImageFont.load_default(size)
        for top in range(10, 4 * side, int(size * 1.5)):
            line = " ".join(rng.permutation(WORDS.split()))
            draw.text((12, top), line, fill=(int(rng.integers(60)),) * 3, font=font)
        pages.append(_small(page, side))
    return np.stack(pages)


def screenshots(num_images, side, rng):
    """Draw windows, bars and buttons."""
    screens = []
    for _ in range(num_images):
        screen = Image.new("RGB", (4 * side, 4 * side), _color(rng))
        draw = ImageDraw.Draw(screen)
        for _ in range(int(rng.integers(4, 9))):
            left, top = (int(v) for v in rng.integers(0, 3 * side, 2))
            width, height = (int(v) for v in rng.integers(side, 3 * side, 2))
            right, bottom = left + width, top + height
            draw.rectangle((left, top, right, bottom), fill=_color(rng), outline="black")
            draw.rectangle((left, top, right, top + 24), fill=_color(rng))
            words = " ".join(rng.permutation(WORDS.split())[:5])
            draw.text(
                (left + 6, top + 30), words, fill=_color(rng), font=ImageFont.load_default(22)
            )
        screens.append(_small(screen, side))
    return np.stack(screens)


def noise(num_images, side, rng):
    """Draw uniform noise at several grain sizes."""
    fields = []
    for i in range(num_images):
        grain = side // (1, 2, 4, 8, 16)[i % 5]
        field = Image.fromarray(rng.integers(0, 256, (grain, grain, 3), np.uint8))
        fields.append(np.asarray(field.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(fields)


def clinical_views(pixels, rng):
    """Show lesions as a camera from afar would: small, off the middle, tilted, on a field of skin.

    The field is a corner of the image itself, mirrored on and on; light falls from one side, and
    beside some lesions there is a ruler or a finger.

    Args:
        pixels: uint8 (n, side, side, 3).
        rng: draws where, how small and from where the light comes.
    """
    views = []
    for image in pixels:
        side = len(image)
        view = Image.fromarray(_field(image, side // 5))
        small = int(side * rng.uniform(0.15, 0.35))
        lesion = Image.fromarray(image).resize((small, small), Image.Resampling.LANCZOS)
        mask = Image.new("L", (small, small), 0)
        ImageDraw.Draw(mask).ellipse((2, 2, small - 3, small - 3), fill=255)
        beside = rng.random()
        lowest = side // 2 if beside < 0.6 else 7 * side // 8  # what lies beside it hides nothing
        left = int(rng.integers(side // 8, 7 * side // 8 - small))
        top = int(rng.integers(side // 8, lowest - small + 1))
        view.paste(lesion, (left, top), mask.filter(ImageFilter.GaussianBlur(2)))
        if beside < 0.3:
            _draw_ruler(view)
        elif beside < 0.6:
            _draw_finger(view, rng)
        inward = rng.uniform(0, side / 8, 8) * (1, 1, 1, -1, -1, -1, -1, 1)
        corners = inward + np.array((0, 0, 0, side, side, side, side, 0))
        view = view.transform((side, side), Image.Transform.QUAD, corners, Image.Resampling.BICUBIC)
        light = np.linspace(rng.uniform(0.55, 0.8), 1.1, side)
        light = np.broadcast_to(light[None, :, None], (side, side, 1))
        lit = np.rot90(light, int(rng.integers(4))) * np.asarray(view)
        views.append(np.clip(lit, 0, 255).astype(np.uint8))
    return np.stack(views)


def _field(image, length):
    """Mirror the brightest corner, which has least of lesion and vignette, over the whole."""
    side = len(image)
    corners = [np.rot90(image, turns)[:length, :length] for turns in range(4)]
    patch = max(corners, key=lambda corner: corner.mean())
    rest = side - length
    return np.pad(patch, ((0, rest), (0, rest), (0, 0)), mode="symmetric")


def _draw_ruler(view):
    draw, side = ImageDraw.Draw(view), view.width
    draw.rectangle((0, side - 24, side, side), fill=(235, 235, 230))
    for mark in range(0, side, 6):
        draw.line((mark, side - 24, mark, side - (18 if mark % 30 else 14)), fill="black")


def _draw_finger(view, rng):
    draw, side = ImageDraw.Draw(view), view.width
    skin = np.asarray(view).reshape(-1, 3).mean(axis=0) * rng.uniform(0.75, 0.95)
    left, tip = int(rng.integers(0, side)), int(rng.integers(side // 2, 3 * side // 4))
    for inset in range(6):  # darker towards its edges
        shade = tuple(int(level) for level in skin * (0.7 + 0.05 * inset))
        box = (left + inset, tip + inset, left + side // 4 - inset, side + side // 4)
        draw.rounded_rectangle(box, radius=side // 9, fill=shade)


def _small(image, side):
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def _color(rng):
    return tuple(int(value) for value in rng.integers(0, 256, 3))
