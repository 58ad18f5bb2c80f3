"""Answers of a service that never ran: drawn for weeks, with or without a shift."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
from rich_model import RICH

from dermalyze.evaluation.drift import fit_monitoring
from dermalyze.evaluation.scores import Scored
from serving.prediction import softmax
from serving.prediction_log import entries_of

MONDAY = datetime(2025, 1, 6, 9, tzinfo=UTC)
PRIOR = np.array([0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02])
OTHER = np.array([0.03, 0.05, 0.11, 0.01, 0.31, 0.47, 0.02])  # more melanomas
NAMES = RICH.class_names


def drawn(rng, number, prior=PRIOR):
    """Draw classes and the probabilities of a model that is calibrated where `prior` is `PRIOR`."""
    targets = rng.choice(len(prior), number, p=prior)
    logits = rng.normal(0, 1, (number, len(prior)))
    logits[np.arange(number), targets] += 2  # two normals: the exact posterior follows
    return softmax(2 * logits + np.log(PRIOR)), targets


def known_of(rng, number=1500):
    probs, targets = drawn(rng, number)
    table = pd.DataFrame({"scope_score": rng.gamma(5, 0.1, number), "photo_problem": 0.0})
    scored = Scored(
        taxonomy=RICH.taxonomy,
        logits=np.log(probs),
        targets=targets,
        table=table,
        lesions=np.arange(number),
    )
    return fit_monitoring(scored, 1.0)


def spec_of(rng):
    return replace(RICH, temperature=1.0, monitoring=known_of(rng))


def entries(rng, spec, week, prior=PRIOR, number=500):
    """Draw the answers of a week, and their true classes."""
    probs, targets = drawn(rng, number, prior)
    found = []
    for i, row in enumerate(probs):
        answer = {
            "predicted_class": NAMES[int(row.argmax())],
            "confidence": float(row.max()),
            "probabilities": dict(zip(NAMES, row.tolist(), strict=True)),
            "decision": "answer",
            "scope_score": float(rng.gamma(5, 0.1)),
            "quality": [],
        }
        (entry,) = entries_of([answer], spec, f"{week}-{i}", 0.01)
        time = MONDAY + timedelta(weeks=week, minutes=i)
        found.append(replace(entry, time=time.isoformat(timespec="milliseconds")))
    return found, [NAMES[target] for target in targets]
