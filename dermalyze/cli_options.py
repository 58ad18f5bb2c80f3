"""Kinds of values and options that several commands of the command line share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
PRECISION = click.Choice(["float32", "float16", "int8"])
RUN_ID = click.option("--run-id", required=True, help="An MLflow run of `dermalyze train`.")
RUN_DATA = click.option(
    "--data-dir", type=FOLDER, default=None, help="[default: where the run found it]"
)


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
        help="Python code that the model needs and you trust; repeatable.",
    )


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


def say(line: str) -> None:
    """Print progress and warnings, to stderr."""
    click.echo(line, err=True)


def folder_or_none(path: Path | None) -> Path | None:
    """Take the word `auto`, which MLproject passes on, as nothing given."""
    return None if path == Path("auto") else path
