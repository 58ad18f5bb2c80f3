"""The command `serve`: a model behind HTTP."""

import dataclasses
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from dermalyze.cli.options import (
    Command,
)
from serving.http.settings import PREFIX, ServiceSettings
from serving.os_errors import reading
from serving.reference import in_words

logger = logging.getLogger(__name__)

_LOCAL = ("127.0.0.1", "localhost", "::1")
_FILE_SECONDS = 1.0  # between two looks at the model file
_DEFAULTS = ServiceSettings()


def _bound(name: str, help_text: str) -> Callable[[Command], Command]:
    """Return an option for a setting; its value on the command line beats the environment's."""
    default = getattr(_DEFAULTS, name)
    return click.option(
        f"--{name.replace('_', '-')}",
        type=type(default),
        default=None,
        help=help_text if default == "" else f"{help_text}  [default: {default:,}]",
    )


@click.command()
@click.option(
    "--model",
    default=None,
    help="ONNX file, or models:/NAME@ALIAS of the registry.  [default: the reference model]",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--watch", is_flag=True, help="Reload when the file or the alias changes.")
@click.option("--watch-seconds", type=click.FloatRange(0.1), default=5.0, show_default=True)
@click.option(
    "--allowed-host", "allowed_hosts", multiple=True, help="Host name to accept; repeatable."
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="Origin allowed to call the API (CORS); repeatable.",
)
@_bound("root_path", "Path prefix under which a proxy serves this, such as /lesions.")
@_bound("prediction_log", "Log of all answers: a file, or the URL of a database (SQLAlchemy).")
@_bound("prediction_log_bytes", "Size at which the file of that log becomes FILE.1, FILE.2, ...")
@_bound("max_body_bytes", "Largest request body, as received and decompressed.")
@_bound("max_images", "Most images per request.")
@_bound("max_pixels", "Largest image, width x height.")
@_bound("max_in_flight", "Most concurrent requests per worker; further ones get 503.")
@_bound("body_seconds", "Timeout for the request body, in seconds.")
@_bound("request_seconds", "Timeout for the response, in seconds.")
@_bound("header_seconds", "Timeout for the headers, in seconds.")
@_bound("idle_seconds", "Idle time before a connection is closed, in seconds.")
@_bound("shutdown_seconds", "Grace period after SIGTERM, in seconds.")
@_bound("load_seconds", "Timeout for loading a model, in seconds.")
@_bound("threads", "Images processed at once per worker; 0: one per CPU core.")
def serve(
    model: str | None,
    host: str,
    port: int,
    workers: int,
    watch: bool,
    watch_seconds: float,
    allowed_hosts: tuple[str, ...],
    cors_origins: tuple[str, ...],
    **bounds: Any,
) -> None:
    """Serve a model and its page over HTTP.  Needs no torch.

    The limits can also be set as environment variables, such as DERMALYZE_MAX_BODY_BYTES for
    --max-body-bytes.  If DERMALYZE_API_KEY is set, every client must send that key.
    """
    from serving.http.model_holder import examine
    from serving.http.server import serve as serve_model
    from serving.prediction_log import PredictionLog

    settings = ServiceSettings.from_environment()
    if not (allowed_hosts or settings.allowed_hosts) and host in _LOCAL:
        # No page of another host reaches us under a name of its own.
        allowed_hosts = (
            "127.0.0.1",
            "localhost",
            "[::1]",
        )
    given = {name: value for name, value in bounds.items() if value is not None}
    if allowed_hosts:
        given["allowed_hosts"] = allowed_hosts
    if cors_origins:
        given["cors_origins"] = cors_origins
    settings = dataclasses.replace(settings, watch_seconds=_FILE_SECONDS if watch else 0.0, **given)
    model = model or settings.model
    with ExitStack() as stack:
        stack.enter_context(_ended_in_order())
        file = Path(model)
        with reading(file):
            file.exists()
        if ":/" in model:
            from dermalyze.cli.model_copy import copy_of

            file = stack.enter_context(copy_of(model, watch_seconds if watch else 0.0))
        settings = dataclasses.replace(settings, model=str(file))
        spec = examine(file, settings.load_seconds)  # before anything listens
        if settings.prediction_log:
            PredictionLog(settings.prediction_log, settings.prediction_log_bytes).close(0)
        logger.info(f"model: {in_words(model, spec)}. {spec.disclaimer}")
        if host not in _LOCAL and not settings.api_key:
            logger.warning(f"anyone who can reach {host} can use the service; set {PREFIX}API_KEY")
        serve_model(settings, host=host, port=port, workers=workers)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Within the block, SIGTERM and a closed terminal end the program by way of its clean-up."""

    def end(_: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would end the clean-up
        raise SystemExit(0)

    def terminate(_: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)  # as the server, once it runs, takes it

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # the server finishes what is in flight
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
