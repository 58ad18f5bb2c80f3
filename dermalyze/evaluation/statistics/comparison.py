"""Two or more models on the same test images: paired differences, intervals and tests.

N images, R replicates.  Both models are scored on the same drawn lesions, so what makes a lesion
hard for both drops out of the difference.  Never imports torch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dermalyze.evaluation.metrics.classification import (
    Floats,
    commonest_malignant,
    needs_curves,
    plain,
    replicated,
)
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import (
    LEVEL,
    MIN_LESIONS,
    REPLICATES,
    interval_of,
    lesion_weights,
    rests_on,
)
from dermalyze.evaluation.statistics.multiple_testing import holm
from dermalyze.evaluation.statistics.paired_tests import McNemar, mcnemar, paired
from dermalyze.evaluation.text import (
    count,
    number,
    p_value,
    padded,
    percent,
    things,
    title_of,
    width_of,
)
from serving.errors import DataError, one_line

LOWER_IS_BETTER = ("loss", "balanced_loss", "brier", "ece")
SIGNIFICANCE = 0.05  # a finding has a smaller corrected p-value


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much higher a metric of b is than that of a; None where it is not defined."""

    metric: str
    estimate_a: float | None
    estimate_b: float | None
    difference: float | None  # b - a, whichever is better
    low: float | None
    high: float | None
    reason: str = ""  # why there are no bounds
    title: str  # of the metric, with the class as the data names it


@dataclass(frozen=True, kw_only=True)
class Versus:
    """One model against the reference."""

    name: str
    differences: tuple[Difference, ...]  # a is the reference
    mcnemar: McNemar


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models against the first of them, on the same images."""

    reference: str
    num_images: int
    num_lesions: int
    replicates: int
    versus: tuple[Versus, ...]
    level: float = LEVEL
    group_by: str = "lesion"  # or patient, or image: what the intervals draw

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Noninferior:
    """Whether a candidate is no worse than a reference by more than a margin."""

    metric: str
    difference: float  # candidate - reference, whichever is better
    bound: float  # of the difference, towards worse, one-sided; infinite where it cannot be had
    margin: float  # above 0
    holds: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class _Values:
    """Every metric of a model, once and for each replicate."""

    once: dict[str, float]
    drawn: dict[str, Floats]  # (R,)


def compare(
    names: Sequence[str],
    scoreds: Sequence[Scored],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    metrics: Sequence[str] = (),
) -> Comparison:
    """Compare models with the first of them, by `compared` or by other metrics.

    Raises:
        DataError: there is one alone, they are not for the same images, or a metric is not known.
    """
    if len(scoreds) < 2:
        raise DataError(f"there is nothing to compare {', '.join(names)} with; expected two runs")
    reference = scoreds[0]
    metrics = metrics or compared(reference)
    values = _values(reference, metrics, replicates, seed)
    found = []
    for name, scored in zip(names[1:], scoreds[1:], strict=True):
        try:
            _, other = paired(reference, scored)
        except DataError as error:
            raise DataError(f"{name} cannot be compared with {names[0]}: {error}") from error
        others = _values(other, metrics, replicates, seed)
        differences = tuple(_difference(reference, metric, values, others) for metric in metrics)
        found.append(Versus(name=name, differences=differences, mcnemar=mcnemar(reference, other)))
    adjusted = holm([versus.mcnemar.lesion_p_value for versus in found])
    return Comparison(
        reference=names[0],
        num_images=len(reference),
        num_lesions=reference.num_lesions,
        replicates=replicates,
        group_by=reference.group_by,
        versus=tuple(
            replace(
                versus,
                mcnemar=replace(
                    versus.mcnemar, lesion_p_adjusted=value, finding=value < SIGNIFICANCE
                ),
            )
            for versus, value in zip(found, adjusted, strict=True)
        ),
    )


def compared(scored: Scored) -> list[str]:
    """Return what models are compared by: with malignant classes also by these.

    One of them, the most common, has its sensitivity among them.  Without ece, which resampling
    raises: its interval would miss the truth.
    """
    metrics = ["balanced_accuracy", "accuracy", "macro_f1", "macro_auc", "mcc"]
    if (key := commonest_malignant(scored)) is not None:
        metrics += [f"recall/{key}", "malignant_auc"]
        metrics += ["malignant_sensitivity", "malignant_specificity"]
    return [*metrics, "loss", "brier"]


def noninferior(
    candidate: Scored,
    reference: Scored,
    metric: str,
    *,
    margin: float,
    replicates: int = REPLICATES,
) -> Noninferior:
    """Say whether a candidate is no worse than a reference by as much as `margin`.

    It holds if the one-sided 95 % bound of candidate - reference rules that out: if its lower
    bound is above -margin where higher is better, its upper bound below margin where lower is.
    What rests on too few lesions does not hold, nor what shows no spread, unless both give the
    same logits.  The bound of ece is not an honest one, since resampling raises the smaller error
    more than the larger; brier and loss have one.  Piaggio et al., "Reporting of noninferiority and
    equivalence randomized trials", JAMA 308 (2012).

    Raises:
        DataError: they are not for the same images, or the metric is not known or not defined.
    """
    reference, candidate = paired(reference, candidate)
    ours, theirs = (
        _values(scored, [metric], replicates, seed=0) for scored in (reference, candidate)
    )
    found = _difference(reference, metric, ours, theirs, level=2 * LEVEL - 1)
    higher_is_better = metric not in LOWER_IS_BETTER
    if found.difference is None:
        raise DataError(f"{metric} {found.reason}; choose another metric")
    bound, reason = found.low if higher_is_better else found.high, found.reason
    enough = rests_on(reference, metric).num_lesions >= MIN_LESIONS
    if enough and np.array_equal(reference.logits, candidate.logits):
        bound = 0.0
    side = "lower" if higher_is_better else "upper"
    limit = f"{side} {percent(LEVEL)} bound"
    if bound is None:
        bound, limit = -np.inf if higher_is_better else np.inf, f"no {limit}: {reason}"
    else:
        limit = f"{limit} {number(bound)}"
    holds = bool(bound > -margin if higher_is_better else bound < margin)
    direction = "higher" if found.difference > 0 else "lower"
    amount = f"{number(abs(found.difference))} {direction}" if found.difference else "the same"
    verdict = "not worse" if holds else "may be worse"
    return Noninferior(
        metric=metric,
        difference=found.difference,
        bound=bound,
        margin=margin,
        holds=holds,
        sentence=f"{metric} is {amount} ({limit}, margin {number(margin)}): {verdict}",
    )


def table(comparison: Comparison) -> str:
    """Lay a comparison out for a terminal."""
    lines = [
        f"reference {comparison.reference}; {things(comparison.num_images, 'image')} of "
        f"{things(comparison.num_lesions, comparison.group_by)}; {percent(LEVEL)} intervals from "
        f"{count(comparison.replicates)} bootstrap samples of {comparison.group_by}s"
    ]
    for versus in comparison.versus:
        titles = [one_line(found.title) for found in versus.differences]
        width = max(map(width_of, titles), default=0) + 2
        lines += ["", f"{versus.name} - {comparison.reference}"]
        lines.append(f"{'':<{width}}{'reference':>11}{'run':>9}{'difference':>12}   interval")
        lines += [
            f"{padded(title, width)}{_row(found)}"
            for title, found in zip(titles, versus.differences, strict=True)
        ]
        test = versus.mcnemar
        runs = len(comparison.versus)
        corrected = f", {p_value(test.lesion_p_adjusted)} for {runs} runs" if runs > 1 else ""
        lines += [
            f"right where the other is wrong: the run on {things(test.only_other, 'image')}, the "
            f"reference on {things(test.only_reference, 'image')}",
            f"McNemar {p_value(test.p_value)} if images were independent; by {comparison.group_by} "
            f"{p_value(test.lesion_p_value)}{corrected}: "
            + ("significant" if test.finding else "not significant"),
        ]
    lines += [
        "",
        "intervals are not corrected for their number: some exclude 0 by chance alone",
    ]
    return "\n".join(lines)


def _row(found: Difference) -> str:
    if found.estimate_a is None or found.estimate_b is None or found.difference is None:
        return f"{'-':>11}{'-':>9}{'-':>12}   {found.reason}"
    bounds = found.reason
    if found.low is not None and found.high is not None:
        bounds = f"{found.low:+.3f} to {found.high:+.3f}"
    return f"{found.estimate_a:>11.3f}{found.estimate_b:>9.3f}{found.difference:>+12.3f}   {bounds}"


def _values(scored: Scored, metrics: Sequence[str], replicates: int, seed: int) -> _Values:
    weights = lesion_weights(scored.lesions, replicates, seed)
    with_curves = any(needs_curves(metric) for metric in metrics)
    return _Values(
        once=plain(scored),
        drawn=replicated(scored, weights, with_curves=with_curves),
    )


def _difference(
    reference: Scored, metric: str, a: _Values, b: _Values, level: float = LEVEL
) -> Difference:
    if metric not in a.once:
        stems = (name.partition("/") for name in a.once)
        known = dict.fromkeys(stem + (slash and "/<class>") for stem, slash, _ in stems)
        raise DataError(f"there is no metric {metric!r}; expected one of {', '.join(known)}")
    basis = replace(rests_on(reference, metric), is_share=False)  # a difference is no share
    title = title_of(metric, reference.taxonomy)
    estimates = [values.once[metric] for values in (a, b)]
    if not np.isfinite(estimates).all():
        ours, theirs = (value if np.isfinite(value) else None for value in estimates)
        return Difference(
            metric=metric,
            title=title,
            estimate_a=ours,
            estimate_b=theirs,
            difference=None,
            low=None,
            high=None,
            reason=f"not defined: {basis.in_words()}",
        )
    difference, drawn = estimates[1] - estimates[0], b.drawn[metric] - a.drawn[metric]
    interval = interval_of(difference, drawn, basis, level)
    return Difference(
        metric=metric,
        title=title,
        estimate_a=estimates[0],
        estimate_b=estimates[1],
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        reason=interval.reason,
    )
