"""A checksum of a model file, inside the file: it finds damage and careless editing, not forgery.

The digest is SHA-256, hex, of the whole file with 64 zeros in the digest's own place.
"""

import hashlib
import re

DIGEST_KEY = "dermalyze.sha256"  # in the ONNX file's metadata_props
NO_DIGEST = "0" * 64  # what stands there until the file is sealed
# Where it stands: its key, then protobuf's tag and length of a text of 64 characters.
_PLACE = re.compile(re.escape(DIGEST_KEY.encode()) + rb"\x12\x40([0-9a-f]{64})")


def seal(content: bytes) -> bytes:
    """Put the digest of a file into its place, which holds `NO_DIGEST`, once."""
    (place,) = _PLACE.finditer(content)
    return content[: place.start(1)] + _digest(content, place).encode() + content[place.end(1) :]


def is_intact(content: bytes) -> bool:
    """Say whether a file is as it was sealed."""
    places = list(_PLACE.finditer(content))
    return len(places) == 1 and places[0][1].decode() == _digest(content, places[0])


def _digest(content: bytes, place: re.Match[bytes]) -> str:
    view = memoryview(content)
    digest = hashlib.sha256(view[: place.start(1)])
    digest.update(NO_DIGEST.encode())
    digest.update(view[place.end(1) :])
    return digest.hexdigest()
