"""The predictor's answers through PyTorch, from a checkpoint or a network in memory.

All but the network itself is what `serving` does.  N images of H x W pixels, C classes.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dermalyze.models.checkpoint import load_classifier
from dermalyze.models.classifier import Classifier, to_images
from serving.prediction import ImageInput, Prediction, image_pixels, predict_images
from serving.preprocess import Pixels
from serving.spec import ModelSpec

BATCH_SIZE = 8


class SkinLesionPredictor:
    """A trained network on the CPU, in full precision.  Safe to share between threads."""

    def __init__(self, checkpoint: Path | str) -> None:
        """Load a checkpoint of `dermalyze train`.

        Raises:
            ArtifactError: the file is missing, damaged, foreign or of another version.
        """
        classifier, spec = load_classifier(Path(checkpoint))
        self._use(classifier, spec)

    @classmethod
    def of(cls, classifier: Classifier, spec: ModelSpec) -> "SkinLesionPredictor":
        """Answer with a network that is already there; it must be on the CPU and is not copied."""
        predictor = cls.__new__(cls)
        predictor._use(classifier, spec)
        return predictor

    def _use(self, classifier: Classifier, spec: ModelSpec) -> None:
        self._classifier = classifier.eval()
        self.spec = spec

    def pixels(self, image: ImageInput) -> Pixels:
        """Turn one image into what the network takes: uint8 (H, W, 3)."""
        return image_pixels(image, self.spec)

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Run the network: uint8 (N, H, W, 3) -> float32 (N, C)."""
        with torch.inference_mode():
            logits = self._classifier(to_images(torch.tensor(pixels)))
        answer: NDArray[np.float32] = logits.float().numpy()
        return answer

    def predict(self, image: ImageInput) -> Prediction:
        """Answer for one image: a path, bytes, a PIL image or a uint8 array.

        Raises:
            ImageError: the image cannot be used.
        """
        (prediction,) = self.predict_batch([image])
        return prediction

    def predict_batch(
        self, images: Iterable[ImageInput], *, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Answer for many images, in their order; `batch_size` of them go through at a time.

        Raises:
            ImageError: an image cannot be used.
        """
        return predict_images(images, self.spec, self.logits, batch_size)
