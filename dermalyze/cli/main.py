"""The command line: parse, call, print.  Heavy imports wait until a command needs them.

Results go to stdout, progress and warnings to stderr.
"""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from dermalyze import __version__
from dermalyze.cli.evaluate import (
    check_fit,
    compare,
    evaluate,
    leakage,
    plot_training,
    promote,
    report,
)
from dermalyze.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    FOLDER,
    PRECISION,
    RUN_DATA,
    SETTINGS,
    auto_option,
    column_options,
    data_option,
    here_of,
    here_options,
    plugin_option,
    run_data,
)
from dermalyze.cli.serve import export_web, serve
from dermalyze.cli.signals import Stop, ended_by_signals
from dermalyze.cli.streams import ReaderGoneError, guarded_streams, log_lines
from dermalyze.credentials import masked
from serving.errors import ConfigError, DermalyzeError, ImageError, TooManyPixelsError
from serving.image_size import MAX_PIXELS, PILLOWS_LIMIT

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130  # what a shell gives a program that Ctrl-C ended
EXIT_TERMINATED = 143  # and one that SIGTERM ended
EXIT_READER_GONE = 141  # and one that wrote to a closed pipe


class OneLineErrors(click.Group):
    """Show what a user can put right as one line; a bug keeps its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the chosen command; exit 1 for what was asked, 2 for how it was asked."""
        with ended_by_signals() as stop:
            try:
                with guarded_streams(), log_lines():
                    self._main(stop, *args, **kwargs)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
                tracking = sys.modules.get("dermalyze.tracking")
                waits = tracking is not None and tracking.is_calling()
                if waits or code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
                    # Python's own end waits for threads, and takes seconds once torch is imported.
                    for stream in (sys.stdout, sys.stderr):
                        stream.flush()
                    os._exit(code)
                raise

    def _main(self, stop: Stop, *args: Any, **kwargs: Any) -> None:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "dermalyze"
            _fail(f"{error.format_message()} (see `{command} --help`)", 2)
        except click.ClickException as error:
            _fail(error.format_message(), 1)
        except (click.Abort, KeyboardInterrupt):
            _fail("stopped", EXIT_TERMINATED if stop.number == signal.SIGTERM else EXIT_INTERRUPTED)
        except ReaderGoneError:
            sys.exit(EXIT_READER_GONE)
        except DermalyzeError as error:
            interrupted = type(error).__name__ == "TrainingInterruptedError"
            _fail(str(error), EXIT_INTERRUPTED if interrupted else 1)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo(masked(f"Error: {' '.join(message.split())}"), err=True)
    sys.exit(code)


Item = TypeVar("Item")


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Train, evaluate, export and serve an image classifier.

    For education and research only; a prediction is never a diagnosis.
    """


for _command in (
    evaluate,
    report,
    compare,
    leakage,
    promote,
    check_fit,
    plot_training,
    serve,
    export_web,
):
    main.add_command(_command)

# What `train` and `benchmark` override in the config, by option.
_OVERRIDES = {
    "size": "model.size",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "lr": "training.lr",
    "image_size": "data.image_size",
    "head_type": "model.head_type",
    "loss": "loss.type",
    "pretrained": "model.pretrained",
    "seed": "training.seed",
    "experiment": "tracking.experiment",
    "plugins": "model.plugins",
    "device": "training.device",
    "prepared": "data.prepared",
    "group_by": "data.group_by",
    "image_column": "data.image_column",
    "label_column": "data.label_column",
    "group_column": "data.group_column",
}
_OF_THE_MACHINE = ("pretrained", "device", "prepared")  # what a resumed run may change


@main.command()
@auto_option("--size", click.STRING, "EfficientNetV2: small, medium or large.")
@data_option("Labeled images; auto: data/HAM10000, or drawn demo data.", "auto")
@auto_option("--config", click.STRING, "YAML file; auto: default.yaml or demo.yaml in configs/.")
@auto_option("--epochs", click.INT, "Passes over the training images.")
@auto_option("--batch-size", click.INT, "Images per optimizer step.")
@auto_option("--lr", click.FLOAT, "Peak learning rate.")
@auto_option("--image-size", click.INT, "Height and width in pixels.")
@auto_option("--head-type", click.STRING, "simple or acrnn.")
@auto_option("--loss", click.STRING, "cross_entropy or focal.")
@auto_option(
    "--pretrained",
    click.STRING,
    "true, false or a .safetensors file; auto: use pretrained weights if available.",
)
@auto_option("--seed", click.INT, "Seed of splits, sampling, augmentation and weights.")
@auto_option("--experiment", click.STRING, "MLflow experiment.")
@auto_option(
    "--folds", click.INT, "Number of cross-validation folds; auto: one training without folds."
)
@auto_option("--device", click.STRING, "cpu, cuda or mps.")
@auto_option(
    "--prepared", click.STRING, "Folder of the decoded images; auto: prepared/ in the data."
)
@column_options
@SETTINGS
@plugin_option(expose_value=True)
@click.option("--resume", metavar="RUN_ID", default="", help="Continue a stopped run.")
def train(
    data_dir: str,
    config: str,
    settings: tuple[str, ...],
    plugins: tuple[str, ...],
    resume: str,
    folds: int | str,
    **overrides: Any,
) -> None:
    """Train, evaluate, export and register a model as one MLflow run.

    With --folds every image is evaluated once by a network that never saw its lesion; the runs of
    the folds are nested in one run, and nothing is registered.
    """
    result: Any
    typed_here = "MLFLOW_RUN_ID" not in os.environ  # which `mlflow run` sets, and MLflow removes
    if resume:
        given = {name: value for name, value in overrides.items() if value != "auto"}
        if given.keys() - set(_OF_THE_MACHINE) or settings or config != "auto" or folds != "auto":
            raise click.UsageError(
                "a resumed run keeps its settings; leave out all but --resume, --data-dir, "
                "--device, --prepared, --pretrained and --plugin"
            )
        from dermalyze.tracking import project_arguments, tags_of

        if arguments := project_arguments(resume):
            logger.info(f"run {resume} was killed before it began; it starts again")
            os.environ["MLFLOW_RUN_ID"] = resume  # as `mlflow run` does
            train.main(arguments, standalone_mode=False)
            return
        from dermalyze.workflows.cross_validate import resume_folds
        from dermalyze.workflows.run_context import FOLDS_TAG, Here
        from dermalyze.workflows.train import resume as resume_run

        go_on = resume_folds if FOLDS_TAG in tags_of(resume) else resume_run
        result = go_on(resume, Here(data_dir=run_data(data_dir), **given))
    else:
        from dermalyze.data.location import find_data

        # The settings are checked before anything slow: the data, torch.
        folder, demo_data = find_data(data_dir, make=False)
        resolved = _config(config, demo_data, settings, {**overrides, "plugins": list(plugins)})
        folder, demo_data = find_data(data_dir, make=True)
        from dermalyze.workflows.cross_validate import train_folds
        from dermalyze.workflows.train import train as train_run

        logger.info(f"data: {folder}")
        if demo_data:
            logger.warning("this is drawn demo data; its metrics mean nothing")
        logger.info(f"epochs: {resolved.training.epochs}")
        if isinstance(folds, int):
            result = train_folds(resolved, folder, folds)
        else:
            result = train_run(resolved, folder)
    from dermalyze.cli.summary import summarize

    click.echo(masked(summarize(result, typed_here=typed_here)))


def _config(
    config: str, demo_data: bool, settings: Sequence[str], overrides: dict[str, Any]
) -> Any:
    from dermalyze.config.loading import load_config
    from dermalyze.data.location import config_path

    values = {
        _OVERRIDES[name]: value for name, value in overrides.items() if value not in ("auto", [])
    }
    if values.get("model.pretrained") in ("true", "false"):
        values["model.pretrained"] = values["model.pretrained"] == "true"
    path = config_path(demo_data) if config == "auto" else Path(config)
    resolved = load_config(path, settings, values)
    name = resolved.model.name
    if "model.size" in values and name != "auto":
        if any(text.startswith("model.name=") for text in settings):
            raise ConfigError(
                f"--size has no effect beside model.name {name}; leave one of them out"
            )
        logger.info(f"model: {name}, named in {path}; --size has no effect")
    return resolved


@main.command()
@click.argument("run_id")
def sync(run_id: str) -> None:
    """Upload what a run could not log while the tracking store was unavailable.

    If the run's work is done, its model is then registered and the run is finished.  A run whose
    training ended without an error needs no sync.
    """
    from dermalyze.workflows.finish import sync as sync_run

    click.echo(sync_run(run_id))


@main.command("prepare-data")
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


@main.command("demo-data")
@click.argument("folder", type=FOLDER)
@click.option("--images", type=int, default=840, show_default=True, help="Number of images.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--layout", type=click.Choice(["zips", "folders"]), default="zips")
def demo_data(folder: Path, images: int, seed: int, layout: str) -> None:
    """Draw lesions in HAM10000's layout into FOLDER."""
    from dermalyze.data.demo.dataset import make_demo_data

    click.echo(make_demo_data(folder, num_images=images, seed=seed, layout=layout))


@main.command("export-onnx")
@click.option(
    "--run-id",
    "run_ids",
    required=True,
    multiple=True,
    help="An MLflow run of `dermalyze train`; several, or a run of folds, make an ensemble.",
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
    """
    from dermalyze.workflows.export import export_runs

    said = export_runs(
        run_ids,
        output,
        tta=tta,
        precision=precision,
        here=here_of(data_dir, device, prepared),
    )
    click.echo(f"{output}: {said}")


@main.command()
@click.argument("images", type=FILE_OR_FOLDER, nargs=-1, required=True)
@click.option("--model", type=FILE, required=True, help="ONNX file of `dermalyze export-onnx`.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@click.option(
    "--level", type=float, default=0.9, show_default=True, help="Coverage of prediction sets."
)
@click.option("--metadata", type=FILE, default=None, help="CSV: image_id, age, sex, localization.")
@click.option("--explain", type=FOLDER, default=None, help="Folder for a heatmap of each image.")
@click.option("--one-lesion", is_flag=True, help="All IMAGES show one lesion: one answer.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="Threads in total; 0: one per CPU core."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, PILLOWS_LIMIT),
    default=MAX_PIXELS,
    show_default=f"{MAX_PIXELS:,}",
    help="Largest image, width x height; each thread needs 4 bytes per pixel.",
)
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda or openvino.")
def predict(
    images: tuple[Path, ...],
    model: Path,
    kind: str,
    level: float,
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
    request = Request(level=level, pictures=explain)
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


@main.command()
@click.option("--num-batches", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--num-images",
    type=click.IntRange(2),
    default=7010,
    help="Images per epoch, for the estimate of its duration.",
)
@auto_option("--config", click.STRING, "YAML file; auto: configs/default.yaml.")
@SETTINGS
def benchmark(num_batches: int, num_images: int, config: str, settings: tuple[str, ...]) -> None:
    """Time the parts of a training step on this machine."""
    resolved = _config(config, False, settings, {})
    from dermalyze.training.step_benchmark import format_times, time_steps

    click.echo(format_times(time_steps(resolved, num_batches, num_images)))
