"""Simple properties of photographs, measured where the lesion seldom is: outside the middle.

N images of H x W pixels.  What these say of a class is said by the photograph, not by the lesion.
The size of the file is not among them: fine structures of the lesion make it larger.
"""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermalyze.data.pixel_store.store import PixelStore, Rows
from dermalyze.data.readers.dataset import ImageFile, ImageReader

PROPERTIES = {  # levels are those of 0..255
    "vignette": "how much darker the corners are than the border, levels",
    "brightness": "mean of the border, levels",
    "contrast": "standard deviation of the border, levels",
    "sharpness": "mean difference from neighboring pixels in the border, levels",
    "size": "of the original, megapixels",
}
_MIDDLE = 0.7  # of each side; what is outside is the border, without the corners
_CORNER = 1.15  # distance from the center, in halves of a side; the corners themselves have 1.41
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_BLOCK = 256  # images measured at once


def image_properties(store: PixelStore, rows: Rows, files: Sequence[ImageFile]) -> pd.DataFrame:
    """Measure stored images: a column for each of PROPERTIES, a row for each of `rows`.

    Args:
        store: the images as the network sees them.
        rows: which of them, (N,).
        files: their original files, in the same order.

    Raises:
        ImageError: a file is gone by now.
    """
    blocks = [
        _measured(store.batch(rows[start : start + _BLOCK]))
        for start in range(0, len(rows), _BLOCK)
    ]
    found = pd.DataFrame(np.concatenate(blocks), columns=list(PROPERTIES)[:4])
    with ImageReader() as reader:
        sizes = [Image.open(io.BytesIO(reader.read(file))).size for file in files]
    return found.assign(size=[width * height / 1e6 for width, height in sizes])


def _measured(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Measure uint8 (N, H, W, 3) -> (N, 4): vignette, brightness, contrast, sharpness."""
    luma = pixels.astype(np.float32) @ _LUMA
    y, x = (np.abs(np.linspace(-1, 1, side)) for side in luma.shape[1:])
    corners = np.hypot(y[:, None], x) > _CORNER
    border = (np.maximum(y[:, None], x) > _MIDDLE) & ~corners
    around = luma[:, border].astype(np.float64)  # (N, pixels of the border)
    neighbors = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    detail = np.abs(luma[:, 1:-1, 1:-1] - neighbors / 4)[:, border[1:-1, 1:-1]]
    vignette = around.mean(1) - luma[:, corners].mean(1)
    return np.stack([vignette, around.mean(1), around.std(1), detail.mean(1)], axis=1)
