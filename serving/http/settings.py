"""What the service is told: the model and its bounds.  From the environment, checked once.

`dermalyze serve` turns its options into the same variables, so that every process of the service
and `uvicorn serving.app:create_app --factory` read one thing.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from serving.errors import ConfigError
from serving.image_size import MAX_PIXELS
from serving.reference import REFERENCE

PREFIX = "DERMALYZE_"  # of each variable: DERMALYZE_MODEL, DERMALYZE_MAX_BODY_BYTES, ...
_TOP: dict[str, float] = {"max_pixels": MAX_PIXELS, "max_images": 1000, "threads": 1024}
_FROM_ZERO = ("threads", "watch_seconds")
# What the Host and Origin headers hold, in small letters; a port is looked at apart from it.
_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_DEFAULT_PORTS = {"http": 80, "https": 443}  # which browsers leave out


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The model and the bounds of the service; times are in seconds."""

    model: str = str(REFERENCE)  # an ONNX file of `dermalyze export-onnx`
    max_body_bytes: int = 8 * 2**20  # as received, and again after decompression
    max_images: int = 32  # per request
    max_pixels: int = MAX_PIXELS  # per image: width x height in its header
    max_in_flight: int = 32  # concurrent requests per process; further ones get 503
    body_seconds: float = 30.0  # to receive the body, else 408
    request_seconds: float = 30.0  # from the complete body to the response, else 504
    header_seconds: float = 10.0  # to receive the headers, else 408; used by `dermalyze serve`
    idle_seconds: float = 75.0  # idle time of a connection; used by `dermalyze serve`
    load_seconds: float = 120.0  # to load a model file and run it once
    shutdown_seconds: float = 30.0  # grace period after SIGTERM; used by `dermalyze serve`
    threads: int = 0  # images processed at once per process; 0: one per CPU core
    watch_seconds: float = 0.0  # between two checks for a new model file; 0: never
    allowed_hosts: tuple[str, ...] = ()  # host names to accept; empty: any
    cors_origins: tuple[str, ...] = ()  # origins allowed to call the API; empty: none; *: all
    root_path: str = ""  # path prefix used by a proxy, such as /lesions
    # A file or the URL of a database, perhaps with a password; empty: answers are not logged.
    prediction_log: str = dataclasses.field(default="", repr=False)
    prediction_log_bytes: int = 64 * 2**20  # of a file; then the next one is begun
    api_key: str = dataclasses.field(default="", repr=False)  # empty: no key is needed

    def __post_init__(self) -> None:
        """Check every bound.

        Raises:
            ConfigError: one is out of range.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type not in (int, float):
                continue
            low = 0 if field.name in _FROM_ZERO else 1 if field.type is int else 0.01
            high = _TOP.get(field.name, 2**40 if field.type is int else 86_400)
            if not low <= value <= high:
                raise ConfigError(
                    f"{PREFIX}{field.name.upper()} must be from {low:,} to {high:,}, got {value:,}"
                )
        key = self.api_key
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise ConfigError(
                f"{PREFIX}API_KEY must be ASCII text without spaces around it; set another key"
            )
        for host in self.allowed_hosts:
            if _host_in(host) != host.lower():
                raise ConfigError(
                    f"--allowed-host ({PREFIX}ALLOWED_HOSTS) must be a host name without scheme, "
                    f"port or path, such as {_host_in(host)!r}, got {host!r}"
                )
        if "*" in self.cors_origins and len(self.cors_origins) > 1:
            raise ConfigError(
                f"--cors-origin ({PREFIX}CORS_ORIGINS) must be '*' for all origins, or a list "
                "of origins, not both"
            )
        for origin in self.cors_origins:
            if origin != "*" and _origin_in(origin) != origin:
                raise ConfigError(
                    f"--cors-origin ({PREFIX}CORS_ORIGINS) must be scheme and host as a browser "
                    f"sends them, such as {_origin_in(origin)!r}, got {origin!r}"
                )
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise ConfigError(
                f"--root-path ({PREFIX}ROOT_PATH) must be a path that begins with / and does not "
                f"end with it, such as '/lesions', got {self.root_path!r}"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ServiceSettings":
        """Read the settings; what is not set keeps its default.

        Raises:
            ConfigError: a value is of another type or out of range.
        """
        values: dict[str, object] = {}
        for field in dataclasses.fields(cls):
            name = PREFIX + field.name.upper()
            text = environment.get(name, "").strip()
            if not text and not (field.name == "api_key" and environment.get(name)):
                continue  # but a key of spaces was meant to keep others out
            if field.type in (int, float):
                try:
                    values[field.name] = int(text) if field.type is int else float(text)
                except ValueError as error:
                    kind = "a whole number" if field.type is int else "a number"
                    raise ConfigError(f"{name} must be {kind}, got {text!r}") from error
            elif field.type is str:
                values[field.name] = text or environment[name]
            else:
                values[field.name] = tuple(part.strip() for part in text.split(","))
        return cls(**values)  # type: ignore[arg-type]

    def to_environment(self) -> dict[str, str]:
        """Return the variables that `from_environment` reads as these settings."""
        values = vars(self).items()
        return {
            PREFIX + name.upper(): ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values
        }


def _host_in(text: str) -> str:
    """Return the host name that was probably meant, in small letters: the text itself if it is."""
    try:
        is_address = text.count(":") > 1 and not re.search(r"[/\[]", text)
        name = urlsplit(
            text if "//" in text else f"//[{text}]" if is_address else f"//{text}"
        ).hostname
    except ValueError:
        name = None
    return _as_sent(name or "") or "lesions.example.org"


def _as_sent(name: str) -> str:
    """Return a host name as a browser sends it; nothing if it is none."""
    with suppress(ValueError):
        if ":" in name and "%" not in name:  # no zone: it means something on one machine only
            return f"[{IPv6Address(name)}]"
        name = name.removesuffix(".").encode("idna").decode()  # raises a ValueError
        if name.rpartition(".")[2].isdigit():
            return str(IPv4Address(name))
        return name if _HOST.fullmatch(name) else ""
    return ""


def _origin_in(text: str) -> str:
    """Return the origin that was probably meant: the text itself where it is one."""
    try:
        parts = urlsplit(text if "//" in text else f"https://{text}")
        scheme, name, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError:
        scheme, name, port = "", "", None
    name = _as_sent(name)
    if not name or not _SCHEME.fullmatch(scheme):
        return "https://lesions.example.org"
    return f"{scheme}://{name}" + (
        f":{port}" if port and port != _DEFAULT_PORTS.get(scheme) else ""
    )
