"""Settings: frozen dataclasses, each value checked once, at the door.

`config_file` fills them from YAML and overrides.  Never imports torch.
"""

from dataclasses import dataclass, field

from serving.errors import ConfigError
from serving.spec import RESIZE_FILTERS, RESIZE_MODES

SIZES = {  # model.size -> timm's name
    "small": "tf_efficientnetv2_s.in21k_ft_in1k",
    "medium": "tf_efficientnetv2_m.in21k_ft_in1k",
    "large": "tf_efficientnetv2_l.in21k_ft_in1k",
}
HEADS = ("simple", "acrnn")
LOSSES = ("cross_entropy", "focal")
CLASS_WEIGHTINGS = ("none", "balanced")
SCHEDULES = ("cosine_warm_restarts", "constant")
AUGMENTATION_LEVELS = ("none", "light", "medium", "heavy", "custom")
DEVICES = ("auto", "cpu", "cuda", "mps")
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
GROUPINGS = ("lesion", "patient", "none")
CALIBRATORS = ("temperature", "vector", "dirichlet")


def require(ok: bool, name: str, expected: str, value: object) -> None:
    """Raise the one message shape that every setting uses, unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} must be {expected}, got {value!r}")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among `choices`."""
    require(value in choices, name, "one of " + ", ".join(choices), value)


def require_fraction(name: str, value: float) -> None:
    """Refuse what is not in 0..1."""
    require(0 <= value <= 1, name, "from 0 to 1", value)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are dealt into splits."""

    image_size: int = 224  # pixels, height and width of what the network sees
    resize_mode: str = "squash"  # squash: the whole image; center_crop: its middle, undistorted
    resize_filter: str = "auto"  # auto: what the backbone was pretrained with
    val_size: float = 0.15  # fraction of the images
    test_size: float = 0.15  # fraction of the images
    group_by: str = "lesion"  # lesion, patient, none: what is never split, and drawn in intervals
    image_column: str = "auto"  # of one table beside images; auto: by its name
    label_column: str = "auto"  # likewise
    group_column: str = "auto"  # likewise; holds the ids that group_by names
    prepared: str = "auto"  # a folder for what is prepared once; auto: prepared/ in the data
    splits: str = "auto"  # a folder with train_split.csv, val_split.csv, test_split.csv
    allow_problems: bool = False  # train although the audit found contradictions

    def __post_init__(self) -> None:
        """Check ranges."""
        require(
            16 <= self.image_size <= 1024, "data.image_size", "from 16 to 1024", self.image_size
        )
        require_choice("data.resize_mode", self.resize_mode, RESIZE_MODES)
        require_choice("data.resize_filter", self.resize_filter, ("auto", *RESIZE_FILTERS))
        for name, size in (("val_size", self.val_size), ("test_size", self.test_size)):
            require(0 < size < 0.8, f"data.{name}", "greater than 0 and less than 0.8", size)
        require(
            self.val_size + self.test_size < 0.9,
            "data.val_size + data.test_size",
            "less than 0.9",
            self.val_size + self.test_size,
        )
        require_choice("data.group_by", self.group_by, GROUPINGS)
        for name in ("image_column", "label_column", "group_column"):
            require(getattr(self, name) != "", f"data.{name}", "auto or a column", "")
        for name, value in (("prepared", self.prepared), ("splits", self.splits)):
            require(value != "", f"data.{name}", "auto or a folder", value)

    @property
    def named_columns(self) -> list[str]:
        """The settings that name a column of a table."""
        names = ("image_column", "label_column", "group_column")
        return [f"data.{name}" for name in names if getattr(self, name) != "auto"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: a timm backbone and one of two heads."""

    size: str = "small"  # small, medium, large: an EfficientNetV2
    name: str = "auto"  # any timm model instead; auto: what `size` names
    plugins: tuple[str, ...] = ()  # modules or .py files imported first, never from a stored file
    pretrained: str | bool = "auto"  # auto, true, false, or a .safetensors file
    head_type: str = "simple"  # simple or acrnn (convolution, LSTM, attention over all places)
    dropout_rate: float = 0.3  # fraction of activations dropped in the head
    freeze_backbone: bool = False  # train the head alone; batch norm statistics stay as well
    use_metadata: bool = False  # age, sex and site go into the head beside the image
    metadata_dropout: float = 0.3  # fraction of them left out in training, so that any may miss

    def __post_init__(self) -> None:
        """Check ranges."""
        require_choice("model.size", self.size, tuple(SIZES))
        require(self.name != "", "model.name", "auto or a timm model name", self.name)
        require_choice("model.head_type", self.head_type, HEADS)
        require(0 <= self.dropout_rate < 1, "model.dropout_rate", "in [0, 1)", self.dropout_rate)
        require_fraction("model.metadata_dropout", self.metadata_dropout)
        require(
            isinstance(self.pretrained, bool)
            or self.pretrained == "auto"
            or self.pretrained.endswith(".safetensors"),
            "model.pretrained",
            "auto, true, false or a path that ends in .safetensors",
            self.pretrained,
        )

    @property
    def timm_name(self) -> str:
        """The name that timm knows the backbone by."""
        return SIZES[self.size] if self.name == "auto" else self.name


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The learning rate over the training, as a fraction of `training.lr`, stepped per update."""

    type: str = "cosine_warm_restarts"
    T_0: int = 10  # epochs from one restart to the next
    eta_min: float = 1.0e-6  # the learning rate at the bottom of each cosine
    warmup_pct: float = 0.05  # fraction of all updates, linear from near 0 to `training.lr`

    def __post_init__(self) -> None:
        """Check ranges."""
        require_choice("training.scheduler.type", self.type, SCHEDULES)
        require(self.T_0 >= 1, "training.scheduler.T_0", "at least 1 epoch", self.T_0)
        require(self.eta_min >= 0, "training.scheduler.eta_min", "at least 0", self.eta_min)
        require(
            0 <= self.warmup_pct < 1, "training.scheduler.warmup_pct", "in [0, 1)", self.warmup_pct
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the weights are updated."""

    epochs: int = 40
    batch_size: int = 32  # images an update
    lr: float = 3.0e-4  # the peak, reached at the end of the warm-up
    weight_decay: float = 0.01  # AdamW's; biases and norms are spared
    max_grad_norm: float = 1.0  # gradients are clipped to it; 0: never
    ema_decay: float = 0.0  # of an exponential moving average of the weights; 0: none
    num_workers: int = 0  # processes that decode images once, in preparation; 0: one a core
    device: str = "auto"  # auto: CUDA, then MPS, then CPU
    use_amp: bool = True  # mixed precision where the device has it in hardware
    use_torch_compile: bool = False
    fast_mode: bool = True  # false: deterministic, two runs give equal weights
    use_weighted_sampling: bool = False  # classes drawn equally often; see loss.class_weights
    early_stopping_patience: int = 10  # epochs without a better `monitor`; 0: never stop early
    monitor: str = "val/loss"  # any logged validation metric; it chooses the best epoch
    monitor_mode: str = "auto"  # auto, min or max; auto: min for a loss, else max
    seed: int = 42
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.epochs >= 1, "training.epochs", "at least 1", self.epochs)
        require(self.batch_size >= 2, "training.batch_size", "at least 2", self.batch_size)
        require(self.lr > 0, "training.lr", "greater than 0", self.lr)
        require(self.weight_decay >= 0, "training.weight_decay", "at least 0", self.weight_decay)
        require(self.max_grad_norm >= 0, "training.max_grad_norm", "at least 0", self.max_grad_norm)
        require(0 <= self.ema_decay < 1, "training.ema_decay", "in [0, 1)", self.ema_decay)
        require(self.num_workers >= 0, "training.num_workers", "at least 0", self.num_workers)
        require_choice("training.device", self.device, DEVICES)
        require(
            self.early_stopping_patience >= 0,
            "training.early_stopping_patience",
            "at least 0",
            self.early_stopping_patience,
        )
        require(
            self.monitor.startswith("val/"),
            "training.monitor",
            "a validation metric such as val/loss or val/macro_auc",
            self.monitor,
        )
        require_choice("training.monitor_mode", self.monitor_mode, ("auto", "min", "max"))
        require(0 <= self.seed < 2**31, "training.seed", "from 0 to 2147483647", self.seed)
        require(
            self.scheduler.eta_min <= self.lr,
            "training.scheduler.eta_min",
            f"at most training.lr ({self.lr})",
            self.scheduler.eta_min,
        )

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger `monitor` is the better one."""
        if self.monitor_mode == "auto":
            return self.monitor not in ("val/loss", "val/ece")
        return self.monitor_mode == "max"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimized."""

    type: str = "cross_entropy"
    focal_gamma: float = 2.0  # only for focal; 0 is cross entropy
    label_smoothing: float = 0.0  # fraction of a target that is spread over all classes
    class_weights: str = "balanced"  # none, or balanced: total / (classes * count)

    def __post_init__(self) -> None:
        """Check ranges."""
        require_choice("loss.type", self.type, LOSSES)
        require(self.focal_gamma >= 0, "loss.focal_gamma", "at least 0", self.focal_gamma)
        require(
            0 <= self.label_smoothing < 1, "loss.label_smoothing", "in [0, 1)", self.label_smoothing
        )
        require_choice("loss.class_weights", self.class_weights, CLASS_WEIGHTINGS)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What is done to training images, each with its probability (fraction of the images).

    `level` scales every probability: none 0, light a half, medium 1, heavy one and a half (at
    most 1); custom takes the numbers as they stand, as medium does.
    """

    level: str = "medium"
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.3
    rotation: float = 0.5
    rotation_degrees: float = 25.0
    color_jitter: float = 0.8
    brightness: float = 0.2  # factor drawn from 1 - value to 1 + value
    contrast: float = 0.2  # likewise
    saturation: float = 0.2  # likewise
    hue: float = 0.1  # shift, fraction of the color circle
    blur: float = 0.1
    blur_sigma_max: float = 2.0  # pixels; the least is 0.1
    affine: float = 0.3
    affine_degrees: float = 15.0
    affine_translate: float = 0.1  # fraction of the side
    affine_scale_min: float = 0.9
    affine_scale_max: float = 1.1
    cutout: float = 0.1
    cutout_scale: float = 0.2  # side of the square, fraction of the image's side

    def __post_init__(self) -> None:
        """Check ranges."""
        require_choice("augmentation.level", self.level, AUGMENTATION_LEVELS)
        for name in (
            "horizontal_flip",
            "vertical_flip",
            "rotation",
            "color_jitter",
            "blur",
            "affine",
            "cutout",
            "brightness",
            "contrast",
            "saturation",
            "affine_translate",
            "cutout_scale",
        ):
            require_fraction(f"augmentation.{name}", getattr(self, name))
        require(0 <= self.hue <= 0.5, "augmentation.hue", "from 0 to 0.5", self.hue)
        for name in ("rotation_degrees", "affine_degrees"):
            value = getattr(self, name)
            require(0 <= value <= 180, f"augmentation.{name}", "from 0 to 180", value)
        require(
            0.1 <= self.blur_sigma_max <= 10,
            "augmentation.blur_sigma_max",
            "from 0.1 to 10",
            self.blur_sigma_max,
        )
        require(
            0 < self.affine_scale_min <= self.affine_scale_max <= 4,
            "augmentation.affine_scale_min and affine_scale_max",
            "in order, greater than 0 and at most 4",
            (self.affine_scale_min, self.affine_scale_max),
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How predictions are judged."""

    replicates: int = 2000  # bootstrap samples of the lesions behind each interval
    calibrator: str = "temperature"  # temperature, vector or dirichlet; fitted on val
    prevalence: str = (
        "none"  # where it is used: mel=0.02,nv=0.9, the others share the rest; estimate
    )
    min_sensitivity: float = 0.8  # above which the partial AUC looks, malignant against benign

    def __post_init__(self) -> None:
        """Check ranges."""
        require(
            100 <= self.replicates <= 100_000,
            "evaluation.replicates",
            "from 100 to 100000",
            self.replicates,
        )
        require_choice("evaluation.calibrator", self.calibrator, CALIBRATORS)
        require(self.prevalence != "", "evaluation.prevalence", "none or CLASS=FRACTION,...", "")
        require(
            0 <= self.min_sensitivity < 1,
            "evaluation.min_sensitivity",
            "at least 0 and less than 1",
            self.min_sensitivity,
        )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the run is written down."""

    experiment: str = "auto"  # auto: MLFLOW_EXPERIMENT_NAME or _ID where set, else dermalyze
    registered_model: str = "dermalyze"
    register: bool = True  # false: log the model, leave the registry alone
    champion_metric: str = "test/balanced_accuracy"  # what a champion is judged by; higher wins
    champion_margin: float = 0.02  # how much worse a new one may be, with 95 % confidence
    champion_calibration_margin: float = 0.02  # likewise in the Brier score
    timeout_seconds: float = 30.0  # for a call to the tracking store

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.experiment.strip() != "", "tracking.experiment", "a name", self.experiment)
        require(
            self.registered_model.strip() != "" and not set(self.registered_model) & set("/:"),
            "tracking.registered_model",
            "a name without / and :",
            self.registered_model,
        )
        prefix, _, metric = self.champion_metric.partition("/")
        require(
            prefix == "test" and metric.partition("/")[0] in CHAMPION_METRICS,
            "tracking.champion_metric",
            f"test/ and one of {', '.join(CHAMPION_METRICS[:-5])}, recall/mel, auc/mel, ...",
            self.champion_metric,
        )
        for name in ("champion_margin", "champion_calibration_margin"):
            value = getattr(self, name)
            require(0 < value < 1, f"tracking.{name}", "greater than 0 and less than 1", value)
        require(
            1 <= self.timeout_seconds <= 3600,
            "tracking.timeout_seconds",
            "from 1 to 3600",
            self.timeout_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what a run does."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
