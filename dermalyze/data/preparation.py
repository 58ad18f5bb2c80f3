"""From a data folder to what training needs: a manifest, an audit and a pixel store.

A second call finds everything done; a killed call is gone on with; two calls at once take turns.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock

from dermalyze.config.schema import DataConfig
from dermalyze.data.audit import Audit, audit, examine_table
from dermalyze.data.corrections import with_corrections
from dermalyze.data.demo.dataset import MARKER
from dermalyze.data.near_duplicates import Pairs, near_duplicates
from dermalyze.data.pixel_store.builder import build_pixels
from dermalyze.data.pixel_store.store import (
    PixelStore,
    Preprocessing,
    StoredImages,
    open_pixels,
)
from dermalyze.data.readers.dataset import PREPARED, Dataset, open_dataset, read_image_bytes
from dermalyze.data.table_columns import with_groups
from serving.atomic_write import write_text
from serving.errors import DataError
from serving.os_errors import reason_of
from serving.taxonomy import Taxonomy

LABELS, AUDIT_JSON, AUDIT_TEXT = "labels.csv", "audit.json", "audit.txt"
_NEAR = "near_duplicates.json"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Images ready for training; N is their number."""

    folder: Path
    manifest: pd.DataFrame  # labels.csv and the files' sha256; row i is row i of the store
    store: PixelStore  # uint8 (N, H, W, 3)
    audit: Audit
    fingerprint: str  # sha256 of images, labels, groups, file contents and classes, not of places
    old_fingerprint: str  # what runs have that were made before there was a taxonomy
    taxonomy: Taxonomy  # the classes, and the facts of the data set
    dataset: Dataset  # what was found: the original files, splits if the data names them
    stored: StoredImages  # the store and what is known of its images
    grouping: str  # what is not split, in words
    pixels: str = ""  # sha256 of the stored pixels, once they were verified

    @property
    def data_dir(self) -> Path:
        """Where the images were found."""
        return self.dataset.folder

    @property
    def name(self) -> str:
        """What the data is called: by its taxonomy, else by its folder, or `demo data`."""
        if (self.data_dir / MARKER).is_file():
            return "demo data"
        return self.taxonomy.title or self.data_dir.resolve().name

    def read_image_bytes(self, image_id: str) -> bytes:
        """Return the original file of one image.

        Raises:
            ImageError: it is gone or damaged by now.
        """
        return read_image_bytes(self.dataset.files[image_id])


def prepare(data_dir: Path, settings: DataConfig, *, workers: int = 0) -> Prepared:
    """Read, audit and decode the images of a folder, each step only where it is not done yet.

    labels.csv, audit.json, audit.txt and the pixel stores are written to `settings.prepared`.

    Args:
        data_dir: a folder in any layout that a reader knows.
        settings: what to read, how to resize (auto: bicubic), what not to split.
        workers: decoding processes, where there is enough to do for several; 0: one per core.

    Raises:
        ConfigError: taxonomy.yaml does not fit the data.
        DataError: the data cannot be read, must not be trained on, or nothing can be written.
    """
    resize_filter = "bicubic" if settings.resize_filter == "auto" else settings.resize_filter
    preprocessing = Preprocessing(
        image_size=settings.image_size,
        resize_mode=settings.resize_mode,
        resize_filter=resize_filter,
    )
    dataset = open_dataset(data_dir, settings)
    if settings.corrections != "none":
        dataset = with_corrections(dataset, Path(settings.corrections))
    output = data_dir / PREPARED if settings.prepared == "auto" else Path(settings.prepared)
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
        output / LABELS: manifest.drop(columns="sha256").to_csv(index=False, lineterminator="\n"),
        output / AUDIT_TEXT: report.summary(),
        output / AUDIT_JSON: report.to_json(),
    }
    if any(_read(path) != text for path, text in texts.items()):
        with _locked(output):
            for path, text in texts.items():
                write_text(path, text)
    if report.stop_reason and not settings.allow_problems:
        raise DataError(
            f"{data_dir} has {report.stop_reason}, listed in {output / AUDIT_TEXT}; fix the data, "
            "or pass --allow-problems"
        )
    if manifest.empty:
        raise DataError(f"no image of {data_dir} can be used; {output / AUDIT_TEXT} says why")
    manifest = with_groups(manifest, settings.group_by)
    grouping = _grouping(manifest, report, settings.group_by)
    return Prepared(
        folder=output,
        manifest=manifest,
        store=stored.store,
        audit=report,
        fingerprint=fingerprint_of(manifest, dataset.taxonomy),
        old_fingerprint=old_fingerprint_of(manifest),
        taxonomy=dataset.taxonomy,
        dataset=dataset,
        stored=stored,
        grouping=grouping,
    )


def _grouping(manifest: pd.DataFrame, report: Audit, group_by: str) -> str:
    """Say what is not split, and how far that is known."""
    number, num_images = manifest["group"].nunique(), len(manifest)
    if group_by == "none":
        return f"none: {num_images:,} images, split one by one"
    sentence = f"{group_by}: {num_images:,} images in {number:,} groups"
    without = report.missing["lesion id"]
    if group_by == "lesion":
        if without == num_images:
            sentence = "lesion: there are no lesion ids, so each image is a separate group"
        elif without:
            sentence += f"; {without:,} images have no lesion id, each is a separate group"
        if "patient_id" in manifest:
            sentence += "; patient ids exist: data.group_by patient keeps each patient in one split"
    return sentence


def fingerprint_of(manifest: pd.DataFrame, taxonomy: Taxonomy) -> str:
    """Return the sha256, hex, of what the data is; its place, order and file times do not count.

    Of the taxonomy count the classes, in their order, and which are malignant.
    """
    parts = [old_fingerprint_of(manifest), *taxonomy.names, "malignant", *taxonomy.malignant]
    if "patient_id" in manifest:
        pairs = zip(manifest["image_id"], manifest["patient_id"], strict=True)
        parts += ["patients", *sorted("\t".join(pair) for pair in pairs)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def old_fingerprint_of(manifest: pd.DataFrame) -> str:
    """Return the sha256, hex, of images, labels and lesions alone."""
    columns = ["image_id", "label", "lesion_id", "sha256"]
    lines = sorted("\t".join(row) for row in manifest[columns].itertuples(index=False))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
