"""Lesions drawn on skin, and photographs of them: the pictures of the demo data.

A lesion is drawn once, as a scene of SCENE x SCENE pixels at half the resolution of the
photographs then taken of it.  Colors are R, G, B in 0..1, their planes come first.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Plane = NDArray[np.floating[Any]]  # float32 (H, W); three of them, (3, H, W), are a picture
Color = Plane | tuple[float, float, float]
Layers = Iterator[tuple[Color, Plane]]  # a color, and how much of it goes where, 0..1
Random = np.random.Generator

ATYPICAL = 0.2  # fraction of the lesions that are hard to tell
COVERED = 0.3  # opacity from which skin counts as lesion
WIDTH, HEIGHT = 600, 450  # of a photograph, pixels
SCENE, PATCH = 480, 300  # side of the scene and of its middle, where the lesion lies
TONES = np.array(
    [(0.93, 0.68, 0.62), (0.85, 0.72, 0.72), (0.88, 0.66, 0.52), (0.78, 0.66, 0.74),
     (0.92, 0.80, 0.74), (0.72, 0.54, 0.46)], np.float32
)  # fmt: skip  # of skin and light together


class Style(NamedTuple):
    """How a clinic photographs."""

    tint: tuple[float, float, float]  # of its lamps and cameras
    zoom: float  # below 1: a wider field of view
    round: float  # fraction of the lesions that are seen through a round field
    quality: int  # of the JPEG


STYLES = {
    "ham10000": Style(tint=(1.0, 1.0, 1.0), zoom=1.0, round=0.25, quality=88),
    "other-clinic": Style(tint=(1.08, 0.93, 0.80), zoom=0.75, round=1.0, quality=35),
}


def photograph(
    scene: Image.Image, of_lesion: Random, of_view: Random, style: Style = STYLES["ham10000"]
) -> tuple[Image.Image, Image.Image]:
    """Take one picture: 600 x 450, RGB, and the mask of its lesion: L, 0 or 255.

    `of_lesion` gives what pictures of one lesion have in common.
    """
    angle, zoom = math.radians(of_view.uniform(-30, 30)), of_view.uniform(0.92, 1.12) * style.zoom
    cosine, sine = math.cos(angle), math.sin(angle)
    center = np.array([WIDTH / 2, HEIGHT / 2]) + of_view.uniform(-32, 32, 2)
    back = np.array([[cosine, sine], [-sine, cosine]]) / (2 * zoom)  # to the scene's pixels
    lines = np.column_stack([back, SCENE / 2 - back @ center])
    image, mask = (
        part.transform(
            (WIDTH, HEIGHT),
            Image.Transform.AFFINE,
            lines.ravel().tolist(),
            Image.Resampling.BILINEAR,
        )
        for part in (scene.convert("RGB"), scene.getchannel("A"))  # else alpha would darken colors
    )
    mask = mask.point(lambda level: 255 if level >= 128 else 0)
    if of_lesion.random() < 0.4:
        _draw_hair(image, of_lesion, back.T / (2 * (back[0] @ back[0])), center)
    if of_view.random() < 0.12:
        _draw_ruler(image, of_view)
    across = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    down = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    slope_x, slope_y = of_view.uniform(-0.06, 0.06, 2).tolist()
    light = of_view.uniform(0.92, 1.08) + slope_x * across + slope_y * down
    if of_lesion.random() < style.round:
        radius = np.hypot(across * WIDTH / 2, down * HEIGHT / 2) / of_lesion.uniform(255, 330)
        light *= ((1 - radius) * 20).clip(0.02, 1) * (1.06 - 0.3 * radius**2)
    grain = of_view.standard_normal((HEIGHT, WIDTH), dtype=np.float32) * np.float32(2.5)
    bands = []
    tints = of_lesion.normal(1, 0.07, 3) * of_view.normal(1, 0.015, 3) * style.tint
    for band, tint in zip(image.split(), tints.tolist(), strict=True):
        plane = np.asarray(band, np.float32) * light * tint + grain
        bands.append(Image.fromarray(plane.clip(0, 255).astype(np.uint8)))
    return Image.merge("RGB", bands), mask


def _draw_hair(image: Image.Image, random: Random, turn: Plane, center: Plane) -> None:
    mask = Image.new("L", (2 * WIDTH, 2 * HEIGHT))  # twice as large: smooth when reduced
    draw = ImageDraw.Draw(mask)
    steps = np.linspace(0, 1, 10)[:, None]
    heading, spread = random.uniform(0, math.pi), random.uniform(0.1, 0.8)
    width = int(random.integers(2, 7))
    for _ in range(random.integers(3, 26)):
        way, length = random.normal(heading, spread), random.uniform(80, 420)
        start = random.uniform(-420, 420, 2)
        end = start + length * np.array([math.cos(way), math.sin(way)])
        bend = (start + end) / 2 + random.normal(0, length / 6, 2)
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * bend + steps**2 * end
        draw.line(((curve @ turn.T + center) * 2).ravel().tolist(), 225, width)
    dark = random.uniform(10, 70)
    image.paste((int(dark * 1.3), int(dark), int(dark * 0.9)), mask=mask.reduce(2))


def _draw_ruler(image: Image.Image, random: Random) -> None:
    draw, step = ImageDraw.Draw(image), random.uniform(11, 17)
    edge, up = (0, 1) if random.random() < 0.5 else (HEIGHT, -1)
    for i in range(int(WIDTH / step)):
        length = 34 if i % 10 == 0 else 24 if i % 5 == 0 else 14
        draw.line((i * step, edge, i * step, edge + up * length), (40, 38, 60), 2)


def draw_scene(label: str, random: Random) -> Image.Image:
    """Draw skin and, in the middle of it, a lesion of one class: RGBA, opaque inside the lesion."""
    tone = random.dirichlet(np.full(len(TONES), 0.5)).astype(np.float32) @ TONES
    rough = 0.02 * _noise(random, 5, SCENE) + 0.014 * _noise(random, 40, SCENE)
    rough -= 0.02 * np.maximum(_noise(random, 130, SCENE) - 0.8, 0)
    skin = np.stack([tone[0] + 0.6 * rough, tone[1] + rough, tone[2] + rough])
    edge = (SCENE - PATCH) // 2
    bare = skin[:, edge : edge + PATCH, edge : edge + PATCH]
    patch, inside = _painted(bare, label, random)
    if random.random() < ATYPICAL:  # signs of another class, up to more than its own
        other = str(random.choice([name for name in KINDS if name != label]))
        patch += random.uniform(0.3, 0.6) * (_painted(bare, other, random)[0] - patch)
    # Nothing on skin is straight: bend the drawing; and no lesion is as plain as another.
    y, x = (
        (at + 2.2 * _noise(random, 14) + 0.6 * _noise(random, 60)).clip(0, PATCH - 1).astype(int)
        for at in np.mgrid[:PATCH, :PATCH]
    )
    plainness = random.uniform(0.6, 1.0) * (1 + 0.06 * _noise(random, 75))
    bare += (patch - bare)[:, y, x] * plainness  # a view of `skin`
    lesion = np.zeros((1, SCENE, SCENE), np.float32)
    lesion[0, edge : edge + PATCH, edge : edge + PATCH] = inside[y, x] >= COVERED
    planes = (np.concatenate([skin, lesion]).clip(0, 1) * 255).astype(np.uint8)
    return Image.merge("RGBA", [Image.fromarray(plane) for plane in planes])


def _painted(bare: Plane, label: str, random: Random) -> tuple[Plane, Plane]:
    """Paint a lesion of one class on skin (3, H, W); return that and how much is covered (H, W)."""
    patch, covered = bare.copy(), np.zeros_like(bare[0])
    for color, cover in KINDS[label].layers(random):
        for plane, value in zip(patch, color, strict=True):
            plane += cover * (value - plane)
        covered = np.maximum(covered, cover)
    return patch, covered


def _noise(random: Random, cells: int, side: int = PATCH) -> Plane:
    """Return smooth noise, mean 0 and deviation near 1, with about `cells` hills across."""
    grid = Image.fromarray(random.standard_normal((cells, cells), dtype=np.float32) * 1.3)
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _form(random: Random, radius: tuple[float, float], irregular: float, stretch: float) -> Plane:
    """Draw an outline: 0 in the lesion's middle, 1 on its border, more outside."""
    down, across = np.mgrid[:PATCH, :PATCH].astype(np.float32) - np.float32(PATCH / 2)
    tilt, factor = random.uniform(0, math.pi), random.uniform(1, stretch)
    x = (across * math.cos(tilt) + down * math.sin(tilt)) / factor**0.5
    y = (down * math.cos(tilt) - across * math.sin(tilt)) * factor**0.5
    turns = np.linspace(0, 2 * math.pi, 721, dtype=np.float32)
    reach = np.ones_like(turns)
    for waves in range(2, 10):
        phase = random.uniform(0, 2 * math.pi)
        reach += random.normal(0, irregular / waves**0.5) * np.cos(waves * turns + phase)
    reach = np.maximum(reach, 0.4) * np.float32(random.uniform(*radius))
    place = ((np.arctan2(y, x) + math.pi) * (720 / (2 * math.pi))).astype(np.int32)
    outermost = (np.hypot(across, down) / 138) ** 6  # the patch ends at 150
    form: Plane = np.maximum(np.hypot(x, y) / reach[place], outermost)
    return form


def _ramp(values: Plane, low: float, high: float) -> Plane:
    """0 below `low`, 1 above `high`, smooth between; falling if `low` is the larger."""
    t: Plane = ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
    ramp: Plane = t * t * (3 - 2 * t)
    return ramp


def _shade(random: Random, light: Color, dark: Color) -> Plane:
    """Pick a color between two, with a little of its own."""
    color: Plane = np.array(light) + random.random() * np.subtract(dark, light)
    return (color + random.normal(0, 0.015, 3)).astype(np.float32)


def _spots(
    random: Random,
    within: Plane,
    number: tuple[int, int],
    radius: tuple[float, float],
    blur: int = 1,
) -> Plane:
    """Scatter ovals where `within` is over a half, and return what they cover."""
    mask = Image.new("L", (PATCH, PATCH))
    draw = ImageDraw.Draw(mask)
    rows, columns = np.nonzero(within > 0.5)
    for at in random.integers(0, len(rows), random.integers(*number)):
        w, h = random.uniform(*radius, 2)
        draw.ellipse((columns[at] - w, rows[at] - h, columns[at] + w, rows[at] + h), 255)
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255


def _net(random: Random, period: float) -> Plane:
    """Draw the meshes of a bent honeycomb, and return what they cover."""
    y, x = np.mgrid[:PATCH, :PATCH].astype(np.float32) * np.float32(2 * math.pi / period)
    x, y = x + _noise(random, 10), (y + _noise(random, 10)) * (3**0.5 / 2)
    waves = np.cos(x) + 2 * np.cos(x / 2) * np.cos(y)  # 3 in a hole, -1.5 on the lines
    return _ramp(waves + 0.4 * _noise(random, 14), 0.6, -1.3)


def _akiec(random: Random) -> Layers:
    """Pink-red without a border, pale scales and dots."""
    form = _form(random, (62, 105), 0.12, 1.5) + 0.14 * _noise(random, 9)
    inside = _ramp(form, 1.15, 0.5)
    yield _shade(random, (0.88, 0.46, 0.42), (0.76, 0.30, 0.30)), 0.7 * inside
    yield (0.62, 0.16, 0.18), inside * _ramp(_noise(random, 34), 0.4, 1.8) * 0.5
    scales = _ramp(_noise(random, 18) + 0.9 * _noise(random, 70), 1.0, 1.7)
    yield (0.96, 0.92, 0.82), 0.75 * scales * _ramp(form, 1.0, 0.7)
    dots = _spots(random, _ramp(form, 1, 0.9), (30, 80), (1.5, 3))
    yield (0.95, 0.82, 0.66), 0.6 * dots


def _bcc(random: Random) -> Layers:
    """Pearly pink, blue-grey ovoid nests, vessels that branch like trees."""
    form = _form(random, (55, 100), 0.09, 1.5)
    inside = _ramp(form + 0.1 * _noise(random, 8), 1.15, 0.7)
    yield _shade(random, (0.93, 0.70, 0.70), (0.84, 0.54, 0.56)), 0.75 * inside
    nests = _spots(random, _ramp(form, 0.9, 0.8), (3, 9), (6, 18), 3)
    yield _shade(random, (0.46, 0.42, 0.50), (0.28, 0.28, 0.38)), 0.8 * nests
    yield (0.72, 0.14, 0.18), 0.85 * _vessels(random) * _ramp(form, 1.2, 0.9)


def _vessels(random: Random) -> Plane:
    """Draw trees that grow from the rim to the middle, and return what they cover."""
    mask = Image.new("L", (PATCH, PATCH))
    ways = random.uniform(0, 2 * math.pi, random.integers(2, 6)).tolist()
    tips = [(150 + 85 * math.cos(way), 150 + 85 * math.sin(way), way + math.pi, 3) for way in ways]
    while tips:
        x, y, way, width = tips.pop()
        points = [(x, y)]
        for length in random.uniform(7, 16, 4).tolist():
            way += random.normal(0, 0.3)
            x, y = x + length * math.cos(way), y + length * math.sin(way)
            points.append((x, y))
        ImageDraw.Draw(mask).line(points, 255, width)
        for turn in (-0.6, 0.6) if width > 1 else ():
            tips.append((x, y, way + random.normal(turn, 0.2), width - 1))
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255


def _bkl(random: Random) -> Layers:
    """Waxy and sharply bordered, with pale cysts and dark pores."""
    form = _form(random, (50, 100), 0.07, 1.5)
    inside, within = _ramp(form, 1.03, 0.97), _ramp(form, 0.95, 0.85)
    color = _shade(random, (0.74, 0.57, 0.40), (0.42, 0.30, 0.24))
    yield color, (0.85 + 0.06 * _noise(random, 7)).clip(0, 1) * inside
    folds = _ramp(np.cos(4 * _noise(random, 11)), 0.3, 1.0)
    yield color * 0.68, 0.5 * folds * inside
    yield (0.97, 0.92, 0.80), 0.9 * _spots(random, within, (10, 32), (2, 4.5))
    yield (0.22, 0.13, 0.09), 0.8 * _spots(random, within, (4, 16), (1.5, 4))


def _df(random: Random) -> Layers:
    """A white scar in the middle, a faint brown rim."""
    form = _form(random, (55, 95), 0.05, 1.3)
    rim = _ramp(form + 0.08 * _noise(random, 10), 1.2, 0.75)
    yield _shade(random, (0.74, 0.50, 0.40), (0.56, 0.36, 0.30)), 0.65 * rim
    yield (0.42, 0.26, 0.2), 0.2 * rim * _net(random, 11)
    scar = _ramp(form + 0.12 * _noise(random, 14) + 0.06 * _noise(random, 60), 0.65, 0.3)
    yield _shade(random, (0.96, 0.90, 0.88), (0.90, 0.78, 0.78)), 0.85 * scar


def _mel(random: Random) -> Layers:
    """Lopsided, ragged, of many colors."""
    form = _form(random, (55, 95), 0.12, 1.7) + 0.06 * _noise(random, 18)
    inside = _ramp(form, 1.06, 0.9)
    brown = _shade(random, (0.54, 0.34, 0.22), (0.32, 0.19, 0.13))
    yield brown, 0.9 * inside
    yield brown * 0.5, 0.6 * inside * _net(random, 12) * _ramp(form, 0.3, 1)
    slope = random.normal(0, 0.012, 2)  # one side is darker
    y, x = np.mgrid[:PATCH, :PATCH].astype(np.float32) - np.float32(PATCH / 2)
    for color, least, lean in (
        ((0.62, 0.43, 0.29), 0.3, -1),
        ((0.40, 0.39, 0.45), 0.6, 0),
        ((0.54, 0.27, 0.23), 0.9, 0),
        ((0.78, 0.65, 0.63), 1.3, -1),
        ((0.13, 0.08, 0.08), 0.2, 1),
    ):
        field = _noise(random, 6) + 0.35 * _noise(random, 26) + lean * (slope[0] * x + slope[1] * y)
        yield color, 0.8 * inside * _ramp(field, least, least + 1.1)
    dots = _spots(random, _ramp(np.abs(form - 0.95), 0.15, 0.05), (8, 25), (1.5, 4))
    yield (0.13, 0.08, 0.07), 0.7 * dots


def _nv(random: Random) -> Layers:
    """Round and even, one brown, a regular network."""
    form = _form(random, (38, 92), 0.035, 1.4)
    inside = _ramp(form + 0.03 * _noise(random, 20), 1.15, random.uniform(0.6, 0.9))
    brown = _shade(random, (0.72, 0.47, 0.34), (0.42, 0.26, 0.18))
    yield brown, 0.8 * inside
    net = _net(random, random.uniform(11, 16)) * _ramp(form, 1.1, 0.9)
    yield brown * 0.5, random.uniform(0.3, 0.65) * net
    yield brown * 0.6, random.uniform(0, 0.7) * _ramp(form, 0.7, 0.1)


def _vasc(random: Random) -> Layers:
    """Red to purple lagoons, parted by pale walls."""
    form = _form(random, (40, 85), 0.06, 1.4)
    yield (0.74, 0.48, 0.58), 0.7 * _ramp(form, 1.15, 0.95)
    rows, columns = np.nonzero(form < 0.95)
    at = random.integers(0, len(rows), random.integers(10, 26))
    y, x = np.mgrid[:PATCH, :PATCH].astype(np.float32)
    far = np.hypot(y - rows[at, None, None], x - columns[at, None, None])  # (lagoons, H, W)
    nearest, second = np.partition(far, 1, axis=0)[:2]
    lagoons = _ramp(second - nearest, -3, 9) * _ramp(form, 1.05, 0.93)
    color = _shade(random, (0.68, 0.10, 0.22), (0.34, 0.14, 0.32))
    yield color, 0.9 * lagoons
    yield color * 0.45, 0.6 * lagoons * _ramp(_noise(random, 9), 0, 1.5)


class Kind(NamedTuple):
    """A class: what is known of the real one, and how its lesions are drawn."""

    num_images: int
    mean_age: int
    dx_types: dict[str, float]  # with their shares
    layers: Callable[[Random], Layers]


KINDS = {
    "akiec": Kind(327, 66, {"histo": 1.0}, _akiec),
    "bcc": Kind(514, 67, {"histo": 1.0}, _bcc),
    "bkl": Kind(1099, 64, {"histo": 0.7, "consensus": 0.24, "confocal": 0.06}, _bkl),
    "df": Kind(115, 52, {"histo": 0.48, "consensus": 0.52}, _df),
    "mel": Kind(1113, 61, {"histo": 1.0}, _mel),
    "nv": Kind(6705, 46, {"histo": 0.37, "follow_up": 0.55, "consensus": 0.08}, _nv),
    "vasc": Kind(142, 51, {"histo": 0.47, "consensus": 0.53}, _vasc),
}
