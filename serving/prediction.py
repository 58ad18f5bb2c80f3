"""What is answered for one image, and what an image may be.

N images, C classes.  Never imports torch or onnxruntime.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.errors import ImageError, OutOfMemoryError
from serving.image_size import MAX_PIXELS
from serving.preprocess import check_size, decode_image, read_bytes, upright_rgb

ImageInput = Path | str | bytes | Image.Image | NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image or lesion; for education and research, never a diagnosis.

    What is None, the model does not have, and `to_dict` leaves it out.
    """

    predicted_class: str
    predicted_class_description: str
    confidence: float  # the probability of the predicted class, 0..1
    probabilities: dict[str, float]  # of every class, in logit order; they sum to 1
    logits: dict[str, float] | None = None  # of every class, before temperature and softmax
    prediction_set: tuple[str, ...] | None = None  # classes, one of them right at `set_level`
    set_size: int | None = None
    set_level: float | None = None  # coverage of each class, fraction
    set_note: str | None = None  # classes that are in every set because too few were seen
    decision: str | None = None  # answer, uncertain or out_of_scope
    decision_reason: str | None = None  # in words
    malignant_probability: float | None = None  # of the malignant classes together
    referral: bool | None = None  # None beside a reason: too few lesions for this sensitivity
    referral_level: float | None = None  # sensitivity for malignant lesions, fraction
    referral_specificity: float | None = None  # its price on validation lesions, fraction
    referral_reason: str | None = None  # in words
    scope_score: float | None = None  # how unlike the known images; the spec has the limit
    quality: tuple[str, ...] | None = None  # what is wrong with the photograph, in words
    spread: float | None = None  # standard deviation of the members' `confidence`
    num_images: int | None = None  # of a lesion
    disclaimer: str

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as text, numbers, lists and mappings, ready for JSON."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def open_image(image: ImageInput, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a file, bytes, a PIL image or an array as an upright sRGB image.

    Args:
        image: the path of a JPEG or PNG file, its bytes, any PIL image, or a uint8 array of
            shape (H, W), (H, W, 3) or (H, W, 4), the last being RGBA.
        max_pixels: how large it may be, width x height.

    Raises:
        ImageError: it is none of these, damaged or too large.
    """
    if isinstance(image, (str, Path)):
        return decode_image(read_bytes(Path(image)), max_pixels=max_pixels)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode_image(bytes(image), max_pixels=max_pixels)
    if isinstance(image, np.ndarray):
        image = _image_of_array(image, max_pixels)
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"an image must be a path, bytes, a PIL image or an array, got {type(image).__name__}"
        )
    check_size(*image.size, max_pixels)
    try:
        return upright_rgb(image)
    except MemoryError as error:
        raise OutOfMemoryError(
            f"there is not enough memory to convert an image of {image.width} x {image.height}; "
            "free some, or take a smaller one"
        ) from error
    except ImageError:
        raise
    except Exception as error:  # a PIL image may be lazy, and so still be strangers' bytes
        raise ImageError(f"cannot convert a PIL image of mode {image.mode!r} to RGB") from error


def _image_of_array(array: NDArray[Any], max_pixels: int) -> Image.Image:
    grey_or_color = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not grey_or_color:
        raise ImageError(
            "an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), "
            f"got {array.dtype} {array.shape}"
        )
    check_size(array.shape[1], array.shape[0], max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return probabilities: (N, C) -> float64 (N, C), each row summing to 1."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probs: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probs
