"""Do two predictors give one answer, from bytes to probabilities?  And the images to ask about.

The images are drawn here: every kind of JPEG and PNG that people send.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from dermalyze.export.parity_images import NamedImage
from serving.base_predictor import AnyPredictor, map_names, output_names
from serving.metadata import Metadata, MetadataFields
from serving.prediction import Prediction

MAX_DIFFERENCE = 1e-4  # of a probability; measured: about 1e-6
MAX_SHARE = 1e-3  # of any other output, in shares of its largest value; measured: about 1e-5
_JUMPS = 0.1  # share of the images


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How far two predictors are apart."""

    num_images: int
    max_difference: float  # of any probability of any image
    worst_image: str  # the name of the image with that difference
    changed_classes: tuple[str, ...]  # names of the images whose predicted class differs
    output_differences: Mapping[str, float]  # of the other outputs, in shares of the largest value

    @property
    def agrees(self) -> bool:
        """Whether the two may stand for each other."""
        return not self.changed_classes and self.within(MAX_DIFFERENCE, MAX_SHARE)

    def within(self, difference: float, share: float) -> bool:
        """Whether no probability differs by more, nor another output by more than that share."""
        return self.max_difference <= difference and all(
            found <= share for found in self.output_differences.values()
        )


def check_parity(
    torch_predictor: AnyPredictor, onnx_predictor: AnyPredictor, images: Sequence[NamedImage]
) -> ParityReport:
    """Compare the answers for images given as names and JPEG or PNG bytes.

    A model that takes metadata is asked with some of it known and some not.
    """
    spec = onnx_predictor.spec
    metadata = None if spec.metadata is None else _some_metadata(len(images), spec.metadata)
    data = [image for _, image in images]
    # Batches of different sizes: the answers must not depend on those either.
    expected = torch_predictor.predict_batch(data, metadata=metadata, batch_size=8)
    answers = onnx_predictor.predict_batch(data, metadata=metadata, batch_size=3)
    differences = np.abs(_probs(expected) - _probs(answers)).max(axis=1)
    worst = int(differences.argmax())
    return ParityReport(
        num_images=len(images),
        max_difference=float(differences[worst]),
        worst_image=images[worst][0],
        changed_classes=tuple(
            name
            for (name, _), ours, theirs in zip(images, expected, answers, strict=True)
            if ours.predicted_class != theirs.predicted_class
        ),
        output_differences=_output_differences(torch_predictor, onnx_predictor, data),
    )


def _output_differences(
    torch_predictor: AnyPredictor, onnx_predictor: AnyPredictor, images: Sequence[bytes]
) -> dict[str, float]:
    """Compare all that a graph gives beside the logits: the largest difference of any image.

    Of a map, it is the largest after the `_JUMPS` worst images: where a hidden value of the head is
    0 up to rounding, its gradient jumps, and so does the map, in PyTorch as in ONNX.
    """
    spec = onnx_predictor.spec
    names = [*output_names(spec)[1:], *map_names(spec)]
    pixels = [onnx_predictor.pixels(image)[None] for image in images if names]
    pairs = [
        (torch_predictor.run(image, names), onnx_predictor.run(image, names)) for image in pixels
    ]
    found = {}
    for name in names:
        largest = max(float(np.abs(expected[name]).max()) for expected, _ in pairs)
        differences = np.sort([float(np.abs(a[name] - b[name]).max()) for a, b in pairs])
        jumps = int(_JUMPS * len(pairs)) if name == "saliency" else 0
        worst = differences[len(pairs) - 1 - jumps] if np.isfinite(differences).all() else np.nan
        found[name] = float(worst) / (largest or 1.0)
    return found


def _some_metadata(num_images: int, fields: MetadataFields) -> list[Metadata | None]:
    """Make up metadata: nothing, all, or a part of it, in turn."""
    sexes, localizations = cycle(fields.sexes or [None]), cycle(fields.localizations or [None])
    made: list[Metadata | None] = []
    for i in range(num_images):
        facts = Metadata(
            age=float(i % 90) if i % 4 < 3 else None,
            sex=next(sexes) if i % 3 else None,
            localization=next(localizations),
        )
        made.append(facts.known_to(fields) if i % 5 else None)
    return made


def _probs(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    return np.array([list(prediction.probabilities.values()) for prediction in predictions])
