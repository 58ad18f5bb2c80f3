"""What a caller must know to use the weights: a `ModelSpec`, stored as JSON inside the ONNX file.

C is the number of classes.  Never imports torch.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from serving.errors import ArtifactError
from serving.taxonomy import CLASS_DESCRIPTIONS, CLASS_NAMES, DATA_LICENSE, DISCLAIMER

SPEC_KEY = "dermalyze"  # the key in the ONNX file's metadata_props
FORMAT_VERSION = 1
RESIZE_MODES = ("squash", "center_crop")
RESIZE_FILTERS = ("bilinear", "bicubic", "lanczos")
PRECISIONS = ("float32", "int8")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The contract that travels with the weights."""

    format_version: int = FORMAT_VERSION
    class_names: tuple[str, ...] = CLASS_NAMES  # in logit order
    class_descriptions: tuple[str, ...] = tuple(CLASS_DESCRIPTIONS[name] for name in CLASS_NAMES)
    input_size: tuple[int, int]  # height, width; pixels
    resize_mode: str = "squash"  # squash: the whole image; center_crop: its middle, undistorted
    resize_filter: str = "bicubic"
    precision: str = "float32"  # of the weights; int8 answers a little otherwise, and faster
    temperature: float = 1.0  # logits are divided by it before the softmax
    thresholds: dict[str, float] = field(default_factory=dict)  # class name -> probability
    run_id: str = ""  # the MLflow run that trained the weights; empty: not tracked
    data_fingerprint: str = ""  # of the training data
    data_license: str = DATA_LICENSE
    disclaimer: str = DISCLAIMER

    def __post_init__(self) -> None:
        """Refuse what no predictor could use."""
        _require_version(self.format_version)
        names, descriptions = self.class_names, self.class_descriptions
        _require(
            len(names) >= 2
            and all(isinstance(name, str) and name for name in names)
            and len(set(names)) == len(names),
            "class_names",
            "two or more different names",
            names,
        )
        _require(
            len(descriptions) == len(names) and all(isinstance(text, str) for text in descriptions),
            "class_descriptions",
            "one text a class",
            descriptions,
        )
        _require(
            len(self.input_size) == 2
            and all(type(side) is int and 1 <= side <= 4096 for side in self.input_size),
            "input_size",
            "height and width from 1 to 4096",
            self.input_size,
        )
        _require(
            self.resize_mode in RESIZE_MODES,
            "resize_mode",
            " or ".join(RESIZE_MODES),
            self.resize_mode,
        )
        _require(
            self.resize_filter in RESIZE_FILTERS,
            "resize_filter",
            " or ".join(RESIZE_FILTERS),
            self.resize_filter,
        )
        _require(
            self.precision in PRECISIONS,
            "precision",
            " or ".join(PRECISIONS),
            self.precision,
        )
        _require(
            _is_number(self.temperature) and 0.01 <= self.temperature <= 100,
            "temperature",
            "a number from 0.01 to 100",
            self.temperature,
        )
        _require(
            isinstance(self.thresholds, dict)
            and all(
                name in names and _is_number(value) and 0 <= value <= 1
                for name, value in self.thresholds.items()
            ),
            "thresholds",
            "class names with values from 0 to 1",
            self.thresholds,
        )
        for name in ("run_id", "data_fingerprint", "data_license", "disclaimer"):
            value = getattr(self, name)
            _require(isinstance(value, str), name, "text", value)

    def to_json(self) -> str:
        """Write the spec as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: the text is no spec, or one of another version.
        """
        try:
            values: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError("the model's spec is not JSON; export the model again") from error
        if not isinstance(values, dict):
            raise ArtifactError("the model's spec is not a JSON object; export the model again")
        _require_version(values.get("format_version"))
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ArtifactError(
                f"the model's spec has unknown keys {_shown(unknown)}; export the model again"
            )
        if missing := sorted(known - values.keys()):
            raise ArtifactError(f"the model's spec lacks {missing}; export the model again")
        for name in ("class_names", "class_descriptions", "input_size"):
            _require(isinstance(values[name], list), name, "a list", values[name])
            values[name] = tuple(values[name])
        return cls(**values)


def _require_version(version: object) -> None:
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(
            f"the model has spec version {_shown(version)}, this program reads {FORMAT_VERSION}; "
            "update dermalyze or export the model again"
        )


def _is_number(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _require(ok: bool, name: str, expected: str, value: object) -> None:
    if not ok:
        raise ArtifactError(
            f"the model's spec has {name} {_shown(value)}, expected {expected}; "
            "export the model again"
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
