"""The exceptions that Dermalyze raises on purpose.

DermalyzeError          base; its message is one line, fit to show to a user
|-- ConfigError         a setting is unknown, mistyped or out of range
|-- DataError           the manifest or a training image cannot be used
|-- TrainingError       the training cannot go on
|-- TrackingError       a run, an experiment or a registered model cannot be used
|-- ArtifactError       a checkpoint or ONNX file is missing, foreign or inconsistent
|-- StorageError        a file or folder cannot be written or read
|-- OutOfMemoryError    there is not enough memory for something that may be right
|-- ImageError          an image sent for prediction cannot be used
|   `-- TooManyPixelsError   it has more pixels than are allowed
|-- MetadataError       age, sex or site sent for prediction cannot be used
`-- RequestError        a request over HTTP cannot be read
"""

from collections.abc import Sequence


class DermalyzeError(Exception):
    """Something that the user can put right; the message says how."""


class ConfigError(DermalyzeError):
    """A setting is unknown, mistyped or out of range."""


class DataError(DermalyzeError):
    """The manifest or a training image cannot be used."""


class TrainingError(DermalyzeError):
    """The training cannot go on, or a run cannot be resumed."""


class TrackingError(DermalyzeError):
    """A run, an experiment or a registered model is missing or cannot be used."""


class ArtifactError(DermalyzeError):
    """A checkpoint or ONNX file is missing, damaged, foreign or inconsistent."""


class StorageError(DermalyzeError):
    """A file or folder cannot be written or read: no room, no permission, no such place."""


class OutOfMemoryError(DermalyzeError):
    """There is not enough memory for an image or a model, which may well be right."""


class ImageError(DermalyzeError):
    """An image given for prediction cannot be decoded or is too large."""


class TooManyPixelsError(ImageError):
    """An image has more pixels than are allowed; whoever sets the limit may raise it."""


class MetadataError(DermalyzeError):
    """Age, sex or site given for prediction cannot be used."""


class RequestError(DermalyzeError):
    """A request over HTTP cannot be read."""


def one_line(value: object) -> str:
    """Show a text on one line: a name may hold control characters, or bytes that are not UTF-8."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(value)
    )


def listed(names: Sequence[str], most: int = 12) -> str:
    """Name some things in a message, each on one line; of many the first few."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(one_line(name) for name in names[:most]) + more
