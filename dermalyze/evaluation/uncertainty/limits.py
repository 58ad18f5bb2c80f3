"""What a model knows of its limits: fitted on validation predictions, checked on other ones.

The same table gives the same limits: what travels in the model file is what the report checks.
N images, C classes, R replicates.  Never imports torch.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dermalyze.evaluation.metrics.classification import Floats
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import Basis, Interval, interval_of, lesion_weights
from dermalyze.evaluation.uncertainty.calibrators import fit_calibrator
from dermalyze.evaluation.uncertainty.conformal import fit_sets
from dermalyze.evaluation.uncertainty.out_of_distribution import fit_max_score, lesion_shares
from dermalyze.evaluation.uncertainty.referral import fit_referral
from dermalyze.evaluation.uncertainty.selective import (
    CONFIDENCE,
    RISK,
    RiskCoverage,
    area_under,
    fit_abstention,
    risk_coverage,
)
from serving.prediction import softmax
from serving.spec import ModelSpec
from serving.uncertainty import (
    DEFAULT_LEVEL,
    DEFAULT_SENSITIVITY,
    LEVELS,
    Abstention,
    PredictionSets,
    Referral,
    Scope,
)

_CURVE_POINTS = 100
_SENSITIVITIES = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99)  # of the referral, that are checked
MIN_SPECIFICITY = 0.3  # a flag that spares fewer of the benign lesions is of little use


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is fitted on validation predictions."""

    temperature: float
    prediction_sets: PredictionSets
    abstention: Abstention
    scope: Scope | None  # None: the table has no scores
    referral: Referral | None = None  # None: not both malignant and benign classes are known

    def calibrated(self, logits: NDArray[np.floating]) -> Floats:
        """Return the logits (N, C) of the probabilities that the model gives."""
        return logits.astype(np.float64) / self.temperature

    def probs(self, scored: Scored) -> Floats:
        """Return calibrated probabilities: (N, C)."""
        return softmax(scored.logits, self.temperature)


@dataclass(frozen=True, kw_only=True)
class ClassCoverage:
    """How often prediction sets hold a class where it is the true one."""

    calibration_lesions: int
    in_every_set: bool
    num_lesions: int
    coverage: Interval | None  # None: no lesion of it was checked


@dataclass(frozen=True, kw_only=True)
class SetsCheck:
    """Whether prediction sets hold the true class as often as they say."""

    level: float
    classes: dict[str, ClassCoverage]  # by name
    mean_size: float
    single: float  # share of the lesions whose set holds one class
    sizes: list[float]  # share of sets of 1, 2, ... classes
    coverage: Interval | None = None  # over all classes; None: an older version checked it


@dataclass(frozen=True, kw_only=True)
class AbstentionCheck:
    """How often the model answers, and how often these answers are wrong."""

    stated_risk: float
    confidence: float
    min_confidence: float
    coverage: Interval
    risk: Interval | None  # None: nothing is answered
    aurc: Interval  # area under risk over coverage
    curve: RiskCoverage


@dataclass(frozen=True, kw_only=True)
class ScopeCheck:
    """How often images in scope are called out of scope."""

    kind: str
    max_score: float
    fitted_false_alarm_rate: float
    false_alarm_rate: Interval
    photo_problems: float


@dataclass(frozen=True, kw_only=True)
class SensitivityCheck:
    """How many malignant lesions a threshold finds, and how many benign ones it spares."""

    level: float
    min_prob: float
    fitted_specificity: float  # on the lesions that it was fitted on
    sensitivity: Interval | None  # None: no such lesion was checked
    specificity: Interval | None


@dataclass(frozen=True, kw_only=True)
class ReferralCheck:
    """Whether the referral flag finds as many malignant lesions as it says."""

    confidence: float
    num_malignant: int  # lesions it was fitted on
    num_benign: int
    levels: list[SensitivityCheck]
    lacking: str  # why there is no higher level; empty: all are there

    def at(self, level: float) -> SensitivityCheck | None:
        """Return what was checked of one level; None: it has no threshold."""
        return next((found for found in self.levels if found.level == level), None)

    @property
    def is_useful(self) -> bool:
        """Say whether the flag of the default sensitivity spares enough benign lesions."""
        found = self.at(DEFAULT_SENSITIVITY)
        return (
            found is not None
            and found.specificity is not None
            and found.specificity.estimate >= MIN_SPECIFICITY
        )


@dataclass(frozen=True, kw_only=True)
class LimitsCheck:
    """Whether the limits hold on images that they were not fitted on; each lesion counts once."""

    temperature: float
    prediction_sets: SetsCheck
    abstention: AbstentionCheck
    scope: ScopeCheck | None = None
    referral: ReferralCheck | None = None


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """The images, and how much each of them counts."""

    scored: Scored
    limits: Limits
    probs: Floats  # (N, C), calibrated
    shares: Floats  # (N,)
    drawn: Floats  # (R, N)

    def mean(self, values: Floats, chosen: Floats, basis: Basis) -> Interval:
        """Return the mean of (N,) over the chosen images, a mask (N,), with its interval."""
        weights, drawn = self.shares * chosen, self.drawn * chosen
        totals = drawn.sum(axis=1)
        means = np.divide(drawn @ values, totals, out=np.full(len(drawn), np.nan), where=totals > 0)
        return interval_of(float(weights @ values / weights.sum()), means, basis)

    def mean_of(self, values: Floats, chosen: Floats, group: str) -> Interval | None:
        """Return the mean over the chosen images; None: there are none."""
        basis = self.basis(chosen, group)
        return self.mean(values, chosen, basis) if basis.num_lesions else None

    def all(self, values: Floats) -> Interval:
        """Return the mean of (N,) over all images, with its interval."""
        return self.mean(values, np.ones(len(values)), self.basis())

    def basis(self, rows: Floats | None = None, group: str = "") -> Basis:
        """Return the lesions of some images, a mask (N,), or of all."""
        lesions = self.scored.lesions if rows is None else self.scored.lesions[rows > 0]
        return Basis(
            num_lesions=len(np.unique(lesions)),
            group=group,
            unit=self.scored.group_by,
            is_share=True,
        )


def fit_limits(validation: Scored, *, temperature: float | None = None) -> Limits:
    """Fit temperature, sets, abstention and, where the table allows it, scope and referral.

    Args:
        validation: images that nothing was trained on.
        temperature: a given one; None: it is fitted, too.
    """
    if temperature is None:
        fitted = fit_calibrator("temperature", validation).parameters["temperature"]
        assert isinstance(fitted, float)
        temperature = fitted
    probs = softmax(validation.logits, temperature)
    scope = None
    if "scope_score" in validation.table:
        scope = fit_max_score(
            validation.table["scope_score"].to_numpy(np.float64),
            validation.table["photo_problem"].to_numpy(np.float64) > 0,
            validation.lesions,
        )
    malignant, referral = validation.malignant, None
    if malignant.any() and not malignant.all():
        malignancy = probs[:, malignant].sum(axis=1)
        referral = fit_referral(malignancy, validation.is_malignant, validation.lesions)
    arguments = (probs, validation.targets, validation.lesions)
    return Limits(
        temperature=temperature,
        prediction_sets=fit_sets(*arguments),
        abstention=fit_abstention(*arguments, risk=RISK),
        scope=scope,
        referral=referral,
    )


def check_limits(scored: Scored, limits: Limits, *, replicates: int) -> LimitsCheck:
    """Check limits on images that they were not fitted on.

    Args:
        scored: N images; with scope scores in their table, where the limits have a scope.
        limits: fitted on others.
        replicates: bootstrap samples of the lesions behind each interval.
    """
    shares = lesion_shares(scored.lesions)
    checked = _Checked(
        scored=scored,
        limits=limits,
        probs=limits.probs(scored),
        shares=shares,
        drawn=lesion_weights(scored.lesions, replicates, 0) * shares,
    )
    return LimitsCheck(
        temperature=limits.temperature,
        prediction_sets=_check_sets(checked),
        abstention=_check_abstention(checked),
        scope=_check_scope(checked),
        referral=_check_referral(checked),
    )


def limits_of(spec: ModelSpec) -> Limits | None:
    """Return what a model file knows of its limits; None: it knows none."""
    if spec.prediction_sets is None or spec.abstention is None:
        return None
    return Limits(
        temperature=spec.temperature,
        prediction_sets=spec.prediction_sets,
        abstention=spec.abstention,
        scope=spec.scope,
        referral=spec.referral,
    )


def limit_shares(answers: Scored, limits: Limits) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
    """Return what is averaged (N,), and over which images (N,), by name of the rate.

    An image is answered if it is in scope and the confidence is high enough, as in use.

    Args:
        answers: images with the logits of the probabilities that are given.
        limits: of the model.
    """
    rows, probs = np.arange(len(answers)), answers.probs
    members = limits.prediction_sets.members(probs, DEFAULT_LEVEL)
    alarms = out_of_scope(answers, limits)
    answered = (probs.max(axis=1) >= limits.abstention.min_confidence) & ~alarms
    every = np.ones(len(answers), bool)
    found = {
        "set_coverage": (members[rows, answers.targets].astype(np.float64), every),
        "set_size": (members.sum(axis=1).astype(np.float64), every),
        "answered": (answered.astype(np.float64), every),
        "answered_error": ((answers.predicted != answers.targets).astype(np.float64), answered),
    }
    if limits.scope is not None and "scope_score" in answers.table:
        found["out_of_scope"] = alarms.astype(np.float64), every
    column = None if limits.referral is None else limits.referral.column(DEFAULT_SENSITIVITY)
    if limits.referral is not None and column is not None:
        referred = answers.malignancy >= limits.referral.min_probs[column]
        found["referral_sensitivity"] = referred.astype(np.float64), answers.is_malignant
        found["referral_specificity"] = (~referred).astype(np.float64), ~answers.is_malignant
    return found


def out_of_scope(scored: Scored, limits: Limits) -> NDArray[np.bool_]:
    """Say which images are called out of scope (N,); none where there are no scores."""
    scope, table = limits.scope, scored.table
    if scope is None or "scope_score" not in table:
        return np.zeros(len(scored), bool)
    problems = table["photo_problem"].to_numpy(np.float64) > 0
    return np.asarray((table["scope_score"].to_numpy(np.float64) > scope.max_score) | problems)


def _check_sets(checked: _Checked) -> SetsCheck:
    scored, sets = checked.scored, checked.limits.prediction_sets
    members = sets.members(checked.probs, DEFAULT_LEVEL)  # (N, C)
    covered = members[np.arange(len(scored)), scored.targets].astype(np.float64)
    sizes = members.sum(axis=1)
    unsupported = sets.unsupported(DEFAULT_LEVEL)
    classes = {}
    for target, name in enumerate(scored.class_names):
        own = (scored.targets == target).astype(np.float64)
        classes[name] = ClassCoverage(
            calibration_lesions=sets.num_lesions[target],
            in_every_set=bool(unsupported[target]),
            num_lesions=checked.basis(own, name).num_lesions,
            coverage=checked.mean_of(covered, own, name),
        )
    return SetsCheck(
        level=DEFAULT_LEVEL,
        classes=classes,
        mean_size=float(checked.shares @ sizes),
        single=float(checked.shares @ (sizes == 1)),
        sizes=[float(checked.shares @ (sizes == size)) for size in range(1, len(classes) + 1)],
        coverage=checked.all(covered),
    )


def _check_abstention(checked: _Checked) -> AbstentionCheck:
    scored, abstention = checked.scored, checked.limits.abstention
    probs, targets = checked.probs, scored.targets
    answered = (probs.max(axis=1) >= abstention.min_confidence).astype(np.float64)
    wrong = (probs.argmax(axis=1) != targets).astype(np.float64)
    curve = risk_coverage(probs, targets, scored.lesions)
    points = np.unique(np.linspace(0, len(scored) - 1, _CURVE_POINTS).round().astype(int))
    area = float(area_under(probs, targets, checked.shares[None])[0])
    risk = None
    if answered.any():
        risk = checked.mean(wrong, answered, checked.basis(answered))
    return AbstentionCheck(
        stated_risk=abstention.risk,
        confidence=CONFIDENCE,
        min_confidence=abstention.min_confidence,
        coverage=checked.all(answered),
        risk=risk,
        aurc=interval_of(
            area,
            area_under(probs, targets, checked.drawn),
            replace(checked.basis(), is_share=False),
        ),
        curve=RiskCoverage(
            coverage=[curve.coverage[i] for i in points], risk=[curve.risk[i] for i in points]
        ),
    )


def _check_scope(checked: _Checked) -> ScopeCheck | None:
    scope, table = checked.limits.scope, checked.scored.table
    if scope is None or "scope_score" not in table:
        return None
    problems = table["photo_problem"].to_numpy(np.float64) > 0
    alarms = out_of_scope(checked.scored, checked.limits)
    return ScopeCheck(
        kind=scope.kind,
        max_score=scope.max_score,
        fitted_false_alarm_rate=scope.false_alarm_rate,
        false_alarm_rate=checked.all(alarms.astype(np.float64)),
        photo_problems=float(checked.shares @ problems),
    )


def _check_referral(checked: _Checked) -> ReferralCheck | None:
    scored, referral = checked.scored, checked.limits.referral
    if referral is None:
        return None
    malignancy = checked.probs[:, scored.malignant].sum(axis=1)
    is_malignant = scored.is_malignant.astype(np.float64)
    levels = []
    for level in _SENSITIVITIES:
        if (column := referral.column(level)) is None:
            break
        flagged = (malignancy >= referral.min_probs[column]).astype(np.float64)
        levels.append(
            SensitivityCheck(
                level=level,
                min_prob=referral.min_probs[column],
                fitted_specificity=referral.specificities[column],
                sensitivity=checked.mean_of(flagged, is_malignant, "malignant"),
                specificity=checked.mean_of(1 - flagged, 1 - is_malignant, "benign"),
            )
        )
    missing = [level for level in LEVELS if referral.column(level) is None]
    return ReferralCheck(
        confidence=referral.confidence,
        num_malignant=referral.num_malignant,
        num_benign=referral.num_benign,
        levels=levels,
        lacking=referral.lacking(missing[0]) if missing else "",
    )
