"""What stands around every answer: request id, log line, security headers, who may ask.

The log has no pixel, no file name and nothing else that a client sent, but for a request id of
plain letters.
"""

import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Sequence

from starlette.routing import BaseRoute

from serving.errors import OutOfMemoryError
from serving.http.request_limits import (
    App,
    Message,
    Receive,
    RefusedError,
    Scope,
    Send,
    routed,
    send_error,
)
from serving.http.settings import ServiceSettings

PROBES = ("/health", "/ready")  # routes for orchestrators: any host name, no key
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), geolocation=(), microphone=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
NO_MEMORY = (
    503,
    "there is not enough memory for the request; try again in a second, or send smaller images",
    {"retry-after": "1"},
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADERS = [(k.encode(), v.encode()) for k, v in SECURITY_HEADERS.items()]

log = logging.getLogger("serving")


class Envelope:
    """The application `app` with an id, a log line and security headers for each request.

    Who may ask is decided by the route that answers, never by the text of a path: servers and
    outer applications put a prefix into it or leave it out.
    """

    def __init__(
        self,
        app: App,
        settings: ServiceSettings,
        routes: Sequence[BaseRoute],
        open_paths: Collection[str] = (),
        observe: Callable[[str, int, float], None] = lambda path, status, seconds: None,
    ) -> None:
        """Wrap an application.

        Args:
            app: the application.
            settings: of the service.
            routes: those of the application; routes may be added later.
            open_paths: the paths of routes that need no key; every other request needs it.
            observe: told the path of the route (empty: none), status and seconds of each request.
        """
        self._app = app
        self._settings = settings
        self._routes = routes
        self._open_paths = frozenset((*PROBES, *open_paths))
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here, so nobody may open one
            await send({"type": "websocket.close", "code": 1008})
            return
        start, status = time.perf_counter(), 0
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        own = [*_HEADERS, (b"x-request-id", request_id.encode())]
        scope.setdefault("state", {})["request_id"] = request_id
        path = routed(self._routes, scope).path
        if path not in self._open_paths:
            own.append((b"cache-control", b"no-store"))

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        try:
            self._admit(path, headers)
            await self._app(scope, receive, with_headers)
        except RefusedError as refused:
            await send_error(with_headers, refused)
        except (MemoryError, OutOfMemoryError):
            log.warning("request %s: there was not enough memory", request_id)
            if status:
                raise
            await send_error(with_headers, RefusedError(*NO_MEMORY))
        except Exception:
            log.exception("request %s failed", request_id)
            if status:  # a part of an answer is out: the connection is cut
                raise
            failed = RefusedError(500, "the service failed; see the server's log")
            await send_error(with_headers, failed)
        finally:
            seconds = time.perf_counter() - start
            self._observe(path, status, seconds)
            log.info(
                "request_id=%s method=%s path=%s status=%d ms=%.1f",
                request_id,
                scope["method"],
                path or "-",
                status,
                1000 * seconds,
            )

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Refuse a request for another host, or without the key; `path` is the route's."""
        if path in PROBES:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if self._hosts and name.removesuffix(".") not in self._hosts:
            raise RefusedError(400, "this host name is not allowed; see --allowed-host")
        if not self._settings.api_key or path in self._open_paths:
            return
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = key.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not hmac.compare_digest(given, self._settings.api_key.encode()):
            raise RefusedError(
                401,
                "an API key is needed; send the header Authorization: Bearer KEY",
                {"www-authenticate": "Bearer"},
            )
