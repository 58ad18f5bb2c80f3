"""The files of a pixel store in the making: rows of pixels, and a journal of the finished rows.

A row is in the journal only once its pixels are written, with a sum that tells whether they also
reached the disk; so a build that was killed, or whose machine lost its power, is gone on with.
"""

import io
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dermalyze.data.pixel_store.decoder import (
    THUMBNAIL_BYTES,
    THUMBNAIL_SIDE,
    ImageRecord,
    Outcome,
    Pixels,
    checksum,
    write_all,
)

PIXELS, RECORDS, THUMBNAILS = "pixels.npy", "images.json", "thumbnails.npy"
SUMS = "sums.npy"  # a checksum for each row, uint64 (N,); stores of older versions have none
_RAW, _RAW_THUMBNAILS, _JOURNAL = "raw.npy", "thumbnails.raw", "journal.jsonl"
_SYNC_BYTES = 256 * 2**20  # what waits in memory before it is sent to the disk


class StoreFiles:
    """Rows of pixels (N, H, W, 3) and the journal of those that are finished."""

    def __init__(self, folder: Path, image_ids: Sequence[str], image_size: int) -> None:
        self._folder, self._image_ids = folder, image_ids
        self._shape = (len(image_ids), image_size, image_size, 3)
        self._row_bytes = math.prod(self._shape[1:])
        self.path, pixels = folder / _RAW, folder / PIXELS
        self.thumbnails_path = folder / _RAW_THUMBNAILS
        if pixels.exists() and not self.path.exists():
            pixels.replace(self.path)  # killed between `finish` and the folder's rename
        self.offset = len(_npy_header(self._shape))
        size = self.offset + self._shape[0] * self._row_bytes
        if not self.path.exists() or self.path.stat().st_size != size:
            _create_npy(self.path, self._shape)
            (folder / _JOURNAL).unlink(missing_ok=True)
        self._pixels = self.path.open("r+b", buffering=0)
        self.thumbnails_path.touch()
        self._thumbnails = self.thumbnails_path.open("r+b", buffering=0)
        self._journal = (folder / _JOURNAL).open("a+b", buffering=0)
        self._unsynced = 0  # bytes
        self._syncing: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self.done = self._read_journal()  # row -> what is known of it

    def __enter__(self) -> "StoreFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._pixels.close()
        self._thumbnails.close()
        self._journal.close()

    def copy(self, row: int, outcome: Outcome, pixels: bytes, small: bytes) -> None:
        """Take a row over from another store; the journal need not know, it is quickly done again.

        Args:
            row: its number here.
            outcome: what is known of it.
            pixels: (H, W, 3); empty where there is a problem.
            small: the thumbnail; likewise.
        """
        self._pixels.seek(self.offset + row * self._row_bytes)
        write_all(self._pixels, pixels)
        self._thumbnails.seek(row * THUMBNAIL_BYTES)
        write_all(self._thumbnails, small)
        self.done[row] = outcome
        self._sync_now_and_then(1)

    def add(self, lines: list[bytes]) -> None:
        """Say in the journal which rows are written, in the words of `decoding.journal_line`."""
        write_all(self._journal, b"".join(lines))
        for line in lines:
            row, _, *values = json.loads(line)
            self.done[row] = Outcome(*values)
        self._sync_now_and_then(len(lines))

    def thumbnails(self) -> Pixels:
        """Return those of all rows, uint8 (N, 32, 32); what they show is known where it is done."""
        self._thumbnails.seek(0)
        data = self._thumbnails.read(self._shape[0] * THUMBNAIL_BYTES)
        return np.frombuffer(data, np.uint8).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)

    def finish(self, records: Sequence[ImageRecord]) -> None:
        """Write records and thumbnails, and leave out the rows of images with a problem."""
        usable = [row for row, record in enumerate(records) if not record.problem]
        text = json.dumps([record.values() for record in records])
        (self._folder / RECORDS).write_text(text, encoding="utf-8")
        thumbnails = io.BytesIO()  # np.save to a full disk would not say why it fails
        np.save(thumbnails, self.thumbnails()[usable], allow_pickle=False)
        (self._folder / THUMBNAILS).write_bytes(thumbnails.getbuffer())
        if self._syncing:
            self._syncing.result()
        os.fsync(self._pixels.fileno())
        if len(usable) == len(records):
            self._pixels.close()
            self.path.replace(self._folder / PIXELS)
        else:
            self._keep_only(usable)

    def _read_journal(self) -> dict[int, Outcome]:
        """Return what the journal has, without any row whose pixels are not what it says."""
        done: dict[int, Outcome] = {}
        self._thumbnails.truncate(self._shape[0] * THUMBNAIL_BYTES)
        self._journal.seek(0)
        for line in self._journal.read().split(b"\n"):
            try:
                row, check, *values = json.loads(line)
                outcome = Outcome(*values)
            except (ValueError, TypeError):  # the line at which the build was killed, or nothing
                continue
            self._pixels.seek(self.offset + row * self._row_bytes)
            self._thumbnails.seek(row * THUMBNAIL_BYTES)
            pixels, small = (
                self._pixels.read(self._row_bytes),
                self._thumbnails.read(THUMBNAIL_BYTES),
            )
            intact = outcome.problem or checksum(pixels, small) == check
            if intact and outcome.image_id == self._image_ids[row]:
                done[row] = outcome
        if done:  # a torn last line must not swallow the next
            write_all(self._journal, b"\n")
        return done

    def _sync_now_and_then(self, num_rows: int) -> None:
        """Send rows to the disk while others are decoded: all at the end, everybody would wait."""
        self._unsynced += num_rows * self._row_bytes
        if self._unsynced >= _SYNC_BYTES and (not self._syncing or self._syncing.done()):
            if self._syncing:
                self._syncing.result()  # raises what went wrong
            self._unsynced = 0
            self._syncing = self._pool.submit(os.fsync, self._pixels.fileno())

    def _keep_only(self, rows: list[int]) -> None:
        shape = (len(rows), *self._shape[1:])
        _create_npy(self._folder / PIXELS, shape)
        with (self._folder / PIXELS).open("r+b", buffering=0) as pixels:
            pixels.seek(len(_npy_header(shape)))
            for row in rows:
                self._pixels.seek(self.offset + row * self._row_bytes)
                write_all(pixels, self._pixels.read(self._row_bytes))
            os.fsync(pixels.fileno())


def remove_scaffolding(folder: Path) -> None:
    """Remove what only a store in the making needs; until its folder is in place it may."""
    for name in (_RAW, _RAW_THUMBNAILS, _JOURNAL):
        (folder / name).unlink(missing_ok=True)


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
        write_all(file, header)
