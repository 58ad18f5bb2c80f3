"""Commands about the data: `prepare-data`, `demo-data`."""

from pathlib import Path
from typing import Any

import click

from dermalyze.cli.options import (
    FOLDER,
    column_options,
    data_option,
)


@click.command("prepare-data")
@data_option("Folder of labeled images (docs/data.md); demo and auto as for train.", "auto")
@click.option("--output", type=FOLDER, default=None, help="[default: prepared/ in the data]")
@click.option(
    "--workers", type=click.IntRange(0), default=0, help="Decoding processes; 0: one per CPU core."
)
@click.option("--image-size", type=click.IntRange(16, 1024), default=224, show_default=True)
@click.option("--resize-mode", type=click.Choice(["squash", "center_crop"]), default="squash")
@click.option(
    "--resize-filter",
    type=click.Choice(["bilinear", "bicubic", "lanczos"]),
    default="bicubic",
    show_default=True,
)
@click.option("--allow-problems", is_flag=True, help="Continue although the audit found problems.")
@column_options
def prepare_data(data_dir: str, output: Path | None, workers: int, **options: Any) -> None:
    """Read, audit and decode the images once; write labels, audit and pixel store."""
    from dermalyze.config.schema import DataConfig
    from dermalyze.data.location import find_data

    if options["group_by"] == "auto":
        del options["group_by"]
    settings = DataConfig(prepared="auto" if output is None else str(output), **options)
    folder, _ = find_data(data_dir, make=True)
    from dermalyze.data.preparation import prepare  # once the folder is there: it loads pandas

    prepared = prepare(folder, settings, workers=workers)
    click.echo(f"data: {prepared.dataset.summary()}")
    click.echo(f"grouped by {prepared.grouping}\n")
    click.echo(prepared.audit.summary())
    click.echo(f"prepared: {prepared.folder}")


@click.command("demo-data")
@click.argument("folder", type=FOLDER)
@click.option("--images", type=int, default=840, show_default=True, help="Number of images.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--layout", type=click.Choice(["zips", "folders"]), default="zips")
@click.option(
    "--style",
    type=click.Choice(["ham10000", "other-clinic"]),
    default="ham10000",
    show_default=True,
    help="other-clinic: other patients, colors, field of view and compression.",
)
def demo_data(folder: Path, images: int, seed: int, layout: str, style: str) -> None:
    """Draw demo images in the layout of HAM10000 into FOLDER."""
    from dermalyze.data.demo.dataset import make_demo_data

    click.echo(make_demo_data(folder, num_images=images, seed=seed, layout=layout, style=style))
