"""Whether the model does worse for some: by sex, age band, localization and kind of diagnosis.

N images, C classes, R rows of weights.  All images of a lesion belong to one group, that of its
first image with a known one, so that groups never share a lesion.  Never imports torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermalyze.data.tables import UNKNOWN
from dermalyze.evaluation.bootstrap import (
    MIN_LESIONS,
    REPLICATES,
    Interval,
    interval_of,
    lesion_weights,
    rests_on,
)
from dermalyze.evaluation.clinical import malignant_classes
from dermalyze.evaluation.curves import divided
from dermalyze.evaluation.gaps import Draws, Gap, Grouping, largest_gap
from dermalyze.evaluation.metrics import Floats
from dermalyze.evaluation.multiplicity import holm
from dermalyze.evaluation.scored import Scored
from dermalyze.evaluation.words import NO_SKIN_TYPE, things
from serving.errors import DataError
from serving.metadata import word_of

ATTRIBUTES = ("sex", "age", "localization", "dx_type")
AGE_BANDS = ("under 30", "30-44", "45-59", "60-74", "75 and over")
SIGNIFICANCE = 0.05  # a finding has a smaller corrected p-value
NOTE = (
    "A gap is the mean difference of sensitivity over the classes of which both groups have at "
    f"least {MIN_LESIONS} lesions, so that another mix of classes is no gap. Its interval does not "
    "allow for the two groups having been picked as the furthest apart; its p-value does. A gap "
    f"does not say what it comes from. {NO_SKIN_TYPE}."
)
_AGE_EDGES = (30, 45, 60, 75)  # years at which the bands after the first begin


@dataclass(frozen=True, kw_only=True)
class Group:
    """The images of one value of an attribute, and how the model does on them."""

    attribute: str
    group: str
    num_images: int
    num_lesions: int
    intervals: Mapping[str, Interval]  # by name of the metric
    claimed: bool
    reason: str  # why nothing is claimed


@dataclass(frozen=True, kw_only=True)
class Subgroups:
    """Every group of every attribute, and the largest gap of each attribute that has one."""

    min_images: int
    metric: str
    groups: tuple[Group, ...]
    gaps: tuple[Gap, ...]
    note: str = NOTE

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def judge_subgroups(
    scored: Scored,
    *,
    replicates: int = REPLICATES,
    permutations: int = 2000,
    min_images: int = 30,
    seed: int = 0,
    metric: str = "balanced_accuracy",
) -> Subgroups:
    """Judge each group, and test the largest gap of each attribute.

    Args:
        scored: the images.
        replicates: draws of lesions behind each interval.
        permutations: shufflings of groups among lesions behind each p-value.
        min_images: of a group with fewer, or with too few lesions, nothing is claimed.
        seed: of draws and shufflings.
        metric: `balanced_accuracy` compares groups by every class, `recall/mel` by one.

    Raises:
        DataError: groups cannot be compared by this metric.
    """
    everything = "balanced_accuracy"
    by_class = [f"recall/{name}" for name in scored.class_names]
    if metric not in (everything, *by_class):
        raise DataError(
            f"groups cannot be compared by {metric!r}; expected one of "
            f"{', '.join([everything, *by_class])}"
        )
    counted = np.array([metric in (everything, name) for name in by_class])  # (C,)
    weights = lesion_weights(scored.lesions, replicates, seed)
    draws = Draws(weights=weights, permutations=permutations, seed=seed)
    groups: list[Group] = []
    gaps: list[Gap] = []
    for attribute in ATTRIBUTES:
        labels = groups_of(scored, attribute)
        found = _groups(scored, attribute, labels, weights, min_images)
        groups += found
        claimed = [group.group for group in found if group.claimed]
        grouping = Grouping(attribute=attribute, labels=labels, claimed=claimed)
        if (gap := largest_gap(scored, grouping, counted, draws)) is not None:
            gaps.append(gap)
    adjusted = holm([gap.p_value for gap in gaps])
    return Subgroups(
        min_images=min_images,
        metric=metric,
        groups=tuple(groups),
        gaps=tuple(
            replace(gap, p_adjusted=p_value, finding=p_value < SIGNIFICANCE)
            for gap, p_value in zip(gaps, adjusted, strict=True)
        ),
    )


def groups_of(scored: Scored, attribute: str) -> NDArray[np.object_]:
    """Name each image's group: texts (N,), `unknown` where nothing is recorded.

    A lesion that was photographed again years later stays in the age band of the first time.
    """
    values = scored.table[attribute]
    if attribute == "age":
        years = values.to_numpy(np.float64)
        band = np.searchsorted(_AGE_EDGES, np.nan_to_num(years), side="right")
        own = np.where(np.isnan(years), UNKNOWN, np.asarray(AGE_BANDS, dtype=object)[band])
    else:
        own = np.array([word_of(text) or UNKNOWN for text in values], dtype=object)
    known_first = np.argsort(own == UNKNOWN, kind="stable")
    _, first = np.unique(scored.lesions[known_first], return_index=True)
    return np.asarray(own[known_first[first]][scored.lesions], dtype=object)


def _groups(
    scored: Scored,
    attribute: str,
    labels: NDArray[np.object_],
    weights: Floats,
    min_images: int,
) -> list[Group]:
    """Judge the groups that occur: age bands by age, others by name, `unknown` last."""
    bands = {name: place for place, name in enumerate(AGE_BANDS)}
    groups = []
    for name in sorted(set(labels), key=lambda name: (name == UNKNOWN, bands.get(name, 0), name)):
        rows = labels == name
        _, lesions = np.unique(scored.lesions[rows], return_inverse=True)
        images = Scored(
            scored.table[rows],
            scored.logits[rows],
            scored.targets[rows],
            lesions.astype(np.int64),
            scored.class_names,
        )
        reason = too_small = _too_small(images, min_images)
        if name == UNKNOWN:
            reason = f"{attribute} is not recorded of these images"
        group = Group(
            attribute=attribute,
            group=name,
            num_images=len(images),
            num_lesions=images.num_lesions,
            intervals=_intervals(images, weights[:, rows], too_small),
            claimed=not reason,
            reason=reason,
        )
        groups.append(group)
    return groups


def _too_small(images: Scored, min_images: int) -> str:
    """Say why nothing can be claimed of so few; nothing if there are enough."""
    if len(images) < min_images:
        return f"{things(len(images), 'image')}, fewer than {min_images}"
    if images.num_lesions < MIN_LESIONS:
        return f"{things(images.num_lesions, 'lesion')}, fewer than {MIN_LESIONS}"
    return ""


def _intervals(images: Scored, weights: Floats, too_small: str) -> dict[str, Interval]:
    """Return the metrics that can be had; without bounds if there are too few images."""
    once, drawn = _metrics(images, np.ones((1, len(images)))), _metrics(images, weights)
    estimates = {name: float(value[0]) for name, value in once.items() if np.isfinite(value[0])}
    if too_small:
        return {
            name: Interval(estimate=estimate, low=None, high=None, reason=too_small)
            for name, estimate in estimates.items()
        }
    return {
        name: interval_of(estimate, drawn[name], rests_on(images, name))
        for name, estimate in estimates.items()
    }


def _metrics(images: Scored, weights: Floats) -> dict[str, Floats]:
    """Compute what is shown of a group for each row of weights (R, N): name -> (R,)."""
    num_classes = len(images.class_names)
    cells = np.eye(num_classes**2)[images.targets * num_classes + images.predicted]
    confusion = (weights @ cells).reshape(-1, num_classes, num_classes)  # (R, C, C)
    of_class = confusion.sum(axis=2)  # (R, C)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    malignant = malignant_classes(images)
    called = confusion[:, :, malignant].sum(axis=2)  # (R, C), called malignant
    benign = of_class[:, ~malignant].sum(axis=1)
    areas = [
        _area(images.probs[:, target], images.targets == target, weights)
        for target in np.unique(images.targets)
    ]
    return {
        "accuracy": divided(hits.sum(axis=1), weights.sum(axis=1)),
        "balanced_accuracy": _mean(divided(hits, of_class)),
        "macro_auc": _mean(np.stack(areas, axis=1)),
        "malignant_sensitivity": divided(
            called[:, malignant].sum(axis=1), of_class[:, malignant].sum(axis=1)
        ),
        "malignant_specificity": divided(benign - called[:, ~malignant].sum(axis=1), benign),
    }


def _area(scores: Floats, is_class: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve by counting pairs: (N,), (N,), (R, N) -> (R,).

    For groups, which are small, that takes a fifth of the time of adding up curves.
    """
    own, others = scores[is_class][:, None], scores[~is_class]
    above = (own > others) + 0.5 * (own == others)  # (positives, negatives)
    positive, negative = weights[:, is_class], weights[:, ~is_class]
    won = ((positive @ above) * negative).sum(axis=1)
    return divided(won, positive.sum(axis=1) * negative.sum(axis=1))


def _mean(values: Floats) -> Floats:
    """Mean over the classes that a row has: (R, C) -> (R,)."""
    known = np.isfinite(values)
    return divided(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))
