"""The answers of a service compared with validation images, and what they are probably worth.

N answers, C classes.  Never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from dermalyze.data.table_columns import read_file
from dermalyze.evaluation.drift import (
    MIN_REQUESTS,
    Look,
    Observed,
    look_once,
    looks_at,
    not_compared,
)
from dermalyze.evaluation.estimated_performance import Estimate, estimate_performance
from dermalyze.evaluation.metrics.classification import Counts, Floats
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import Interval, intervals
from dermalyze.evaluation.text import listed, things
from serving.errors import DataError
from serving.monitoring import Monitoring
from serving.prediction_log import Entry
from serving.table_files import read_table
from serving.taxonomy import Taxonomy

_RARE = 1e-12  # logits of a lower probability would be infinite
_UNKNOWN = -1  # the class of an answer without a diagnosis
_REPLICATES = 1000


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model whose answers are looked at, and what its validation images were like."""

    name: str  # in words
    taxonomy: Taxonomy
    known: Monitoring | None  # None: nothing can be compared
    logged_as: str  # of `model_name`: all of it, or a run and a colon


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the answers were worth, by later diagnoses."""

    num_labelled: int
    num_requests: int
    metrics: dict[str, Interval]  # by name


@dataclass(frozen=True, kw_only=True)
class Monitored:
    """What a log says of a model."""

    reference: Reference
    num_answers: int
    num_requests: int
    looks: list[Look]  # empty: no week is over yet
    estimates: list[Estimate | None]  # of each look; None: too few answers
    estimate: Estimate | None  # of all answers
    truth: Truth | None
    notes: list[str]  # what else to know, in sentences

    @property
    def latest(self) -> Look | None:
        """The last look, which raises the alarm."""
        return self.looks[-1] if self.looks else None

    @property
    def is_alarm(self) -> bool:
        """Say whether something has changed."""
        return self.latest is not None and bool(self.latest.alarms)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to look."""

    today: date  # UTC; its week is not over
    days: int = 7  # between two looks
    is_single: bool = False  # one look at all answers instead


def monitor(
    entries: Sequence[Entry], reference: Reference, schedule: Schedule, truth: Path | None = None
) -> Monitored:
    """Look at the answers of one model.

    Args:
        entries: of a log.
        reference: the model.
        schedule: when to look.
        truth: a CSV of later diagnoses: request_id, label and, where a request had several
            images, image.

    Raises:
        DataError: the log has no answer of this model, or the diagnoses cannot be used.
    """
    names, notes = reference.taxonomy.names, []
    own = [
        entry
        for entry in entries
        if entry.model.startswith(reference.logged_as) and tuple(entry.probabilities) == names
    ]
    others = sorted({entry.model for entry in entries} - {entry.model for entry in own})
    if not own:
        raise DataError(
            f"the log has no answer of {reference.name}; it has {listed(others) or 'none at all'}; "
            "pass the run or file of one of these as --reference"
        )
    if others:
        number = things(len(entries) - len(own), "answer")
        notes.append(f"Left out: {number} of other models ({listed(others)}).")
    own.sort(key=lambda entry: entry.time)
    targets = np.full(len(own), _UNKNOWN)
    if truth is not None:
        targets, unknown = _targets(own, truth, reference.taxonomy)
        if unknown:
            notes.append(
                f"Left out: {things(unknown, 'row')} of --truth for no answer of this log."
            )
    observed = _observed(own, targets, names)
    looks: list[Look] = []
    if reference.known is None:
        notes.append(
            "Nothing is compared with validation images: the model file does not describe them; "
            "pass its run as --reference, or export the model again."
        )
    elif schedule.is_single:
        looks = [look_once(observed, reference.known, names)]
    else:
        looks = looks_at(observed, reference.known, names, schedule.today, schedule.days)
    if reference.known is not None:
        notes += not_compared(reference.known, observed)
        if not looks:
            notes.append("No week is over yet, so there was no look; --once looks at all answers.")
        elif not looks[-1].findings:
            notes.append(f"The last look saw fewer than {MIN_REQUESTS} requests: nothing is said.")
    return Monitored(
        reference=reference,
        num_answers=len(own),
        num_requests=len(np.unique(observed.requests)),
        looks=looks,
        estimates=[estimate_performance(observed.probs[_rows_of(observed, k)]) for k in looks],
        estimate=estimate_performance(observed.probs),
        truth=_truth(observed, targets, reference.taxonomy),
        notes=notes,
    )


def _observed(entries: Sequence[Entry], targets: Counts, names: Sequence[str]) -> Observed:
    probs = np.array([[entry.probabilities[name] for name in names] for entry in entries])
    predicted = np.array([names.index(entry.predicted_class) for entry in entries])
    _, requests = np.unique([entry.request_id for entry in entries], return_inverse=True)
    nan = float("nan")
    return Observed(
        probs=probs,
        predicted=predicted,
        scope_score=np.array([nan if e.scope_score is None else e.scope_score for e in entries]),
        photo_problem=np.array([nan if e.quality is None else bool(e.quality) for e in entries]),
        is_right=np.where(targets == _UNKNOWN, nan, predicted == targets),
        requests=requests,
        days=np.array([_day(entry) for entry in entries]),
    )


def _day(entry: Entry) -> int:
    return datetime.fromisoformat(entry.time).astimezone(UTC).toordinal()


def _rows_of(observed: Observed, look: Look) -> Counts:
    days = observed.days
    return np.flatnonzero((days >= look.first.toordinal()) & (days <= look.last.toordinal()))


def _targets(entries: Sequence[Entry], path: Path, taxonomy: Taxonomy) -> tuple[Counts, int]:
    """Return the class of each answer, and how many rows belong to none.

    Raises:
        DataError: the table cannot be used.
    """
    required = ("request_id", "label")
    try:
        table = read_table(read_file(path), path, required, ("image",))
    except ValueError as error:
        raise DataError(f"{path} is not a CSV table; expected request_id,label") from error
    if missing := [name for name in required if name not in table]:
        raise DataError(f"{path} lacks the column {missing[0]}; expected request_id,label[,image]")
    labels: dict[tuple[str, int], str] = {}
    images = table.get("image") or ["1"] * len(table["label"])
    for request_id, image, label in zip(table["request_id"], images, table["label"], strict=True):
        if label not in taxonomy.names:
            raise DataError(
                f"{path} has the label {label!r} for request {request_id}, expected one of "
                f"{', '.join(taxonomy.names)}"
            )
        if not image.isdecimal():
            raise DataError(
                f"{path} has the image {image!r} for request {request_id}, expected its number in "
                "the request, from 1"
            )
        key = request_id, int(image)
        if labels.setdefault(key, label) != label:
            raise DataError(f"{path} has two labels for image {image} of request {request_id}")
    if "image" not in table:
        several = {entry.request_id for entry in entries if entry.image > 1}
        if both := sorted(several & set(table["request_id"])):
            raise DataError(
                f"request {both[0]} had several images, and {path} does not say which is meant; "
                "add the column image, from 1"
            )
    found = [labels.get((entry.request_id, entry.image)) for entry in entries]
    known = {(entry.request_id, entry.image) for entry in entries}
    targets = [_UNKNOWN if label is None else taxonomy.names.index(label) for label in found]
    return np.array(targets), len(labels.keys() - known)


def _truth(observed: Observed, targets: Counts, taxonomy: Taxonomy) -> Truth | None:
    """Measure the answers whose class is known; None: there are none."""
    rows = targets != _UNKNOWN
    if not rows.any():
        return None
    _, requests = np.unique(observed.requests[rows], return_inverse=True)
    scored = Scored(
        taxonomy=taxonomy,
        logits=_logits(observed.probs[rows]),
        targets=targets[rows],
        table=pd.DataFrame(index=range(int(rows.sum()))),
        lesions=requests,
        group_by="request",
    )
    return Truth(
        num_labelled=len(scored),
        num_requests=scored.num_lesions,
        metrics=intervals(scored, replicates=_REPLICATES),
    )


def _logits(probs: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(probs, _RARE)))


def alarm_sentences(look: Look, titles: Mapping[str, str]) -> list[str]:
    """Say what has changed, one sentence per measure: its surest share."""
    sentences: dict[str, str] = {}
    for found in look.alarms:
        window = "" if found.num_looks == 1 else f" (up to {found.num_looks} looks together)"
        sentences.setdefault(
            found.measure,
            f"{titles[found.measure]}: {found.name} in {found.observed:.1%} of "
            f"{things(found.num_answers, 'answer')}, {found.expected:.1%} of the validation "
            f"images{window}",
        )
    return list(sentences.values())
