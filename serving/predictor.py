"""The predictor: one ONNX file in, predictions out.

N images of H x W pixels, C classes.  Needs numpy, Pillow and onnxruntime; never imports torch.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.digest import is_intact
from serving.errors import ArtifactError
from serving.prediction import ImageInput, Prediction, image_pixels, predict_images
from serving.preprocess import Pixels
from serving.session import open_session, require_provider, require_session
from serving.spec import SPEC_KEY, ModelSpec

BATCH_SIZE = 8  # larger batches are hardly faster on a CPU


class Predictor:
    """An exported model, loaded once.  Safe to share between threads."""

    def __init__(self, path: Path | str, *, num_threads: int = 0, provider: str = "cpu") -> None:
        """Load and check a model file.

        Args:
            path: an ONNX file of `dermalyze export-onnx`.
            num_threads: the threads of one network run; 0 is one a core, the fastest for one
                image at a time.
            provider: what runs the network: cpu, cuda or openvino, where onnxruntime has it.

        Raises:
            ConfigError: the provider is not installed, or the number of threads is negative.
            ArtifactError: the file is missing, damaged, foreign, of another version, altered, or
                its graph is not what its spec says.
        """
        require_session(num_threads, provider)
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"no model at {path}; create one with `dermalyze export-onnx`")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
        try:
            self._session = open_session(content, num_threads=num_threads, provider=provider)
            metadata = self._session.get_modelmeta().custom_metadata_map
            inputs = _described(self._session.get_inputs())
            outputs = _described(self._session.get_outputs())
        except Exception as error:  # onnxruntime has a type of its own for each way to fail
            raise ArtifactError(
                f"{path} is not an ONNX model that can be loaded, or it is damaged; "
                "export or download it again"
            ) from error
        require_provider(self._session, provider)
        if SPEC_KEY not in metadata:
            raise ArtifactError(
                f"{path} was not written by `dermalyze export-onnx`: it has no {SPEC_KEY} metadata"
            )
        try:
            self.spec = ModelSpec.from_json(metadata[SPEC_KEY])
        except ArtifactError as error:
            raise ArtifactError(f"cannot use {path}: {error}") from error
        for what, found, expected in _comparisons(self.spec, inputs, outputs):
            if found != expected:
                raise ArtifactError(
                    f"{path} does not keep to its own spec: {what} is {found}, expected "
                    f"{expected}; export the model again"
                )
        if not is_intact(content):
            raise ArtifactError(
                f"{path} is not as it was exported: its checksum differs; "
                "export or download it again"
            )

    def pixels(self, image: ImageInput) -> Pixels:
        """Turn one image into what the network takes: uint8 (H, W, 3)."""
        return image_pixels(image, self.spec)

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Run the network: uint8 (N, H, W, 3) -> float32 (N, C)."""
        (logits,) = self._session.run(["logits"], {"image": pixels})
        return np.asarray(logits, np.float32)

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


def _described(values: Iterable[Any]) -> dict[str, tuple[str, str]]:
    """Return type and shape, as text, of the inputs or outputs of a graph by name."""
    return {
        value.name: (
            value.type,
            " x ".join(str(side) if isinstance(side, int) else "N" for side in value.shape),
        )
        for value in values
    }


def _comparisons(
    spec: ModelSpec, inputs: dict[str, tuple[str, str]], outputs: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, str, str]]:
    """Yield what a graph has, and what its spec says that it has."""
    height, width = spec.input_size
    yield "its input", ", ".join(inputs), "image"
    found_type, found_shape = inputs["image"]
    yield "image", found_type, "tensor(uint8)"
    yield "image", found_shape, f"N x {height} x {width} x 3"
    yield "its first output", next(iter(outputs), "nothing"), "logits"
    found_type, found_shape = outputs["logits"]
    yield "logits", found_type, "tensor(float)"
    yield "logits", found_shape, f"N x {len(spec.class_names)}"
