"""Intervals of every metric for 1,503 images, against drawing and scoring replicate by replicate.

Drawn predictions of 1,121 lesions; the time does not depend on what they say.

    python -m benchmarks.intervals
"""

import time

import numpy as np
import pandas as pd

from benchmarks.report import Figure, publish
from dermalyze.evaluation.metrics.classification import score
from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.bootstrap import REPLICATES, intervals
from dermalyze.evaluation.statistics.subgroups import evaluate_subgroups
from serving.ham10000_taxonomy import HAM10000

NUM_IMAGES, NUM_LESIONS = 1503, 1121
SHARES = np.array([327, 514, 1099, 115, 1113, 6705, 142]) / 10015  # of HAM10000
BY_HAND = 40  # replicates that are timed; the rest would take as long each


def drawn() -> Scored:
    rng = np.random.default_rng(0)
    lesions = np.concatenate([np.arange(NUM_LESIONS), rng.choice(NUM_LESIONS, 382)])
    targets = rng.choice(7, NUM_LESIONS, p=SHARES)[lesions]
    rows = pd.DataFrame(
        {
            "image_id": [f"ISIC_{i:07d}" for i in range(NUM_IMAGES)],
            "label": np.asarray(HAM10000.names, dtype=object)[targets],
            "lesion_id": [f"HAM_{lesion:07d}" for lesion in lesions],
            "dx_type": rng.choice(["histo", "follow_up"], NUM_IMAGES),
            "age": rng.choice(np.arange(20.0, 85.0, 5.0), NUM_IMAGES),
            "sex": rng.choice(["female", "male"], NUM_IMAGES),
            "localization": rng.choice(["back", "face", "abdomen", "trunk"], NUM_IMAGES),
        }
    )
    logits = rng.normal(size=(NUM_IMAGES, 7)) + 2 * np.eye(7)[targets]
    return scored_of(predictions_table(rows, logits, HAM10000), HAM10000)


def by_hand(scored: Scored, replicates: int) -> None:
    """What one would write first: draw lesions, gather their images, score them."""
    rng = np.random.default_rng(0)
    images = [np.flatnonzero(scored.lesions == lesion) for lesion in range(scored.num_lesions)]
    for _ in range(replicates):
        rows = np.concatenate(
            [images[i] for i in rng.integers(scored.num_lesions, size=scored.num_lesions)]
        )
        score(scored.logits[rows], scored.targets[rows], scored.class_names)


def main() -> None:
    scored = drawn()
    intervals(scored, replicates=100)  # first calls are slower
    start = time.perf_counter()
    intervals(scored)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    by_hand(scored, BY_HAND)
    theirs = (time.perf_counter() - start) / BY_HAND * REPLICATES
    start = time.perf_counter()
    evaluate_subgroups(scored)
    groups = time.perf_counter() - start
    publish(
        "intervals",
        [
            Figure(
                what="every metric, 2,000 replicates",
                ours=ours,
                baseline=theirs,
                unit="s",
                against="a replicate at a time, the metrics of `score` alone",
                ratio=theirs / ours,
                goal="",
            ),
            Figure(
                what="the same, against its limit",
                ours=ours,
                baseline=5.0,
                unit="s",
                against="5 s on two cores",
                ratio=ours / 5,
                goal="<= 1",
            ),
            Figure(
                what="subgroups, intervals and 2,000 permutations",
                ours=groups,
                baseline=ours,
                unit="s",
                against="every metric",
                ratio=groups / ours,
                goal="",
            ),
        ],
        num_images=NUM_IMAGES,
        num_lesions=scored.num_lesions,
    )


if __name__ == "__main__":
    main()
