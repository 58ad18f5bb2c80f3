"""Wrong labels planted in predictions whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import simulate

from dermalyze.evaluation.label_errors import rank_labels


def with_wrong_labels(scored, share, seed=0):
    """Give a share of the images another label at random; return them as well."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(scored), round(share * len(scored)), replace=False)
    targets = scored.targets.copy()
    targets[rows] = (targets[rows] + rng.integers(1, len(scored.class_names), len(rows))) % len(
        scored.class_names
    )
    labels = np.asarray(scored.class_names, dtype=object)[targets]
    table = scored.table.assign(label=labels)
    return replace(scored, table=table, targets=targets), set(table["image_id"][rows])


@pytest.mark.parametrize("seed", range(3))
def test_of_three_percent_wrong_labels_most_are_in_the_first_five_percent(seed):
    scored, planted = with_wrong_labels(simulate(800, seed, signal=6.0), 0.03)
    assert (scored.predicted == scored.targets).mean() < 0.99
    ranked = rank_labels(scored)
    assert sorted(ranked["image_id"]) == sorted(scored.table["image_id"])
    first = set(ranked["image_id"][: round(0.05 * len(ranked))])
    assert len(first & planted) >= 0.8 * len(planted)
    suspected = ranked[ranked["suspected"]]
    assert suspected["image_id"].isin(planted).mean() > 0.5
    assert (suspected["label"] != suspected["suggested"]).all()


def test_a_class_without_images_is_neither_suggested_nor_an_error():
    scored = simulate(300, 1, signal=3.0)
    scored = scored.take(scored.targets != 5)
    assert "nv" not in set(rank_labels(scored)["suggested"])
