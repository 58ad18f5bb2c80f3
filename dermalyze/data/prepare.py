"""From a data folder to what training needs: a manifest, an audit and a pixel store.

A second call finds everything done; a killed call is gone on with; two calls at once take turns.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray

from dermalyze.data.audit import Audit, audit, examine_table
from dermalyze.data.build import build_pixels
from dermalyze.data.pixels import (
    Pixels,
    PixelStore,
    Preprocessing,
    StoredImages,
    open_pixels,
)
from dermalyze.data.readers.dataset import ImageFile, open_dataset, read_image_bytes
from dermalyze.data.tables import COLUMNS
from serving.disk import reason_of
from serving.errors import DataError
from serving.taxonomy import HAM10000, Taxonomy
from serving.whole import write_text

LABELS, AUDIT_JSON, AUDIT_TEXT = "labels.csv", "audit.json", "audit.txt"
_NEAR = "near_duplicates.json"
# Correlation of two grey 32 x 32 thumbnails.  On HAM10000 every pair above it is one photograph
# twice; the nearest pair of different lesions, two small spots in one vignette, has 0.987.
NEAR_DUPLICATE_CORRELATION = 0.99
_COARSE_CORRELATION = 0.98  # of their 16 x 16 halves, which are four times as quick to compare
_BLOCK = 1024  # images compared at once with all others; bounds memory to N * 4 KB

Pairs = tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Prepared:
    """Images ready for training; N is their number."""

    folder: Path
    manifest: pd.DataFrame  # labels.csv and the files' sha256; row i is row i of the store
    store: PixelStore  # uint8 (N, H, W, 3)
    audit: Audit
    fingerprint: str  # sha256 of ids, labels, lesions and file contents, wherever they lie
    files: Mapping[str, ImageFile]  # image_id -> the original file
    data_dir: Path  # where they were found
    stored: StoredImages  # the store and what is known of its images
    pixels: str = ""  # sha256 of the stored pixels, once they were verified
    taxonomy: Taxonomy = HAM10000  # the classes, and the facts of the data set

    def read_image_bytes(self, image_id: str) -> bytes:
        """Return the original file of one image.

        Raises:
            ImageError: it is gone or damaged by now.
        """
        return read_image_bytes(self.files[image_id])


def prepare(
    data_dir: Path,
    *,
    output: Path | None = None,
    image_size: int = 224,
    resize_mode: str = "squash",
    resize_filter: str = "bicubic",
    workers: int = 0,
    allow_problems: bool = False,
) -> Prepared:
    """Read, audit and decode the images of a folder, each step only where it is not done yet.

    Args:
        data_dir: HAM10000 in any layout that `ham10000` reads.
        output: gets labels.csv, audit.json, audit.txt and the stores; `data_dir`/prepared if None.
        image_size: height and width of the stored images, pixels.
        resize_mode: squash or center_crop.
        resize_filter: bilinear, bicubic or lanczos.
        workers: decoding processes, where there is enough to do for several; 0: one a core.
        allow_problems: go on although the audit found contradictions or many broken images.

    Raises:
        ConfigError: size, mode or filter is out of range.
        DataError: the data cannot be read, must not be trained on, or nothing can be written.
    """
    preprocessing = Preprocessing(
        image_size=image_size, resize_mode=resize_mode, resize_filter=resize_filter
    )
    dataset = open_dataset(data_dir)
    output = output or data_dir / "prepared"
    table = examine_table(dataset)
    files = {image_id: dataset.files[image_id] for image_id in table.rows["image_id"]}
    stored = open_pixels(files, output, preprocessing)
    pairs = _read_pairs(stored)
    if stored is None or pairs is None:
        with _locked(output):
            stored = open_pixels(files, output, preprocessing) or build_pixels(
                files, output, preprocessing, workers=workers
            )
            pairs = _read_pairs(stored)
            if pairs is None:
                pairs = _find_pairs(stored)
                write_text(stored.folder / _NEAR, json.dumps(pairs))
    report, manifest = audit(dataset, table, stored.records, pairs)
    texts = {
        output / LABELS: manifest[list(COLUMNS)].to_csv(index=False, lineterminator="\n"),
        output / AUDIT_TEXT: report.summary(),
        output / AUDIT_JSON: report.to_json(),
    }
    if any(_read(path) != text for path, text in texts.items()):
        with _locked(output):
            for path, text in texts.items():
                write_text(path, text)
    if report.stop_reason and not allow_problems:
        raise DataError(
            f"{data_dir} has {report.stop_reason}, listed in {output / AUDIT_TEXT}; mend the data "
            "or pass --allow-problems"
        )
    if manifest.empty:
        raise DataError(f"no image of {data_dir} can be used; {output / AUDIT_TEXT} says why")
    return Prepared(
        output,
        manifest,
        stored.store,
        report,
        fingerprint_of(manifest),
        dataset.files,
        data_dir,
        stored,
        taxonomy=dataset.taxonomy,
    )


def fingerprint_of(manifest: pd.DataFrame) -> str:
    """Return the sha256, hex, of what the data is; its place, order and file times do not count."""
    columns = ["image_id", "label", "lesion_id", "sha256"]
    lines = sorted("\t".join(row) for row in manifest[columns].itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def near_duplicates(image_ids: Sequence[str], thumbnails: Pixels) -> Pairs:
    """Return pairs of image ids that show one photograph, with their correlation.

    Brightness and contrast do not matter, nor do mirroring and quarter turns.  Equal thumbnails
    are among the pairs; images without any contrast are never.

    Args:
        image_ids: of the thumbnails, in order.
        thumbnails: uint8 (N, 32, 32).
    """
    size, side = thumbnails.shape[0], thumbnails.shape[1] // 2
    grey = thumbnails.astype(np.float32)
    halves = grey.reshape(size, side, 2, side, 2).mean((2, 4))
    fine, coarse = _normalized(grey), _normalized(halves)
    best: dict[tuple[int, int], float] = {}
    for turn in range(8):
        turned_fine = _normalized(_turned(grey, turn))
        turned_coarse = _normalized(_turned(halves, turn))
        for start in range(0, size, _BLOCK):
            block = coarse[start : start + _BLOCK] @ turned_coarse[start:].T
            hits = np.flatnonzero(block > _COARSE_CORRELATION)
            for hit in hits.tolist():
                i, j = start + hit // (size - start), start + hit % (size - start)
                if i < j:
                    correlation = float(fine[i] @ turned_fine[j])
                    if correlation > max(NEAR_DUPLICATE_CORRELATION, best.get((i, j), 0.0)):
                        best[i, j] = correlation
    return tuple((image_ids[i], image_ids[j], best[i, j]) for i, j in sorted(best))


def _turned(images: NDArray[np.float32], turn: int) -> NDArray[np.float32]:
    """Apply one of the eight ways to lay a square on itself: (N, S, S) -> (N, S, S)."""
    turned: NDArray[np.float32] = np.rot90(images, turn % 4, axes=(1, 2))
    return turned[:, :, ::-1] if turn >= 4 else turned


def _normalized(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and length 1: (N, S, S) -> (N, S * S); zeros where there is no contrast."""
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    visible = length >= images.shape[1]  # a standard deviation of one grey level
    normalized: NDArray[np.float32] = np.zeros_like(flat)
    np.divide(flat, length, out=normalized, where=visible)
    return normalized


def _find_pairs(stored: StoredImages) -> Pairs:
    """Return near duplicates that are not plain duplicates."""
    pixels = {r.image_id: r.pixels_sha256 for r in stored.records if not r.problem}
    pairs = near_duplicates(list(pixels), stored.thumbnails())
    return tuple(pair for pair in pairs if pixels[pair[0]] != pixels[pair[1]])


def _read_pairs(stored: StoredImages | None) -> Pairs | None:
    text = _read(stored.folder / _NEAR) if stored else None
    try:
        pairs = tuple((str(a), str(b), float(c)) for a, b, c in json.loads(text or "null"))
    except (ValueError, TypeError):  # not there, or damaged: found anew
        return None
    known = {record.image_id for record in stored.records} if stored else set()
    return pairs if all({a, b} <= known for a, b, _ in pairs) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # not there, or damaged: written anew
        return None


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the folder, made if need be; a second call waits for the first to end."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock")
        lock.acquire()
    except OSError as error:
        raise DataError(
            f"cannot write to {output}: {reason_of(error)}; pass a folder that can be written as "
            "--output, in training as data.prepared"
        ) from error
    try:
        yield
    finally:
        lock.release()
