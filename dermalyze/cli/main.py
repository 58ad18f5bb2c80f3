"""The command line: parse, call, print.  Heavy imports wait until a command needs them.

Results go to stdout, progress and warnings to stderr.
"""

import logging
import os
import signal
import sys
from typing import Any

import click

from dermalyze import __version__
from dermalyze.cli.data import data_issues, demo_data, prepare_data
from dermalyze.cli.doctor import doctor
from dermalyze.cli.evaluate import (
    check_fit,
    compare,
    evaluate,
    leakage,
    monitor,
    plot_training,
    promote,
    register_reference,
    report,
)
from dermalyze.cli.export import export_onnx, export_web, recalibrate
from dermalyze.cli.options import naming_missing_packages
from dermalyze.cli.predict import predict
from dermalyze.cli.score import score
from dermalyze.cli.serve import serve
from dermalyze.cli.signals import Stop, ended_by_signals
from dermalyze.cli.streams import ReaderGoneError, guarded_streams, log_lines
from dermalyze.cli.train import benchmark, sync, train, tune
from dermalyze.credentials import masked
from serving.errors import DermalyzeError

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
                store = sys.modules.get("dermalyze.tracking.store")
                waits = store is not None and store.is_calling()
                if waits or code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
                    # Python's own end waits for threads, and takes seconds once torch is imported.
                    for stream in (sys.stdout, sys.stderr):
                        stream.flush()
                    os._exit(code)
                raise

    def _main(self, stop: Stop, *args: Any, **kwargs: Any) -> None:
        kwargs["standalone_mode"] = False
        try:
            with naming_missing_packages():
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
            number = getattr(error, "signal_number", 0)  # of a training that a signal has stopped
            _fail(str(error), 128 + number if number else 1)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo(masked(f"Error: {' '.join(message.split())}"), err=True)
    sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Train, evaluate, export and serve an image classifier.

    For education and research only; a prediction is never a diagnosis.
    """


for _command in (
    prepare_data,
    demo_data,
    data_issues,
    train,
    tune,
    sync,
    benchmark,
    evaluate,
    report,
    compare,
    leakage,
    monitor,
    promote,
    register_reference,
    check_fit,
    plot_training,
    export_onnx,
    export_web,
    recalibrate,
    predict,
    score,
    serve,
    doctor,
):
    main.add_command(_command)
