"""Do the answers of a service still look like those on validation images?

Everything is asked as a share: of answers with a class, or with a value not above one that a known
share of the validation images is not above.  N answers, C classes, S shares, Q cuts.  Never
imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from dermalyze.evaluation.metrics.classification import Counts, Floats
from dermalyze.evaluation.scores import Scored
from serving.monitoring import Cuts, Monitoring
from serving.prediction import softmax

FALSE_ALARMS = 0.05  # share of years without any drift in which an alarm is raised
WINDOWS = (1, 4, 13)  # looks that are compared together; more of them find a slower drift
MEASURES = {
    "predicted_class": "share of a predicted class",
    "confidence": "confidence",
    "embedding": "embedding",
    "scope_score": "scope score",
    "photo_problem": "quality of the photograph",
    "is_right": "accuracy by later diagnoses",
}
MIN_REQUESTS = 30  # fewer say nothing about how much answers to one request are alike
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the validation images, not above a cut
_DAYS_OF_YEAR = 365
_SURE_SPREADS = 2.0  # below so many standard deviations a test need not be exact
_RARE = 1e-12  # the lowest probability that differs from others


@dataclass(frozen=True)
class Observed:
    """What a service answered to N images; nothing is known of what is NaN."""

    probs: Floats  # (N, C)
    predicted: Counts  # (N,)
    scope_score: Floats  # (N,)
    photo_problem: Floats  # (N,), 0 or 1
    is_right: Floats  # (N,), 0 or 1
    requests: Counts  # (N,), numbers
    days: Counts  # (N,), ordinals of `date`

    @property
    def confidence(self) -> Floats:
        """The probability of the predicted class, (N,)."""
        return np.asarray(self.probs.max(axis=1))

    def take(self, rows: NDArray[np.bool_]) -> "Observed":
        """Return some of them, a mask (N,)."""
        return Observed(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One share of a window, compared with that of validation images."""

    measure: str  # of `MEASURES`
    name: str  # which share it is, in words
    num_looks: int  # up to this many are in the window
    expected: float
    observed: float
    num_answers: int
    p_value: float
    is_alarm: bool


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen at the end of some days."""

    first: date
    last: date
    num_answers: int  # of these days
    num_requests: int
    findings: tuple[Finding, ...] = ()

    @property
    def alarms(self) -> list[Finding]:
        """The shares that have changed: those of the last days first, then the surest."""
        alarms = (found for found in self.findings if found.is_alarm)
        return sorted(alarms, key=lambda found: (found.num_looks, found.p_value))


def fit_monitoring(validation: Scored, temperature: float) -> Monitoring:
    """Sum up what the answers to validation images were like."""
    probs, table = softmax(validation.logits, temperature), validation.table
    confidence, embedding = probs.max(axis=1), embedding_of(probs)
    per_lesion = np.bincount(validation.lesions)
    scores = table["scope_score"].to_numpy(np.float64) if "scope_score" in table else None
    problems = table["photo_problem"].to_numpy(np.float64) if "photo_problem" in table else None
    num_classes = len(validation.taxonomy)
    predicted = np.bincount(probs.argmax(axis=1), minlength=num_classes)
    return Monitoring(
        # As if all images of a lesion had one answer: Kish, "Survey Sampling" (1965), 8.2.
        num_independent=max(1, int(len(probs) ** 2 / (per_lesion**2).sum())),
        class_shares=tuple((predicted / len(probs)).tolist()),
        mean_confidence=float(confidence.mean()),
        confidence=_cuts(confidence),
        embedding=tuple(_cuts(column) for column in embedding.T),
        scope_score=() if scores is None else _cuts(scores),
        photo_problems=None if problems is None else float(problems.mean()),
        accuracy=float((probs.argmax(axis=1) == validation.targets).mean()),
    )


def embedding_of(probs: Floats) -> Floats:
    """Return a projection of a network's last features: (N, C) -> (N, C).

    The last layer is one, fixed and in every model file; its logits are, but for a constant, the
    logarithms of probabilities.
    """
    logs = np.log(np.maximum(probs, _RARE))
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def _cuts(values: Floats) -> Cuts:
    """Choose a value per level, and measure the share that is not above it."""
    chosen = np.quantile(values, _LEVELS, method="inverted_cdf")
    return tuple((float(value), float((values <= value).mean())) for value in chosen)


def not_compared(known: Monitoring, observed: Observed) -> list[str]:
    """Say what cannot be compared, a sentence each."""
    lacking = {
        "scope score": not known.scope_score or np.isnan(observed.scope_score).all(),
        "quality of the photograph": known.photo_problems is None
        or np.isnan(observed.photo_problem).all(),
    }
    return [
        f"The {name} is not compared: the reference or the log does not have it."
        for name, is_lacking in lacking.items()
        if is_lacking
    ]


def looks_at(
    observed: Observed,
    known: Monitoring,
    class_names: Sequence[str],
    today: date,
    days: int = 7,
) -> list[Look]:
    """Look at the end of each week that is over, or of as many days.

    All looks of a year together raise a false alarm with a probability of `FALSE_ALARMS` at most:
    each test has its part of it (Bonferroni), so that looking again at the same days changes
    nothing.  Weeks begin on Monday.

    Args:
        observed: the answers.
        known: what they are compared with.
        class_names: of the model.
        today: whose week is not over yet.
        days: between two looks.
    """
    numbers = (observed.days - 1) // days  # day 1 was a Monday
    asked = _questions(observed, known, class_names)
    last = (today.toordinal() - 1) // days - 1
    begin = max(int(numbers.min(initial=last + 1)), last + 1 - _DAYS_OF_YEAR // days)
    level = FALSE_ALARMS * days / _DAYS_OF_YEAR / len(WINDOWS)
    looks = []
    for number in range(begin, last + 1):
        findings: list[Finding] = []
        for window in WINDOWS:
            first = number - window + 1
            if window > 1 and first + 1 < numbers.min():  # the window before saw as much
                continue
            rows = (numbers >= first) & (numbers <= number)
            findings += _findings(asked, rows, known.num_independent, level, window)
        looks.append(_look(observed, numbers == number, number * days, days, findings))
    return looks


def look_once(observed: Observed, known: Monitoring, class_names: Sequence[str]) -> Look:
    """Look at all answers together; valid if it is the only look."""
    every = np.ones(len(observed.days), bool)
    asked = _questions(observed, known, class_names)
    findings = _findings(asked, every, known.num_independent, FALSE_ALARMS, 1)
    first, last = int(observed.days.min()), int(observed.days.max())
    return _look(observed, every, first - 1, last - first + 1, findings)


def _look(
    observed: Observed, rows: NDArray[np.bool_], start: int, days: int, findings: list[Finding]
) -> Look:
    first = date.fromordinal(start + 1)
    return Look(
        first=first,
        last=first + timedelta(days - 1),
        num_answers=int(rows.sum()),
        num_requests=len(np.unique(observed.requests[rows])),
        findings=tuple(findings),
    )


@dataclass(frozen=True)
class _Question:
    """Shares of one measure."""

    measure: str
    names: list[str]  # S
    expected: Floats  # (S,)
    rows: Counts  # (M,), the answers that have it
    hits: NDArray[np.bool_]  # (M, S), which of them are in a share
    requests: Counts  # (M,)


def _findings(
    asked: Sequence[_Question],
    chosen: NDArray[np.bool_],
    num_expected: int,
    level: float,
    num_looks: int,
) -> list[Finding]:
    """Compare chosen answers (N,) with validation images.

    All alarms together are false with `level` at most: it is divided by the measures, and that of
    each by its shares.  Too few requests give no findings.
    """
    findings = []
    for question in asked:
        rows = chosen[question.rows]
        hits, requests = question.hits[rows], question.requests[rows]
        if len(requests) < MIN_REQUESTS or len(np.unique(requests)) < MIN_REQUESTS:
            continue
        shares, number = hits.mean(axis=0), independent(hits, requests)
        p_values = two_shares(question.expected, num_expected, shares, number)
        most = level / len(MEASURES) / len(question.names)
        findings += [
            Finding(
                measure=question.measure,
                name=name,
                num_looks=num_looks,
                expected=float(question.expected[i]),
                observed=float(shares[i]),
                num_answers=len(requests),
                p_value=float(p_values[i]),
                is_alarm=bool(p_values[i] < most),
            )
            for i, name in enumerate(question.names)
        ]
    return findings


def _questions(
    observed: Observed, known: Monitoring, class_names: Sequence[str]
) -> list[_Question]:
    """Return all that can be compared."""
    found = []

    def add(
        measure: str, names: list[str], expected: Floats, hits: NDArray[np.bool_], of: Floats
    ) -> None:
        rows = np.flatnonzero(~np.isnan(of))
        requests = observed.requests[rows]
        found.append(_Question(measure, names, expected, rows, hits[rows], requests))

    def add_cuts(measure: str, names: list[str], columns: Floats, cuts: Sequence[Cuts]) -> None:
        pairs = np.array(cuts).reshape(-1, 2)
        words = [
            f"{name} <= {v:.3g}" for name, own in zip(names, cuts, strict=True) for v, _ in own
        ]
        values = np.repeat(columns, len(_LEVELS), axis=1)
        add(measure, words, pairs[:, 1], values <= pairs[:, 0], columns[:, 0])

    names = list(class_names)
    of_class = observed.predicted[:, None] == np.arange(len(names))
    add("predicted_class", names, np.array(known.class_shares), of_class, observed.confidence)
    add_cuts("confidence", ["confidence"], observed.confidence[:, None], [known.confidence])
    evidence = [f"evidence for {name}" for name in names]
    add_cuts("embedding", evidence, embedding_of(observed.probs), known.embedding)
    if known.scope_score:
        scores = observed.scope_score[:, None]
        add_cuts("scope_score", ["scope score"], scores, [known.scope_score])
    if known.photo_problems is not None:
        share, poor = np.array([known.photo_problems]), observed.photo_problem[:, None] > 0
        names = ["photographs with a defect"]
        add("photo_problem", names, share, poor, observed.photo_problem)
    right = observed.is_right[:, None] > 0
    share = np.array([known.accuracy])
    add("is_right", ["right answers"], share, right, observed.is_right)
    return found


def independent(hits: NDArray[np.bool_], requests: Counts) -> float:
    """Return how many independent answers would say as much as these: (N, S), (N,).

    Photographs in one request are often of one patient.  Rao and Scott, "On simple adjustments to
    chi-square tests with sample survey data" (1987): the number is divided by how much more shares
    vary between requests than they would.
    """
    present, numbers = np.unique(requests, return_inverse=True)
    if len(present) == len(requests):
        return float(len(hits))
    rest = hits - hits.mean(axis=0)
    sums = np.stack([np.bincount(numbers, weights=column) for column in rest.T])
    plain = float((rest**2).sum())
    excess = float((sums**2).sum()) / plain if plain > 0 else 1.0
    return len(hits) / max(1.0, excess)


def two_shares(expected: Floats, num_expected: float, shares: Floats, number: float) -> Floats:
    """Test whether shares (S,) of two samples differ: Fisher's exact test, two-sided, (S,).

    Where a share is far from rare and the difference far from sure, the normal approximation
    stands for it.
    """
    m, n = max(1, round(num_expected)), max(1, round(number))
    k, x = np.round(expected * m), np.round(shares * n)
    pooled = (k + x) / (m + n)
    spread = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / m + 1 / n), _RARE))
    spreads = np.abs(k / m - x / n) / spread
    p_values = np.exp(-(spreads**2) / 2)  # an upper bound of the tail is enough there
    sure = spreads > _SURE_SPREADS
    draws = (m + n, (k + x)[sure], n)
    tails = np.minimum(hypergeom.cdf(x[sure], *draws), hypergeom.sf(x[sure] - 1, *draws))
    p_values[sure] = np.minimum(1, 2 * tails)
    return p_values
