"""The making of a pixel store: every file decoded once, by several processes, resumed if killed.

While a store is built, `store_files` keeps what is finished.  What an older store has of unchanged
files is copied.  Never imports torch.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import PIL
from tqdm import tqdm

from dermalyze.data.pixel_store.decoder import (
    NOT_DONE,
    ImageRecord,
    Outcome,
    RowDecoder,
    Target,
    content_sha256,
)
from dermalyze.data.pixel_store.journal import PIXELS, StoreFiles, remove_scaffolding
from dermalyze.data.pixel_store.store import (
    PREPROCESSING_VERSION,
    PixelStore,
    Preprocessing,
    StoredImages,
    open_store,
    store_folder,
)
from dermalyze.data.pixel_store.worker_processes import Job, decode_in_processes
from dermalyze.data.readers.dataset import ImageFile, ImageReader
from serving.atomic_write import sync
from serving.errors import DataError, ImageError
from serving.image_size import MAX_FILE_BYTES
from serving.machine import num_cores
from serving.os_errors import reason_of

_FILES = "files.json"  # what the store was made of; one without it is good, but never copied from
# What a killed build may have to decode again, for each worker twice.
_CHUNK_IMAGES, _CHUNK_BYTES = 32, 2**18
# A process takes 0.2 s to start; an image costs about this much, large or small.
_SECONDS_PER_IMAGE, _SECONDS_PER_BYTE = 0.5e-3, 1e-7
_SECONDS_WORTH_A_PROCESS = 0.3


def build_pixels(
    files: Mapping[str, ImageFile], output: Path, preprocessing: Preprocessing, *, workers: int
) -> StoredImages:
    """Decode every file once into a store; go on where a killed build stopped.

    What older stores of the same preprocessing have of unchanged files is copied; they stay until
    the new store is whole, and are removed then.  The caller holds the lock of `output`.

    Args:
        files: image_id -> file.
        output: the folder that gets the store.
        preprocessing: size, mode and filter of the resize.
        workers: decoding processes, where there is enough to do for several; 0: one a core.

    Raises:
        DataError: the store cannot be written, and no half store is left; or a process was killed,
            and what is finished is kept.
    """
    folder = store_folder(files, output, preprocessing)
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        records = _fill(files, partial, preprocessing, workers or num_cores())
        StoredImages(partial, PixelStore(partial / PIXELS), tuple(records)).save_sums()
        shutil.rmtree(folder, ignore_errors=True)  # there only if damaged
        for path in (*partial.iterdir(), partial):  # a power cut must not leave an empty file
            sync(path)
        partial.replace(folder)
        sync(output)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        side = preprocessing.image_size
        size = len(files) * side * side * 3 / 1e9
        raise DataError(
            f"cannot write {size:.1f} GB of pixels to {output}: {reason_of(error)}; make room or "
            "pass another folder as --output, in training as data.prepared"
        ) from error
    remove_scaffolding(folder)
    for other in output.glob(f"pixels-{preprocessing.name}-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return StoredImages(folder, PixelStore(folder / PIXELS), tuple(records))


def _fill(
    files: Mapping[str, ImageFile], partial: Path, preprocessing: Preprocessing, workers: int
) -> list[ImageRecord]:
    """Put everything that makes a store into `partial`."""
    image_ids = sorted(files)
    side = preprocessing.image_size
    with ImageReader() as reader, StoreFiles(partial, image_ids, side) as rows:
        for older in sorted(partial.parent.glob(f"pixels-{preprocessing.name}-*")):
            # The store of these files is damaged, or it would not be built again.
            if older.suffix != partial.suffix and older != partial.with_suffix(""):
                _copy_unchanged(files, older, side, rows)
        todo = {
            row: files[image_id] for row, image_id in enumerate(image_ids) if row not in rows.done
        }
        target = Target(
            str(rows.path),
            rows.offset,
            str(rows.thumbnails_path),
            side,
            preprocessing.resize_mode,
            preprocessing.resize_filter,
        )
        progress = tqdm(
            total=len(image_ids),
            initial=len(rows.done),
            desc="decode",
            unit="image",
            disable=None,
        )
        answers = _decode(todo, image_ids, target, reader, workers)
        with progress, closing(answers):
            for lines in answers:
                rows.add(lines)
                progress.update(len(lines))
        (partial / _FILES).write_text(json.dumps(_sources(files)), encoding="utf-8")
        records = _told_apart(rows, files, reader)
        rows.finish(records)
    return records


def _decode(
    todo: Mapping[int, ImageFile],
    image_ids: list[str],
    target: Target,
    reader: ImageReader,
    workers: int,
) -> Generator[list[bytes]]:
    """Decode images into their rows, here or in processes; yield lines for the journal."""
    seconds = sum(_SECONDS_PER_IMAGE + _SECONDS_PER_BYTE * file.size for file in todo.values())
    num_workers = min(workers, int(seconds / _SECONDS_WORTH_A_PROCESS))
    with closing(RowDecoder(target)) as decoder:

        def decode_here(row: int) -> bytes:
            return decoder.decode(row, image_ids[row], lambda: reader.read(todo[row]))

        if num_workers < 2 or not sys.executable:  # the latter in a program that embeds Python
            for row in todo:
                yield [decode_here(row)]
            return
        chunks = list(_chunks(todo))
        num_workers = min(num_workers, len(chunks))
        jobs = ([_job(row, image_ids[row], todo[row]) for row in chunk] for chunk in chunks)
        with closing(decode_in_processes(jobs, target, num_workers)) as answers:
            for chunk, lines in zip(chunks, answers, strict=True):
                yield [
                    decode_here(row) if line == NOT_DONE else line
                    for row, line in zip(chunk, lines, strict=True)
                ]


def _chunks(todo: Mapping[int, ImageFile]) -> Iterator[list[int]]:
    """Cut the rows into chunks of about equal work."""
    chunk: list[int] = []
    size = 0
    for row, file in todo.items():
        if chunk and (len(chunk) == _CHUNK_IMAGES or size + file.size > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += file.size
    yield chunk


def _job(row: int, image_id: str, file: ImageFile) -> Job:
    # A file over the limit goes without a path, so that it is left to the reader, who refuses it.
    return row, image_id, str(file.path) if file.size <= MAX_FILE_BYTES else "", file.member


def _sources(files: Mapping[str, ImageFile]) -> dict[str, Any]:
    """Return all that rows follow from, besides what is in the folder's name."""
    return {
        "version": [PREPROCESSING_VERSION, PIL.__version__],
        "files": {
            image_id: [files[image_id].size, files[image_id].stamp] for image_id in sorted(files)
        },
    }


def _copy_unchanged(
    files: Mapping[str, ImageFile], folder: Path, side: int, rows: StoreFiles
) -> None:
    """Copy what a whole store has of files that are as they were, unless it is already there."""
    sources = _sources(files)
    if (stored := open_store(folder, side)) is None:
        return
    try:
        old = json.loads((folder / _FILES).read_text(encoding="utf-8"))
        known = old["files"] if old["version"] == sources["version"] else {}
        thumbnails, intact = stored.thumbnails(), stored.intact()
    except (OSError, ValueError, KeyError, TypeError):  # without a list of its files, or damaged
        return
    number_of = {image_id: row for row, image_id in enumerate(sources["files"])}
    position = 0
    for record in stored.records:
        image_id, usable = record.image_id, not record.problem
        row = number_of.get(image_id, -1)
        unchanged = row >= 0 and known.get(image_id) == sources["files"][image_id]
        # What could not even be read may be readable by now.
        is_good = not usable or intact[position]
        if unchanged and is_good and record.sha256 and row not in rows.done:
            outcome = Outcome(image_id, record.sha256, record.truncated, record.problem)
            pixels = stored.store.pixels[position].tobytes() if usable else b""
            rows.copy(row, outcome, pixels, thumbnails[position].tobytes() if usable else b"")
        position += usable


def _told_apart(
    rows: StoreFiles, files: Mapping[str, ImageFile], reader: ImageReader
) -> list[ImageRecord]:
    """Give each image a `pixels_sha256` that it shares with images of equal content only.

    Equal content has equal thumbnails, so content is only looked at where unequal files have those:
    hashing every pixel of every image would take a fifth of the time of decoding.
    """
    outcomes = [rows.done[row] for row in range(len(rows.done))]
    looks = [hashlib.sha256(thumbnail).hexdigest() for thumbnail in rows.thumbnails()]
    alike: dict[str, set[str]] = {}
    for outcome, look in zip(outcomes, looks, strict=True):
        if not outcome.problem:
            alike.setdefault(look, set()).add(outcome.sha256)
    records = []
    for (image_id, sha256, truncated, problem), look in zip(outcomes, looks, strict=True):
        content = "" if problem else look
        if not problem and len(alike[look]) > 1:
            try:
                content = content_sha256(reader.read(files[image_id]))
            except ImageError:  # it was whole a moment ago
                content = sha256
        records.append(ImageRecord(image_id, sha256, content, truncated, problem))
    return records
