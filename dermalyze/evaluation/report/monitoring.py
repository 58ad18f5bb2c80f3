"""The page of what a service answered, its JSON, and the same as text for a terminal.

Never imports torch.
"""

import dataclasses
import json
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from dermalyze.evaluation.drift import FALSE_ALARMS, MEASURES, Finding, Look
from dermalyze.evaluation.monitoring import Monitored, alarm_sentences
from dermalyze.evaluation.report.figures import COLORS, over_looks, svg_address
from dermalyze.evaluation.report.text import cell, html, in_words
from dermalyze.evaluation.text import TITLES, listed, percent, things
from serving.atomic_write import write_text
from serving.os_errors import make_folder
from serving.taxonomy import DISCLAIMER

PAGE, NUMBERS = "monitoring.html", "monitoring.json"
_NUM_ALARMS = 12  # shown; the JSON has all


def write_monitored(folder: Path, found: Monitored) -> None:
    """Write the page and the numbers into a folder."""
    make_folder(folder)
    numbers = dataclasses.asdict(found) | {"is_alarm": found.is_alarm, "disclaimer": DISCLAIMER}
    numbers["reference"] = found.reference.name
    write_text(folder / NUMBERS, json.dumps(numbers, indent=1, default=str) + "\n")
    write_text(folder / PAGE, html("monitoring.html", _page(found)))


def format_monitored(found: Monitored) -> str:
    """Lay it out for a terminal."""
    lines = [_basis(found)]
    if found.latest is not None:
        alarms = alarm_sentences(found.latest, MEASURES)
        lines.append(f"last look {_days(found.latest)}: {_verdict(found)}")
        lines += [f"  {sentence}" for sentence in alarms]
    lines += _worth(found)
    return "\n".join([*lines, *found.notes])


def _page(found: Monitored) -> dict[str, Any]:
    latest, truth = found.latest, found.truth
    return {
        "disclaimer": DISCLAIMER,
        "found": found,
        "basis": _basis(found),
        "verdict": _verdict(found),
        "days": "" if latest is None else _days(latest),
        "sentences": [] if latest is None else alarm_sentences(latest, MEASURES),
        "false_alarms": percent(FALSE_ALARMS),
        "rows": [] if latest is None else _rows(latest),
        "classes": [] if latest is None else [f for f in latest.findings if _is_class(f)],
        "worth": _worth(found),
        "truth": [
            (title, cell(truth.metrics[name]))
            for name, title in TITLES.items()
            if truth is not None and name in truth.metrics
        ],
        "pictures": _pictures(found),
        "looks": [(_days(look), look, _alarms(look)) for look in reversed(found.looks)],
    }


def _pictures(found: Monitored) -> list[tuple[str, str]]:
    """Return what each picture shows, and the picture."""
    each = [{f.name: f.observed for f in look.findings if _is_class(f)} for look in found.looks]
    if sum(map(bool, each)) < 2:
        return []
    days, known = [look.last for look in found.looks], found.reference.known
    rows = [
        (nan, nan, nan) if e is None else (e.accuracy.estimate, e.accuracy.low, e.accuracy.high)
        for e in found.estimates
    ]
    accuracy = np.array(rows, np.float64).T
    lines = {"estimated accuracy": accuracy[0]}
    expected = None if known is None else known.accuracy
    band = accuracy[1], accuracy[2]
    names = [name for shares in each for name in shares]
    most = sorted(set(names), key=lambda name: -sum(shares.get(name, 0.0) for shares in each))
    shares = {name: [look.get(name, nan) for look in each] for name in most[: len(COLORS)]}
    return [
        ("Estimated accuracy", svg_address(over_looks(days, lines, expected, band))),
        ("Share of the most frequent classes", svg_address(over_looks(days, shares, None))),
    ]


def _alarms(look: Look) -> str:
    return listed([MEASURES[name] for name in dict.fromkeys(f.measure for f in look.alarms)])


def _is_class(found: Finding) -> bool:
    return found.measure == "predicted_class" and found.num_looks == 1


def _rows(look: Look) -> list[tuple[str, Finding]]:
    """Return the surest difference of each measure, and whether it is an alarm."""
    surest: dict[str, Finding] = {}
    for found in [*look.alarms, *sorted(look.findings, key=lambda found: found.p_value)]:
        surest.setdefault(found.measure, found)
    return [(title, surest[name]) for name, title in MEASURES.items() if name in surest]


def _basis(found: Monitored) -> str:
    answers = f"{things(found.num_answers, 'answer')} to {things(found.num_requests, 'request')}"
    return f"{answers} by {found.reference.name}"


def _verdict(found: Monitored) -> str:
    if found.latest is None or not found.latest.findings:
        return "nothing was compared"
    return "the answers have changed" if found.is_alarm else "no change was found"


def _worth(found: Monitored) -> list[str]:
    """Say what the answers are worth, a sentence each."""
    known, sentences = found.reference.known, []
    if found.estimates and (last := found.estimates[-1]) is not None:
        sentences.append(f"estimated accuracy at the last look: {in_words(last.accuracy)}")
    if (estimate := found.estimate) is not None:
        before = "" if known is None else f"; on validation images it was {known.accuracy:.3f}"
        sentences += [
            "estimated accuracy of all answers, without labels: "
            f"{in_words(estimate.accuracy)}{before}",
            f"estimated balanced accuracy: {in_words(estimate.balanced_accuracy)}",
        ]
    if (truth := found.truth) is not None:
        sentences.append(
            f"accuracy of {things(truth.num_labelled, 'answer')}, by later diagnoses: "
            f"{in_words(truth.metrics['accuracy'])}"
        )
    return sentences


def _days(look: Look) -> str:
    return f"{look.first} to {look.last}"
