"""What is answered for one image, and the two steps around every network.

`image_pixels` turns whatever a caller holds into pixels, `predictions` turns logits into answers;
ONNX and PyTorch share both, so that only the network between them can differ.  N images of
H x W pixels, C classes.  Never imports torch or onnxruntime.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.errors import ArtifactError, ImageError
from serving.preprocess import (
    Pixels,
    check_size,
    decode_image,
    read_bytes,
    to_pixels,
    upright_rgb,
)
from serving.spec import ModelSpec

ImageInput = Path | str | bytes | Image.Image | NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image; for education and research, never a diagnosis."""

    predicted_class: str
    predicted_class_description: str
    confidence: float  # the probability of the predicted class, 0..1
    probabilities: dict[str, float]  # of every class, in logit order; they sum to 1
    disclaimer: str

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as text, numbers and one mapping, ready for JSON."""
        return dataclasses.asdict(self)


def open_image(image: ImageInput) -> Image.Image:
    """Open a file, bytes, a PIL image or an array as an upright RGB image.

    Args:
        image: the path of a JPEG or PNG file, its bytes, any PIL image, or a uint8 array of
            shape (H, W), (H, W, 3) or (H, W, 4), the last being RGBA.

    Raises:
        ImageError: it is none of these, damaged or too large.
    """
    if isinstance(image, (str, Path)):
        return decode_image(read_bytes(Path(image)))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode_image(bytes(image))
    if isinstance(image, np.ndarray):
        image = _image_of_array(image)
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"an image must be a path, bytes, a PIL image or an array, got {type(image).__name__}"
        )
    check_size(*image.size)
    try:
        return upright_rgb(image)
    except Exception as error:  # a PIL image may be lazy, and so still be strangers' bytes
        raise ImageError(f"cannot convert a PIL image of mode {image.mode!r} to RGB") from error


def _image_of_array(array: NDArray[Any]) -> Image.Image:
    grey_or_color = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not grey_or_color:
        raise ImageError(
            "an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), "
            f"got {array.dtype} {array.shape}"
        )
    check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(array))


def image_pixels(image: ImageInput, spec: ModelSpec) -> Pixels:
    """Turn an image of any kind into uint8 (H, W, 3), as the model of `spec` expects it."""
    return to_pixels(open_image(image), spec)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return probabilities: (N, C) -> float64 (N, C), each row summing to 1."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probs: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probs


def predictions(logits: NDArray[np.floating], spec: ModelSpec) -> list[Prediction]:
    """Turn logits (N, C) into one answer a row.

    Raises:
        ArtifactError: the network did not answer with finite numbers.
    """
    if not np.isfinite(logits).all():
        raise ArtifactError(
            "the model answers with values that are no finite numbers; train or export it again"
        )
    answers = []
    for probs in softmax(logits, spec.temperature):
        best = int(probs.argmax())
        answers.append(
            Prediction(
                predicted_class=spec.class_names[best],
                predicted_class_description=spec.class_descriptions[best],
                confidence=float(probs[best]),
                probabilities={
                    name: float(prob) for name, prob in zip(spec.class_names, probs, strict=True)
                },
                disclaimer=spec.disclaimer,
            )
        )
    return answers


def predict_images(
    images: Iterable[ImageInput],
    spec: ModelSpec,
    network: Callable[[Pixels], NDArray[np.floating]],
    batch_size: int,
) -> list[Prediction]:
    """Answer for images, in their order, no more than `batch_size` of them in memory at a time.

    Args:
        images: what `open_image` takes.
        spec: the contract of the network.
        network: uint8 (N, H, W, 3) -> logits (N, C).
        batch_size: the largest N.
    """
    answers: list[Prediction] = []
    pixels = (image_pixels(image, spec) for image in images)
    while batch := list(islice(pixels, batch_size)):
        answers += predictions(network(np.stack(batch)), spec)
    return answers
