"""What a caller must know to use the weights: a `ModelSpec`, stored as JSON inside the ONNX file.

C is the number of classes.  Never imports torch.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from serving.errors import ArtifactError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import MetadataFields
from serving.monitoring import Monitoring
from serving.photo_quality import QualityLimits
from serving.taxonomy import DISCLAIMER, Taxonomy
from serving.uncertainty import (
    Abstention,
    PredictionSets,
    Referral,
    Scope,
    SpecPart,
    is_number,
    require_part,
    shown,
)

SPEC_KEY = "dermalyze"  # the key in the ONNX file's metadata_props
FORMAT_VERSION = 3
# Versions 1 and 2 are read too: 1 knew nothing of its limits, neither carried its taxonomy.
_SINCE_2 = {"int8_weight_bits", "calibrated_on", "prediction_sets", "abstention", "scope"}
_SINCE_2 |= {"quality", "metadata", "saliency", "num_views", "member_run_ids", "referral"}
_SINCE_2 |= {"monitoring"}
_BEFORE_3 = {"class_names", "class_descriptions", "data_license", "thresholds"}
# Keys that a file may lack and that are written only where they say something, so that files
# without them stay readable.  New keys of version 3 belong here, too.
_OPTIONAL = {"int8_weight_bits", "referral", "monitoring"}
RESIZE_MODES = ("squash", "center_crop")
RESIZE_FILTERS = ("bilinear", "bicubic", "lanczos")
PRECISIONS = ("float32", "float16", "int8")
SALIENCY_KINDS = ("", "grad_cam", "attention_evidence")  # "": the graph has no map
_PARTS: dict[str, type[SpecPart]] = {
    "prediction_sets": PredictionSets,
    "abstention": Abstention,
    "scope": Scope,
    "referral": Referral,
    "quality": QualityLimits,
    "metadata": MetadataFields,
    "monitoring": Monitoring,
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The contract that travels with the weights."""

    format_version: int = FORMAT_VERSION
    taxonomy: Taxonomy  # the classes in logit order, and the facts of the data set
    input_size: tuple[int, int]  # height, width; pixels
    resize_mode: str = "squash"  # squash: the whole image; center_crop: its middle, undistorted
    resize_filter: str = "bicubic"
    precision: str = "float32"  # of the weights; the smaller ones answer a little otherwise
    # Of weights in int8: 7 are right on every CPU. None: not int8, or a file from before this was
    # recorded, which has 8.
    int8_weight_bits: int | None = None
    temperature: float = 1.0  # logits are divided by it before the softmax
    run_id: str = ""  # the MLflow run that trained the weights; empty: not tracked
    data_fingerprint: str = ""  # of the training data
    disclaimer: str = DISCLAIMER
    # Since version 2; what is None or empty, the model does not have.
    calibrated_on: str = ""  # what temperature and limits were fitted on, in words
    prediction_sets: PredictionSets | None = None
    abstention: Abstention | None = None
    scope: Scope | None = None
    referral: Referral | None = None  # of malignant lesions; needs classes that are and are not
    quality: QualityLimits | None = None  # of the photograph itself
    metadata: MetadataFields | None = None  # None: the image alone
    monitoring: Monitoring | None = None  # what validation images were like
    saliency: str = ""  # one of SALIENCY_KINDS
    num_views: int = 1  # turned and mirrored views of each image
    member_run_ids: tuple[str, ...] = ()  # of an ensemble; empty: one network

    def __post_init__(self) -> None:
        """Refuse what no predictor could use."""
        if self.format_version != FORMAT_VERSION:
            _refuse_version(self.format_version)
        require_part(
            len(self.input_size) == 2
            and all(type(side) is int and 1 <= side <= 4096 for side in self.input_size),
            "input_size",
            "height and width from 1 to 4096",
            self.input_size,
        )
        require_part(
            self.resize_mode in RESIZE_MODES,
            "resize_mode",
            " or ".join(RESIZE_MODES),
            self.resize_mode,
        )
        require_part(
            self.resize_filter in RESIZE_FILTERS,
            "resize_filter",
            " or ".join(RESIZE_FILTERS),
            self.resize_filter,
        )
        require_part(
            self.precision in PRECISIONS,
            "precision",
            " or ".join(PRECISIONS),
            self.precision,
        )
        require_part(
            self.int8_weight_bits is None
            or (self.precision == "int8" and self.int8_weight_bits in (7, 8)),
            "int8_weight_bits",
            "7 or 8, where precision is int8",
            self.int8_weight_bits,
        )
        require_part(
            is_number(self.temperature) and 0.01 <= self.temperature <= 100,
            "temperature",
            "a number from 0.01 to 100",
            self.temperature,
        )
        for name in ("run_id", "data_fingerprint", "disclaimer", "calibrated_on"):
            value = getattr(self, name)
            require_part(isinstance(value, str), name, "text", value)
        require_part(
            self.prediction_sets is None
            or len(self.prediction_sets.num_lesions) == len(self.taxonomy),
            "prediction_sets",
            "one row per class",
            self.prediction_sets,
        )
        require_part(
            self.referral is None or 0 < len(self.taxonomy.malignant) < len(self.taxonomy),
            "referral",
            "none where not both malignant and benign classes are known",
            self.referral,
        )
        require_part(
            self.monitoring is None
            or len(self.monitoring.class_shares)
            == len(self.monitoring.embedding)
            == len(self.taxonomy),
            "monitoring",
            "one row per class",
            self.monitoring,
        )
        require_part(
            self.saliency in SALIENCY_KINDS,
            "saliency",
            " or ".join(repr(kind) for kind in SALIENCY_KINDS),
            self.saliency,
        )
        require_part(
            type(self.num_views) is int and self.num_views in (1, 8),
            "num_views",
            "1 or 8",
            self.num_views,
        )
        require_part(
            all(isinstance(run_id, str) for run_id in self.member_run_ids)
            and len(self.member_run_ids) != 1,
            "member_run_ids",
            "none, or the runs of two or more networks",
            self.member_run_ids,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in logit order."""
        return self.taxonomy.names

    @property
    def class_descriptions(self) -> tuple[str, ...]:
        """The classes in words, in logit order; an empty text where nothing is known."""
        return self.taxonomy.descriptions

    @property
    def data_license(self) -> str:
        """The license of the training data; empty: not known."""
        return self.taxonomy.license

    @property
    def num_members(self) -> int:
        """How many answers are pooled into one: networks times views."""
        return max(1, len(self.member_run_ids)) * self.num_views

    def to_json(self) -> str:
        """Write the spec as one line of JSON."""
        values = dataclasses.asdict(self)
        for name in _OPTIONAL:
            if values[name] is None:
                del values[name]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Read what `to_json` wrote, in this version of the program or an earlier one.

        Raises:
            ArtifactError: the text is not a spec, or one of another version.
        """
        try:
            values: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError("the model's spec is not JSON; export the model again") from error
        if not isinstance(values, dict):
            raise ArtifactError("the model's spec is not a JSON object; export the model again")
        version = values.get("format_version")
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            _refuse_version(version)
        known = {f.name for f in dataclasses.fields(cls)}
        if version < 3:
            known = known - {"taxonomy"} | _BEFORE_3
        if version < 2:
            known -= _SINCE_2
        if unknown := sorted(values.keys() - known):
            raise ArtifactError(
                f"the model's spec has unknown keys {shown(unknown)}; export the model again"
            )
        if missing := sorted(known - values.keys() - _OPTIONAL):
            raise ArtifactError(f"the model's spec lacks {missing}; export the model again")
        values["format_version"] = FORMAT_VERSION  # what an older file says, said in this version
        if version < 3:
            values["taxonomy"] = _taxonomy_of_old(values)
        try:
            values["taxonomy"] = Taxonomy.from_dict(values["taxonomy"])
        except ArtifactError as error:
            raise ArtifactError(
                f"the model's spec cannot be used: {error}; export the model again"
            ) from error
        for name in known & {"input_size", "member_run_ids"}:
            require_part(isinstance(values[name], list), name, "a list", values[name])
            values[name] = tuple(values[name])
        for name, part in _PARTS.items():
            if values.get(name) is not None:
                values[name] = part.from_json(name, values[name])
        return cls(**values)


def _taxonomy_of_old(values: dict[str, Any]) -> dict[str, Any]:
    """Take the taxonomy out of a spec of version 1 or 2, whose models knew HAM10000's classes.

    The thresholds of classes, which nothing has ever used, are dropped.
    """
    names, descriptions, license, thresholds = (
        values.pop(name)
        for name in ("class_names", "class_descriptions", "data_license", "thresholds")
    )
    require_part(isinstance(thresholds, dict), "thresholds", "an object", thresholds)
    known = HAM10000.to_dict() if names == list(HAM10000.names) else {"names": names}
    return known | {"descriptions": descriptions, "license": license}


def _refuse_version(version: object) -> NoReturn:
    raise ArtifactError(
        f"the model has spec version {shown(version)}, this program reads 1 to {FORMAT_VERSION}; "
        "update dermalyze or export the model again"
    )
