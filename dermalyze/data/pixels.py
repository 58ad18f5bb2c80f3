"""The pixel store: every usable image decoded once, uint8 (N, H, W, 3), memory-mapped.

A store is a folder that appears whole, by one rename, and whose name says what is in it.  While it
is built, `journal.jsonl` has a line for every finished image, so a killed build is gone on with.
Images are decoded by threads: Pillow leaves the interpreter lock while it works, and threads are
safe beside an imported torch.  Never imports torch.
"""

import base64
import errno
import hashlib
import io
import json
import math
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dermalyze.config import require, require_choice
from dermalyze.data.ham10000 import ImageFile, ImageReader
from serving.errors import DataError, ImageError
from serving.preprocess import decode_image, resize
from serving.spec import RESIZE_FILTERS, RESIZE_MODES

PREPROCESSING_VERSION = 1  # one more whenever `decode_image` or `resize` answers differently
THUMBNAIL_SIDE = 32  # pixels
_CHUNK_IMAGES = 32  # what a killed build may have to decode again, for each worker twice
_CHUNK_BYTES = 8 * 2**20
_PIXELS, _RECORDS, _THUMBNAILS = "pixels.npy", "images.json", "thumbnails.npy"
_RAW, _JOURNAL = "raw.npy", "journal.jsonl"

Rows = NDArray[np.int64]
Pixels = NDArray[np.uint8]


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


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What was learned about one image file while it was decoded."""

    image_id: str
    sha256: str  # of the file's bytes, hex; empty: they could not be read
    pixels_sha256: str  # of the upright RGB image and its size, hex; empty: not decoded
    truncated: bool
    problem: str  # why it cannot be used; empty: it can


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
    """A whole store: the pixels, and a record of every image that was tried."""

    folder: Path
    store: PixelStore  # row i is the i-th record without a problem
    records: tuple[ImageRecord, ...]  # of all images, by image_id

    def thumbnails(self) -> Pixels:
        """Return the stored images in grey, uint8 (N, 32, 32)."""
        thumbnails: Pixels = np.load(self.folder / _THUMBNAILS, allow_pickle=False)
        return thumbnails


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
    folder = store_folder(files, output, preprocessing)
    try:
        values = json.loads((folder / _RECORDS).read_text(encoding="utf-8"))
        records = tuple(ImageRecord(**record) for record in values)
        store = PixelStore(folder / _PIXELS)
    except (OSError, ValueError, TypeError):  # none, or one that somebody has damaged
        return None
    usable = sum(not record.problem for record in records)
    side = preprocessing.image_size
    whole = store.pixels.shape == (usable, side, side, 3) and len(records) == len(files)
    return StoredImages(folder, store, records) if whole else None


def build_pixels(
    files: Mapping[str, ImageFile], output: Path, preprocessing: Preprocessing, *, workers: int
) -> StoredImages:
    """Decode every file once into a store; go on where a killed build stopped.

    The caller holds the lock of `output`.  Older stores of the same preprocessing are removed.

    Args:
        files: image_id -> file.
        output: the folder that gets the store.
        preprocessing: size, mode and filter of the resize.
        workers: decoding threads; 0: one a core.

    Raises:
        DataError: the store cannot be written; no half store is left.
    """
    folder = store_folder(files, output, preprocessing)
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _decode_all(files, partial, preprocessing, workers or os.cpu_count() or 1)
        shutil.rmtree(folder, ignore_errors=True)  # there only if damaged
        partial.replace(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        side = preprocessing.image_size
        size = len(files) * side * side * 3 / 1e9
        raise DataError(
            f"cannot write {size:.1f} GB of pixels to {output}: {reason_of(error)}; make room or "
            "pass another folder as --output, in training as data.prepared"
        ) from error
    for name in (_RAW, _JOURNAL):
        (folder / name).unlink(missing_ok=True)
    for other in output.glob(f"pixels-{preprocessing.name}-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    stored = open_pixels(files, output, preprocessing)
    assert stored is not None
    return stored


def reason_of(error: OSError) -> str:
    """Return an operating system's reason in lower case words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "no space left"
    return (error.strerror or "unknown reason").lower()


@dataclass(frozen=True, slots=True)
class _Decoded:
    record: ImageRecord
    thumbnail: bytes  # grey, 32 x 32; empty where there is a problem
    pixels: bytes  # (H, W, 3); empty likewise, and once they are on disk


_Chunk = list[tuple[int, _Decoded]]


def _decode_all(
    files: Mapping[str, ImageFile], partial: Path, preprocessing: Preprocessing, workers: int
) -> None:
    """Fill `partial` with everything that makes a store."""
    image_ids = sorted(files)
    side = preprocessing.image_size
    raw = _Raw(partial, (len(image_ids), side, side, 3))
    try:
        done = raw.finished_rows(image_ids)
        todo = [row for row in range(len(image_ids)) if row not in done]
        step = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // raw.row_bytes))
        chunks = [todo[start : start + step] for start in range(0, len(todo), step)]

        def decode_chunk(rows: list[int]) -> _Chunk:
            return [
                (row, _decode(image_ids[row], files[image_ids[row]], reader, preprocessing))
                for row in rows
            ]

        progress = tqdm(
            total=len(image_ids), initial=len(done), desc="decode", unit="image", disable=None
        )
        with ImageReader() as reader, progress:
            for decoded_chunk in _ahead(decode_chunk, chunks, workers):
                for row, decoded in decoded_chunk:
                    raw.write(row, decoded)
                    done[row] = replace(decoded, pixels=b"")
                    progress.update()
        raw.finish(done)
    finally:
        raw.close()


def _ahead(
    function: Callable[[list[int]], _Chunk], chunks: list[list[int]], workers: int
) -> Iterator[_Chunk]:
    """Yield function(chunk) for each chunk in order; threads work a few chunks ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[_Chunk]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(function, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # an error or Ctrl-C: what is not begun is dropped
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(
    image_id: str, file: ImageFile, reader: ImageReader, preprocessing: Preprocessing
) -> _Decoded:
    sha256, data = "", b""
    try:
        data = reader.read(file)
        sha256 = hashlib.sha256(data).hexdigest()
        image = decode_image(data)
    except ImageError as error:
        truncated = sha256 != "" and _is_cut_short(data)
        return _Decoded(ImageRecord(image_id, sha256, "", truncated, str(error)), b"", b"")
    side = preprocessing.image_size
    pixels = resize(
        image,
        (side, side),
        mode=preprocessing.resize_mode,
        filter_name=preprocessing.resize_filter,
    )
    content = hashlib.sha256(f"{image.width}x{image.height}\n".encode())
    content.update(image.tobytes())
    small = image.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    record = ImageRecord(image_id, sha256, content.hexdigest(), False, "")
    return _Decoded(record, small.tobytes(), pixels.tobytes())


def _is_cut_short(data: bytes) -> bool:
    """Tell whether an image begins as JPEG or PNG and lacks the mark of its end."""
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in data[-64:]
    return data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]


class _Raw:
    """The files of a store in the making: rows of pixels, and a line for each finished row."""

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]) -> None:
        self._folder, self._shape = folder, shape
        self.row_bytes = shape[1] * shape[2] * shape[3]
        raw, pixels = folder / _RAW, folder / _PIXELS
        if pixels.exists() and not raw.exists():
            pixels.replace(raw)  # killed between `finish` and the folder's rename
        self._offset = len(_npy_header(shape))
        size = self._offset + shape[0] * self.row_bytes
        if not raw.exists() or raw.stat().st_size != size:
            _create_npy(raw, shape)
            (folder / _JOURNAL).unlink(missing_ok=True)
        self._pixels = raw.open("r+b", buffering=0)
        self._journal = (folder / _JOURNAL).open("a+b", buffering=0)

    def finished_rows(self, image_ids: list[str]) -> dict[int, _Decoded]:
        """Return what the journal has, without any row whose pixels are not what it says."""
        done: dict[int, _Decoded] = {}
        self._journal.seek(0)
        for line in self._journal.read().split(b"\n"):
            try:
                row, crc, thumbnail, values = json.loads(line)
            except ValueError:  # the line at which the build was killed, or nothing
                continue
            self._pixels.seek(self._offset + row * self.row_bytes)
            record = ImageRecord(**values)
            intact = record.problem or zlib.crc32(self._pixels.read(self.row_bytes)) == crc
            if intact and record.image_id == image_ids[row]:
                done[row] = _Decoded(record, base64.b64decode(thumbnail), b"")
        if done:  # a torn last line must not swallow the next
            _write_all(self._journal, b"\n")
        return done

    def write(self, row: int, decoded: _Decoded) -> None:
        """Store the pixels of a row, then say in the journal that they are stored."""
        self._pixels.seek(self._offset + row * self.row_bytes)
        _write_all(self._pixels, decoded.pixels)
        thumbnail = base64.b64encode(decoded.thumbnail).decode()
        line = json.dumps(
            [row, zlib.crc32(decoded.pixels), thumbnail, asdict(decoded.record)],
            separators=(",", ":"),
        )
        _write_all(self._journal, line.encode() + b"\n")

    def finish(self, done: dict[int, _Decoded]) -> None:
        """Write records and thumbnails, and leave out the rows of images with a problem."""
        everything = [done[row] for row in range(self._shape[0])]
        usable = [row for row in range(self._shape[0]) if not done[row].record.problem]
        records = json.dumps([asdict(decoded.record) for decoded in everything])
        (self._folder / _RECORDS).write_text(records, encoding="utf-8")
        thumbnails = b"".join(decoded.thumbnail for decoded in everything)
        side = THUMBNAIL_SIDE
        np.save(
            self._folder / _THUMBNAILS,
            np.frombuffer(thumbnails, np.uint8).reshape(-1, side, side),
            allow_pickle=False,
        )
        os.fsync(self._pixels.fileno())
        if len(usable) == self._shape[0]:
            self.close()
            (self._folder / _RAW).replace(self._folder / _PIXELS)
        else:
            shape = (len(usable), *self._shape[1:])
            _create_npy(self._folder / _PIXELS, shape)
            with (self._folder / _PIXELS).open("r+b", buffering=0) as pixels:
                pixels.seek(len(_npy_header(shape)))
                for row in usable:
                    self._pixels.seek(self._offset + row * self.row_bytes)
                    _write_all(pixels, self._pixels.read(self.row_bytes))
                os.fsync(pixels.fileno())
            self.close()

    def close(self) -> None:
        """Close both files; twice does no harm."""
        self._pixels.close()
        self._journal.close()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    values = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, values)
    return header.getvalue()


def _create_npy(path: Path, shape: tuple[int, ...]) -> None:
    """Make a file of zeros that already has all its room on the disk."""
    header = _npy_header(shape)
    size = len(header) + math.prod(shape)
    with path.open("wb", buffering=0) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        _write_all(file, header)


def _write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of it: an unbuffered file may take a part, and a buffered one fails at closing."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
