"""Kinds of values and options that several commands of the command line share."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from serving.errors import ConfigError
from serving.image_size import MAX_PIXELS, PILLOWS_LIMIT
from serving.os_errors import reason_of
from serving.reference import REFERENCE

logger = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])


class UsablePath(click.Path):
    """A path that the system can look up; whether anything is there is for the command to say."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a name that is too long, or in a folder that may not be entered."""
        path = Path(str(super().convert(value, param, ctx)))
        try:
            path.exists()
        except OSError as error:
            self.fail(f"{path} cannot be looked up: {reason_of(error)}", param, ctx)
        return path


FOLDER = UsablePath(file_okay=False)
FILE = UsablePath(dir_okay=False)
FILE_OR_FOLDER = UsablePath()
PRECISION = click.Choice(["float32", "float16", "int8"])
SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of the config, such as training.lr=1.0e-3; repeatable.",
)
MODEL = click.option(
    "--model",
    type=FILE,
    default=REFERENCE,
    show_default="the reference model",
    help="ONNX file of `dermalyze export-onnx`.",
)
LEVEL = click.option(
    "--level", type=float, default=0.9, show_default=True, help="Coverage of prediction sets."
)
SENSITIVITY = click.option(
    "--sensitivity",
    type=float,
    default=0.95,
    show_default=True,
    help="Share of malignant lesions that the referral flag finds.",
)
LARGEST = click.option(
    "--max-pixels",
    type=click.IntRange(1, PILLOWS_LIMIT),
    default=MAX_PIXELS,
    show_default=f"{MAX_PIXELS:,}",
    help="Largest image, width x height; each thread needs 4 bytes per pixel.",
)
RUN_ID = click.option("--run-id", required=True, help="An MLflow run of `dermalyze train`.")


@contextmanager
def naming_missing_packages() -> Iterator[None]:
    """Say how to install what a command needs beyond the runtime half.

    Raises:
        ConfigError: a package of others is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "dermalyze", "serving"):  # ours: a bug, which keeps its traceback
            raise
        extra = "spark" if package in ("pyspark", "py4j", "pyarrow") else "train"
        raise ConfigError(
            f"this command needs {package}, which is not installed; run `pip install "
            f"'dermalyze[{extra}]'`, in a clone `pip install '.[{extra}]'`"
        ) from error


def _warn_of_twin(context: click.Context, param: click.Parameter, value: Any) -> Any:
    typed = context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
    if typed and value in ("auto", "demo") and Path(value).is_dir():
        meant = "the drawn demo data" if value == "demo" else "the default data"
        logger.warning(
            f"--data-dir {value} means {meant}, not the folder {value} that is here; "
            f"write ./{value} for the folder"
        )
    return value


def data_option(text: str, default: str | None = None) -> Callable[[Command], Command]:
    """Make the option that names the images: a folder, or the word `demo` or `auto`."""
    return click.option(
        "--data-dir",
        default=default,
        show_default=default is not None,
        metavar="FOLDER|demo|auto",
        callback=_warn_of_twin,
        help=text,
    )


RUN_DATA = data_option("Images of the run; auto: the folder used in training.  [default: auto]")


def source_options(command: Command) -> Command:
    """Add the options that name labeled images of other sources, and what their labels mean."""
    external = click.option(
        "--external",
        multiple=True,
        metavar="NAME=DIR",
        help="Labeled images of another source, in any layout (docs/data.md), or one CSV; "
        "repeatable.",
    )
    maps = click.option(
        "--map",
        "maps",
        multiple=True,
        metavar="[NAME:]LABEL=CLASS|FILE",
        help="Class of the model that a label of a source is, or a YAML file of them; repeatable.",
    )
    return external(maps(command))


def run_data(data_dir: str | None) -> Path | None:
    """Return the folder that `--data-dir` names for a run; None: where the run found its images.

    Raises:
        DataError: the folder does not exist.
    """
    if data_dir in (None, "auto"):
        return None
    from dermalyze.data.location import find_data

    return find_data(str(data_dir), make=True)[0]


def _load_plugins(
    _context: click.Context, _param: click.Parameter, plugins: tuple[str, ...]
) -> tuple[str, ...]:
    plugins = tuple(plugin for plugin in plugins if plugin != "auto")  # which MLproject passes on
    if plugins:
        from dermalyze.models.plugins import load_plugins

        load_plugins(plugins)
    return plugins


def plugin_option(*, expose_value: bool = False) -> Callable[[Command], Command]:
    """Make the option that names plug-ins, which are imported while it is parsed."""
    return click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="FILE_OR_MODULE",
        callback=_load_plugins,
        expose_value=expose_value,
        help="Python code that defines the model. It is run: name only code you trust; repeatable.",
    )


def here_options(command: Command) -> Command:
    """Add the options for what belongs to this machine and not to the run."""
    device = click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default=None,
        help="Device to compute on.  [default: the run's, or auto if that is not available]",
    )
    prepared = click.option(
        "--prepared",
        type=FOLDER,
        default=None,
        help="Folder of the decoded images.  [default: the run's, or prepared/ in the data]",
    )
    return device(prepared(command))


class AutoOr(click.ParamType[Any]):
    """The word `auto`, which leaves a setting as the config has it, or a value."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind = kind
        self.name = f"auto|{kind.name}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return "auto" or what the inner type makes of the value."""
        return value if value == "auto" else self.kind.convert(value, param, ctx)


def auto_option(name: str, kind: click.ParamType[Any], text: str) -> Callable[[Command], Command]:
    """Make an option that is `auto` unless it is given."""
    return click.option(name, type=AutoOr(kind), default="auto", show_default=True, help=text)


def column_options(command: Command) -> Command:
    """Add the options that say how to read one table, and what must not be split."""
    contents = {"group": "the ids that --group-by names", "label": "classes", "image": "images"}
    for name, content in contents.items():
        text = f"Column with {content} in a table beside the images; auto: by name."
        command = auto_option(f"--{name}-column", click.STRING, text)(command)
    text = "Keep in one split: lesion, patient or none."
    return auto_option("--group-by", click.STRING, text)(command)


def here_of(data_dir: str | None, device: str | None = None, prepared: Path | None = None) -> Any:
    """Return the `Here` that `--data-dir` and `here_options` ask for."""
    from dermalyze.workflows.run_context import Here

    return Here(data_dir=run_data(data_dir), device=device or "", prepared=str(prepared or ""))
