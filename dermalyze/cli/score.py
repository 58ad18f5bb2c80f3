"""The command `score`: an exported model on many photographs, with Spark."""

from contextlib import ExitStack
from pathlib import Path

import click

from dermalyze.cli.options import FOLDER, LARGEST, LEVEL, SENSITIVITY, naming_missing_packages
from serving.os_errors import reading
from serving.reference import REFERENCE
from serving.taxonomy import DISCLAIMER


def _settings(
    _context: click.Context, _param: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name.startswith("spark.") and equals):
            raise click.BadParameter(f"expected spark.NAME=VALUE, got {text!r}")
        settings[name] = value
    return settings


@click.command()
@click.option(
    "--input",
    "given",
    required=True,
    metavar="DIR_OR_GLOB",
    help="Folder with images, or a quoted pattern such as 'photos/*/*.jpg'.",
)
@click.option("--output", type=FOLDER, required=True, help="Folder for the Parquet files.")
@click.option(
    "--model",
    default=str(REFERENCE),
    show_default="the reference model",
    help="ONNX file, or models:/NAME@ALIAS of the registry.",
)
@click.option(
    "--master",
    default="local[*]",
    show_default=True,
    help="Spark cluster: local[N] for N cores of this machine, spark://HOST:PORT, yarn, k8s://...",
)
@click.option(
    "--partition-images",
    type=click.IntRange(1),
    default=250,
    show_default=True,
    help="Images per Parquet file; an interrupted job repeats at most this many per core.",
)
@LEVEL
@SENSITIVITY
@LARGEST
@click.option(
    "--conf",
    "cluster",
    multiple=True,
    metavar="spark.NAME=VALUE",
    callback=_settings,
    help="Any setting of Spark, such as spark.executor.memory=2g; repeatable.",
)
def score(
    given: str,
    output: Path,
    model: str,
    master: str,
    partition_images: int,
    level: float,
    sensitivity: float,
    max_pixels: int,
    cluster: dict[str, str],
) -> None:
    """Classify many photographs with Spark into Parquet files.  Needs no torch.

    A photograph that cannot be read is a row with its error.  Started again after an interruption,
    the command keeps the finished files.
    """
    with naming_missing_packages():
        from dermalyze.evaluation.text import things
        from dermalyze.workflows.score import Asked, score

    asked = Asked(
        level=level,
        sensitivity=sensitivity,
        max_pixels=max_pixels,
        partition_images=partition_images,
    )
    with ExitStack() as stack:
        file = Path(model)
        with reading(file):
            file.exists()
        if ":/" in model:
            from dermalyze.cli.model_copy import copy_of

            file = stack.enter_context(copy_of(model, 0.0))
        scored = score(given, output, file, asked, {"spark.master": master, **cluster})
    speed = scored.images_per_second
    click.echo(
        f"{output}: {things(scored.images, 'image')}, {scored.failed:,} of them could not be read, "
        f"in {things(scored.parts, 'file')}" + (f"; {speed:,.1f} images/s" if speed else "")
    )
    click.echo(DISCLAIMER)
