"""Which lesions are referred: thresholds that keep a sensitivity, by exact bounds."""

import numpy as np
import pytest
from scipy.stats import binom

from dermalyze.evaluation.uncertainty.referral import fit_referral
from serving.uncertainty import LEVELS


def fitted(malignant, benign):
    """Fit to lesions of one photograph each, by their malignant probabilities."""
    malignancy = np.concatenate([malignant, benign]).astype(float)
    is_malignant = np.arange(len(malignancy)) < len(malignant)
    return fit_referral(malignancy, is_malignant, np.arange(len(malignancy)))


def test_59_lesions_of_which_none_is_missed_show_95_percent_and_58_do_not():
    # By hand: 0.95^59 = 0.0485 and 0.95^58 = 0.0510, around the 5 % that are left for chance.
    scores = np.linspace(0.3, 0.9, 59)
    found = fitted(scores, [0.1, 0.2, 0.5, 0.8])
    assert found.levels == LEVELS[: LEVELS.index(0.95) + 1]
    assert (found.min_probs[-1], found.specificities[-1]) == (0.3, 0.5)
    assert (found.num_malignant, found.num_benign, found.confidence) == (59, 4, 0.95)
    assert fitted(scores[1:], [0.1]).levels == LEVELS[: LEVELS.index(0.95)]


def test_each_threshold_is_the_highest_that_the_binomial_allows():
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 1, 400)
    found = fitted(scores, rng.beta(1, 3, 300))
    assert found.levels == LEVELS
    for level, lowest in zip(found.levels, found.min_probs, strict=True):
        # So few misses would have a chance of at most 5 % if the sensitivity were lower.
        kept = [t for t in scores if binom.cdf((scores < t).sum(), 400, 1 - level) <= 0.05]
        assert lowest == max(kept)


def test_the_sensitivity_is_kept_in_19_of_20_studies():
    # Malignant probabilities that are uniform: a threshold t has the sensitivity 1 - t.
    rng = np.random.default_rng(1)
    studies = [fitted(rng.uniform(size=150), [0.5]) for _ in range(2000)]
    for level in (0.8, 0.9, 0.95):
        kept = np.mean([1 - study.min_probs[study.column(level)] >= level for study in studies])
        assert 0.95 - 3 * np.sqrt(0.05 * 0.95 / 2000) < kept < 0.99, level


def test_a_malignant_lesion_is_found_only_if_each_of_its_photographs_is():
    scores = np.linspace(0.3, 0.9, 100)
    alone = fitted(scores, [0.1])
    second = np.concatenate([np.minimum(scores + 0.05, 1), scores, [0.1]])
    lesions = np.concatenate([np.arange(100), np.arange(100), [100]])
    both = fit_referral(second, np.arange(201) < 200, lesions)
    assert both.min_probs == alone.min_probs
    assert both.num_malignant == 100


def test_a_benign_lesion_counts_once_however_many_photographs_it_has():
    malignancy = np.array([0.5] * 60 + [0.1, 0.9, 0.9, 0.9])
    lesions = np.array([*range(60), 60, 61, 61, 61])
    found = fit_referral(malignancy, np.arange(64) < 60, lesions)
    assert set(found.specificities) == {0.5}
    assert found.num_benign == 2


@pytest.mark.parametrize(
    ("malignant", "benign", "reason"),
    [
        (
            [],
            [0.1] * 9,
            "no threshold is known to find 95% of malignant lesions: it takes 59 malignant "
            "validation lesions and a benign one, there were 0 and 9",
        ),
        (
            [0.5] * 70,
            [],
            "no threshold is known to find 95% of malignant lesions: it takes 59 malignant "
            "validation lesions and a benign one, there were 70 and 0",
        ),
    ],
)
def test_without_malignant_or_benign_lesions_there_is_no_threshold_and_a_reason(
    malignant, benign, reason
):
    found = fitted(malignant, benign)
    assert found.levels == ()
    assert found.column(0.95) is None
    assert found.lacking(0.95) == reason


def test_a_level_between_two_is_the_next_higher_one():
    found = fitted(np.linspace(0.3, 0.9, 140), [0.1])
    assert found.levels[-1] == 0.97
    assert found.levels[found.column(0.955)] == 0.96
    assert found.column(0.975) is None
    assert "98% of malignant lesions: it takes 149 " in found.lacking(0.975)
