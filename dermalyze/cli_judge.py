"""Commands that judge: a run, some runs beside each other, or a table of predictions."""

from pathlib import Path

import click

from dermalyze.cli_options import FILE, FOLDER, RUN_DATA, RUN_ID, folder_or_none
from serving.taxonomy import DISCLAIMER


@click.command()
@RUN_ID
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test")
@RUN_DATA
@click.option("--images", type=FOLDER, default=None, help="Other images than the run's.")
@click.option("--labels", type=FILE, default=None, help="Their CSV: image_id,label.")
@click.option("--output", type=FOLDER, default=None, help="[default: evaluation-RUN_ID-SPLIT]")
def evaluate(
    run_id: str,
    split: str,
    data_dir: Path | None,
    images: Path | None,
    labels: Path | None,
    output: Path | None,
) -> None:
    """Judge a run's best epoch on a split, or on other images."""
    if (images is None) != (labels is None):
        raise click.UsageError("--images and --labels go together")
    from dermalyze.evaluation.folder import format_metrics
    from dermalyze.training.ended import evaluate_images, evaluate_run

    if images is not None and labels is not None:
        output = output or Path(f"evaluation-{run_id[:8]}-{images.name}")
        metrics = evaluate_images(run_id, images, labels, output=output)
    else:
        output = output or Path(f"evaluation-{run_id[:8]}-{split}")
        metrics = evaluate_run(run_id, split, data_dir=folder_or_none(data_dir), output=output)
    click.echo(format_metrics(metrics))
    click.echo(f"written: {output}")
    click.echo(DISCLAIMER)


@click.command("check-fit")
@RUN_ID
def check_fit(run_id: str) -> None:
    """Say in words whether a run over- or underfits."""
    from dermalyze.evaluation.fit import format_verdict
    from dermalyze.training.ended import fit_of_run

    click.echo(format_verdict(fit_of_run(run_id)))


@click.command("plot-training")
@RUN_ID
@click.option("--output", type=FILE, default=Path("training_curves.png"), show_default=True)
def plot_training(run_id: str, output: Path) -> None:
    """Draw a run's training curves."""
    from dermalyze.training.ended import plot_run

    plot_run(run_id, output)
    click.echo(output)
