"""A checksum of a model file, inside the file: it finds damage and careless editing, not forgery.

The digest is SHA-256, hex, of the whole file with 64 zeros in the digest's own place.
"""

import hashlib
import re

DIGEST_KEY = "dermalyze.sha256"  # in the ONNX file's metadata_props
NO_DIGEST = "0" * 64  # what stands there until the file is sealed
# What stands before it: its key, then protobuf's tag and length of a text of 64 characters.
_BEFORE = DIGEST_KEY.encode() + b"\x12\x40"
_DIGEST = re.compile(rb"[0-9a-f]{64}")


def seal(content: bytes) -> bytes:
    """Put the digest of a file into its place, which holds `NO_DIGEST`, once."""
    (place,) = _places(content)
    return content[:place] + _digest(content, place).encode() + content[place + len(NO_DIGEST) :]


def is_intact(content: bytes) -> bool:
    """Say whether a file is as it was sealed."""
    places = _places(content)
    return len(places) == 1 and content.startswith(_digest(content, places[0]).encode(), places[0])


def _places(content: bytes) -> list[int]:
    """Find where a digest begins; a plain search reads 80 MB three times as fast as a pattern."""
    places = []
    start = content.find(_BEFORE)
    while start >= 0:
        place = start + len(_BEFORE)
        if _DIGEST.match(content, place):
            places.append(place)
        start = content.find(_BEFORE, place)
    return places


def _digest(content: bytes, place: int) -> str:
    view = memoryview(content)  # slices of it are no copies
    digest = hashlib.sha256(view[:place])
    digest.update(NO_DIGEST.encode())
    digest.update(view[place + len(NO_DIGEST) :])
    return digest.hexdigest()
