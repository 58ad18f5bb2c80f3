"""A trained network -> one ONNX file in int8, written only if it is as accurate as float32.

The ranges come from training images, and so does the choice of the layers that stay in float32.
The validation split says yes or no.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from tqdm import tqdm

from dermalyze.data.pixel_store.store import PixelStore
from dermalyze.data.sampling import Rows
from dermalyze.evaluation.metrics.classification import score
from dermalyze.export.int8_graph import (
    WEIGHT_BITS,
    Calibrated,
    Inputs,
    Layer,
    calibrate,
    logits_of,
    quantize,
    rank,
)
from dermalyze.export.onnx import export_onnx, write_model
from dermalyze.models.ensemble import ShippedNetwork
from serving.atomic_write import whole_file
from serving.base_predictor import BATCH_SIZE
from serving.errors import ArtifactError, DataError
from serving.os_errors import make_folder, temporary_folder
from serving.predictor import Predictor
from serving.preprocess import Pixels
from serving.spec import ModelSpec

MAX_DROP = 0.005  # of balanced accuracy
IMAGES_A_CLASS = 32  # to calibrate with
MAX_CHANGED = 0.04  # share of the calibration images that may change their class
_MAX_FLOAT_WEIGHTS = 0.05  # of all weights; keeps the file below a third of float32's
_FLOAT_GROUPS = (2, 4, 8, 12, 16)  # how many groups of layers to leave in float32, in turn
_SEED = 0
_TIMED_ROUNDS = 15
_PAUSE_SECONDS = 0.02  # the threads of the other session wait busily for a while


@dataclass(frozen=True)
class LabelledImages:
    """Images of one split in a pixel store."""

    store: PixelStore
    rows: Rows  # int64 (n,)
    targets: Rows  # int64 (n,), class indices
    metadata: NDArray[np.float32] | None = None  # (n, K), for a network that takes it

    def inputs(self, chosen: Rows | slice) -> dict[str, NDArray[Any]]:
        """Return what a graph takes for some of the images, by position among them."""
        inputs: dict[str, NDArray[Any]] = {"image": self.store.batch(self.rows[chosen])}
        if self.metadata is not None:
            inputs["metadata"] = self.metadata[chosen]
        return inputs


@dataclass(frozen=True, kw_only=True)
class Int8Images:
    """What an int8 file is made with and proven on."""

    training: LabelledImages  # to calibrate with; some of every class are drawn
    validation: LabelledImages  # that balanced accuracy is compared on


@dataclass(frozen=True, kw_only=True)
class Int8Report:
    """What was measured of an int8 file, beside the float32 one on the same images."""

    num_images: int  # of the validation split
    float_accuracy: float  # balanced, 0..1
    int8_accuracy: float  # balanced, 0..1
    changed: float  # share of the images whose class differs, 0..1
    float_bytes: int
    int8_bytes: int
    speedup: float  # of one image at a time on this machine
    num_layers: int
    float_layers: tuple[str, ...]  # those that stay in float32, by the name of their weights
    num_tries: int  # files that were judged on the validation split, this one included

    @property
    def good(self) -> bool:
        """Whether int8 may stand for float32."""
        # the tolerance is for the last bit: 0.705 - 0.7 is more than 0.005
        return self.float_accuracy - self.int8_accuracy <= MAX_DROP + 1e-9


def export_int8(
    network: ShippedNetwork,
    spec: ModelSpec,
    output: Path,
    images: Int8Images,
    respec: Callable[[NDArray[np.float32]], ModelSpec] | None = None,
) -> Int8Report:
    """Write the network as one ONNX file in int8, if it answers about as well as in float32.

    Where all layers together change too many answers, those that do most harm stay in float32.

    Args:
        network: it is not changed.
        spec: its contract.
        output: the file to write; what stands there stays until the new file is proven.
        images: those of the training and of the validation split.
        respec: turns the file's own logits on the validation images into the spec to write;
            None: `spec`.

    Raises:
        ArtifactError: int8 costs more than 0.5 points of balanced accuracy, or the float32 file
            disagrees with PyTorch; nothing is written.
        DataError: one of the splits has no image.
    """
    training, validation = images.training, images.validation
    if len(validation.rows) == 0:
        raise DataError("there is no validation image to compare on; expected at least one")
    inputs = training.inputs(drawn_by_class(training.targets, IMAGES_A_CLASS))
    make_folder(output.parent)
    with temporary_folder() as folder:
        float_file = folder / "float32.onnx"
        export_onnx(network, spec, float_file)
        float_bytes = float_file.stat().st_size
        model = onnx.load(float_file)
        float_predictor = Predictor(float_file)
    expected = _logits(float_predictor, validation, "float32 on val")
    calibrated = calibrate(model, inputs)
    reports: list[Int8Report] = []
    with whole_file(output) as partial:  # `output` never names an unproven model
        for layers, quantized in _candidates(calibrated, inputs):
            write_model(partial, quantized, _in_int8(spec))
            predictor = Predictor(partial)
            answers = _logits(predictor, validation, f"int8 on val, try {len(reports) + 1}")
            in_int8 = {layer.name for layer in layers}
            report = Int8Report(
                num_images=len(validation.rows),
                float_accuracy=_balanced_accuracy(expected, validation, spec),
                int8_accuracy=_balanced_accuracy(answers, validation, spec),
                changed=float((answers.argmax(axis=1) != expected.argmax(axis=1)).mean()),
                float_bytes=float_bytes,
                int8_bytes=partial.stat().st_size,
                speedup=_speedup(float_predictor, predictor, inputs["image"][:1]),
                num_layers=len(calibrated.layers),
                float_layers=tuple(x.name for x in calibrated.layers if x.name not in in_int8),
                num_tries=len(reports) + 1,
            )
            if report.good:
                if respec is not None:
                    write_model(partial, quantized, _in_int8(respec(answers)))
                return report
            reports.append(report)
        best = max(reports, key=lambda report: report.int8_accuracy)
        raise ArtifactError(
            f"{output} is not written: balanced accuracy on {best.num_images:,} validation images "
            f"falls from {best.float_accuracy:.2%} in float32 to {best.int8_accuracy:.2%} in int8 "
            f"in the best of {len(reports)} tries, where {100 * MAX_DROP:.1f} points are allowed; "
            "export with --precision float32, or train longer"
        )


def _in_int8(spec: ModelSpec) -> ModelSpec:
    return replace(spec, precision="int8", int8_weight_bits=WEIGHT_BITS)


def describe(report: Int8Report) -> str:
    """Say in one line what was measured."""
    points = 100 * (report.int8_accuracy - report.float_accuracy)
    return (
        f"int8; balanced accuracy on {report.num_images:,} validation images "
        f"{report.int8_accuracy:.2%}, float32 {report.float_accuracy:.2%} ({points:+.2f} points, "
        f"try {report.num_tries}); {report.changed:.1%} of them change their class; "
        f"{report.int8_bytes / 1e6:.1f} MB, float32 {report.float_bytes / 1e6:.1f} MB; "
        f"{report.speedup:.1f} times as fast here, one image at a time; "
        f"{len(report.float_layers)} of {report.num_layers} layers stay in float32"
    )


def drawn_by_class(targets: Rows, images_a_class: int) -> Rows:
    """Draw as many positions of every class, or all that it has, mixed: (n,) -> int64 (m,).

    Raises:
        DataError: there is none.
    """
    if len(targets) == 0:
        raise DataError("there is no training image to calibrate with; expected some per class")
    rng = np.random.default_rng(_SEED)
    drawn = [
        rng.permutation(np.flatnonzero(targets == target))[:images_a_class]
        for target in np.unique(targets)
    ]
    return rng.permutation(np.concatenate(drawn))


def _candidates(
    calibrated: Calibrated, inputs: Inputs
) -> Iterator[tuple[tuple[Layer, ...], ModelProto]]:
    """Yield what is worth a look at the validation split: the layers in int8, and the graph.

    That is what changes the class of few calibration images, or else the last choice.  Without
    this, a poor file would pass where its changes happen to cancel out on the validation split.
    """
    classes = logits_of(calibrated.model, inputs).argmax(axis=1)
    some = False
    for layers in _choices(calibrated, inputs):
        quantized = quantize(calibrated, layers)
        if (logits_of(quantized, inputs).argmax(axis=1) != classes).mean() <= MAX_CHANGED:
            yield layers, quantized
            some = True
    if not some:
        yield layers, quantized


def _choices(calibrated: Calibrated, inputs: Inputs) -> Iterator[tuple[Layer, ...]]:
    """Yield the layers to put into int8: first all but the first one, then fewer and fewer.

    The first layer sees the normalized pixels, which have 256 levels a color of their own; in
    float32 it costs next to no time and no size.
    """
    layers = calibrated.layers[1:]
    yield layers
    budget = _MAX_FLOAT_WEIGHTS * sum(layer.num_weights for layer in layers)
    kept: set[str] = set()
    num_groups = tried = 0
    for group in rank(calibrated, layers, inputs):
        num_weights = sum(layer.num_weights for layer in group)
        if num_weights > budget:
            continue
        budget -= num_weights
        kept |= {layer.name for layer in group}
        num_groups += 1
        if num_groups in _FLOAT_GROUPS:
            tried = num_groups
            yield tuple(layer for layer in layers if layer.name not in kept)
    if num_groups > tried:
        yield tuple(layer for layer in layers if layer.name not in kept)


def _logits(predictor: Predictor, images: LabelledImages, what: str) -> NDArray[np.float32]:
    """Run a file as its users will: float32 (n, C)."""
    starts = range(0, len(images.rows), BATCH_SIZE)
    return np.concatenate(
        [
            predictor.run(batch["image"], ["logits"], batch.get("metadata"))["logits"]
            for batch in (
                images.inputs(slice(start, start + BATCH_SIZE))
                for start in tqdm(starts, what, unit="batch", leave=False, disable=None)
            )
        ]
    )


def _speedup(slow: Predictor, fast: Predictor, pixels: Pixels) -> float:
    """Return how many times as fast the second is; they take turns, and medians count."""
    seconds: dict[Predictor, list[float]] = {slow: [], fast: []}
    for _ in range(_TIMED_ROUNDS):
        for predictor, values in seconds.items():
            time.sleep(_PAUSE_SECONDS)
            predictor.logits(pixels)  # not timed: the other one had the caches
            start = time.perf_counter()
            predictor.logits(pixels)
            values.append(time.perf_counter() - start)
    return statistics.median(seconds[slow]) / statistics.median(seconds[fast])


def _balanced_accuracy(
    logits: NDArray[np.floating], images: LabelledImages, spec: ModelSpec
) -> float:
    return score(logits, images.targets, spec.class_names)["balanced_accuracy"]
