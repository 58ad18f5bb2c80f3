"""What a request may cost: bytes, decompressed bytes, time to send them, requests at a time.

An ASGI application around another; it reads each body whole, within its bounds, before the
application sees anything of it.
"""

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import BaseRoute, Match, Route

from serving.http.load import Load
from serving.http.settings import ServiceSettings

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ERROR_CODES = {  # HTTP status -> MLflow's word for it, where it has one
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    404: "ENDPOINT_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    413: "REQUEST_TOO_LARGE",
    414: "URI_TOO_LONG",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "UNPROCESSABLE_ENTITY",
    431: "HEADERS_TOO_LARGE",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
BUSY = (503, "the service is busy; try again in a second", {"retry-after": "1"})
_LINGER_SECONDS = 2.0  # a body that is too large is read on so long, so that the answer arrives
_LINGER_TIMES = 4  # and so many times the bound


class RefusedError(Exception):
    """An answer instead of the application's: its status and one sentence."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


class ClientGoneError(Exception):
    """Nobody waits for the answer."""


@dataclass(frozen=True)
class Routed:
    """The route that answers a request."""

    path: str = ""  # as it was declared; empty: none of our own answers
    takes_method: bool = False  # else the answer is 405


def routed(routes: Sequence[BaseRoute], scope: Scope) -> Routed:
    """Find the route that Starlette's router will choose, in the way in which it does.

    Each route is asked whether it matches, as only it knows which part of a path is the prefix of
    a server or of an outer application.
    """
    partial = Routed()
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.NONE:
            continue
        found = Routed(route.path if isinstance(route, Route) else "", match is Match.FULL)
        if match is Match.FULL:
            return found
        partial = partial if partial.path else found
    return partial


def error_body(status: int, sentence: str) -> bytes:
    """Return the JSON of an error: MLflow's two keys."""
    code = ERROR_CODES.get(status, "INVALID_PARAMETER_VALUE")
    return json.dumps({"error_code": code, "message": sentence}).encode()


async def send_error(send: Send, refused: RefusedError) -> None:
    """Answer with one sentence in JSON."""
    body = error_body(refused.status, refused.sentence)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **refused.headers,
    }
    await send(
        {
            "type": "http.response.start",
            "status": refused.status,
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


class Bounds:
    """The application `app` for requests that keep to the bounds; others are refused.

    A body that no route takes is never read and has no place among those in flight.
    """

    def __init__(
        self, app: App, settings: ServiceSettings, load: Load, routes: Sequence[BaseRoute]
    ) -> None:
        self._app = app
        self._settings = settings
        self._load = load
        self._routes = routes
        self._held = 0  # bytes of bodies that are still coming

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not self._takes_body(scope):
            await self._app(scope, receive, send)
            return
        try:
            await self._bounded(scope, receive, send)
        except RefusedError as refused:
            await send_error(send, refused)

    def _takes_body(self, scope: Scope) -> bool:
        return scope["method"] == "POST" and routed(self._routes, scope).takes_method

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._require_room()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                body = await self._body(scope, receive)
        except TimeoutError as error:
            raise RefusedError(
                408,
                f"the body did not arrive within {self._settings.body_seconds:g} seconds; send it "
                "faster or smaller",
                {"connection": "close"},
            ) from error
        except ClientGoneError:
            return
        self._require_room()  # the bodies of others were faster
        self._load.add(1)
        try:
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._load.add(-1)

    def _require_room(self) -> None:
        if self._load.in_flight >= self._settings.max_in_flight:
            raise RefusedError(*BUSY)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the whole body within the bounds, decompressed."""
        headers = dict(scope["headers"])
        limit = self._settings.max_body_bytes
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise RefusedError(
                415, "the content encoding must be gzip, deflate or none", {"connection": "close"}
            )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            await _linger(receive, limit)
            self._too_large()
        received = bytearray()
        try:
            async for part in _parts(receive):
                received += part
                self._held += len(part)
                if len(received) > limit:
                    await _linger(receive, limit)
                    self._too_large()
                if self._held > limit * self._settings.max_in_flight:
                    raise RefusedError(*BUSY)
        finally:
            self._held -= len(received)
        if encoding == "identity":
            return bytes(received)
        # In a thread: 32 at a time of a few kB would keep the loop for most of a second.
        return await asyncio.to_thread(self._decompressed, bytes(received))

    def _decompressed(self, data: bytes) -> bytes:
        limit = self._settings.max_body_bytes
        unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)  # gzip or zlib, by its first bytes
        try:
            body = unpacker.decompress(data, limit + 1)
        except zlib.error as error:
            raise RefusedError(400, "the body is not compressed as its header says") from error
        if len(body) > limit:
            self._too_large()
        if not unpacker.eof or unpacker.unused_data:
            raise RefusedError(400, "the compressed body is cut short, or more follows it")
        return body

    def _too_large(self) -> None:
        raise RefusedError(
            413,
            f"the body is larger than {self._settings.max_body_bytes:,} bytes; send a smaller "
            "photograph, or fewer",
            {"connection": "close"},
        )


async def _parts(receive: Receive) -> Any:
    """Yield the parts of a body.

    Raises:
        ClientGoneError: the client left before its end.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _linger(receive: Receive, limit: int) -> None:
    """Read on for a while and forget it: a client that is still sending reads no answer."""
    total = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            async for part in _parts(receive):
                total += len(part)
                if total > _LINGER_TIMES * limit:
                    break
    except TimeoutError:
        pass


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body in one part, then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
