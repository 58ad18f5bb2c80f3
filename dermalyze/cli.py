"""The command line: parse, call, print.  Heavy imports wait until a command needs them.

Results go to stdout, progress and warnings to stderr.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dermalyze import __version__
from serving.errors import ConfigError, DermalyzeError
from serving.taxonomy import DISCLAIMER

EXIT_INTERRUPTED = 130  # what a shell gives a program that Ctrl-C ended


class OneLineErrors(click.Group):
    """Show what a user can put right as one line; a bug keeps its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the chosen command; exit 1 for what was asked, 2 for how it was asked."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "dermalyze"
            _fail(f"{error.format_message()} (see `{command} --help`)", 2)
        except click.ClickException as error:
            _fail(error.format_message(), 1)
        except (click.Abort, KeyboardInterrupt):
            _fail("stopped", EXIT_INTERRUPTED)
        except DermalyzeError as error:
            interrupted = type(error).__name__ == "TrainingInterruptedError"
            _fail(str(error), EXIT_INTERRUPTED if interrupted else 1)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


class AutoOr(click.ParamType[Any]):
    """The word `auto`, which leaves a setting as the config has it, or a value."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind = kind
        self.name = f"auto|{kind.name}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return "auto" or what the inner type makes of the value."""
        return value if value == "auto" else self.kind.convert(value, param, ctx)


def _say(line: str) -> None:
    click.echo(line, err=True)


Item = TypeVar("Item")
Command = TypeVar("Command", bound=Callable[..., Any])

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
RUN_ID = click.option("--run-id", required=True, help="An MLflow run of `dermalyze train`.")


def _auto(name: str, kind: click.ParamType[Any], text: str) -> Callable[[Command], Command]:
    return click.option(name, type=AutoOr(kind), default="auto", show_default=True, help=text)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Train, judge, export and serve a skin-lesion classifier.

    For education and research only; a prediction is never a diagnosis.
    """


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
}


@main.command()
@_auto("--size", click.STRING, "EfficientNetV2: small, medium or large.")
@_auto("--data-dir", click.STRING, "A folder, demo or auto (data/HAM10000, else demo).")
@_auto("--config", click.STRING, "YAML file; auto: configs/default.yaml or configs/demo.yaml.")
@_auto("--epochs", click.INT, "Passes over the training images.")
@_auto("--batch-size", click.INT, "Images an update.")
@_auto("--lr", click.FLOAT, "Peak learning rate.")
@_auto("--image-size", click.INT, "Pixels, height and width.")
@_auto("--head-type", click.STRING, "simple or acrnn.")
@_auto("--loss", click.STRING, "cross_entropy or focal.")
@_auto("--pretrained", click.STRING, "true, false or a .safetensors file; auto: if to be had.")
@_auto("--seed", click.INT, "Of splits, sampling, augmentation and weights.")
@_auto("--experiment", click.STRING, "MLflow experiment.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting.")
@click.option("--resume", metavar="RUN_ID", default="", help="Go on with a stopped run.")
def train(
    data_dir: str, config: str, settings: tuple[str, ...], resume: str, **overrides: Any
) -> None:
    """Train, evaluate, export and register a model as one MLflow run."""
    if resume:
        given = [name for name, value in overrides.items() if value != "auto"]
        if given or settings or config != "auto":
            raise click.UsageError(
                "a resumed run keeps its settings; leave out all but --resume and --data-dir"
            )
        from dermalyze.training.run import resume as resume_run

        folder = None if data_dir == "auto" else Path(data_dir)
        result = resume_run(resume, folder, say=_say)
    else:
        from dermalyze.data.auto import find_data

        # The settings are checked before anything slow: the data, torch.
        folder, demo_data = find_data(data_dir, make=False)
        resolved = _config(config, demo_data, settings, overrides)
        folder, demo_data = find_data(data_dir, make=True)
        from dermalyze.training.run import train as train_run

        _say(f"data: {folder}")
        if demo_data:
            _say("warning: this is drawn demo data; its metrics mean nothing")
        _say(f"epochs: {resolved.training.epochs}")
        result = train_run(resolved, folder, demo_data=demo_data, say=_say)
    from dermalyze.summary import summarize

    click.echo(summarize(result))


def _config(
    config: str, demo_data: bool, settings: Sequence[str], overrides: dict[str, Any]
) -> Any:
    from dermalyze.config_file import load_config
    from dermalyze.data.auto import config_path

    values = {_OVERRIDES[name]: value for name, value in overrides.items() if value != "auto"}
    if values.get("model.pretrained") in ("true", "false"):
        values["model.pretrained"] = values["model.pretrained"] == "true"
    path = config_path(demo_data) if config == "auto" else Path(config)
    resolved = load_config(path, settings, values)
    if "model.size" in values and resolved.model.name != "auto":
        raise ConfigError(
            f"--size has no effect beside model.name {resolved.model.name}; leave one of them out"
        )
    return resolved


@main.command("prepare-data")
@click.option("--data-dir", type=FOLDER, default=None, help="HAM10000; else as for train.")
@click.option("--output", type=FOLDER, default=None, help="[default: prepared/ in the data]")
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes; 0: one a core.")
@click.option("--image-size", type=click.IntRange(16, 1024), default=224, show_default=True)
@click.option("--resize-mode", type=click.Choice(["squash", "center_crop"]), default="squash")
@click.option(
    "--resize-filter",
    type=click.Choice(["bilinear", "bicubic", "lanczos"]),
    default="bicubic",
    show_default=True,
)
@click.option("--allow-problems", is_flag=True, help="Go on although the audit found problems.")
def prepare_data(data_dir: Path | None, **options: Any) -> None:
    """Read, audit and decode the images once; write labels, audit and pixel store."""
    from dermalyze.data.auto import find_data

    folder, _ = find_data("auto" if data_dir in (None, Path("auto")) else str(data_dir), make=True)
    from dermalyze.data.prepare import prepare  # once the folder is there: it loads pandas

    prepared = prepare(folder, **options)
    click.echo(prepared.audit.summary())
    click.echo(f"prepared: {prepared.folder}")


@main.command("demo-data")
@click.argument("folder", type=FOLDER)
@click.option("--images", type=int, default=420, show_default=True, help="How many.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--layout", type=click.Choice(["zips", "folders"]), default="zips")
def demo_data(folder: Path, images: int, seed: int, layout: str) -> None:
    """Draw lesions in HAM10000's layout into FOLDER."""
    from dermalyze.data.demo import make_demo_data

    click.echo(make_demo_data(folder, num_images=images, seed=seed, layout=layout))


@main.command()
@RUN_ID
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test")
@click.option("--data-dir", type=FOLDER, default=None, help="[default: where the run found it]")
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
        folder = None if data_dir == Path("auto") else data_dir
        metrics = evaluate_run(run_id, split, data_dir=folder, output=output)
    click.echo(format_metrics(metrics))
    click.echo(f"written: {output}")
    click.echo(DISCLAIMER)


@main.command("export-onnx")
@RUN_ID
@click.option("--output", type=FILE, default=Path("model.onnx"), show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="int8: a quarter of the size, and faster.",
)
@click.option("--data-dir", type=FOLDER, default=None, help="For int8; else as for evaluate.")
def export_onnx(run_id: str, output: Path, precision: str, data_dir: Path | None) -> None:
    """Write a run's best epoch as one ONNX file, if it agrees with PyTorch.

    In int8 it is calibrated on training images, and written if balanced accuracy on the validation
    split falls by no more than 0.5 points.
    """
    if precision == "int8":
        from dermalyze.export.int8 import describe
        from dermalyze.training.ended import export_run_int8

        folder = None if data_dir == Path("auto") else data_dir
        click.echo(f"{output}: {describe(export_run_int8(run_id, output, data_dir=folder))}")
        return
    if data_dir is not None:
        raise click.UsageError("--data-dir has no effect without --precision int8; leave it out")
    from dermalyze.training.ended import export_run

    report = export_run(run_id, output)
    click.echo(
        f"{output}: differs from PyTorch by at most {report.max_difference:.1e} in a probability "
        f"on {report.num_images} images; no class changed"
    )


@main.command()
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--model", type=FILE, required=True, help="ONNX file of `dermalyze export-onnx`.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@click.option("--threads", type=click.IntRange(0), default=0, help="In all; 0: one a core.")
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda or openvino.")
def predict(images: tuple[Path, ...], model: Path, kind: str, threads: int, provider: str) -> None:
    """Classify IMAGES, files or folders.  Needs no torch."""
    from serving.files import find_images, predict_files, render
    from serving.predictor import Predictor
    from serving.session import share_cores

    paths = find_images(images)
    workers, num_threads = share_cores(len(paths), threads)
    predictor = Predictor(model, num_threads=num_threads, provider=provider)
    failed = 0

    def answers() -> Iterator[tuple[Path, Any]]:
        nonlocal failed
        for path, answer in _with_progress(
            predict_files(predictor, paths, workers=workers), len(paths), table=kind == "table"
        ):
            failed += isinstance(answer, DermalyzeError)
            yield path, answer

    for line in render(answers(), kind, predictor.spec.class_names):
        click.echo(line)
    if failed:
        raise click.ClickException(f"{failed} of {len(paths)} images could not be read")


def _with_progress(items: Iterable[Item], length: int, *, table: bool) -> Iterator[Item]:
    """Pass items on, with a bar on stderr if that is a terminal on which nothing else appears."""
    if length > 1 and sys.stderr.isatty() and (table or not sys.stdout.isatty()):
        with click.progressbar(items, length=length, file=sys.stderr) as bar:
            yield from bar
    else:
        yield from items


@main.command("check-fit")
@RUN_ID
def check_fit(run_id: str) -> None:
    """Say in words whether a run over- or underfits."""
    from dermalyze.evaluation.fit import format_verdict
    from dermalyze.training.ended import fit_of_run

    click.echo(format_verdict(fit_of_run(run_id)))


@main.command("plot-training")
@RUN_ID
@click.option("--output", type=FILE, default=Path("training_curves.png"), show_default=True)
def plot_training(run_id: str, output: Path) -> None:
    """Draw a run's training curves."""
    from dermalyze.training.ended import plot_run

    plot_run(run_id, output)
    click.echo(output)


@main.command()
@click.option("--num-batches", type=click.IntRange(1), default=20, show_default=True)
@click.option("--num-images", type=click.IntRange(2), default=7010, help="Of an epoch.")
@_auto("--config", click.STRING, "YAML file; auto: configs/default.yaml.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting.")
def benchmark(num_batches: int, num_images: int, config: str, settings: tuple[str, ...]) -> None:
    """Time data, forward, backward and step of a training on this machine."""
    resolved = _config(config, False, settings, {})
    from dermalyze.training.benchmark import format_times, time_steps

    click.echo(format_times(time_steps(resolved, num_batches, num_images)))
