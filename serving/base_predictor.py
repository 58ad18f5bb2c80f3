"""From images to answers around any network: what ONNX and PyTorch share.

An image becomes a `Case`, cases go through the network together, what comes out becomes
predictions.  Only the network between may differ.  N images of H x W pixels, C classes, M members,
h x w places of a map.  Never imports torch or onnxruntime.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import ArtifactError, ConfigError, ImageError, listed
from serving.explanation import Explanation
from serving.image_size import MAX_PIXELS
from serving.metadata import Metadata, encode
from serving.photo_quality import hints
from serving.prediction import ImageInput, Prediction, open_image, softmax
from serving.preprocess import Pixels, to_pixels
from serving.spec import ModelSpec
from serving.uncertainty import DEFAULT_LEVEL, DEFAULT_SENSITIVITY

BATCH_SIZE = 8  # larger batches are hardly faster on a CPU

PARAMS: dict[str, float | bool] = {  # what an HTTP request may ask beside its images
    "level": DEFAULT_LEVEL,  # of the prediction sets
    "sensitivity": DEFAULT_SENSITIVITY,  # of the referral
    "explain": False,  # a map in each answer
    "one_lesion": False,  # all images show one lesion; one answer
}

NO_METADATA = "this model takes no metadata, only images; leave age, sex and localization out"

Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Case:
    """One image as the network takes it, and what else is known of it."""

    pixels: Pixels  # uint8 (H, W, 3)
    size: tuple[int, int]  # width, height of the photograph, pixels
    metadata: Metadata | None = None


class AnyPredictor(ABC):
    """A network with a spec.  Safe to share between threads."""

    spec: ModelSpec
    max_pixels: int = MAX_PIXELS  # of an image, width x height

    @abstractmethod
    def run(
        self, pixels: Pixels, names: Sequence[str], metadata: NDArray[np.float32] | None = None
    ) -> Outputs:
        """Run the network.

        Args:
            pixels: uint8 (N, H, W, 3).
            names: the outputs that are wanted, of `output_names` and `map_names`.
            metadata: float32 (N, K) of `metadata.encode`; None: nothing is known.

        Returns:
            logits (N, C); as far as the model has them scope_score (N,), member_logits (N, M, C),
            saliency (N, C, h, w), attention (N, h, w).
        """

    def pixels(self, image: ImageInput) -> Pixels:
        """Turn one image into what the network takes: uint8 (H, W, 3)."""
        return self.read(image).pixels

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Run the network without metadata: uint8 (N, H, W, 3) -> float32 (N, C)."""
        return self.run(pixels, ["logits"])["logits"]

    def read(self, image: ImageInput, metadata: Metadata | None = None) -> Case:
        """Make an image ready for the network.

        Raises:
            ImageError: it cannot be used.
            ConfigError: metadata is given and the model takes none.
        """
        if metadata is not None and self.spec.metadata is None:
            raise ConfigError(NO_METADATA)
        opened = open_image(image, max_pixels=self.max_pixels)
        return Case(to_pixels(opened, self.spec), opened.size, metadata)

    def predict(
        self,
        image: ImageInput,
        *,
        metadata: Metadata | None = None,
        level: float = DEFAULT_LEVEL,
        sensitivity: float = DEFAULT_SENSITIVITY,
    ) -> Prediction:
        """Answer for one image: a path, bytes, a PIL image or a uint8 array.

        Args:
            image: the image.
            metadata: what is known of the patient and the site, for a model that takes it.
            level: coverage of the prediction set, a fraction.
            sensitivity: of the referral for malignant lesions, a fraction.

        Raises:
            ImageError: the image cannot be used.
            ConfigError: the model has no sets of this level, the sensitivity is not from 0.8 to
                0.99, or the model takes no metadata.
        """
        case = self.read(image, metadata)
        (prediction,) = self.answer([case], level=level, sensitivity=sensitivity)
        return prediction

    def predict_batch(
        self,
        images: Iterable[ImageInput],
        *,
        metadata: Iterable[Metadata | None] | None = None,
        batch_size: int = BATCH_SIZE,
        level: float = DEFAULT_LEVEL,
        sensitivity: float = DEFAULT_SENSITIVITY,
    ) -> list[Prediction]:
        """Answer for many images, in their order; `batch_size` of them go through at a time.

        Args:
            images: as `predict` takes one.
            metadata: one for each image; None: nothing is known.
            batch_size: how many are in memory at a time.
            level: as for `predict`.
            sensitivity: as for `predict`.

        Raises:
            ImageError: an image cannot be used.
            ConfigError: as `predict`.
        """
        answers: list[Prediction] = []
        if metadata is None:
            cases = (self.read(image) for image in images)
        else:
            cases = (self.read(*pair) for pair in zip(images, metadata, strict=True))
        while batch := list(islice(cases, batch_size)):
            answers += self.answer(batch, level=level, sensitivity=sensitivity)
        return answers

    def answer(
        self,
        cases: Sequence[Case],
        *,
        level: float = DEFAULT_LEVEL,
        sensitivity: float = DEFAULT_SENSITIVITY,
    ) -> list[Prediction]:
        """Answer for cases with one run of the network."""
        outputs = self._outputs(cases)
        return predictions(outputs, cases, self.spec, level=level, sensitivity=sensitivity)

    def predict_lesion(
        self,
        images: Iterable[ImageInput],
        *,
        metadata: Metadata | None = None,
        level: float = DEFAULT_LEVEL,
        sensitivity: float = DEFAULT_SENSITIVITY,
    ) -> Prediction:
        """Answer once for several photographs of one lesion: the mean of their probabilities.

        Photographs that are out of scope are left out, unless all are.  `prediction_set` is that
        of an image, as nothing was calibrated for several: it is there only for one.  The referral
        holds for both: a mean is flagged where each photograph is.

        Raises:
            ImageError: an image cannot be used, or there is none.
            ConfigError: as `predict`.
        """
        cases, photographs = [], list(images)
        for i, image in enumerate(photographs):
            try:
                cases.append(self.read(image, metadata))
            except ImageError as error:
                where = f"image {i + 1} of {len(photographs)}"
                raise type(error)(f"{where}: {error}") from error
        if not cases:
            raise ImageError("a lesion needs at least one image, got none")
        answers = []
        for start in range(0, len(cases), BATCH_SIZE):
            batch = cases[start : start + BATCH_SIZE]
            answers += self.answer(batch, level=level, sensitivity=sensitivity)
        return pooled(answers, self.spec)

    def explain(
        self,
        image: ImageInput,
        *,
        class_name: str = "",
        metadata: Metadata | None = None,
        level: float = DEFAULT_LEVEL,
        sensitivity: float = DEFAULT_SENSITIVITY,
    ) -> Explanation:
        """Show where in an image the evidence for a class lies.

        Args:
            image: the image.
            class_name: the class; empty: the predicted one.
            metadata: as for `predict`.
            level: as for `predict`.
            sensitivity: as for `predict`.

        Raises:
            ConfigError: the model has no map, or the class is unknown.
            ImageError: the image cannot be used.
        """
        if not self.spec.saliency:
            raise ConfigError(
                "this model has no map; export the run again with this version of dermalyze"
            )
        if class_name and class_name not in self.spec.class_names:
            raise ConfigError(
                f"the class must be one of {listed(self.spec.class_names)}, got {class_name!r}"
            )
        photograph = open_image(image, max_pixels=self.max_pixels)
        case = self.read(photograph, metadata)
        outputs = self._outputs([case], *map_names(self.spec))
        (prediction,) = predictions(
            outputs, [case], self.spec, level=level, sensitivity=sensitivity
        )
        name = class_name or prediction.predicted_class
        index = self.spec.class_names.index(name)
        return Explanation(
            image=photograph,
            prediction=prediction,
            class_name=name,
            saliency=outputs["saliency"][0, index],
            attention=outputs["attention"][0] if "attention" in outputs else None,
            spec=self.spec,
        )

    def _outputs(self, cases: Sequence[Case], *more: str) -> Outputs:
        fields = self.spec.metadata
        encoded = None if fields is None else encode([case.metadata for case in cases], fields)
        names = [*output_names(self.spec), *more]
        return self.run(np.stack([case.pixels for case in cases]), names, encoded)


def output_names(spec: ModelSpec) -> list[str]:
    """List what a graph gives beside its map, in the order in which it gives it."""
    return [
        "logits",
        *(["scope_score"] if spec.scope is not None else []),
        *(["member_logits"] if spec.num_members > 1 else []),
    ]


def map_names(spec: ModelSpec) -> list[str]:
    """List the maps that a graph gives after all other outputs, in their order."""
    return {
        "": [],
        "grad_cam": ["saliency"],
        "attention_evidence": ["saliency", "attention"],
    }[spec.saliency]


_REFERRAL_FIELDS = (
    "malignant_probability",
    "referral",
    "referral_level",
    "referral_specificity",
    "referral_reason",
)


def optional_fields(spec: ModelSpec) -> tuple[str, ...]:
    """Name the fields that each answer of this model has beyond those of every model."""
    return (
        *(("prediction_set", "set_size", "set_level") if spec.prediction_sets else ()),
        *(("decision", "decision_reason") if spec.abstention else ()),
        *(_REFERRAL_FIELDS if spec.referral else ()),
        *(("scope_score",) if spec.scope else ()),
        *(("quality",) if spec.quality else ()),
        *(("spread",) if spec.num_members > 1 else ()),
    )


def predictions(
    outputs: Mapping[str, NDArray[np.floating]],
    cases: Sequence[Case],
    spec: ModelSpec,
    *,
    level: float = DEFAULT_LEVEL,
    sensitivity: float = DEFAULT_SENSITIVITY,
) -> list[Prediction]:
    """Turn what a network gave for N cases into one answer each.

    Raises:
        ArtifactError: the network did not answer with finite numbers.
        ConfigError: the model has no sets of this level, or no model has this sensitivity.
    """
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise ArtifactError(
            "the model returned values that are not finite numbers; train or export it again"
        )
    logits = outputs["logits"]
    probs = softmax(logits, spec.temperature)  # (N, C)
    answers = []
    for i, case in enumerate(cases):
        best = int(probs[i].argmax())
        answer = _answer(probs[i], spec)
        values: dict[str, Any] = {"logits": _named(logits[i], spec)}
        values |= _set(probs[i : i + 1], spec, level)
        values |= _referral(probs[i], spec, sensitivity)
        if spec.quality is not None:
            values["quality"] = tuple(hints(case.pixels, case.size, spec.quality))
        if spec.scope is not None:
            values["scope_score"] = float(outputs["scope_score"][i])
        if spec.num_members > 1:
            members = softmax(outputs["member_logits"][i], spec.temperature)  # (M, C)
            values["spread"] = float(members[:, best].std())
        answers.append(replace(answer, **values, **_decision(answer.confidence, values, spec)))
    return answers


def pooled(answers: Sequence[Prediction], spec: ModelSpec) -> Prediction:
    """Pool the answers for several photographs of one lesion into one."""
    if len(answers) == 1:
        return replace(answers[0], num_images=1)
    inside = [answer for answer in answers if answer.decision != "out_of_scope"] or list(answers)
    probs = np.mean([list(answer.probabilities.values()) for answer in inside], axis=0)
    answer = replace(_answer(probs, spec), num_images=len(answers))
    if (level := answers[0].referral_level) is not None:
        answer = replace(answer, **_referral(probs, spec, level))
    elif spec.referral is not None:
        said = replace(answers[0], malignant_probability=_malignancy(probs, spec))
        answer = replace(answer, **{name: getattr(said, name) for name in _REFERRAL_FIELDS})
    if answers[0].decision is None:
        return answer
    left_out = len(answers) - len(inside)
    note = f"; {left_out} of {len(answers)} photographs are out of scope and left out"
    if inside[0].decision == "out_of_scope":
        decision = _decided(
            "out_of_scope",
            f"all {len(answers)} photographs are out of scope: {inside[0].decision_reason}",
        )
    else:
        decision = _decision(answer.confidence, {}, spec)
        decision["decision_reason"] += note if left_out else ""
    return replace(answer, **decision)


def _answer(probs: NDArray[np.floating], spec: ModelSpec) -> Prediction:
    best = int(probs.argmax())
    return Prediction(
        predicted_class=spec.class_names[best],
        predicted_class_description=spec.class_descriptions[best],
        confidence=float(probs[best]),
        probabilities=_named(probs, spec),
        disclaimer=spec.disclaimer,
    )


def _set(probs: NDArray[np.floating], spec: ModelSpec, level: float) -> dict[str, Any]:
    """Return what is said of the prediction set of one image: (1, C)."""
    sets = spec.prediction_sets
    if sets is None:
        return {}
    members = sets.members(probs, level)[0]
    names = tuple(name for name, inside in zip(spec.class_names, members, strict=True) if inside)
    said: dict[str, Any] = {
        "prediction_set": names,
        "set_size": len(names),
        "set_level": sets.levels[sets.column(level)],
    }
    unsupported = [
        f"{name} ({count})"
        for name, count, alone in zip(
            spec.class_names, sets.num_lesions, sets.unsupported(level), strict=True
        )
        if alone
    ]
    if unsupported:
        said["set_note"] = (
            f"always included (too few calibration lesions): {', '.join(unsupported)}"
        )
    return said


def _malignancy(probs: NDArray[np.floating], spec: ModelSpec) -> float:
    malignant = [name in spec.taxonomy.malignant for name in spec.class_names]
    return float(probs[malignant].sum())


def _referral(probs: NDArray[np.floating], spec: ModelSpec, sensitivity: float) -> dict[str, Any]:
    """Return what is said of referring the lesion of one image: (C,); nothing without limits."""
    if (limits := spec.referral) is None:
        return {}
    malignancy, column = _malignancy(probs, spec), limits.column(sensitivity)
    if column is None:
        return {
            "malignant_probability": malignancy,
            "referral_reason": limits.lacking(sensitivity),
        }
    level, lowest, price = (
        values[column] for values in (limits.levels, limits.min_probs, limits.specificities)
    )
    refer = malignancy >= lowest
    return {
        "malignant_probability": malignancy,
        "referral": refer,
        "referral_level": level,
        "referral_specificity": price,
        "referral_reason": (
            f"malignant probability {malignancy:.2%} is {'at or above' if refer else 'below'} the "
            f"{lowest:.2%} threshold (at least {level:.0%} of malignant validation lesions are "
            f"referred, with {limits.confidence:.0%} confidence, and {1 - price:.0%} of benign "
            "ones)"
        ),
    }


def _decision(confidence: float, values: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Decide whether to answer, given what else is known of an image; nothing without limits."""
    if spec.abstention is None:
        return {}
    if values.get("quality"):
        return _decided("out_of_scope", "; ".join(values["quality"]))
    score, scope = values.get("scope_score"), spec.scope
    if score is not None and scope is not None and score > scope.max_score:
        return _decided(
            "out_of_scope",
            "the image does not resemble the validation images "
            f"(score {score:.3g}, limit {scope.max_score:.3g})",
        )
    abstention = spec.abstention
    if abstention.min_confidence > 1:
        return _decided(
            "uncertain",
            f"no confidence threshold kept validation errors below {abstention.risk:.0%}",
        )
    below = confidence < abstention.min_confidence
    # Of several promises in one answer, each says about what it is.
    average = ", on average over all classes" if spec.referral else ""
    return _decided(
        "uncertain" if below else "answer",
        f"confidence {confidence:.1%} is {'below' if below else 'at or above'} the "
        f"{abstention.min_confidence:.1%} threshold (at most {abstention.risk:.0%} errors "
        f"on validation images{average})",
    )


def _decided(decision: str, reason: str) -> dict[str, Any]:
    return {"decision": decision, "decision_reason": reason}


def _named(values: NDArray[np.floating], spec: ModelSpec) -> dict[str, float]:
    return {name: float(value) for name, value in zip(spec.class_names, values, strict=True)}
