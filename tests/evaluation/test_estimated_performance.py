"""Performance estimated without labels, on answers whose truth is drawn."""

import numpy as np
import pytest
from answered import drawn

from dermalyze.evaluation.estimated_performance import estimate_performance


def test_intervals_hold_what_labels_would_show_in_95_percent_of_calibrated_samples():
    rng = np.random.default_rng(0)
    inside, within = [], []
    for i in range(120):
        probs, targets = drawn(rng, 300)
        found = estimate_performance(probs, seed=i)
        right = probs.argmax(axis=1) == targets
        inside.append(found.accuracy.low <= right.mean() <= found.accuracy.high)
        present = [c for c in found.classes if (targets == c).any()]
        balanced = np.mean([right[targets == c].mean() for c in present])
        within.append(found.balanced_accuracy.low <= balanced <= found.balanced_accuracy.high)
    # Two standard errors of 120 draws are 0.04; a share of whole answers covers a little more.
    assert 0.91 <= np.mean(inside) <= 0.99
    assert 0.91 <= np.mean(within) <= 0.99


def test_an_overconfident_model_is_believed():
    """What the estimate cannot see: the page says so."""
    probs, targets = drawn(np.random.default_rng(1), 2000)
    sharp = probs**3 / (probs**3).sum(axis=1, keepdims=True)
    right = (sharp.argmax(axis=1) == targets).mean()
    assert estimate_performance(sharp).accuracy.low > right


def test_the_expected_confusion_is_the_sum_of_probabilities():
    probs = np.tile([[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]], (20, 1))
    found = estimate_performance(probs)
    assert found.confusion == [[25.0, 0.0], [15.0, 20.0]]
    assert found.accuracy.estimate == pytest.approx(0.75, abs=0.01)
    assert estimate_performance(probs[:29]) is None
