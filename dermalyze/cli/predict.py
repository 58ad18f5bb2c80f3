"""The command `predict`: an exported model on files and folders."""

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from dermalyze.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    FOLDER,
    LARGEST,
    LEVEL,
    MODEL,
    SENSITIVITY,
)
from serving.errors import DermalyzeError, ImageError, TooManyPixelsError
from serving.reference import REFERENCE, in_words

logger = logging.getLogger(__name__)


Item = TypeVar("Item")


@click.command()
@click.argument("images", type=FILE_OR_FOLDER, nargs=-1, required=True)
@MODEL
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@LEVEL
@SENSITIVITY
@click.option("--metadata", type=FILE, default=None, help="CSV: image_id, age, sex, localization.")
@click.option("--explain", type=FOLDER, default=None, help="Folder for a heatmap of each image.")
@click.option("--one-lesion", is_flag=True, help="All IMAGES show one lesion: one answer.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="Threads in total; 0: one per CPU core."
)
@LARGEST
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda or openvino.")
def predict(
    images: tuple[Path, ...],
    model: Path,
    kind: str,
    level: float,
    sensitivity: float,
    metadata: Path | None,
    explain: Path | None,
    one_lesion: bool,
    threads: int,
    max_pixels: int,
    provider: str,
) -> None:
    """Classify IMAGES, files or folders.  Needs no torch."""
    from PIL import Image

    from serving.base_predictor import optional_fields
    from serving.batch import (
        Request,
        find_images,
        find_metadata,
        left_out,
        predict_files,
        predict_one_lesion,
        read_metadata,
    )
    from serving.output_formats import render
    from serving.predictor import Predictor
    from serving.session import share_cores

    if one_lesion and explain:
        raise click.UsageError("--explain shows one image at a time; leave out --one-lesion")
    paths = find_images(images)
    if others := left_out(images):
        logger.info(others)
    rows = read_metadata(metadata) if metadata else {}
    workers, num_threads = share_cores(len(paths), threads)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
    predictor = Predictor(model, num_threads=num_threads, provider=provider, max_pixels=max_pixels)
    if model == REFERENCE:
        logger.info(f"model: {in_words(model, predictor.spec)}")
    request = Request(level=level, sensitivity=sensitivity, pictures=explain)
    if metadata:
        found = find_metadata(rows, paths, predictor.spec.metadata, metadata)
        request = replace(request, metadata=found.of_image)
        if found.note:
            logger.info(f"metadata: {found.note}")
    failed = 0

    def answers() -> Iterator[tuple[Path, Any]]:
        nonlocal failed
        if one_lesion:
            try:
                yield predict_one_lesion(predictor, paths, request)
            except TooManyPixelsError as error:
                raise _with_option(error) from error
            return
        for path, answer in _with_progress(
            predict_files(predictor, paths, workers=workers, request=request),
            len(paths),
            table=kind == "table",
        ):
            failed += isinstance(answer, DermalyzeError)
            if isinstance(answer, TooManyPixelsError):
                answer = _with_option(answer)
            yield path, answer

    spec = predictor.spec
    for line in render(answers(), kind, spec.class_names, optional_fields(spec)):
        click.echo(line)
    if explain:
        logger.info(f"pictures: {explain}")
    if failed:
        raise click.ClickException(f"{failed} of {len(paths)} images could not be read")


def _with_option(error: TooManyPixelsError) -> ImageError:
    return ImageError(f"{error}; --max-pixels raises it")


def _with_progress(items: Iterable[Item], length: int, *, table: bool) -> Iterator[Item]:
    """Pass items on, with a bar on stderr if that is a terminal on which nothing else appears."""
    if length > 1 and sys.stderr.isatty() and (table or not sys.stdout.isatty()):
        with click.progressbar(items, length=length, file=sys.stderr) as bar:
            yield from bar
    else:
        yield from items
