"""Correction of p-values for asking several questions at once."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that all of them together mislead as seldom as one would.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979): the smallest of k is
    multiplied by k, the next by k - 1, and so on; none falls below one that was smaller.
    """
    if not p_values:
        return []
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(value) for value in adjusted]
