"""Drift of a service's answers, on simulated years."""

from datetime import date, timedelta

import numpy as np
import pytest

from dermalyze.evaluation.drift import (
    Observed,
    fit_monitoring,
    looks_at,
)
from dermalyze.evaluation.scores import Scored
from serving.taxonomy import Taxonomy

NAMES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
PRIOR = np.array([0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02])
MONDAY = date(2025, 1, 6)
WEEK, VALIDATION, YEAR = 500, 1500, 52


def drawn(rng, number, prior=PRIOR):
    """Answers of a model that is right in some 75 % of cases: logits, true classes."""
    targets = rng.choice(len(prior), number, p=prior)
    logits = rng.normal(0, 1, (number, len(prior))) + np.log(PRIOR)
    logits[np.arange(number), targets] += 3
    return logits, targets


def observed(logits, scores, days, requests=None):
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    number = len(probs)
    return Observed(
        probs=probs,
        predicted=probs.argmax(axis=1),
        scope_score=scores,
        photo_problem=np.zeros(number),
        is_right=np.full(number, np.nan),
        requests=np.arange(number) if requests is None else requests,
        days=days,
    )


def reference(rng, number=VALIDATION):
    import pandas as pd

    logits, targets = drawn(rng, number)
    table = pd.DataFrame({"scope_score": rng.gamma(5, 0.2, number), "photo_problem": 0.0})
    scored = Scored(
        taxonomy=Taxonomy(names=NAMES, descriptions=NAMES),
        logits=logits,
        targets=targets,
        table=table,
        lesions=np.arange(number),
    )
    return fit_monitoring(scored, 1.0)


def weeks(rng, number, prior=PRIOR):
    logits, _ = drawn(rng, number * WEEK, prior)
    days = MONDAY.toordinal() + np.arange(number * WEEK) // WEEK * 7
    return observed(logits, rng.gamma(5, 0.2, len(logits)), days)


def after(number):
    return MONDAY + timedelta(weeks=number)


def test_at_most_one_year_in_twenty_without_drift_raises_an_alarm():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(60):
        looks = looks_at(weeks(rng, YEAR), reference(rng), NAMES, after(YEAR))
        assert len(looks) == YEAR
        alarms += any(look.alarms for look in looks)
    assert alarms <= 3  # 5 % of 60


@pytest.mark.parametrize(("grows", "shrinks"), [("mel", "nv"), ("bkl", "nv"), ("nv", "mel")])
def test_a_shift_of_15_points_is_found_within_two_weeks(grows, shrinks):
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(50):
        known = reference(rng)
        shares = np.array(known.class_shares)
        shift = min(0.15, shares[NAMES.index(shrinks)])
        # Of the predicted class: some answers are exchanged for others.
        seen = weeks(rng, 2)
        giving = np.flatnonzero(seen.predicted == NAMES.index(shrinks))
        number = min(len(giving), int(shift * 2 * WEEK))
        changed = rng.choice(giving, number, replace=False)
        seen.predicted[changed] = NAMES.index(grows)
        alarms = [f for look in looks_at(seen, known, NAMES, after(2)) for f in look.alarms]
        found += any(f.measure == "predicted_class" and f.name == grows for f in alarms)
    assert found >= (45 if shift == 0.15 else 0)
