"""Numbers in words, for the report and the cards alike: titles, intervals, gaps, templates.

Never imports torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from dermalyze.evaluation.text import (
    TITLES,
    count,
    listed,
    number,
    p_value,
    percent,
    things,
    title_of,
)
from dermalyze.evaluation.uncertainty.limits import MIN_SPECIFICITY
from serving.uncertainty import DEFAULT_SENSITIVITY

if TYPE_CHECKING:  # what these words are about
    from dermalyze.evaluation.evaluate import Evaluation
    from dermalyze.evaluation.statistics.bootstrap import Interval
    from dermalyze.evaluation.uncertainty.limits import AbstentionCheck, ReferralCheck
MIN_ANSWERED = 0.2  # share of a left-out source; below it the error rate of the answers says little
CALIBRATION = {
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "reliability": "reliability (lower is better)",
    "resolution": "resolution (higher is better)",
    "uncertainty": "uncertainty (of the data)",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "classwise_ece": "class-wise ECE",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number as it is printed: what it is, its bounds, or why it has none."""

    value: str
    bounds: str  # empty where there are none
    reason: str  # why a number or its bounds are missing


MISSING = Cell(value="-", bounds="", reason="")


def cell(interval: "Interval | None") -> Cell:
    """Print an interval; None where there is none."""
    if interval is None:
        return MISSING
    value = number(interval.estimate)
    if interval.low is None or interval.high is None:
        return Cell(value=value, bounds="", reason=interval.reason)
    return Cell(value=value, bounds=f"{number(interval.low)} to {number(interval.high)}", reason="")


def in_words(interval: "Interval | None") -> str:
    """Print an interval as one phrase: 0.700 (0.651 to 0.743)."""
    printed = cell(interval)
    if printed.bounds:
        return f"{printed.value} ({printed.bounds})"
    return f"{printed.value} (no interval: {printed.reason})" if printed.reason else printed.value


def headlines(evaluation: "Evaluation") -> list[tuple[str, Cell]]:
    """Return the metrics of all classes together: title and number, those that there are."""
    known = evaluation.intervals
    return [(title, cell(known[name])) for name, title in TITLES.items() if name in known]


def reasons(rows: Sequence[tuple[str, Sequence[Cell]]]) -> list[str]:
    """Say of each row with a missing interval why, each reason once."""
    said: dict[str, None] = {}
    for name, cells in rows:
        for printed in cells:
            if printed.reason:
                said[f"{name}: {printed.reason}"] = None
    return list(said)


def gap_sentences(evaluation: "Evaluation") -> list[str]:
    """Say of each attribute which groups are furthest apart and whether that is a finding."""
    subgroups = evaluation.subgroups
    metric, level = title_of(subgroups.metric), percent(evaluation.level)
    sentences = []
    for gap in subgroups.gaps:
        verdict = (
            "Statistically significant: chance alone would seldom produce a difference this large."
            if gap.finding
            else "Not statistically significant."
        )
        bounds = ""
        if gap.low is not None and gap.high is not None:
            bounds = f"{level} interval {number(gap.low)} to {number(gap.high)}; "
        classes = f" over {listed(gap.classes)}" if gap.classes else ""
        sentences.append(
            f"{gap.attribute}: {metric}{classes} is {number(gap.difference)} higher for "
            f"{gap.highest} than for {gap.lowest} ({bounds}{p_value(gap.p_adjusted)} "
            f"after correction for several tests). {verdict}"
        )
    told = {gap.attribute for gap in subgroups.gaps}
    return sentences + [
        f"{attribute}: no gap reported, because fewer than two groups are large enough."
        for attribute in dict.fromkeys(group.attribute for group in subgroups.groups)
        if attribute not in told
    ]


def elsewhere_sentences(evaluation: "Evaluation") -> list[str]:
    """Say which source was left out, and what the model is worth there; empty: none was."""
    elsewhere, unit = evaluation.elsewhere, evaluation.group_by
    if elsewhere is None:
        return []
    sentences = [
        f"All {evaluation.split} images are from the left-out source {elsewhere.source}, and "
        "nothing was fitted on them: no weights, no best epoch, no calibration, no limits."
    ]
    enough = f"at least {things(elsewhere.min_lesions, 'lesion')} in this source"
    if mean := evaluation.intervals.get("balanced_accuracy_elsewhere"):
        sentences.append(
            f"Balanced accuracy elsewhere: {in_words(mean)}, over {len(elsewhere.classes)} of "
            f"{len(evaluation.taxonomy)} classes, those with {enough}: {listed(elsewhere.classes)}."
        )
    else:
        sentences.append(f"No balanced accuracy elsewhere is stated: no class has {enough}.")
    if evaluation.limits is not None:
        sets, check = evaluation.limits.prediction_sets, evaluation.limits.abstention
        sentences += [
            f"Share of {unit}s answered: {in_words(check.coverage)}; error rate among them: "
            f"{error_rate(check, MIN_ANSWERED)}.",
            f"Coverage of prediction sets at {percent(sets.level)}, all classes together: "
            f"{in_words(sets.coverage)}.",
        ]
    return sentences


def referral_sentences(check: "ReferralCheck", unit: str) -> list[str]:
    """Say what the referral flag promises, whether it is of use, and which levels it lacks."""
    lesions = f"malignant and {things(check.num_benign, f'benign {unit}')}"
    sentences = [
        f"The flag promises a sensitivity for malignant {unit}s, with {percent(check.confidence)} "
        f"confidence for {unit}s like those it was fitted on "
        f"({check.num_malignant:,} {lesions})."
    ]
    if (found := check.at(DEFAULT_SENSITIVITY)) is not None and found.specificity is not None:
        verdict = "is of use" if check.is_useful else "is of little use"
        sentences.append(
            f"At {percent(found.level)} the flag {verdict}: its specificity here is "
            f"{in_words(found.specificity)}; of use means at least {number(MIN_SPECIFICITY)}."
        )
    if check.lacking:
        sentences.append(f"{check.lacking[0].upper()}{check.lacking[1:]}.")
    return sentences


def error_rate(check: "AbstentionCheck", min_answered: float) -> str:
    """Print how often answers are wrong, unless less than a share of the lesions is answered."""
    if check.risk is None or check.coverage.estimate < min_answered:
        return "not answered"
    return in_words(check.risk)


def group_columns(evaluation: "Evaluation") -> list[str]:
    """Return the names of the metrics that subgroups have, the one of the gaps first."""
    subgroups = evaluation.subgroups
    names = {subgroups.metric: None}
    names |= {name: None for group in subgroups.groups for name in group.intervals}
    return list(names)


def html(template: str, values: Mapping[str, object]) -> str:
    """Fill an HTML template; every value is escaped."""
    return _environment(autoescape=True).get_template(template).render(values)


def markdown(template: str, values: Mapping[str, object]) -> str:
    """Fill a Markdown template; what Markdown or HTML would take for markup is escaped."""
    return _environment(finalize=_plain).get_template(template).render(values)


def _plain(value: object) -> str:
    """Put a backslash before what is markup inside a line or a cell of a table."""
    return re.sub(r"([\\|`*\[\]<>])", r"\\\1", " ".join(str(value).split()))


def _environment(**options: Any) -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    made.filters |= {
        "number": number,
        "count": count,
        "things": things,
        "in_words": in_words,
        "cell": cell,
        "percent": percent,
        "title_of": title_of,
    }
    return made
