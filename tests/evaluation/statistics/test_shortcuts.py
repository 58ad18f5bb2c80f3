"""Properties that tell a class, and such that do not."""

import numpy as np
import pandas as pd
import pytest
from simulated import simulate

from dermalyze.evaluation.statistics.shortcuts import shortcuts


def of_lesions(scored, values, noise=0.0):
    rng = np.random.default_rng(5)
    return values[scored.lesions] + noise * rng.normal(size=len(scored))


@pytest.fixture(scope="module")
def scored():
    return simulate(400, 1)


def test_a_planted_shortcut_is_found_and_named(scored):
    rng = np.random.default_rng(0)
    dark = rng.random(scored.num_lesions) < 0.2
    for lesion in np.unique(scored.lesions[scored.targets == 4]):
        dark[lesion] = rng.random() < 0.8
    columns = pd.DataFrame(
        {
            "brightness": of_lesions(scored, rng.normal(160, 20, scored.num_lesions), 5),
            "vignette": of_lesions(scored, 80.0 * dark, 5),
            "size": 0.27,
        }
    )
    first, *others = shortcuts(scored, columns)
    assert (first.name, first.label, first.finding) == ("vignette", "mel", True)
    assert first.p_adjusted < 0.05
    assert 0.7 < first.auc < 0.9  # (1 + 0.8 - 0.2) / 2
    assert set(scored.table["label"].iloc[first.rows]) == {"mel"}
    assert len(set(scored.lesions[first.rows])) == len(first.rows)
    assert columns["vignette"][first.rows[:6]].min() > 40
    assert [(other.name, other.finding) for other in others] == [("brightness", False)]


def test_a_class_between_two_others_is_told_as_well(scored):
    values = np.random.default_rng(0).choice([50.0, 150.0], scored.num_lesions)
    values[np.unique(scored.lesions[scored.targets == 2])] = 100.0
    columns = pd.DataFrame({"brightness": of_lesions(scored, values, 2)})
    (found,) = shortcuts(scored, columns)
    assert (found.label, found.finding) == ("bkl", True)


def test_where_no_property_tells_a_class_none_is_reported():
    found = []
    for seed in range(20):
        scored = simulate(250, seed)
        values = np.random.default_rng(seed).normal(size=(scored.num_lesions, 3))
        columns = pd.DataFrame(values[scored.lesions], columns=["brightness", "size", "contrast"])
        found += [s for s in shortcuts(scored, columns, permutations=99) if s.finding]
    assert found == []


def test_many_images_of_one_lesion_are_no_shortcut():
    """A lesion photographed forty times in one light says nothing about its class."""
    found = []
    for seed in range(60):
        scored = simulate(60, seed, shares={"bkl": 0.5, "nv": 0.5}, images=(1, 40))
        values = np.random.default_rng(seed + 1000).normal(160, 20, scored.num_lesions)
        columns = pd.DataFrame({"brightness": of_lesions(scored, values, 1)})
        found += [s.finding for s in shortcuts(scored, columns, permutations=99)]
    assert sum(found) <= 7  # of 60 at 5 %: more have a chance of 1 %
