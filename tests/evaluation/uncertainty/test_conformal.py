"""Prediction sets: their coverage is what they promise, class by class and by lesion."""

import numpy as np
import pytest
from scipy.stats import betabinom

from dermalyze.evaluation.uncertainty.conformal import fit_sets
from serving.errors import ConfigError
from serving.uncertainty import LEVELS

RNG = np.random.default_rng(0)


def studies(num_lesions, images, seed, spread=0.5):
    """Two classes; the images of a lesion are alike: probs (N, 2), targets, lesions."""
    rng = np.random.default_rng(seed)
    counts = rng.choice(images, num_lesions)
    lesions = np.repeat(np.arange(num_lesions), counts)
    targets = rng.integers(0, 2, num_lesions)[lesions]
    own = rng.normal(0, 1, num_lesions)[lesions] + rng.normal(0, spread, len(lesions))
    right = 1 / (1 + np.exp(-(1.0 + own)))
    probs = np.where(targets[:, None] == np.arange(2), right[:, None], 1 - right[:, None])
    return probs, targets, lesions


def coverage(sets, probs, targets, lesions, level, target):
    """Mean over lesions of the share of a lesion's images whose set holds the class."""
    own = targets == target
    held = probs[own, target] >= np.array(sets.min_probs)[target, sets.column(level)]
    return np.mean([held[lesions[own] == lesion].mean() for lesion in np.unique(lesions[own])])


def test_with_one_image_a_lesion_the_threshold_is_the_textbooks():
    # Angelopoulos & Bates (2021): the ceil((n + 1)(1 - alpha))-th smallest score of n.
    probs = np.stack([np.linspace(0.02, 0.98, 49), 1 - np.linspace(0.02, 0.98, 49)], axis=1)
    sets = fit_sets(probs, np.zeros(49, np.int64), np.arange(49))
    scores = np.sort(1 - probs[:, 0])
    for level in (0.8, 0.9, 0.95):
        rank = int(np.ceil(50 * level - 1e-9))
        assert sets.min_probs[0][sets.column(level)] == pytest.approx(1 - scores[rank - 1])
    assert sets.num_lesions == (49, 0)


def test_too_few_lesions_put_their_class_into_every_set():
    probs = np.full((9, 2), 0.5)
    for num_lesions, supported in ((8, False), (9, True)):  # 9 / 10 is the least for 90 %
        rows = slice(0, num_lesions)
        sets = fit_sets(probs[rows], np.zeros(num_lesions, np.int64), np.arange(num_lesions))
        assert bool(sets.unsupported(0.9)[0]) is not supported
        assert sets.unsupported(0.9)[1]  # no lesion at all
        assert sets.members(np.array([[0.0, 1.0]]), 0.9)[0].tolist() == [not supported, True]


def test_images_of_one_lesion_do_not_make_it_count_more_often():
    # One lesion with 91 poor images beside 9 good lesions of one image.
    probs = np.r_[np.full(91, 0.1), np.full(9, 0.9)]
    lesions = np.r_[np.zeros(91, np.int64), np.arange(1, 10)]
    probs = np.stack([probs, 1 - probs], axis=1)
    sets = fit_sets(probs, np.zeros(100, np.int64), lesions)
    # 9 of 11 parts of weight lie at 0.9: enough for 81 %, not for 82 %.
    assert sets.min_probs[0][sets.column(0.81)] == pytest.approx(0.9)
    assert sets.min_probs[0][sets.column(0.82)] == pytest.approx(0.1)


@pytest.mark.parametrize("images", [(1,), (1, 2, 5)])
@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_coverage_over_500_studies_is_as_promised(images, level):
    found = []
    for seed in range(500):
        probs, targets, lesions = studies(160, images, seed)
        first = lesions < 80
        sets = fit_sets(probs[first], targets[first], lesions[first])
        rest = (probs[~first], targets[~first], lesions[~first])
        found.append([coverage(sets, *rest, level, target) for target in (0, 1)])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(500)
    assert (mean > level - 4 * error).all()
    if images == (1,):  # by at most 1 / (K + 1) too high, K being about 40
        assert (mean < level + 1 / 30 + 4 * error).all()


def test_coverage_of_one_study_is_within_its_beta_binomial_bounds():
    # Of n calibration and m new lesions of one image: m new ones, k = ceil((n + 1) level) of n + 1.
    n, m, level, inside = 40, 60, 0.9, 0
    k = int(np.ceil((n + 1) * level))
    low, high = betabinom.ppf([0.025, 0.975], m, k, n + 1 - k)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        probs = rng.uniform(size=(n + m, 1))
        probs = np.hstack([probs, 1 - probs])
        zeros = np.zeros(n, np.int64)
        sets = fit_sets(probs[:n], zeros, np.arange(n))
        held = (probs[n:, 0] >= sets.min_probs[0][sets.column(level)]).sum()
        inside += low <= held <= high
    assert 0.92 <= inside / 300 <= 1.0


def test_a_higher_level_never_gives_a_smaller_set():
    probs, targets, lesions = studies(200, (1, 2), 3)
    sets = fit_sets(probs, targets, lesions)
    sizes = np.array([sets.members(probs, level).sum(axis=1) for level in LEVELS])
    assert (np.diff(sizes, axis=0) >= 0).all()
    assert sizes[-1].mean() > sizes[0].mean()


def test_a_level_between_two_is_served_by_the_higher_one():
    sets = fit_sets(*studies(200, (1,), 1))
    assert sets.column(0.905) == sets.column(0.91)
    assert sets.column(0.1 + 0.8) == sets.column(0.9)  # 0.9000000000000001
    with pytest.raises(ConfigError):
        sets.column(0.995)
