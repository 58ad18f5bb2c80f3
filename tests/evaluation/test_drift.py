"""Drift of a service's answers, on simulated years; the shares and the test, by hand."""

from datetime import date, timedelta

import numpy as np
import pytest
from answered import MONDAY, NAMES, PRIOR, drawn, known_of
from scipy.stats import fisher_exact

from dermalyze.evaluation.drift import (
    Observed,
    embedding_of,
    independent,
    look_once,
    looks_at,
    two_shares,
)

WEEK, YEAR = 500, 52
FIRST = MONDAY.date()


def observed(rng, weeks, prior=PRIOR, number=WEEK):
    probs, _ = drawn(rng, weeks * number, prior)
    count = len(probs)
    return Observed(
        probs=probs,
        predicted=probs.argmax(axis=1),
        scope_score=rng.gamma(5, 0.1, count),
        photo_problem=np.zeros(count),
        is_right=np.full(count, np.nan),
        requests=np.arange(count),
        days=FIRST.toordinal() + np.arange(count) // number * 7,
    )


def after(weeks):
    return FIRST + timedelta(weeks=weeks)


@pytest.mark.slow
def test_at_most_one_year_in_twenty_without_drift_raises_an_alarm():
    rng = np.random.default_rng(0)
    years = [looks_at(observed(rng, YEAR), known_of(rng), NAMES, after(YEAR)) for _ in range(60)]
    assert {len(looks) for looks in years} == {YEAR}
    assert sum(any(look.alarms for look in looks) for looks in years) <= 3


def test_a_shift_of_15_points_in_one_class_is_found_within_two_weeks():
    """Answers nv become mel; all of it is in the first two looks."""
    rng, found = np.random.default_rng(1), []
    for _ in range(40):
        known, seen = known_of(rng), observed(rng, 2)
        nv = np.flatnonzero(seen.predicted == NAMES.index("nv"))
        changed = rng.choice(nv, int(0.15 * 2 * WEEK), replace=False)
        seen.predicted[changed] = NAMES.index("mel")
        looks = looks_at(seen, known, NAMES, after(2))
        alarms = {(f.measure, f.name) for look in looks for f in look.alarms}
        found.append(("predicted_class", "mel") in alarms)
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize(
    ("measure", "change"),
    [
        ("scope_score", {"scope_score": lambda seen: seen.scope_score + 0.3}),
        ("photo_problem", {"photo_problem": lambda seen: np.arange(len(seen.days)) % 5 == 0}),
        ("confidence", {"probs": lambda seen: 0.7 * seen.probs + 0.3 / 7}),
        ("embedding", {"probs": lambda seen: 0.7 * seen.probs + 0.3 / 7}),
        ("is_right", {"is_right": lambda seen: np.arange(len(seen.days)) % 2}),
    ],
)
def test_each_measure_raises_its_own_alarm(measure, change):
    rng = np.random.default_rng(2)
    known, seen = known_of(rng), observed(rng, 1)
    before = looks_at(seen, known, NAMES, after(1))[-1]
    assert measure not in {found.measure for found in before.alarms}
    values = {name: np.asarray(make(seen), float) for name, make in change.items()}
    look = looks_at(Observed(**(vars(seen) | values)), known, NAMES, after(1))[-1]
    assert measure in {found.measure for found in look.alarms}
    assert look.alarms[0].num_looks == 1


def test_a_slow_drift_is_found_by_looking_further_back():
    rng = np.random.default_rng(3)
    prior = PRIOR + np.array([0, 0, 0, 0, 0.05, -0.05, 0])
    looks = looks_at(observed(rng, 13, prior), known_of(rng, 4000), NAMES, after(13))
    assert {found.num_looks for found in looks[-1].alarms} & {4, 13}


def test_looking_again_or_in_the_middle_of_a_week_changes_nothing():
    rng = np.random.default_rng(4)
    known, seen = known_of(rng), observed(rng, 4)
    looks = looks_at(seen, known, NAMES, after(3))
    assert looks == looks_at(seen, known, NAMES, after(3) + timedelta(days=6))
    assert looks == looks_at(seen, known, NAMES, after(4))[:3]
    assert [(look.first, look.last) for look in looks] == [
        (after(i), after(i) + timedelta(days=6)) for i in range(3)
    ]
    assert looks_at(seen, known, NAMES, FIRST + timedelta(days=6)) == []


def test_one_look_sees_all_answers():
    rng = np.random.default_rng(5)
    look = look_once(observed(rng, 3), known_of(rng), NAMES)
    assert (look.first, look.last, look.num_answers) == (FIRST, after(2), 3 * WEEK)
    assert look.alarms == []


def test_few_requests_say_nothing():
    rng = np.random.default_rng(6)
    (look,) = looks_at(observed(rng, 1, number=29), known_of(rng), NAMES, after(1))
    assert (look.num_answers, look.findings) == (29, ())


def test_many_answers_to_one_request_count_as_few():
    hits = np.repeat(np.eye(2, dtype=bool)[np.arange(50) % 2], 10, axis=0)  # ten alike each
    assert independent(hits, np.repeat(np.arange(50), 10)) == pytest.approx(50)
    assert independent(hits, np.arange(500)) == 500


def test_the_test_is_fishers():
    expected, shares = np.array([0.1, 0.3, 0.5]), np.array([0.25, 0.32, 0.3])
    found = two_shares(expected, 1000, shares, 200)
    for i in (0, 2):
        k, x = round(1000 * expected[i]), round(200 * shares[i])
        tails = [
            fisher_exact([[x, 200 - x], [k, 1000 - k]], alternative=side).pvalue
            for side in ("less", "greater")
        ]
        assert found[i] == pytest.approx(2 * min(tails))
    assert found[1] > 0.5


def test_what_validation_images_were_like_by_hand():
    import pandas as pd
    from rich_model import RICH

    from dermalyze.evaluation.drift import fit_monitoring
    from dermalyze.evaluation.scores import Scored

    logits = np.full((4, 7), -20.0)
    logits[np.arange(4), [0, 0, 5, 5]] = 0
    scored = Scored(
        taxonomy=RICH.taxonomy,
        logits=logits,
        targets=np.array([0, 5, 5, 5]),
        table=pd.DataFrame({"scope_score": [1.0, 2.0, 3.0, 4.0], "photo_problem": [0, 0, 0, 1.0]}),
        lesions=np.array([0, 0, 1, 2]),
    )
    known = fit_monitoring(scored, 1.0)
    assert known.class_shares == (0.5, 0, 0, 0, 0, 0.5, 0)
    assert (known.accuracy, known.photo_problems) == (0.75, 0.25)
    assert known.num_independent == 2  # 4 images, squared, over 2 x 2 + 1 + 1
    assert known.scope_score == ((1.0, 0.25), (1.0, 0.25), (2.0, 0.5), (3.0, 0.75), (4.0, 1.0))
    np.testing.assert_allclose(embedding_of(np.full((1, 4), 0.25)), 0)


def test_a_week_begins_on_monday():
    assert date.fromordinal(1).weekday() == 0
    assert FIRST.weekday() == 0
