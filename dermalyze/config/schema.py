"""Settings: frozen pydantic dataclasses; type and range of each value are checked at construction.

`loading` fills them from YAML and overrides.  Never imports torch.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from serving.errors import ConfigError
from serving.spec import RESIZE_FILTERS, RESIZE_MODES

SIZES = {  # model.size -> timm's name
    "small": "tf_efficientnetv2_s.in21k_ft_in1k",
    "medium": "tf_efficientnetv2_m.in21k_ft_in1k",
    "large": "tf_efficientnetv2_l.in21k_ft_in1k",
}
CHAMPION_CLASS_METRICS = ("precision", "recall", "f1", "auc", "average_precision")
CHAMPION_METRICS = (  # higher is better
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_f1",
    "macro_auc",
    "macro_average_precision",
    "cohen_kappa",
    "mcc",
    "malignant_auc",
    "malignant_partial_auc",
    "malignant_sensitivity",
    "malignant_specificity",
    *CHAMPION_CLASS_METRICS,  # with a class: recall/mel
)
CALIBRATORS = ("temperature", "vector", "dirichlet")
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
_BOUNDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
_NOT_YET_YAML = re.compile(r"[-+]?[\d.]*\d[eE][-+]?\d+")  # numbers that YAML 1.1 reads as text
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "string": "text",
}

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Margin = Annotated[float, Field(gt=0, lt=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) and value else value),
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


def require(ok: bool, name: str, expected: str, value: object) -> None:
    """Raise the one message shape that every setting uses, unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} must be {expected}, got {value!r}")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among `choices`."""
    require(value in choices, name, "one of " + ", ".join(choices), value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error that names the closest known name; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(words: Iterable[str]) -> Any:
    """Return the field of a setting that is one of some words, the first by default."""
    known = tuple(words)
    return Field(
        known[0], pattern=f"^({'|'.join(known)})$", description=f"one of {', '.join(known)}"
    )


class Section:
    """A group of settings, in YAML a mapping; what is wrong is a ConfigError of one line."""

    @model_validator(mode="wrap")
    @classmethod
    def _one_line(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(values, dict):
            return cls(**{str(name): value for name, value in values.items()})
        try:
            return handler(values)
        except ValidationError as error:
            raise ConfigError(_in_words(cls, error)) from error


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig(Section):
    """Which images, and how they are split."""

    image_size: int = Field(default=224, ge=16, le=1024)  # pixels, height and width
    resize_mode: str = one_of(RESIZE_MODES)  # squash: the whole image; center_crop: its middle
    resize_filter: str = one_of(["auto", *RESIZE_FILTERS])  # auto: as in the pretraining
    val_size: float = Field(default=0.15, gt=0, lt=0.8)  # fraction of the images
    test_size: float = Field(default=0.15, gt=0, lt=0.8)  # fraction of the images
    # Kept in one split, resampled together.
    group_by: str = one_of(["lesion", "patient", "none"])
    # In a table beside the images; auto: by name.  group_column holds the ids that group_by names.
    image_column: str = Field(default="auto", min_length=1, description="auto or a column")
    label_column: str = Field(default="auto", min_length=1, description="auto or a column")
    group_column: str = Field(default="auto", min_length=1, description="auto or a column")
    # Of the decoded images; auto: prepared/ in the data.
    prepared: str = Field(default="auto", min_length=1, description="auto or a folder")
    # With train_split.csv, val_split.csv, test_split.csv.
    splits: str = Field(default="auto", min_length=1, description="auto or a folder")
    # A source such as dataset=rosendahl, which is the test split; test_size has no effect then.
    leave_out: str = Field(
        default="none", pattern="^(none|[^=]+=.+)$", description="none or COLUMN=VALUE"
    )
    # Of labels, reviewed: image_id, label, corrected_label (a class or `exclude`).
    corrections: str = Field(default="none", min_length=1, description="none or a CSV file")
    allow_problems: bool = False  # train although the audit found contradictions

    @model_validator(mode="after")
    def _leave_images_for_training(self) -> Self:
        held_out = self.val_size + self.test_size
        require(held_out < 0.9, "data.val_size + data.test_size", "less than 0.9", held_out)
        if self.leave_out != "none":
            expected = "auto with data.leave_out, which makes the splits"
            require(self.splits == "auto", "data.splits", expected, self.splits)
        return self

    @property
    def named_columns(self) -> list[str]:
        """The settings that name a column of a table."""
        names = ("image_column", "label_column", "group_column")
        return [f"data.{name}" for name in names if getattr(self, name) != "auto"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig(Section):
    """The network: a timm backbone and one of two heads."""

    size: str = one_of(SIZES)  # an EfficientNetV2
    # Any timm model; auto: the one that `size` chooses.
    name: str = Field(default="auto", min_length=1, description="auto or a timm model name")
    # Modules or .py files imported first; never taken from a stored file.
    plugins: Texts = Field(default=(), description="a list of strings")
    # reference, run:ID, a .pt file: a trained network's backbone, and its head if the classes are
    # the same.
    pretrained: (
        bool | Annotated[str, Field(pattern=r"^(auto|reference)$|^run:\S+$|\.(pt|safetensors)$")]
    ) = Field(
        default="auto",
        description="auto, true, false, reference, run:ID or a path that ends in .pt or "
        ".safetensors",
    )
    # A first layer that takes away the color of the light.
    color_constancy: str = one_of(["none", "shades_of_gray", "max_rgb"])
    head_type: str = one_of(["simple", "acrnn"])  # acrnn: convolution, LSTM, attention over places
    dropout_rate: BelowOne = 0.3  # fraction of activations dropped in the head
    freeze_backbone: bool = False  # train only the head; batch norm statistics are frozen too
    use_metadata: bool = False  # age, sex and site are inputs of the head as well
    metadata_dropout: Fraction = 0.3  # fraction left out in training, so each may be missing

    @property
    def timm_name(self) -> str:
        """The name that timm knows the backbone by."""
        return SIZES[self.size] if self.name == "auto" else self.name


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SchedulerConfig(Section):
    """The learning rate over the training, as a fraction of `training.lr`, set at each step."""

    type: str = one_of(["cosine", "cosine_warm_restarts", "constant"])
    T_0: int = Field(default=10, ge=1)  # epochs from one warm restart to the next
    eta_min: float = Field(default=1.0e-6, ge=0)  # the learning rate at the end of each cosine
    warmup_pct: BelowOne = 0.05  # fraction of all steps, linear from near 0 to `training.lr`


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig(Section):
    """How the weights are updated."""

    epochs: int = Field(default=40, ge=1)
    batch_size: int = Field(default=32, ge=2)  # images per batch
    accumulate: int = Field(default=1, ge=1)  # batches per optimizer step
    lr: float = Field(default=3.0e-4, gt=0)  # the peak, reached at the end of the warm-up
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # factor on `lr` per layer below the head
    # Side of the images in the first epoch, fraction of data.image_size; see `image_side`.
    first_scale: float = Field(default=1.0, ge=0.25, le=1)
    head_warmup_epochs: int = Field(default=0, ge=0)  # epochs at the start that train only the head
    weight_decay: float = Field(default=0.01, ge=0)  # of AdamW; not applied to biases and norms
    max_grad_norm: float = Field(default=1.0, ge=0)  # gradient clipping; 0: none
    ema_decay: BelowOne = 0.0  # exponential moving average of the weights per update; 0: none
    num_workers: int = Field(default=0, ge=0)  # processes that decode images; 0: one per CPU core
    device: str = one_of(["auto", "cpu", "cuda", "mps"])  # auto: CUDA, then MPS, then CPU
    use_amp: bool = True  # mixed precision where the device has it in hardware
    use_torch_compile: bool = False
    sync_batch_norm: bool = False  # batch norm over the images of all processes, on GPUs
    fast_mode: bool = True  # false: deterministic, two runs give equal weights
    mixstyle: Fraction = 0.0  # of the batches: feature statistics of the images are mixed
    use_weighted_sampling: bool = False  # sample classes equally often; see loss.class_weights
    # A column such as dataset: sample each class equally often from its values, so that where an
    # image comes from says less of what it shows.
    even_sources: str = Field(default="none", min_length=1, description="none or a column")
    # Epochs without a better `monitor`; 0: never stop early.
    early_stopping_patience: int = Field(default=10, ge=0)
    # Any logged validation metric; chooses the best epoch.
    monitor: str = Field(
        default="val/loss",
        pattern="^val/",
        description="a validation metric such as val/loss or val/macro_auc",
    )
    monitor_mode: str = one_of(["auto", "min", "max"])  # auto: min for a loss, else max
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        name, least = "training.scheduler.eta_min", self.scheduler.eta_min
        require(least <= self.lr, name, f"at most training.lr ({self.lr})", least)
        name, least = "training.head_warmup_epochs", self.head_warmup_epochs
        require(least < self.epochs, name, f"less than training.epochs ({self.epochs})", least)
        if self.mixstyle:
            name = "training.use_torch_compile"
            expected = "false with training.mixstyle, which a compiled network leaves out"
            require(not self.use_torch_compile, name, expected, self.use_torch_compile)
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger `monitor` is the better one."""
        if self.monitor_mode == "auto":
            return self.monitor not in ("val/loss", "val/balanced_loss", "val/ece")
        return self.monitor_mode == "max"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LossConfig(Section):
    """The loss function."""

    type: str = one_of(["cross_entropy", "focal"])
    focal_gamma: float = Field(default=2.0, ge=0)  # only for focal; 0 is cross entropy
    label_smoothing: BelowOne = 0.0  # fraction of a target spread over all classes
    # balanced: total / (classes * count); effective: between balanced and none, see effective_beta.
    class_weights: str = one_of(["balanced", "effective", "none"])
    effective_beta: BelowOne = 0.999  # 0: as none; towards 1: as balanced
    # Times the logarithm of a class's fraction, added to logits in training; 0: off, common: 1.
    logit_adjustment: float = Field(default=0.0, ge=0)
    # Checkpoints of trained networks, whose mean answer is learned as well; see docs/training.md.
    distill_from: Texts = Field(default=(), description="a list of files")
    distill_weight: Fraction = 0.5  # of the distance to the teachers in the loss; labels: the rest
    distill_temperature: float = Field(default=2.0, gt=0)  # softens both answers
    mask_weight: float = Field(default=0.0, ge=0)  # of a second task: where the lesion is; 0: none

    @model_validator(mode="after")
    def _correct_once(self) -> Self:
        if self.logit_adjustment:
            expected = "none with loss.logit_adjustment, which corrects the imbalance too"
            right = self.class_weights == "none"
            require(right, "loss.class_weights", expected, self.class_weights)
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AugmentationConfig(Section):
    """Augmentation of training images, each with its probability (fraction of the images).

    `level` scales every probability: none 0, light a half, medium 1, heavy one and a half (at
    most 1); custom uses the numbers unchanged, as medium does.
    """

    level: str = one_of(["medium", "none", "light", "heavy", "custom"])
    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.3
    rotation: Fraction = 0.5
    rotation_degrees: Degrees = 25.0
    color_jitter: Fraction = 0.8
    brightness: Fraction = 0.2  # factor drawn from 1 - value to 1 + value
    contrast: Fraction = 0.2  # likewise
    saturation: Fraction = 0.2  # likewise
    hue: float = Field(default=0.02, ge=0, le=0.5)  # shift, fraction of the color circle
    illuminant: Fraction = 0.0  # another color of the light
    illuminant_gain: float = Field(
        default=0.2, ge=0, le=1
    )  # of a channel: 1 / (1 + value) to 1 + value
    aperture: Fraction = 0.0  # a round field of view, black around it
    aperture_min: float = Field(
        default=0.75, gt=0, le=1
    )  # its radius, fraction of half the diagonal
    aperture_shade: Fraction = 0.4  # its edge is darker than its center by up to this fraction
    resample: Fraction = 0.0  # fewer pixels
    resample_min: float = Field(default=0.4, gt=0, le=1)  # fraction of the side that is kept
    noise: Fraction = 0.0
    noise_max: Fraction = 0.04  # standard deviation, fraction of the brightest value
    jpeg: Fraction = 0.0
    jpeg_min: float = Field(default=30.0, ge=1, le=100)  # quality, drawn from here to 100
    blur: Fraction = 0.1
    blur_sigma_max: float = Field(default=2.0, ge=0.1, le=10)  # pixels; the least is 0.1
    affine: Fraction = 0.3
    affine_degrees: Degrees = 15.0
    affine_translate: Fraction = 0.1  # fraction of the side
    affine_scale_min: float = Field(default=0.9, gt=0, le=4)
    affine_scale_max: float = Field(default=1.1, gt=0, le=4)
    cutout: Fraction = 0.1
    cutout_scale: Fraction = 0.2  # side of the square, fraction of the image's side
    # Mix pairs of images and their classes, a batch in a share drawn from Beta(alpha, alpha); where
    # both are set, each batch gets one of them, equally often.  `level` does not scale them.
    mixup_alpha: float = Field(default=0.0, ge=0)  # whole images; 0: off, common: 0.2
    cutmix_alpha: float = Field(default=0.0, ge=0)  # a box of one in the other; 0: off, common: 1
    off_last_epochs: int = Field(default=0, ge=0)  # epochs at the end without mixing

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @model_validator(mode="after")
    def _scale_from_least_to_most(self) -> Self:
        name, most = "augmentation.affine_scale_min", self.affine_scale_max
        expected = f"at most augmentation.affine_scale_max ({most})"
        require(self.affine_scale_min <= most, name, expected, self.affine_scale_min)
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluationConfig(Section):
    """How predictions are evaluated."""

    replicates: int = Field(default=2000, ge=100, le=100_000)  # bootstrap samples
    calibrator: str = one_of(CALIBRATORS)  # fitted on val
    # Where the model is used: mel=0.02,nv=0.9, the others share the rest; or estimate.
    prevalence: str = Field(default="none", min_length=1, description="none or CLASS=FRACTION,...")
    min_sensitivity: BelowOne = 0.8  # lower end of the partial AUC, malignant against benign


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrackingConfig(Section):
    """Where the run is logged."""

    # auto: MLFLOW_EXPERIMENT_NAME or _ID where set, else dermalyze.
    experiment: str = Field(default="auto", pattern=r"\S", description="a name")
    registered_model: str = Field(
        default="dermalyze", pattern=r"^[^/:]*[^/:\s][^/:]*$", description="a name without / and :"
    )
    register: bool = True  # false: log the model, do not register it
    champion_metric: str = Field(
        default="test/balanced_accuracy",
        pattern=f"^test/({'|'.join(CHAMPION_METRICS)})(/|$)",
        description=f"test/ and one of {', '.join(CHAMPION_METRICS[:-5])}, recall/mel, auc/mel",
    )
    champion_margin: Margin = 0.02  # how much worse a champion may be, with 95 % confidence
    champion_calibration_margin: Margin = 0.02  # likewise in the Brier score
    timeout_seconds: float = Field(default=30.0, ge=1, le=3600)  # for a call to the tracking store


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config(Section):
    """Everything that decides what a run does."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @model_validator(mode="after")
    def _correct_once(self) -> Self:
        if self.loss.logit_adjustment:
            expected = "false with loss.logit_adjustment, which corrects the imbalance too"
            sampling = self.training.use_weighted_sampling
            require(not sampling, "training.use_weighted_sampling", expected, sampling)
        return self


_PREFIXES = {  # of the dotted names
    Config: "",
    SchedulerConfig: "training.scheduler.",
    **{type(getattr(Config(), name)): f"{name}." for name in Config.__dataclass_fields__},
}


def flatten(config: Config) -> dict[str, Any]:
    """Return every setting under its dotted name, in the order of definition."""
    flat: dict[str, Any] = {}

    def walk(values: dict[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = list(value) if isinstance(value, tuple) else value

    walk(asdict(config), "")
    return flat


def _in_words(section: Any, error: ValidationError) -> str:
    """Say what the first of pydantic's errors means."""
    first = error.errors(include_url=False)[0]
    word, value = first["type"].split("_")[0], first["input"]
    if not first["loc"]:
        return f"{_PREFIXES[section][:-1]} must be a section of settings, got {value!r}"
    key = str(first["loc"][0])
    name = _PREFIXES[section] + key
    if key not in section.__pydantic_fields__:
        return f"unknown setting {name}{_suggestion(name)}"
    field = section.__pydantic_fields__[key]
    bounds = {k: getattr(part, k) for part in field.metadata for k in _BOUNDS if hasattr(part, k)}
    if field.description:
        expected = field.description
    elif word in _TYPES:
        expected = _TYPES[word]
    elif bounds.keys() == {"ge", "le"}:
        expected = f"from {bounds['ge']} to {bounds['le']}"
    else:
        expected = " and ".join(f"{_BOUNDS[k]} {bound}" for k, bound in bounds.items())
    hint = ""
    if word == "float" and isinstance(value, str) and _NOT_YET_YAML.fullmatch(value):
        digits, power = re.split("[eE]", value)
        hint = f" (YAML reads {value} as text; write {float(digits)}e{int(power):+d})"
    return f"{name} must be {expected}, got {value!r}{hint}"


def _suggestion(name: str) -> str:
    known = list(flatten(Config()))
    last = name.rsplit(".", 1)[-1]
    elsewhere = [key for key in known if key.rsplit(".", 1)[-1] == last]  # in another section
    return did_you_mean(name, known) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")
