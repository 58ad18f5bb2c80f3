"""What a model is worth on another source's images, and how much less than on its own.

Inside are images of the model's own source, outside are those of the other one; nothing is fitted
on the latter.  N images, C classes, R replicates.  Never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.evaluation.metrics.classification import Counts, Floats, replicated
from dermalyze.evaluation.metrics.roc import divided
from dermalyze.evaluation.predictions import group_numbers
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import (
    MIN_LESIONS,
    RAISED,
    REPLICATES,
    Basis,
    Interval,
    interval_of,
    lesion_weights,
    rests_on,
)
from dermalyze.evaluation.statistics.comparison import LOWER_IS_BETTER, compared
from dermalyze.evaluation.text import title_of
from dermalyze.evaluation.uncertainty.calibrators import (
    correct_priors,
    estimate_priors,
    parse_prevalence,
)
from dermalyze.evaluation.uncertainty.limits import Limits, limit_shares
from dermalyze.evaluation.uncertainty.out_of_distribution import lesion_shares
from serving.errors import ConfigError

RATES = {  # of the limits -> title
    "set_coverage": "coverage of prediction sets",
    "set_size": "classes per prediction set",
    "answered": "share answered",
    "answered_error": "error rate among answered",
    "out_of_scope": "share called out of scope",
    "referral_sensitivity": "referral: sensitivity (95% stated)",
    "referral_specificity": "referral: specificity",
}
_LOWER_IS_BETTER = (*LOWER_IS_BETTER, "set_size", "answered_error", "out_of_scope")
COMMON = "balanced_accuracy_common"  # of the classes with enough lesions on both sides
KNOWN, UNKNOWN = "all classes of the model", "all classes that the model lacks"


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A metric inside and outside, and how much worse it is outside; below 0: better."""

    metric: str
    title: str
    inside: Interval | None  # None: there are no predictions of inside
    outside: Interval
    drop: Interval | None


@dataclass(frozen=True, kw_only=True)
class AtPrevalence:
    """The same where classes are as common as stated, probabilities corrected to that end."""

    stated: dict[str, float]  # share of each class, by name
    source: str  # given, labels or estimate
    drops: tuple[Drop, ...]


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What the model decides about the images of one label, or of several together."""

    label: str
    class_name: str  # the class of the model that it is; empty: the model lacks it
    num_images: int
    out_of_scope: Interval  # shares of the images
    uncertain: float
    answered: float


@dataclass(frozen=True, kw_only=True)
class External:
    """A model on images of another source."""

    name: str
    inside: str  # the split that it is compared with, in words; empty: none is at hand
    probabilities: str  # what they are, in words
    class_map: dict[str, str]  # the source's label -> class of the model; empty: it lacks it
    absent: tuple[str, ...]  # classes of the model that no image shows
    excluded: dict[str, int]  # why -> how many images
    unchecked: tuple[str, ...]  # what could not be checked, a sentence each
    drops: tuple[Drop, ...]
    at_prevalence: AtPrevalence | None = None
    decisions: tuple[Decided, ...] = ()  # of each label; those together at the end

    def logged(self) -> dict[str, float]:
        """Return what a run logs beside the metrics: drops, and rates of both kinds of classes."""
        found: dict[str, float] = {}
        for drop in self.drops:
            if drop.metric in RATES or drop.metric == COMMON:
                found[drop.metric] = drop.outside.estimate
            if drop.drop is not None:
                found |= _bounded(f"{drop.metric}_drop", drop.drop)
        for decided in self.decisions:
            if decided.label in (KNOWN, UNKNOWN):
                kind = "known" if decided.label == KNOWN else "unknown"
                found |= _bounded(f"out_of_scope_{kind}", decided.out_of_scope)
        return found


@dataclass(frozen=True, kw_only=True)
class Side:
    """Images inside or outside, and how the model answers there."""

    scored: Scored  # N images, with the logits as the network gives them
    limits: Limits | None  # of the model; None: it has none
    trained: Floats | None = None  # fractions (C,) of the classes that training made it see
    stated: Floats | None = None  # class fractions (C,) in use; None: those of the images

    def answers(self) -> Scored:
        """Return the images with the logits of the probabilities that the model gives."""
        logits: Floats = self.scored.logits.astype(np.float64)
        if self.limits is not None:
            logits = self.limits.calibrated(logits)
        if self.stated is not None and self.trained is not None:
            logits = correct_priors(logits, self.trained, self.stated)
        return self.scored.with_logits(logits)

    def case_weights(self) -> Floats:
        """Return how much each image counts (N,), so that classes are as common as stated."""
        counts = np.bincount(self.scored.targets, minlength=len(self.scored.taxonomy))
        if self.stated is None:
            return np.ones(len(self.scored))
        share = np.divide(self.stated, counts, out=np.zeros(len(counts)), where=counts > 0)
        weights = share[self.scored.targets]
        return np.asarray(weights / weights.mean())

    def classes(self, min_lesions: int) -> Counts:
        """Return the classes that occur, with at least so many lesions."""
        pairs = np.unique(np.stack([self.scored.targets, self.scored.lesions]), axis=1)
        counts = np.bincount(pairs[0], minlength=len(self.scored.taxonomy))
        return np.flatnonzero(counts >= min_lesions)

    def of_classes(self, targets: NDArray[np.integer]) -> "Side":
        """Return the images of some classes alone."""
        return replace(self, scored=self.scored.take(np.isin(self.scored.targets, targets)))


def drops(inside: Side | None, outside: Side, *, replicates: int = REPLICATES) -> tuple[Drop, ...]:
    """Compare inside with outside, each metric over the classes that both have.

    The two are other lesions, so their bootstrap samples are drawn independently of each other.
    """
    present = outside.classes(1)
    if inside is not None and len(shared := np.intersect1d(present, inside.classes(1))):
        inside = inside.of_classes(shared)
        enough = np.intersect1d(inside.classes(MIN_LESIONS), outside.classes(MIN_LESIONS))
    else:
        inside, enough = None, outside.classes(MIN_LESIONS)
    mean = ("balanced_accuracy",)
    theirs = _values(outside, replicates, seed=0)
    ours = {} if inside is None else _values(inside, replicates, seed=1)
    if 1 < len(enough) < len(present):  # else the rarest class leaves the mean without an interval
        for side, values, seed in ((outside, theirs, 0), (inside, ours, 1)):
            if side is not None:
                values[COMMON] = _values(side.of_classes(enough), replicates, seed, mean)[mean[0]]
    titles = RATES | {
        COMMON: f"balanced accuracy ({len(enough)} classes with {MIN_LESIONS}+ "
        f"{outside.scored.group_by}s)"
    }
    found = []
    for name, (estimate, drawn, basis) in theirs.items():
        before = change = None
        if name in ours:
            own, own_drawn, own_basis = ours[name]
            before = _interval(name, own, own_drawn, own_basis)
            sign = -1 if name in _LOWER_IS_BETTER else 1
            rarer = min(basis, own_basis, key=lambda basis: basis.num_lesions)
            change = _interval(
                name,
                sign * (own - estimate),
                sign * (own_drawn - drawn),
                replace(rarer, is_share=False),
            )
        found.append(
            Drop(
                metric=name,
                title=titles.get(name) or title_of(name, outside.scored.taxonomy),
                inside=before,
                outside=_interval(name, estimate, drawn, basis),
                drop=change,
            )
        )
    return tuple(found)


def at_prevalence(
    text: str, inside: Side | None, outside: Side, *, replicates: int = REPLICATES
) -> AtPrevalence:
    """Compare them where classes are as common as stated.

    Args:
        text: mel=0.02,nv=0.9; labels: as common as outside; estimate: the same without labels.
        inside: of the model's own source.
        outside: of the other source.
        replicates: bootstrap samples.

    Raises:
        ConfigError: it is not known how common the classes were in training, or the text is none
            of these.
    """
    taxonomy = outside.scored.taxonomy
    if outside.trained is None:
        raise ConfigError(
            "--prevalence needs the class shares used in training, which the model file does not "
            "contain; pass --run-id, or keep the file in the folder of its run"
        )
    if text == "labels":
        counts = np.bincount(outside.scored.targets, minlength=len(taxonomy))
        stated = counts / counts.sum()
    elif text == "estimate":
        stated = estimate_priors(outside.answers().logits, outside.trained)
    else:
        stated = parse_prevalence(text, taxonomy)
    sides = [None if side is None else replace(side, stated=stated) for side in (inside, outside)]
    assert sides[1] is not None
    return AtPrevalence(
        stated=dict(zip(taxonomy.names, np.asarray(stated).tolist(), strict=True)),
        source=text if text in ("labels", "estimate") else "given",
        drops=drops(sides[0], sides[1], replicates=replicates),
    )


def decisions_of(
    rows: pd.DataFrame, class_map: Mapping[str, str], *, replicates: int = REPLICATES
) -> tuple[Decided, ...]:
    """Count what the model decides about each label, and about all that it knows and lacks.

    Args:
        rows: `their_label`, `decision` and the columns of a manifest.
        class_map: the source's label -> class of the model; empty: it lacks it.
        replicates: bootstrap samples.
    """
    known = rows["their_label"].map(class_map) != ""
    parts = [(label, class_map[label], rows["their_label"] == label) for label in class_map]
    parts += [(KNOWN, KNOWN, known), (UNKNOWN, "", ~known)]
    return tuple(
        _decided(rows[chosen], label, class_name, replicates)
        for label, class_name, chosen in parts
        if chosen.any()
    )


def _decided(rows: pd.DataFrame, label: str, class_name: str, replicates: int) -> Decided:
    groups = group_numbers(rows)
    outside = (rows["decision"] == "out_of_scope").to_numpy(np.float64)
    weights = lesion_weights(groups, replicates, 0)
    basis = Basis(num_lesions=int(groups.max()) + 1, is_share=True)
    drawn = weights @ outside / weights.sum(axis=1)
    return Decided(
        label=label,
        class_name=class_name,
        num_images=len(rows),
        out_of_scope=interval_of(float(outside.mean()), drawn, basis),
        uncertain=float((rows["decision"] == "uncertain").mean()),
        answered=float((rows["decision"] == "answer").mean()),
    )


def _values(
    side: Side, replicates: int, seed: int, only: tuple[str, ...] = ()
) -> dict[str, tuple[float, Floats, Basis]]:
    """Return each metric, or some, once, for each replicate (R,), and what it rests on."""
    answers, cases = side.answers(), side.case_weights()[None]
    draws = lesion_weights(answers.lesions, replicates, seed)
    once, drawn = (
        replicated(answers, weights, with_curves=not only) for weights in (cases, draws * cases)
    )
    found = {}
    for name in only or _metrics(answers):
        if np.isfinite(once[name][0]):
            found[name] = float(once[name][0]), drawn[name], rests_on(answers, name)
    if side.limits is None or only:
        return found
    shares = cases * lesion_shares(answers.lesions)
    for name, (values, chosen) in limit_shares(answers, side.limits).items():
        basis = Basis(
            num_lesions=len(np.unique(answers.lesions[chosen])),
            unit=answers.group_by,
            is_share=name != "set_size",
        )
        if chosen.any():
            (estimate,), means = (
                _means(values, chosen * weights) for weights in (shares, draws * shares)
            )
            found[name] = float(estimate), means, basis
    return found


def _metrics(answers: Scored) -> Sequence[str]:
    present = np.unique(answers.targets)
    keys = [answers.taxonomy.keys[target] for target in present]
    names = [*compared(answers), "ece", *(f"recall/{k}" for k in keys), *(f"auc/{k}" for k in keys)]
    return list(dict.fromkeys(names))


def _means(values: Floats, weights: Floats) -> Floats:
    totals = weights.sum(axis=1)
    return divided(weights @ values, totals)


def _interval(name: str, estimate: float, drawn: Floats, basis: Basis) -> Interval:
    found = interval_of(estimate, drawn, basis)
    return replace(found, low=None, high=None, reason=RAISED) if name == "ece" else found


def _bounded(name: str, interval: Interval) -> dict[str, float]:
    bounds = {"_low": interval.low, "_high": interval.high}
    return {name: interval.estimate} | {
        name + end: value for end, value in bounds.items() if value is not None
    }
