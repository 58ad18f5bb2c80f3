"""The predictor: one ONNX file in, predictions out.

N images of H x W pixels, C classes, K numbers of metadata.  Needs numpy, Pillow and onnxruntime;
never imports torch.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.base_predictor import AnyPredictor, Outputs, map_names, output_names
from serving.checksum import is_intact
from serving.errors import ArtifactError, OutOfMemoryError
from serving.image_size import MAX_PIXELS
from serving.onnx_header import MAX_BYTES, require_known
from serving.preprocess import Pixels
from serving.reference import REFERENCE
from serving.session import (
    FAILURES,
    is_out_of_memory,
    multiplies_8_bit_weights,
    open_session,
    require_provider,
    require_session,
    run_options,
)
from serving.spec import SPEC_KEY, ModelSpec


class Predictor(AnyPredictor):
    """An exported model, loaded once.  Safe to share between threads."""

    def __init__(
        self,
        path: Path | str = REFERENCE,
        *,
        num_threads: int = 0,
        provider: str = "cpu",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Load and check a model file.

        Args:
            path: an ONNX file of `dermalyze export-onnx`; without it, the reference model.
            num_threads: the threads of one network run; 0 is one a core, the fastest for one
                image at a time.
            provider: what runs the network: cpu, cuda or openvino, where onnxruntime has it.
            max_pixels: how large an image may be, width x height; its memory is 4 bytes a pixel.

        Raises:
            ConfigError: the provider is not installed, or the number of threads is negative.
            ArtifactError: the file is missing, damaged, foreign, of another version, altered, too
                large, its graph is not what its spec says, or this CPU computes wrong answers
                with it.
            OutOfMemoryError: there is not enough memory for it.
        """
        require_session(num_threads, provider)
        self.max_pixels = max_pixels
        path = Path(path)
        try:
            if not path.is_file():
                raise ArtifactError(
                    "this installation has no reference model; name an ONNX file, which "
                    "`dermalyze export-onnx` writes"
                    if path == REFERENCE
                    else f"no model at {path}; create one with `dermalyze export-onnx`"
                )
            if (size := path.stat().st_size) > MAX_BYTES:
                raise ArtifactError(
                    f"{path} has {size:,} bytes, expected at most {MAX_BYTES:,}; export the model "
                    "again"
                )
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
        try:
            require_known(content)
        except ArtifactError as error:
            raise ArtifactError(f"{path} {error}") from error
        try:
            self._session = open_session(content, num_threads=num_threads, provider=provider)
            metadata = self._session.get_modelmeta().custom_metadata_map
            inputs = _described(self._session.get_inputs())
            outputs = _described(self._session.get_outputs())
        except Exception as error:  # onnxruntime has a type of its own for each way to fail
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"there is not enough memory to load {path} ({len(content):,} bytes); free "
                    "some, or take a smaller model"
                ) from error
            raise ArtifactError(
                f"{path} is not an ONNX model that can be loaded, or it is damaged; "
                "export or download it again"
            ) from error
        require_provider(self._session, provider)
        self._options = run_options()
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
                    f"{path} does not match its own spec: {what} is {found}, expected "
                    f"{expected}; export the model again"
                )
        if not is_intact(content):
            raise ArtifactError(
                f"{path} was changed after the export: its checksum differs; "
                "export or download it again"
            )
        in_8_bits = self.spec.precision == "int8" and self.spec.int8_weight_bits != 7
        if in_8_bits and provider != "cuda" and not multiplies_8_bit_weights():
            raise ArtifactError(
                f"{path} has int8 weights of 8 bits, with which this CPU computes wrong answers, "
                "as it has no VNNI; export the model again, which writes 7 bits"
            )

    def stoppable(self) -> "Predictor":
        """Return a predictor of the same loaded network that `stop` ends, and only it."""
        other = copy.copy(self)
        other._options = run_options()
        return other

    def stop(self) -> None:
        """End the run that is under way, in another thread, and let none begin.

        Each raises onnxruntime's own exception.
        """
        self._options.terminate = True

    def run(
        self, pixels: Pixels, names: Sequence[str], metadata: NDArray[np.float32] | None = None
    ) -> Outputs:
        """Run the network; see `AnyPredictor.run`."""
        inputs: dict[str, NDArray[Any]] = {"image": pixels}
        if (fields := self.spec.metadata) is not None:
            unknown = np.zeros((len(pixels), fields.width), np.float32)
            inputs["metadata"] = unknown if metadata is None else metadata
        try:
            found = self._session.run(list(names), inputs, self._options)
        except FAILURES as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"there is not enough memory to run the model on {len(pixels)} images; free some, "
                "or take fewer at a time"
            ) from error
        return dict(zip(names, found, strict=True))


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
    num_classes = len(spec.class_names)
    expected = {"image": ("tensor(uint8)", f"N x {height} x {width} x 3")}
    if spec.metadata is not None:
        expected["metadata"] = ("tensor(float)", f"N x {spec.metadata.width}")
    yield from _differences("its input", inputs, expected)
    shapes = {
        "logits": f"N x {num_classes}",
        "scope_score": "N",
        "member_logits": f"N x {spec.num_members} x {num_classes}",
    }
    expected = {name: ("tensor(float)", shapes[name]) for name in output_names(spec)}
    for name, start in (("saliency", f"N x {num_classes}"), ("attention", "N")):
        if name in map_names(spec):
            _, shape = outputs.get(name, ("", ""))
            yield name, shape.rsplit(" x ", 2)[0], start
            expected[name] = ("tensor(float)", shape)
    yield from _differences("its output", outputs, expected)


def _differences(
    what: str, found: dict[str, tuple[str, str]], expected: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, str, str]]:
    """Yield names, types and shapes beside those that are expected."""
    yield what, ", ".join(found), ", ".join(expected)
    for name, described in expected.items():
        for seen, wanted in zip(found[name], described, strict=True):
            yield name, seen, wanted
