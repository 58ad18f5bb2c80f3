"""Bodies of `POST /predict`: one photograph as it is, or several as multipart/form-data."""

from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.bounds import RefusedError
from serving.errors import RequestError

IMAGE_TYPES = ("image/jpeg", "image/png")
MULTIPART = "multipart/form-data"
_MAX_PARTS = 1100  # photographs and fields; the photographs have a bound of their own
_MAX_HEADER_BYTES = 4096  # of one part


def read_photographs(body: bytes, content_type: str) -> list[bytes]:
    """Return the photographs of a body, in their order.

    Of a multipart body, every part with a file name is one, whatever its field is called.

    Raises:
        RefusedError: its type is another (415).
        RequestError: it cannot be read.
    """
    kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
    name = kind.decode("latin-1").strip().lower()
    if name in IMAGE_TYPES:
        return [body]
    if name != MULTIPART:
        raise RefusedError(415, f"the content type must be {', '.join(IMAGE_TYPES)} or {MULTIPART}")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise RequestError("the content type multipart/form-data needs a boundary")
    try:
        return _Parts(boundary).read(body)
    except (FormParserError, ValueError) as error:
        raise RequestError("the multipart body cannot be read; send it as a form does") from error


class _Parts:
    """What the parser of a multipart body tells, gathered in memory; nothing touches a disk."""

    def __init__(self, boundary: bytes) -> None:
        self._boundary = boundary
        self._files: list[bytearray] = []
        self._num_parts = 0
        self._field, self._value = bytearray(), bytearray()
        self._is_file = self._complete = False

    def read(self, body: bytes) -> list[bytes]:
        """Return the files of a whole body."""
        callbacks: dict[str, Any] = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, i, j: self._header(self._field, data[i:j]),
            "on_header_value": lambda data, i, j: self._header(self._value, data[i:j]),
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        parser = MultipartParser(self._boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
        if not self._complete:
            raise ValueError("cut short")
        return [bytes(file) for file in self._files]

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise ValueError("too many parts")
        self._is_file = False

    def _header(self, kept: bytearray, data: bytes) -> None:
        kept += data
        if len(kept) > _MAX_HEADER_BYTES:
            raise ValueError("a header is too long")

    def _header_end(self) -> None:
        if bytes(self._field).strip().lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            if b"filename" in options:
                self._is_file = True
                self._files.append(bytearray())
        self._field.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._files[-1] += data[start:end]

    def _end(self) -> None:
        self._complete = True
