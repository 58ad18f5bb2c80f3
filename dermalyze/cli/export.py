"""Commands that write a model for others: `export-onnx`, `export-web`, `recalibrate`."""

import logging
from pathlib import Path

import click

from dermalyze.cli.options import (
    FILE,
    FOLDER,
    MODEL,
    PRECISION,
    RUN_DATA,
    here_of,
    here_options,
    plugin_option,
    source_options,
)
from serving.os_errors import temporary_folder
from serving.reference import REFERENCE
from serving.taxonomy import DISCLAIMER

logger = logging.getLogger(__name__)


@click.command("export-onnx")
@click.option(
    "--run-id",
    "run_ids",
    multiple=True,
    help="An MLflow run of `dermalyze train`; several, or a cross-validation run: an ensemble.",
)
@click.option(
    "--checkpoint",
    type=FILE,
    default=None,
    help="A checkpoint file such as checkpoint_best.pt, instead of a run.",
)
@click.option("--output", type=FILE, default=Path("model.onnx"), show_default=True)
@click.option("--tta", is_flag=True, help="Average the predictions for eight flips and rotations.")
@click.option(
    "--precision",
    type=PRECISION,
    default="float32",
    show_default=True,
    help="float16: half the size; int8: a quarter of the size, and faster on a CPU.",
)
@RUN_DATA
@here_options
@plugin_option()
def export_onnx(
    run_ids: tuple[str, ...],
    checkpoint: Path | None,
    output: Path,
    tta: bool,
    precision: str,
    data_dir: str | None,
    device: str | None,
    prepared: Path | None,
) -> None:
    """Write the best epoch of a run, or of several, as one ONNX file, if it agrees with PyTorch.

    An ensemble, --tta and int8 are calibrated again on the validation images.  An int8 file is
    written only if balanced accuracy on the validation split falls by at most 0.5 points; a file
    with float16 weights (computed in float32) only if no probability of the compared images
    changes by more than 0.01.

    With --checkpoint MLflow is not used. The checkpoint of a finished training has its prediction
    sets and decisions; for any other the settings and splits beside it and --data-dir are needed.
    """
    if bool(run_ids) == (checkpoint is not None):
        raise click.UsageError("give either --run-id or --checkpoint")
    from dermalyze.workflows.export import export_checkpoint, export_runs

    here = here_of(data_dir, device, prepared)
    if checkpoint is None:
        said = export_runs(run_ids, output, tta=tta, precision=precision, here=here)
    else:
        said = export_checkpoint(checkpoint, output, tta=tta, precision=precision, here=here)
    click.echo(f"{output}: {said}")


@click.command("export-web")
@click.option("--run-id", "run_ids", multiple=True, help="As for export-onnx.")
@click.option(
    "--model",
    type=FILE,
    default=None,
    help="An ONNX file, instead of a run.  [default: the reference model]",
)
@click.option("--output", type=FOLDER, required=True, help="The folder to write.")
@click.option(
    "--precision",
    type=PRECISION,
    default="float16",
    show_default=True,
    help="Weights of the exported model; int8 is smaller, but slower and less exact in a browser.",
)
@RUN_DATA
@click.option(
    "--runtime",
    type=click.Path(exists=True, path_type=Path),
    default=None,
    help="onnxruntime-web package from `npm pack`; without it npm downloads it.",
)
@here_options
@plugin_option()
def export_web(
    run_ids: tuple[str, ...],
    model: Path | None,
    output: Path,
    precision: str,
    data_dir: str | None,
    runtime: Path | None,
    device: str | None,
    prepared: Path | None,
) -> None:
    """Write the page as a folder that runs the model in the browser.

    Photographs never leave the device that shows the page. After the first visit it also works
    offline.
    """
    from dermalyze.export.web import export_web as write

    if run_ids and model is not None:
        raise click.UsageError("give either --run-id or --model")
    with temporary_folder() as folder:
        if run_ids:
            from dermalyze.workflows.export import export_runs

            model = folder / "model.onnx"
            here = here_of(data_dir, device, prepared)
            logger.info(export_runs(run_ids, model, tta=False, precision=precision, here=here))
        click.echo(f"{output}: {write(model or REFERENCE, output, runtime=runtime)}")


@click.command()
@MODEL
@source_options
@click.option(
    "--predictions",
    type=FILE,
    multiple=True,
    help="predictions.csv of an evaluation, instead of images; repeatable.",
)
@click.option(
    "--only",
    type=click.Choice(["temperature", "prediction_sets", "abstention", "referral"]),
    multiple=True,
    help="Fit this part only; repeatable.  [default: all]",
)
@RUN_DATA
@click.option("--output", type=FILE, required=True, help="The new ONNX file.")
def recalibrate(
    model: Path,
    external: tuple[str, ...],
    maps: tuple[str, ...],
    predictions: tuple[Path, ...],
    only: tuple[str, ...],
    data_dir: str | None,
    output: Path,
) -> None:
    """Fit the limits of a model file to labeled images of another source; the network stays.

    Temperature, prediction sets, the threshold of decisions and the referral are fitted on half of
    the lesions and measured on the other half; the file gets those fitted on both.
    """
    if bool(external) == bool(predictions):
        raise click.UsageError("give either --external or --predictions")
    if maps and not external:
        raise click.UsageError("--map goes with --external")
    from dermalyze.workflows import recalibrate as workflow
    from dermalyze.workflows.external import maps_of, sources_of

    if external:
        sources = sources_of(external)
        given = maps_of(maps, [source.name for source in sources])
        labelled = workflow.answers_of_images(model, sources, given, here_of(data_dir))
    else:
        labelled = workflow.stored_answers(model, predictions)
    click.echo(workflow.recalibrate(model, labelled, output, only=only))
    click.echo(f"written: {output}")
    click.echo(DISCLAIMER)
