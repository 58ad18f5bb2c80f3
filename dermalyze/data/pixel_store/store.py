"""The pixel store: every usable image decoded once, uint8 (N, H, W, 3), memory-mapped.

A store is a folder that appears whole, by one rename, and whose name says what is in it; `build`
makes it.  Never imports torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from dermalyze.config.schema import require, require_choice
from dermalyze.data.pixel_store.decoder import THUMBNAIL_SIDE, checksum
from dermalyze.data.pixel_store.decoder import ImageRecord as ImageRecord
from dermalyze.data.pixel_store.decoder import Pixels as Pixels
from dermalyze.data.pixel_store.journal import PIXELS, RECORDS, SUMS, THUMBNAILS
from dermalyze.data.readers.dataset import ImageFile
from serving.errors import DataError
from serving.spec import RESIZE_FILTERS, RESIZE_MODES

PREPROCESSING_VERSION = 2  # one more whenever `decode_image` or `resize` answers differently

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an upright RGB image to what the network sees."""

    image_size: int  # pixels, height and width
    resize_mode: str
    resize_filter: str

    def __post_init__(self) -> None:
        """Check ranges."""
        require(
            16 <= self.image_size <= 1024, "data.image_size", "from 16 to 1024", self.image_size
        )
        require_choice("data.resize_mode", self.resize_mode, RESIZE_MODES)
        require_choice("data.resize_filter", self.resize_filter, RESIZE_FILTERS)

    @property
    def name(self) -> str:
        """A word for file names."""
        return f"{self.image_size}-{self.resize_mode}-{self.resize_filter}"


class PixelStore:
    """Every usable image of a data folder, uint8 (N, H, W, 3), memory-mapped, read-only."""

    def __init__(self, path: Path) -> None:
        self.pixels: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: Rows) -> Pixels:
        """Row numbers (n,) -> uint8 (n, H, W, 3), a copy, in the order asked for."""
        order = np.argsort(rows, kind="stable")  # ascending reads: the store may be on a slow disk
        pixels = np.empty((len(rows), *self.pixels.shape[1:]), np.uint8)
        pixels[order] = self.pixels[rows[order]]
        return pixels


@dataclass(frozen=True)
class StoredImages:
    """A whole store of N usable images: the pixels, and a record of every image that was tried."""

    folder: Path
    store: PixelStore  # row i is the i-th record without a problem
    records: tuple[ImageRecord, ...]  # of all images, by image_id

    def thumbnails(self) -> Pixels:
        """Return the stored images in grey, uint8 (N, 32, 32)."""
        thumbnails: Pixels = np.load(self.folder / THUMBNAILS, allow_pickle=False)
        return thumbnails

    def save_sums(self) -> None:
        """Keep a checksum of each image beside the pixels."""
        np.save(self.folder / SUMS, self._sums(), allow_pickle=False)

    def intact(self) -> NDArray[np.bool_]:
        """Say of each stored image whether its pixels are still those that were decoded: (N,)."""
        return self._compared()[1]

    def verify(self) -> str:
        """Read all pixels, and return the sha256, hex, of their checksums.

        Raises:
            DataError: the pixels are not those that were decoded.
        """
        sums, intact = self._compared()
        if not intact.all():
            usable = [record.image_id for record in self.records if not record.problem]
            raise DataError(
                f"the pixels of {int((~intact).sum())} of {len(intact)} images in {self.folder} "
                f"are damaged, among them {usable[int(intact.argmin())]}; delete that folder, and "
                "they are decoded again"
            )
        return hashlib.sha256(sums.tobytes()).hexdigest()

    def _sums(self) -> NDArray[np.uint64]:
        return np.array([checksum(row, b"") for row in self.store.pixels], np.uint64)

    def _compared(self) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        sums = self._sums()
        try:
            known = np.load(self.folder / SUMS, allow_pickle=False)
        except FileNotFoundError:  # made by an older version
            known = sums
        except (OSError, ValueError, EOFError):
            known = np.zeros(0, np.uint64)
        same = known == sums if known.shape == sums.shape else np.zeros(len(sums), np.bool_)
        return sums, same


def store_folder(
    files: Mapping[str, ImageFile], output: Path, preprocessing: Preprocessing
) -> Path:
    """Return where the store of these very files and this preprocessing stands, or will."""
    digest = hashlib.sha256(f"{PREPROCESSING_VERSION} {PIL.__version__}\n".encode())
    for image_id in sorted(files):
        digest.update(f"{image_id}\t{files[image_id].size}\t{files[image_id].stamp}\n".encode())
    return output / f"pixels-{preprocessing.name}-{digest.hexdigest()[:16]}"


def open_pixels(
    files: Mapping[str, ImageFile], output: Path, preprocessing: Preprocessing
) -> StoredImages | None:
    """Open the store of these files, or return None where there is none."""
    stored = open_store(store_folder(files, output, preprocessing), preprocessing.image_size)
    return stored if stored and len(stored.records) == len(files) else None


def open_store(folder: Path, side: int) -> StoredImages | None:
    """Open a folder as a store of images of this side, or return None where it is none."""
    try:
        values = json.loads((folder / RECORDS).read_text(encoding="utf-8"))
        records = tuple(ImageRecord(**record) for record in values)
        stored = StoredImages(folder, PixelStore(folder / PIXELS), records)
        shapes = stored.store.pixels.shape, stored.thumbnails().shape
    except (OSError, ValueError, TypeError, EOFError):  # none, or one that somebody has damaged
        return None
    usable = sum(not record.problem for record in records)
    whole = ((usable, side, side, 3), (usable, THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return stored if shapes == whole else None
