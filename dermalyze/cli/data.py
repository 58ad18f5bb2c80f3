"""Commands about the data: `prepare-data`, `demo-data`, `data-issues`."""

import importlib.util
from pathlib import Path
from typing import Any

import click

from dermalyze.cli.options import (
    FILE,
    FOLDER,
    RUN_DATA,
    column_options,
    data_option,
    here_of,
)
from serving.errors import ConfigError
from serving.taxonomy import DISCLAIMER

_CORRECTIONS = click.option(
    "--corrections",
    default="none",
    metavar="FILE",
    help="Reviewed CSV file of `dermalyze data-issues`.",
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
@_CORRECTIONS
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


@click.command("data-issues")
@click.option("--run-id", default=None, help="An MLflow run of `dermalyze train --folds`.")
@click.option(
    "--predictions",
    type=FILE,
    multiple=True,
    help="predictions.csv of models that had not seen the images; repeatable.",
)
@RUN_DATA
@_CORRECTIONS
@click.option("--prepared", type=FOLDER, default=None, help="Folder of the decoded images.")
@click.option("--output", type=FOLDER, default=Path("data-issues"), show_default=True)
def data_issues(
    run_id: str | None,
    predictions: tuple[Path, ...],
    data_dir: str | None,
    corrections: str,
    prepared: Path | None,
    output: Path,
) -> None:
    """Find doubtful labels, weak slices, duplicates and shortcuts by out-of-fold predictions.

    Writes a page with pictures and review.csv; filled in, `train --corrections` uses it.
    """
    if (run_id is None) == (not predictions):
        raise click.UsageError("give either --run-id or --predictions")
    if run_id is not None and corrections != "none":
        raise click.UsageError("--corrections goes with --predictions; a run has its own")
    if importlib.util.find_spec("cleanlab") is None:
        raise ConfigError(
            "dermalyze data-issues needs cleanlab, which is not installed; run `pip install "
            "'dermalyze[train,monitor]'`"
        )
    from dermalyze.workflows.data_issues import issues_of_predictions, issues_of_run

    here = here_of(data_dir, "cpu", prepared)
    if run_id is not None:
        found = issues_of_run(run_id, output=output, here=here)
    elif here.data_dir is None:
        raise click.UsageError("--predictions needs --data-dir, the folder of the images")
    else:
        found = issues_of_predictions(predictions, here, corrections, output=output)
    click.echo("\n".join(found.sentences()))
    click.echo(f"written: {output}")
    click.echo(DISCLAIMER)
