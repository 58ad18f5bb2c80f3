"""Everything that is computed from a set of predictions, as one typed result.

It follows from tables of predictions, so it can be computed again without a network, for anybody's
predictions in that form.  `judgement.json` stores the result.  C classes.  Never imports
torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from dermalyze.config.schema import Config, EvaluationConfig
from dermalyze.evaluation.external import External
from dermalyze.evaluation.metrics.calibration import CalibrationErrors, calibration_errors
from dermalyze.evaluation.metrics.classification import (
    Counts,
    Floats,
    confusion_matrix,
    replicated,
    score,
)
from dermalyze.evaluation.metrics.clinical import (
    DecisionCurve,
    RocCurve,
    decision_curve,
    malignant_roc,
)
from dermalyze.evaluation.robustness import Robustness
from dermalyze.evaluation.saliency_check import MapsCheck, check_maps
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import (
    LEVEL,
    MIN_LESIONS_ELSEWHERE,
    Interval,
    balanced_accuracy_elsewhere,
    intervals,
)
from dermalyze.evaluation.statistics.subgroups import Subgroups, evaluate_subgroups
from dermalyze.evaluation.text import TITLES
from dermalyze.evaluation.uncertainty.calibrators import (
    Calibrator,
    correct_priors,
    estimate_priors,
    fit_calibrator,
    parse_prevalence,
    require_disjoint,
    require_lesions,
)
from dermalyze.evaluation.uncertainty.limits import (
    Limits,
    LimitsCheck,
    check_limits,
    fit_limits,
)
from serving.errors import ArtifactError, ConfigError
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import Taxonomy

JUDGEMENT = "judgement.json"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What is evaluated, and what goes with it."""

    scored: Scored
    split: str  # what these images are called
    validation: Scored | None = None  # what calibrator and limits are fitted on
    explanations: pd.DataFrame | None = None  # maps against lesion masks, as `measure_maps` has it
    context: Mapping[str, object] = field(default_factory=dict)  # where they come from
    left_out: str = ""  # the source that all of them are from, and nothing was fitted on
    limits: Limits | None = None  # of the model file, where there is no validation table
    external: External | None = None  # of images of another source, which are compared there
    robustness: Robustness | None = None

    @property
    def answers(self) -> Scored:
        """The images with the logits that are evaluated: with the temperature of a model file."""
        if self.limits is None:
            return self.scored
        return self.scored.with_logits(self.limits.calibrated(self.scored.logits))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibrator, and the errors of the probabilities before and after it."""

    calibrator: Calibrator
    before: CalibrationErrors
    after: CalibrationErrors


@dataclass(frozen=True, kw_only=True)
class Prevalence:
    """The answers where classes are as common as stated, with and without the correction."""

    trained: dict[str, float]  # share of each class, by name
    stated: dict[str, float]
    before: dict[str, float]  # loss, accuracy, ece
    after: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """The source that was left out: what is evaluated is from it, and nothing was fitted on it."""

    source: str  # COLUMN=VALUE
    classes: tuple[str, ...]  # that balanced_accuracy_elsewhere is over: those with enough lesions
    min_lesions: int = MIN_LESIONS_ELSEWHERE


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What predictions are worth; a part that is None has nothing it could be computed from.

    Metrics of a class end in its key: `recall/mel`.
    """

    split: str
    taxonomy: Taxonomy
    num_images: int
    num_lesions: int  # of what `group_by` names
    level: float  # of the intervals
    replicates: int
    intervals: dict[str, Interval]
    subgroups: Subgroups
    group_by: str = "lesion"  # lesion, patient or image: what the intervals draw
    min_sensitivity: float = 0.8  # above which the partial AUC looks
    metrics: dict[str, float] = field(default_factory=dict)  # as `score` gives them
    confusion_matrix: list[list[int]] = field(default_factory=list)  # true classes in rows
    context: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    limits: LimitsCheck | None = None
    explanations: MapsCheck | None = None
    malignant_roc: RocCurve | None = None
    decision_curve: DecisionCurve | None = None
    prevalence: Prevalence | None = None
    elsewhere: Elsewhere | None = None
    external: External | None = None
    robustness: Robustness | None = None

    def logged(self) -> dict[str, float]:
        """Return what a run logs: metrics, further headlines, and bounds as `test/loss_low`."""
        found = {f"{self.split}/{name}": value for name, value in self.metrics.items()}
        for name in TITLES:
            if (interval := self.intervals.get(name)) is not None:
                key = f"{self.split}/{name}"
                found.setdefault(key, interval.estimate)
                if interval.low is not None and interval.high is not None:
                    found |= {f"{key}_low": interval.low, f"{key}_high": interval.high}
        if self.external is not None:
            found |= {f"{self.split}/{key}": v for key, v in self.external.logged().items()}
        return found

    def calibrated(self, scored: Scored) -> Scored | None:
        """Return images with calibrated logits; None without a calibrator."""
        if self.calibration is None:
            return None
        return scored.with_logits(self.calibration.calibrator.apply(scored.logits))

    def to_json(self) -> str:
        """Return what `judgement.json` holds; parts that are None are left out."""
        values = {**_plain(self), "class_names": list(self.taxonomy.names)}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """Read what `to_json` wrote, also by older versions: those were of HAM10000.

        Raises:
            ArtifactError: it is something else.
        """
        try:
            values = json.loads(text)
            names = tuple(values.pop("class_names", HAM10000.names))
            known = HAM10000 if names == HAM10000.names else Taxonomy(names=names)
            values.setdefault("taxonomy", known.to_dict())
            return TypeAdapter(cls).validate_python(values)
        except (ValueError, TypeError, AttributeError) as error:  # pydantic's is a ValueError
            raise ArtifactError(
                f"this is not a {JUDGEMENT}; expected what `dermalyze evaluate` wrote"
            ) from error


def evaluate(
    predictions: Predictions, settings: EvaluationConfig, trained_priors: Floats | None = None
) -> Evaluation:
    """Evaluate predictions; every number with what it rests on.

    Args:
        predictions: what is evaluated.
        settings: replicates, calibrator, stated prevalence.
        trained_priors: fractions (C,) of the classes that training made the network see.

    Raises:
        DataError: a lesion is in what is evaluated and in what the calibrator is fitted on.
        ConfigError: the prevalence is not one.
    """
    scored, validation = predictions.answers, predictions.validation
    metrics = score(scored.logits, scored.targets, scored.class_names)
    calibrated, calibration, limits = scored, None, None
    if validation is not None:
        require_disjoint(scored, validation)
        calibrator = fit_calibrator(settings.calibrator, validation)
        calibrated = scored.with_logits(calibrator.apply(scored.logits))
        calibration = Calibration(
            calibrator=calibrator,
            before=calibration_errors(scored.logits, scored.targets),
            after=calibration_errors(calibrated.logits, calibrated.targets),
        )
        if settings.calibrator != "temperature":  # it has moved the priors to those of validation
            trained_priors = seen_priors(validation.targets, len(scored.taxonomy))
        limits = check_limits(scored, fit_limits(validation), replicates=settings.replicates)
    elif predictions.limits is not None:
        limits = check_limits(
            predictions.scored, predictions.limits, replicates=settings.replicates
        )
    known = intervals(
        scored, replicates=settings.replicates, min_sensitivity=settings.min_sensitivity
    )
    elsewhere = None
    if predictions.left_out:
        classes, interval = balanced_accuracy_elsewhere(scored, settings.replicates)
        elsewhere = Elsewhere(source=predictions.left_out, classes=classes)
        if interval is not None:
            known["balanced_accuracy_elsewhere"] = interval
    maps = None
    if predictions.explanations is not None and len(predictions.explanations):
        maps = check_maps(predictions.explanations, scored, settings.replicates)
    return Evaluation(
        split=predictions.split,
        taxonomy=scored.taxonomy,
        num_images=len(scored),
        num_lesions=scored.num_lesions,
        group_by=scored.group_by,
        level=LEVEL,
        replicates=settings.replicates,
        min_sensitivity=settings.min_sensitivity,
        metrics=metrics,
        confusion_matrix=confusion_matrix(
            scored.targets, scored.predicted, len(scored.taxonomy)
        ).tolist(),
        context=dict(predictions.context),
        intervals=known,
        subgroups=evaluate_subgroups(scored, replicates=settings.replicates),
        calibration=calibration,
        limits=limits,
        explanations=maps,
        malignant_roc=malignant_roc(scored),
        decision_curve=decision_curve(calibrated),
        prevalence=_prevalence(calibrated, settings.prevalence, trained_priors),
        elsewhere=elsewhere,
        external=predictions.external,
        robustness=predictions.robustness,
    )


def check_settings(
    settings: EvaluationConfig, validation_rows: pd.DataFrame, taxonomy: Taxonomy
) -> None:
    """Refuse before a training what `evaluate` would refuse after it.

    Raises:
        DataError: there are too few validation lesions for the calibrator.
        ConfigError: the prevalence is not one.
    """
    require_lesions(settings.calibrator, validation_rows, taxonomy)
    if settings.prevalence not in ("none", "estimate"):
        parse_prevalence(settings.prevalence, taxonomy)


def seen_priors(targets: Counts, num_classes: int, config: Config | None = None) -> Floats:
    """Return the class fractions (C,) that a network learns from targets (N,).

    Weighted sampling and balanced class weights make all classes that occur equally common; other
    corrections go a part of the way.

    Args:
        targets: of the training images.
        num_classes: C.
        config: how it is trained; None: without any correction of the imbalance.
    """
    seen = np.bincount(targets, minlength=num_classes).astype(np.float64)
    if config is not None:
        loss, occurs = config.loss, seen > 0
        if config.training.use_weighted_sampling or loss.class_weights == "balanced":
            seen[occurs] = 1
        elif loss.class_weights == "effective":
            seen[occurs] /= 1 - loss.effective_beta ** seen[occurs]
        elif loss.logit_adjustment:
            seen[occurs] **= 1 - loss.logit_adjustment
    return np.asarray(seen / seen.sum())


def _prevalence(calibrated: Scored, text: str, trained_priors: Floats | None) -> Prevalence | None:
    """Evaluate answers where classes are as common as stated: images get weights to that end."""
    if text == "none":
        return None
    if trained_priors is None:
        raise ConfigError(
            "evaluation.prevalence needs the class shares used in training, which are unknown "
            "for these predictions; set it to none"
        )
    if text == "estimate":
        stated = estimate_priors(calibrated.logits, trained_priors)
    else:
        stated = parse_prevalence(text, calibrated.taxonomy)
    corrected = calibrated.with_logits(correct_priors(calibrated.logits, trained_priors, stated))
    counts = np.bincount(calibrated.targets, minlength=len(stated))
    share = np.divide(stated, counts, out=np.zeros(len(stated)), where=counts > 0)
    weights = share[calibrated.targets][None, :] * len(calibrated)  # (1, N)
    before, after = (
        {name: float(values[name][0]) for name in ("loss", "accuracy", "ece")}
        for values in (
            replicated(answers, weights, with_curves=False) for answers in (calibrated, corrected)
        )
    )
    names = calibrated.class_names
    return Prevalence(
        trained=dict(zip(names, trained_priors.tolist(), strict=True)),
        stated=dict(zip(names, stated.tolist(), strict=True)),
        before=before,
        after=after,
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON takes it, without the parts that are None and may be left out."""
    if is_dataclass(value):
        return {
            item.name: _plain(getattr(value, item.name))
            for item in fields(value)
            if item.default is not None or getattr(value, item.name) is not None
        }
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
