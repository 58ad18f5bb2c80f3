"""Starting the service: sockets, the bounds of a connection, processes, an end in order.

uvicorn listens; what it lacks is here: a time for headers to arrive, one form of error, and an end
that answers whoever has connected before it.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, ClassVar, TextIO

import h11
import uvicorn
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess, multiprocess

from serving.errors import ConfigError, DermalyzeError
from serving.http.middleware import NO_MEMORY
from serving.http.prometheus import MULTIPROCESS, require_room_for
from serving.http.request_limits import BUSY, error_body
from serving.http.settings import PREFIX, ServiceSettings
from serving.isolation import end_with_parent
from serving.os_errors import owned_folder, writing_temporary_files

if sys.platform != "win32":
    import resource

log = logging.getLogger("serving")
_HEADER_SECONDS = f"{PREFIX}HEADER_SECONDS"
_MAX_HEADER_BYTES = 32 * 1024
_MAX_LINE_BYTES = 8 * 1024
_MAX_HEADERS = 100
_TOO_LARGE = {
    414: f"the request line is longer than {_MAX_LINE_BYTES:,} bytes; send a shorter address",
    431: f"the request has more than {_MAX_HEADERS} headers, or they are larger than "
    f"{_MAX_HEADER_BYTES:,} bytes; send fewer or shorter ones",
}
_LINGER_SECONDS = 2.0  # so long bytes that nobody wants are read on, for the answer to arrive
_SPARE_FILES = 16  # descriptors that connections leave to everything else
_SILENT_SECONDS = 60.0  # between two lines of the log about connections that are refused
_HANDSHAKE_SECONDS = 0.1  # a client whose connection is being made at SIGTERM may finish it in
_BACKLOG_SECONDS = 5.0  # to accept those who have connected
_READ_SECONDS = 0.001  # of a late loop, timers come first, then reading, then this one
_LAST_SECONDS = 1.0  # a connection without a request may still send one in, after SIGTERM
# For the kernel: of what comes to a listening socket, drop what opens a new connection (the SYN).
_SO_ATTACH_FILTER = 26
_DROP_NEW = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {
        "stderr": {
            "class": "serving.http.server.LogLines",
            "stream": "ext://sys.__stderr__",
            "formatter": "line",
        }
    },
    "loggers": {
        "serving": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
    },
}


class LogLines(logging.StreamHandler[TextIO]):
    """The log of each process; on a full disk lines are lost, until there is room again."""

    _torn = ""  # what ends a line that was written in part

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, apart from one that was not written to its end."""
        return self._torn + super().format(record)

    def flush(self) -> None:
        """Take the line as written if there is no error."""
        super().flush()
        self._torn = ""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Say nothing of a line that cannot be written."""
        if isinstance(sys.exception(), OSError):
            self._torn = "\n"
        else:
            super().handleError(record)


class BoundedConnection(h11.Connection):
    """The HTTP of a connection; headers are bounded also where they come in one piece."""

    too_large = 0  # the status of that, once it has happened

    def next_event(self) -> Any:
        """Parse the next event.

        Raises:
            h11.RemoteProtocolError: it is no HTTP, or too large.
        """
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                is_line = b"\n" not in self.trailing_data[0]
                self.too_large = 414 if is_line else 431
            raise
        if isinstance(event, h11.Request):
            size = sum(len(name) + len(value) + 4 for name, value in event.headers)
            if len(event.target) > _MAX_LINE_BYTES:
                self.too_large = 414
            elif len(event.headers) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
                self.too_large = 431
        if self.too_large:
            raise h11.RemoteProtocolError(_TOO_LARGE[self.too_large])
        return event


class LingeringTransport:
    """A connection that is closed by halves where a client still sends.

    Closing it at once would reset it, and the answer that is under way would be lost.
    """

    def __init__(self, transport: asyncio.Transport, conn: h11.Connection) -> None:
        self._transport = transport
        self._conn = conn
        self.is_lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Say whether nothing can be answered any more."""
        return self.is_lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close it, in a while if the client still sends."""
        if self.is_closing() or self._conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            self._transport.close()
            return
        self.is_lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.close)


class BoundedProtocol(H11Protocol):
    """One connection; headers that do not arrive in time end it."""

    conn: BoundedConnection
    _timer: asyncio.TimerHandle | None = None
    _full_told: ClassVar[float] = -_SILENT_SECONDS  # seconds of the clock

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first headers, if there is room for one more connection."""
        self.conn = BoundedConnection(h11.SERVER, _MAX_HEADER_BYTES)
        lingering: Any = LingeringTransport(transport, self.conn)
        super().connection_made(lingering)
        self._wait()
        if not self._has_room():
            self._refuse(*BUSY[:2])

    def data_received(self, data: bytes) -> None:
        """Take bytes; the time for headers begins with the first of them and is not extended."""
        if self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except MemoryError:
            log.warning("a request could not be read: there was not enough memory")
            self._refuse(*NO_MEMORY[:2])
            return
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_longer()
        elif self._timer is None and self.conn.trailing_data[0]:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End with the present answer; a connection without a request gets a moment for one."""
        if self._is_quiet():
            self._unset_keepalive_if_required()
            self.loop.call_later(_LAST_SECONDS, self._end_after_reading)
        elif not self.cycle.response_started:
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]
        else:
            self.cycle.keep_alive = False

    def _end_after_reading(self) -> None:
        self.loop.call_later(_READ_SECONDS, self._end_if_quiet)

    def _is_quiet(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end_if_quiet(self) -> None:
        if self._is_quiet() and not self.conn.trailing_data[0] and not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too large."""
        status = self.conn.too_large or 400
        self._refuse(status, _TOO_LARGE.get(status, "the request is not HTTP"))

    def _has_room(self) -> bool:
        """Say whether this connection leaves descriptors for the rest; if not, log it now and then.

        Without any left, each try to accept would fail, and again at once.  The lowest free number
        is given out each time, so that of the newest says how many there are.
        """
        if sys.platform == "win32":
            return True
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self.transport.get_extra_info("socket").fileno() < limit - _SPARE_FILES:
            return True
        now = self.loop.time()
        if now - self._full_told >= _SILENT_SECONDS:
            BoundedProtocol._full_told = now
            log.error(
                "file descriptors run out: %d connections are open and the limit is %d files; more "
                "are refused until some end; raise the limit (ulimit -n)",
                len(self.connections),
                limit,
            )
        return False

    def _wait(self) -> None:
        seconds = float(os.environ[_HEADER_SECONDS])
        self._timer = self.loop.call_later(seconds, self._too_late)

    def _wait_no_longer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self.conn.trailing_data[0]:
            self._refuse(408, "the headers did not arrive in time")
        else:  # nothing was ever said
            self.transport.close()

    def _refuse(self, status: int, sentence: str) -> None:
        if self.transport.is_closing():
            return
        body = error_body(status, sentence)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            answer = h11.Response(status_code=status, headers=headers)
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which at its end answers whoever has connected before."""

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal; one of several processes also ends when that above them is gone."""
        end_with_parent(signal.SIGTERM)
        try:
            super().run(sockets)
        except DermalyzeError as error:
            if self.config.workers == 1:
                raise
            log.error("a process could not start and is started again: %s", error)
            sys.exit(1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept who has connected, close the socket, answer all, within the grace period."""
        self.lifespan.state["ending"] = True  # what /ready answers with
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE_HEADER]
        listening = sockets or []
        if self.config.workers == 1:
            drop_new(listening)  # of several processes, the one above them does it
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BACKLOG_SECONDS):
                await asyncio.sleep(_HANDSHAKE_SECONDS)
                while select.select(listening, [], [], 0)[0]:
                    await asyncio.sleep(_HANDSHAKE_SECONDS / 10)
        await super().shutdown(sockets)


class Workers(Multiprocess):
    """uvicorn's processes, which share a socket and end together."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, self._end)

    def _end(self, sign: int, _: FrameType | None) -> None:
        """Let nobody new connect from this moment on: each worker may have got the signal too."""
        drop_new(self.sockets)
        self.signal_queue.append(sign)


multiprocess.Server = DrainingServer  # type: ignore[attr-defined]  # uvicorn has no option


def drop_new(listening: Sequence[socket.socket]) -> None:
    """Let the kernel drop new connections, while those that wait to be accepted stay.

    Otherwise a connection made between the last look at the queue and the closing of the socket is
    reset.  Its client tries again after a second, and is refused then, or answered by another.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *op) for op in _DROP_NEW))
    described = struct.pack("HP", len(_DROP_NEW), ctypes.addressof(program))
    for each in listening:
        with contextlib.suppress(OSError):  # a kernel without it: a short moment stays
            each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def serve(settings: ServiceSettings, *, host: str, port: int, workers: int = 1) -> None:
    """Serve until SIGTERM or Ctrl-C; what is in flight then is finished, within its bound.

    Args:
        settings: of every process.
        host: the address to listen on.
        port: 0: a free one.
        workers: processes.

    Raises:
        ConfigError: the address cannot be listened on.
        StorageError: several processes have no room to count together.
    """
    os.environ |= settings.to_environment()  # what `create_app` reads, in this process or others
    config = uvicorn.Config(
        "serving.app:create_app",
        factory=True,
        http=BoundedProtocol,
        ws="none",
        workers=workers,
        log_config=_LOGGING,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.idle_seconds)),
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )
    shown = f"[{host}]" if ":" in host else host
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(contextlib.closing(_listen(host, port)))
        if workers > 1:
            with writing_temporary_files():
                counts = stack.enter_context(owned_folder())
                require_room_for(workers, counts)
            os.environ[MULTIPROCESS] = str(counts)
        log.info("listening on http://%s:%d", shown, listening.getsockname()[1])
        if workers > 1:
            Workers(config, sockets=[listening]).run()
        else:
            DrainingServer(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Open the socket that all processes share.

    It is made for TCP by name: of a socket without, asyncio does not know that it is TCP, leaves
    Nagle's algorithm on, and each answer waits some 40 ms for an acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "no such address"
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port"
        ) from error
    listening.set_inheritable(True)
    return listening
