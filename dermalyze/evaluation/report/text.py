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

if TYPE_CHECKING:  # what these words are about
    from dermalyze.evaluation.evaluate import Evaluation
    from dermalyze.evaluation.statistics.bootstrap import Interval
CALIBRATION = {
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "reliability": "reliability (less is better)",
    "resolution": "resolution (more is better)",
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
        f"{attribute}: no gap is stated, since fewer than two groups are large enough."
        for attribute in dict.fromkeys(group.attribute for group in subgroups.groups)
        if attribute not in told
    ]


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
        "percent": percent,
        "title_of": title_of,
    }
    return made
