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
