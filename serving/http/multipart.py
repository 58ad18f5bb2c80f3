"""Bodies of `POST /predict`: one photograph as it is, or several as multipart/form-data."""

import re
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import RequestError
from serving.http.request_limits import RefusedError

IMAGE_TYPES = ("image/jpeg", "image/png")
MULTIPART = "multipart/form-data"
_ALSO_SENT = ("image/jpg", "image/pjpeg", "image/x-png")  # by programs, for the same two
_MAX_PARTS = 1100  # photographs and fields; the photographs have a bound of their own
_MAX_HEADER_BYTES = 4096  # of one part
_MAX_FIELD_BYTES = 4096  # of one value that is no photograph
# RFC 7578 forbids it in forms, and programs send it; the parser passes over it.
_FILENAME_ALONE = re.compile(rb";\s*filename\*\s*=", re.IGNORECASE)


def read_photographs(body: bytes, content_type: str) -> tuple[list[bytes], dict[str, str]]:
    """Return the photographs of a body, in their order, and the fields beside them.

    Of a multipart body, every part with a file name is a photograph, whatever its field is called;
    the others are fields.

    Raises:
        RefusedError: its type is another (415).
        RequestError: it cannot be read, or holds one field twice.
    """
    kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
    name = kind.decode("latin-1").strip().lower()
    if name in (*IMAGE_TYPES, *_ALSO_SENT):
        return [body], {}
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
        self._fields: dict[bytes, bytearray] = {}
        self._num_parts = 0
        self._field, self._value = bytearray(), bytearray()
        self._data = bytearray()  # of the present part
        self._is_placed = self._complete = False

    def read(self, body: bytes) -> tuple[list[bytes], dict[str, str]]:
        """Return the files and the fields of a whole body."""
        callbacks: dict[str, Any] = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, i, j: self._header(self._field, data[i:j]),
            "on_header_value": lambda data, i, j: self._header(self._value, data[i:j]),
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        parser = MultipartParser(self._boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
        if not self._complete:
            raise ValueError("cut short")
        if any(len(value) > _MAX_FIELD_BYTES for value in self._fields.values()):
            raise RequestError("a field of the form is too long; a photograph needs a file name")
        fields = {name.decode(): value.decode() for name, value in self._fields.items()}
        return [bytes(file) for file in self._files], fields

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise ValueError("too many parts")
        self._data, self._is_placed = bytearray(), False

    def _header(self, kept: bytearray, data: bytes) -> None:
        kept += data
        if len(kept) > _MAX_HEADER_BYTES:
            raise ValueError("a header is too long")

    def _header_end(self) -> None:
        if bytes(self._field).strip().lower() == b"content-disposition":
            self._place(bytes(self._value))
        self._field.clear()
        self._value.clear()

    def _place(self, disposition: bytes) -> None:
        """Keep the data of the present part as a file or as a field."""
        if self._is_placed:
            raise ValueError("a part is two things")
        self._is_placed = True
        _, options = parse_options_header(disposition)
        if b"filename" in options or _FILENAME_ALONE.search(disposition):
            self._files.append(self._data)
            return
        name = options.get(b"name", b"")
        if name in self._fields:
            raise RequestError("the form holds one field twice; send each once")
        self._fields[name] = self._data

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _part_end(self) -> None:
        if not self._is_placed:
            raise ValueError("nothing says what a part is")

    def _end(self) -> None:
        self._complete = True
