"""The two groups of images that the model serves most differently, and whether it may be chance.

N images, C classes, G groups, U units, Q pairs of groups, R replicates, P permutations.  A unit is
what a lesion has of one class: nearly always the whole lesion.

Groups hold different shares of easy and hard classes, so a gap of plain accuracy would report the
mix of diseases as a bias, and so would balanced accuracy where one group lacks a class.  Two groups
are therefore compared class by class: by the mean difference of sensitivity over the classes of
which both have enough lesions (direct standardization, every class counting the same; Fleiss, Levin
and Paik, "Statistical Methods for Rates and Proportions", 3rd ed. (2003), chapter 19).
Never imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.evaluation.metrics.classification import Counts
from dermalyze.evaluation.metrics.roc import Floats, divided
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import MIN_LESIONS, Basis, interval_of

_ROUNDING = 1e-12  # of sums of the same fractions in another order


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Which image belongs to which group of an attribute; a lesion's images share one."""

    attribute: str
    labels: NDArray[np.object_]  # (N,)
    claimed: Sequence[str]  # (G,), the groups that are large enough to be compared


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decides."""

    weights: Floats  # (R, N), from `lesion_weights`
    permutations: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The two groups of an attribute that lie furthest apart, and whether that may be chance."""

    attribute: str
    highest: str
    lowest: str
    highest_value: float  # mean sensitivity over these classes, fraction
    lowest_value: float
    difference: float
    low: float | None  # None: the lesions show no spread
    high: float | None
    p_value: float
    p_adjusted: float = 1.0  # for the number of attributes
    finding: bool = False
    classes: tuple[str, ...] = ()  # by which the two are compared


@dataclass(frozen=True, kw_only=True)
class _Units:
    """What is shuffled: the images of a lesion that have one class, together."""

    groups: Counts  # (U,), numbers of claimed groups; -1: of none
    targets: Counts  # (U,)
    images: Floats  # (U,), how many
    hits: Floats  # (U,), how many of them are answered rightly
    first: Counts  # (U,), the row of the first image
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """The pairs of groups that can be compared, and by which classes."""

    left: Counts  # (Q,), numbers of groups
    right: Counts  # (Q,)
    shares: Floats  # (Q, C), what a class counts; rows sum to 1

    def differences(self, recall: Floats) -> Floats:
        """Compare sensitivities (R, G, C), left - right: (R, Q)."""
        used = self.shares.any(axis=0)
        recall, shares = recall[:, :, used], self.shares[:, used]
        by_class = recall[:, self.left] - recall[:, self.right]
        return np.asarray((np.where(shares > 0, by_class, 0.0) * shares).sum(axis=2))


def largest_gap(scored: Scored, grouping: Grouping, draws: Draws) -> Gap | None:
    """Find the two groups furthest apart; None if no two have a class with enough lesions.

    The interval is the bootstrap's for these two groups.  The p-value is of the largest gap of any
    pair: how often shuffling the groups among the lesions of each class makes one as large,
    (1 + count) / (1 + P), after Phipson and Smyth, "Permutation p-values should never be zero"
    (2010).  Shuffling within classes leaves each group its mix of classes.

    Args:
        scored: the images.
        grouping: their groups.
        draws: replicates and permutations.
    """
    num_groups = len(grouping.claimed)
    units = _units_of(scored, grouping)
    pairs = _pairs_of(units, num_groups)
    if pairs is None:
        return None
    recall = _recall(units, num_groups, np.ones((1, len(units.first))))  # (1, G, C)
    differences = pairs.differences(recall)[0]
    furthest = int(np.abs(differences).argmax())
    sign = 1 if differences[furthest] >= 0 else -1
    ends = [int(pairs.left[furthest]), int(pairs.right[furthest])][::sign]
    shared = pairs.shares[furthest] > 0
    highest, lowest = (float(recall[0, end, shared].mean()) for end in ends)
    drawn = pairs.differences(_recall(units, num_groups, draws.weights[:, units.first]))
    lesions = np.isin(units.groups, ends) & shared[units.targets]
    interval = interval_of(
        highest - lowest,
        sign * drawn[:, furthest],
        Basis(num_lesions=int(lesions.sum()), unit=scored.group_by),
    )
    shuffled = _shuffled_gaps(units, num_groups, pairs, draws)
    as_large = int((shuffled >= abs(differences[furthest]) - _ROUNDING).sum())
    return Gap(
        attribute=grouping.attribute,
        highest=grouping.claimed[ends[0]],
        lowest=grouping.claimed[ends[1]],
        classes=tuple(np.asarray(scored.class_names)[shared].tolist()),
        highest_value=highest,
        lowest_value=lowest,
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        p_value=(1 + as_large) / (1 + draws.permutations),
    )


def _units_of(scored: Scored, grouping: Grouping) -> _Units:
    num_classes, num_groups = len(scored.class_names), len(grouping.claimed)
    groups = pd.Index(grouping.claimed).get_indexer(pd.Index(grouping.labels))  # -1: of none
    # Of a patient, whose lesions may be of several groups, each group's part is a unit.
    own = scored.lesions * (num_groups + 1) + groups + 1
    keys, first, unit = np.unique(
        own * num_classes + scored.targets, return_index=True, return_inverse=True
    )
    hits = (scored.predicted == scored.targets).astype(np.float64)
    return _Units(
        groups=groups[first].astype(np.int64),
        targets=keys % num_classes,
        images=np.bincount(unit).astype(np.float64),
        hits=np.bincount(unit, weights=hits).astype(np.float64),
        first=first.astype(np.int64),
        num_classes=num_classes,
    )


def _pairs_of(units: _Units, num_groups: int) -> _Pairs | None:
    """Pair the groups that share a class with enough lesions in both; None if none do."""
    num_lesions = np.zeros((num_groups, units.num_classes), np.int64)
    known = units.groups >= 0
    np.add.at(num_lesions, (units.groups[known], units.targets[known]), 1)
    enough = num_lesions >= MIN_LESIONS  # (G, C)
    left, right = np.triu_indices(num_groups, k=1)
    shared = enough[left] & enough[right]  # (Q, C)
    some = shared.any(axis=1)
    if not some.any():
        return None
    shares = shared[some] / shared[some].sum(axis=1, keepdims=True)
    return _Pairs(left=left[some], right=right[some], shares=shares)


def _recall(units: _Units, num_groups: int, weights: Floats) -> Floats:
    """Compute each group's sensitivity for each class: weights (R, U) -> (R, G, C)."""
    num_classes = units.num_classes
    is_group = units.groups[:, None] == np.arange(num_groups)  # (U, G)
    is_class = units.targets[:, None] == np.arange(num_classes)  # (U, C)
    cells = (is_group[:, :, None] & is_class[:, None, :]).reshape(len(is_group), -1)
    hits = weights @ (cells * units.hits[:, None])
    images = weights @ (cells * units.images[:, None])
    return divided(hits, images).reshape(len(weights), num_groups, num_classes)


def _shuffled_gaps(units: _Units, num_groups: int, pairs: _Pairs, draws: Draws) -> Floats:
    """Return the largest gap after each shuffling of groups among the lesions of a class: (P,)."""
    rng = np.random.default_rng(draws.seed)
    recall = np.full((draws.permutations, num_groups, pairs.shares.shape[1]), np.nan)
    for target in np.flatnonzero(pairs.shares.any(axis=0)):
        sharing = pairs.shares[:, target] > 0
        groups = np.concatenate([pairs.left[sharing], pairs.right[sharing]])
        members = np.flatnonzero((units.targets == target) & np.isin(units.groups, groups))
        members = members[np.argsort(units.groups[members], kind="stable")]
        present, starts = np.unique(units.groups[members], return_index=True)
        shuffled = rng.permuted(np.tile(members, (draws.permutations, 1)), axis=1)
        hits = np.add.reduceat(units.hits[shuffled], starts, axis=1)
        recall[:, present, target] = hits / np.add.reduceat(units.images[shuffled], starts, axis=1)
    return np.asarray(np.abs(pairs.differences(recall)).max(axis=1))
