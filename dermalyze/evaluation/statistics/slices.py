"""The images on which a model does worst: by what is recorded of them, and by simple properties.

A slice is compared with the other images of the same classes, so that a slice with hard classes
does not count as a bad one.  N images, M lesions, S slices, P permutations.  Never imports torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.data.table_columns import UNKNOWN
from dermalyze.evaluation.metrics.classification import Floats
from dermalyze.evaluation.predictions import further_columns
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import (
    MIN_LESIONS,
    Basis,
    Interval,
    interval_of,
    lesion_weights,
)
from dermalyze.evaluation.statistics.subgroups import ATTRIBUTES, SIGNIFICANCE, groups_of

_FIFTHS = (0.2, 0.8)  # quantiles of a property: the lowest and the highest fifth are slices
_CHUNK = 200  # permutations at once


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Images that have something in common, and how often the model is wrong about them."""

    attribute: str
    group: str
    num_images: int
    num_lesions: int
    error: Interval  # share of its images with a wrong prediction
    expected: float  # the same of other images, with the same share of each class
    p_adjusted: float  # that it is no worse than others, corrected for all slices looked at
    finding: bool
    rows: NDArray[np.int64]  # its images


def worst_slices(
    scored: Scored,
    properties: pd.DataFrame,
    *,
    permutations: int = 2000,
    replicates: int = 1000,
    seed: int = 0,
) -> list[Slice]:
    """Return all slices with enough lesions, the worst first.

    The lesions of each class are shuffled; the largest excess of errors of all slices is compared
    with the largest of each shuffling, which corrects for the number of slices and for what they
    have in common.  Westfall and Young, "Resampling-Based Multiple Testing" (1993).

    Args:
        scored: the images with predictions of models that had not seen them.
        properties: a column for each property, a row for each image.
        permutations: shufflings behind the p-values.
        replicates: draws of lesions behind each interval.
        seed: of shufflings and draws.
    """
    candidates = _candidates(scored, properties)
    if not candidates:
        return []
    wrong = (scored.predicted != scored.targets).astype(np.float64)
    lesions = scored.lesions
    masks = np.stack([mask for _, _, mask in candidates])  # (S, N)
    shares = np.stack([np.bincount(lesions, mask) for mask in masks]) / np.bincount(
        lesions
    )  # (S, M)
    of_class = np.bincount(scored.targets, wrong) / np.maximum(np.bincount(scored.targets), 1)
    excess = np.bincount(lesions, wrong - of_class[scored.targets])  # (M,)
    _, first = np.unique(lesions, return_index=True)
    drawn = _shuffled(excess, scored.targets[first], shares, permutations, seed)  # (P, S)
    spread = np.maximum(drawn.std(axis=0), 1e-12)
    highest = (drawn / spread).max(axis=1)
    found = []
    for (attribute, group, mask), score in zip(candidates, shares @ excess / spread, strict=True):
        part = scored.take(mask)
        weights = lesion_weights(part.lesions, replicates, seed)
        basis = Basis(num_lesions=part.num_lesions, unit=scored.group_by, is_share=True)
        values = weights @ wrong[mask] / weights.sum(axis=1)
        p_value = (1 + int((highest >= score).sum())) / (1 + permutations)
        found.append(
            Slice(
                attribute=attribute,
                group=group,
                num_images=len(part),
                num_lesions=part.num_lesions,
                error=interval_of(float(wrong[mask].mean()), values, basis),
                expected=_expected(scored, wrong, mask),
                p_adjusted=p_value,
                finding=p_value < SIGNIFICANCE,
                rows=np.flatnonzero(mask),
            )
        )
    return sorted(found, key=lambda s: (s.p_adjusted, s.expected - s.error.estimate))


def _candidates(
    scored: Scored, properties: pd.DataFrame
) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Return what each slice is called, and its images, (N,); too small ones are left out."""
    found: list[tuple[str, str, NDArray[np.bool_]]] = []
    for attribute in (*ATTRIBUTES, *further_columns(scored.table)):
        groups = groups_of(scored, attribute)
        names = sorted(set(groups), key=lambda name: (name == UNKNOWN, name))
        found += [(attribute, name, groups == name) for name in names]
    lesions = scored.lesions
    for name, column in properties.items():
        values = column.groupby(lesions).mean().to_numpy()
        low, high = np.quantile(values, _FIFTHS)
        found.append((str(name), f"lowest fifth, below {low:.3g}", (values < low)[lesions]))
        found.append((str(name), f"highest fifth, above {high:.3g}", (values > high)[lesions]))
    num_lesions = scored.num_lesions
    sizes = [len(np.unique(lesions[mask])) for _, _, mask in found]
    return [
        candidate
        for candidate, size in zip(found, sizes, strict=True)
        if MIN_LESIONS <= size <= num_lesions - MIN_LESIONS
    ]


def _shuffled(
    excess: NDArray[Any], classes: NDArray[np.int64], shares: Floats, permutations: int, seed: int
) -> Floats:
    """Shuffle the lesions' excess errors inside their classes; return those of slices, (P, S)."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(classes == target) for target in np.unique(classes)]
    drawn = []
    for start in range(0, permutations, _CHUNK):
        shuffled = np.empty((min(_CHUNK, permutations - start), len(excess)))
        for rows in members:
            order = rng.random((len(shuffled), len(rows))).argsort(axis=1)
            shuffled[:, rows] = excess[rows][order]
        drawn.append(shuffled @ shares.T)
    return np.concatenate(drawn)


def _expected(scored: Scored, wrong: Floats, mask: NDArray[np.bool_]) -> float:
    """Return the share of errors that other images have, with the classes of these."""
    targets, num_classes = scored.targets, len(scored.class_names)
    counts = np.bincount(targets[~mask], minlength=num_classes)
    errors = np.bincount(targets[~mask], wrong[~mask], minlength=num_classes)
    everywhere = np.bincount(targets, wrong, minlength=num_classes) / np.maximum(
        np.bincount(targets, minlength=num_classes), 1
    )
    shares = np.where(counts > 0, errors / np.maximum(counts, 1), everywhere)
    return float(shares[targets[mask]].mean())
