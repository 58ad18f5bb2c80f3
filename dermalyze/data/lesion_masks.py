"""Lesion masks beside the images, where a data folder has them.  H x W pixels.

Those of Tschandl et al., "Human-computer collaboration for skin cancer recognition", Nature
Medicine 26 (2020): one grey PNG an image, white inside the lesion.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dermalyze.data.readers.dataset import ImageFile, ImageReader, files_in, named_sources
from serving.errors import DataError, ImageError
from serving.image_matching import has_image_suffix, match, plain_id
from serving.preprocess import resize

_SOURCES = ("ham10000_segmentations_lesion_tschandl",)
_SUFFIX = "_segmentation"
_INSIDE = 128  # level from which a pixel is inside
UNKNOWN = 255  # in `read_masks`


def find_masks(data_dir: Path, image_ids: Sequence[str]) -> dict[str, ImageFile]:
    """List masks in a zip or folder of their usual name: image_id -> file; none is no error."""
    if not data_dir.is_dir():
        return {}
    found = {
        plain_id(name)[1].removesuffix(_SUFFIX): file
        for source in named_sources(sorted(data_dir.iterdir()), _SOURCES)
        for name, file in files_in(source)
        if has_image_suffix(name) and plain_id(name)[0].endswith(_SUFFIX)
    }
    files = list(found.values())
    meant = match(image_ids, list(found)).files
    return {
        image_id: files[numbers[0]]
        for image_id, numbers in zip(image_ids, meant, strict=True)
        if numbers
    }


def read_mask(data: bytes, size: tuple[int, int], *, mode: str) -> NDArray[np.bool_]:
    """Decode a mask and bring it to what the network sees of its image: bool (H, W).

    Args:
        data: the file.
        size: H, W.
        mode: one of `serving.spec.RESIZE_MODES`.

    Raises:
        ImageError: it is no image.
    """
    try:
        mask = Image.open(io.BytesIO(data)).convert("L")
    except Exception as error:  # damaged files make Pillow raise at least five types
        raise ImageError("a lesion mask is damaged or not an image") from error
    inside = np.asarray(mask) >= _INSIDE
    painted = Image.fromarray(inside.astype(np.uint8) * 255).convert("RGB")
    return resize(painted, size, mode=mode, filter_name="bilinear")[..., 0] >= _INSIDE


def read_masks(
    data_dir: Path, image_ids: Sequence[str], size: tuple[int, int], *, mode: str
) -> NDArray[np.uint8]:
    """Read all masks: uint8 (N, H, W), 1 inside and 0 outside; all `UNKNOWN` without a mask.

    Args:
        data_dir: the folder of the data.
        image_ids: of the N images.
        size: H, W.
        mode: one of `serving.spec.RESIZE_MODES`.

    Raises:
        DataError: there is none.
    """
    files = find_masks(data_dir, image_ids)
    masks = np.full((len(image_ids), *size), UNKNOWN, np.uint8)
    with ImageReader() as reader:
        rows = tqdm(image_ids, desc="lesion masks", unit="image", leave=False, disable=None)
        for row, image_id in enumerate(rows):
            if image_id not in files:
                continue
            with contextlib.suppress(ImageError):  # a damaged one is as good as none
                masks[row] = read_mask(reader.read(files[image_id]), size, mode=mode)
    if (masks == UNKNOWN).all():
        raise DataError(
            f"there are no lesion masks in {data_dir}; expected {_SOURCES[0]}.zip for "
            "loss.mask_weight above 0"
        )
    return masks
