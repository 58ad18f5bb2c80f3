"""What an ONNX file says of itself, read without loading it: what no export has is refused first.

onnxruntime cannot be stopped while it loads, and a small file can keep it busy for hours.
"""

from collections.abc import Iterator

from serving.errors import ArtifactError

MAX_BYTES = 2**31  # no protobuf message is larger
_IR_VERSIONS = range(8, 11)
_OPSETS = range(18, 21)
_DOMAINS = ("", "ai.onnx", "com.microsoft")  # the last one's are added by quantization
_MAX_PARTS = 100_000  # nodes and weights; an ensemble of large networks has 10,000
_CONTROL_FLOW = (b"Loop", b"Scan", b"If")
# Numbers of fields in onnx.proto.
_IR_VERSION, _GRAPH, _OPSET_IMPORT, _TRAINING, _FUNCTIONS = 1, 7, 8, 20, 25
_NODE, _OP_TYPE, _DOMAIN, _VERSION = 1, 4, 1, 2


def require_known(content: bytes) -> None:
    """Refuse a file that is of another ONNX than what `dermalyze export-onnx` writes.

    Args:
        content: the file; what is no protobuf at all is let through.

    Raises:
        ArtifactError: it is; the message goes behind the name of the file.
    """
    try:
        for what, expected in _unknown(content):
            raise ArtifactError(f"has {what}, expected {expected}; export the model again")
    except (IndexError, ValueError):  # damaged, which whoever loads it says
        return


def _unknown(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield what a file has that it should not, and what is expected instead."""
    num_parts = 0
    for number, start, end in _fields(content, 0, len(content)):
        if number == _IR_VERSION and end not in _IR_VERSIONS:
            yield f"IR version {end}", f"{_IR_VERSIONS[0]} to {_IR_VERSIONS[-1]}"
        elif number == _OPSET_IMPORT:
            parts = {part: (at, to) for part, at, to in _fields(content, start, end)}
            at, to = parts.get(_DOMAIN, (0, 0))
            domain = content[at:to].decode()
            _, version = parts.get(_VERSION, (0, 0))
            if domain not in _DOMAINS:
                yield f"operators of {domain!r}", "those of ONNX"
            if domain in ("", "ai.onnx") and version not in _OPSETS:
                yield f"opset {version}", f"{_OPSETS[0]} to {_OPSETS[-1]}"
        elif number in (_TRAINING, _FUNCTIONS):
            yield "functions or a graph for training", "one graph"
        elif number == _GRAPH:
            for part, at, to in _fields(content, start, end):
                num_parts += 1
                if num_parts > _MAX_PARTS:
                    yield f"more than {_MAX_PARTS:,} nodes and weights", "fewer"
                if part != _NODE:
                    continue
                kinds = (
                    content[a:b] for field, a, b in _fields(content, at, to) if field == _OP_TYPE
                )
                if (kind := next(kinds, b"")) in _CONTROL_FLOW:
                    yield f"the operator {kind.decode()}", "none with a graph of its own"


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of a protobuf message: number, and start and end of its bytes.

    Of a number (a varint), the end is its value.

    Raises:
        ValueError, IndexError: it is no such message.
    """
    while at < end:
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        value = 0
        if kind == 0:
            value, at = _varint(content, at)
            yield number, at, value
            continue
        if kind == 2:
            value, at = _varint(content, at)
        elif kind in (1, 5):
            value = 8 if kind == 1 else 4
        else:
            raise ValueError
        if at + value > end:
            raise ValueError
        yield number, at, at + value
        at += value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = content[at]
    if value < 128:
        return value, at + 1
    value &= 127
    for shift in range(7, 70, 7):
        at += 1
        byte = content[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
    raise ValueError
