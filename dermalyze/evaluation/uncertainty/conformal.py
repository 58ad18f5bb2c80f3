"""Class-conditional conformal prediction sets, by lesion.  N images, C classes."""

import numpy as np

from dermalyze.evaluation.metrics.classification import Counts, Floats
from serving.uncertainty import LEVELS, PredictionSets


def fit_sets(probs: Floats, targets: Counts, lesions: Counts) -> PredictionSets:
    """Fit how probable each class must be to be in a set: probs (N, C), targets and lesions (N,).

    Hierarchical conformal prediction (Lee, Barber & Willett, "Distribution-free inference with
    hierarchical data", 2023) with the score 1 - probability, within each class (Vovk, 2012): K
    lesions of a class share a weight of K / (K + 1), each image of a lesion gets its part, and
    the rest lies at infinity.  A new lesion's image is covered with at least each level.
    """
    rows, num_lesions = [], []
    for target in range(probs.shape[1]):
        own = targets == target
        order = np.argsort(-probs[own, target], kind="stable")
        values = probs[own, target][order]
        _, lesion, counts = np.unique(lesions[own], return_inverse=True, return_counts=True)
        shares = np.cumsum(1 / counts[lesion][order]) / (len(counts) + 1)
        row = []
        for level in LEVELS:
            enough = np.flatnonzero(shares >= level - 1e-12)
            row.append(float(values[enough[0]]) if len(enough) else 0.0)
        rows.append(tuple(row))
        num_lesions.append(len(counts))
    return PredictionSets(levels=LEVELS, min_probs=tuple(rows), num_lesions=tuple(num_lesions))
