"""A map of evidence as a picture that people can read.  numpy and Pillow alone; no torch.

H x W pixels of the shown photograph, h x w places of the map.
"""

import functools
import textwrap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from serving.prediction import Prediction
from serving.spec import ModelSpec

MAP_IN_WORDS = {
    "grad_cam": "Where the network's last features support this class (Grad-CAM). Coarse: one "
    "value covers many pixels. It shows what the network used, not what is true.",
    "attention_evidence": "Contribution of each place to this class, weighted by attention. Each "
    "place also contains information from others, so the map is not exact. It shows what the "
    "network used, not what is true.",
}
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_STRENGTH = 0.65  # opacity of the strongest evidence
_SHOWN_SIDE = 360  # pixels, the longer side of each of the two pictures
_MARGIN = 16
_MIN_TEXT_WIDTH = 560  # pixels; a narrow photograph must not squeeze the words
# Anchors of a scale that darkens evenly and that the color-blind can read: dark blue to yellow.
_ANCHORS = np.array(
    [(12, 12, 60), (60, 30, 130), (150, 40, 120), (220, 80, 70), (250, 160, 40), (252, 250, 160)],
    np.float32,
)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Where in a photograph the evidence for a class lies."""

    image: Image.Image  # upright, RGB
    prediction: Prediction
    class_name: str
    saliency: NDArray[np.float32]  # (h, w), at least 0; of the pixels that the network sees
    spec: ModelSpec
    attention: NDArray[np.float32] | None = None  # (h, w), summing to 1; of a head that has it

    def overlay(self, strength: float = _STRENGTH) -> Image.Image:
        """Lay the map over the photograph; what has no evidence stays as it is."""
        image = _fitted(self.image)
        opacity = self.shown_map(image.size)
        colors = _colored(opacity)
        alpha = (strength * np.sqrt(opacity))[..., None]
        mixed = np.asarray(image, np.float32) * (1 - alpha) + colors * alpha
        return Image.fromarray(mixed.round().astype(np.uint8))

    def shown_map(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return the map over a photograph shown at `size` (width, height): (H, W) in 0..1.

        It is scaled by its own maximum; a part that the network does not see is 0.
        """
        width, height = size
        largest = float(self.saliency.max())
        if largest <= 0:
            return np.zeros((height, width), np.float32)
        left, top, right, bottom = 0, 0, width, height
        if self.spec.resize_mode == "center_crop":
            rows, columns = self.spec.input_size
            scale = min(width / columns, height / rows)
            left = round((width - columns * scale) / 2)
            top = round((height - rows * scale) / 2)
            right, bottom = left + round(columns * scale), top + round(rows * scale)
        small = Image.fromarray((self.saliency / largest).astype(np.float32))
        part = small.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        shown = np.zeros((height, width), np.float32)
        shown[top:bottom, left:right] = np.asarray(part).clip(0, 1)
        return shown

    def page(self) -> Image.Image:
        """Draw a page: the photograph, the map over it, what both mean, and the disclaimer."""
        photograph, overlay = _fitted(self.image), self.overlay()
        text_width = max(2 * photograph.width + _MARGIN, _MIN_TEXT_WIDTH)
        lines = [(line, 18, "black") for line in self._headline()]
        if float(self.saliency.max()) <= 0:
            said = "There is no evidence for this class anywhere in the image; the map is empty."
        else:
            said = MAP_IN_WORDS[self.spec.saliency]
        lines += [(said, 13, "#333333"), (self.prediction.disclaimer, 14, "#a00000")]
        drawn = [
            (line, size, color)
            for text, size, color in lines
            for line in _wrapped(text, size, text_width)
        ]
        text_height = sum(size + 8 for _, size, _ in drawn) + 8
        page = Image.new(
            "RGB",
            (text_width + 2 * _MARGIN, photograph.height + text_height + 34 + 2 * _MARGIN),
            "white",
        )
        page.paste(photograph, (_MARGIN, _MARGIN))
        page.paste(overlay, (2 * _MARGIN + photograph.width, _MARGIN))
        top = _MARGIN + photograph.height + 8
        self._legend(page, (2 * _MARGIN + photograph.width, top), photograph.width)
        draw = ImageDraw.Draw(page)
        top += 26
        for line, size, color in drawn:
            draw.text((_MARGIN, top), line, fill=color, font=_font(size, line))
            top += size + 8
        return page

    def _headline(self) -> list[str]:
        spec, prediction = self.spec, self.prediction
        name, description = self.class_name, spec.taxonomy.description(self.class_name)
        shown = f"{description} ({name})" if description else name
        said = [f"{shown}: {prediction.probabilities[name]:.1%}"]
        if self.class_name != prediction.predicted_class:
            said.append(
                "predicted: "
                f"{prediction.predicted_class_description or prediction.predicted_class}, "
                f"{prediction.confidence:.1%}"
            )
        if prediction.decision not in (None, "answer"):
            said.append(f"{prediction.decision}: {prediction.decision_reason}".replace("_", " "))
        return said

    def _legend(self, page: Image.Image, corner: tuple[int, int], width: int) -> None:
        """Draw the scale of colors between its two ends in words."""
        draw, font, (left, top) = ImageDraw.Draw(page), ImageFont.load_default(12), corner
        low, high = "no evidence", "most evidence"
        start = left + round(draw.textlength(low, font)) + 8
        end = left + width - round(draw.textlength(high, font)) - 8
        draw.text(corner, low, fill="#333333", font=font)
        draw.text((end + 8, top), high, fill="#333333", font=font)
        if end > start:  # a narrow photograph has room for the words alone
            ramp = np.broadcast_to(
                np.linspace(0, 1, end - start, dtype=np.float32), (10, end - start)
            )
            page.paste(Image.fromarray(_colored(ramp).astype(np.uint8)), (start, top + 3))


def _colored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) in 0..1 -> RGB levels (H, W, 3)."""
    places = np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(values, places, _ANCHORS[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _fitted(image: Image.Image) -> Image.Image:
    """Scale a photograph so that its longer side is `_SHOWN_SIDE`."""
    scale = _SHOWN_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


@functools.cache
def _wide_font(size: int) -> Font:
    """Return a font of the system for what Pillow's own lacks: Greek, Cyrillic, Hebrew, Arabic."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:  # not there: unknown letters become boxes
        return ImageFont.load_default(size)


def _font(size: int, text: str) -> Font:
    return ImageFont.load_default(size) if text.isascii() else _wide_font(size)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels."""
    sample = "abcdefghij klmno" if text.isascii() else text  # other letters have other widths
    letters = max(20, int(width * len(sample) / _font(size, text).getlength(sample)))
    return textwrap.wrap(text, letters)
