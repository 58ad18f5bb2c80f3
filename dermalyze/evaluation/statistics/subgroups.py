"""Whether the model does worse for some: by sex, age band, site, and what else the data records.

N images, R rows of weights.  All images of a lesion belong to one group, that of its first image
with a known one, so that groups never share a lesion.  Never imports torch.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dermalyze.data.table_columns import UNKNOWN
from dermalyze.evaluation.metrics.classification import Floats, basics
from dermalyze.evaluation.predictions import further_columns, group_numbers
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import (
    MIN_LESIONS,
    REPLICATES,
    Interval,
    interval_of,
    lesion_weights,
    rests_on,
)
from dermalyze.evaluation.statistics.multiple_testing import holm
from dermalyze.evaluation.statistics.subgroup_gaps import Draws, Gap, Grouping, largest_gap
from dermalyze.evaluation.text import not_recorded, things
from serving.metadata import word_of

ATTRIBUTES = ("sex", "age", "localization", "dx_type")
AGE_BANDS = ("under 30", "30-44", "45-59", "60-74", "75 and over")
SIGNIFICANCE = 0.05  # a finding has a smaller corrected p-value
_AGE_EDGES = (30, 45, 60, 75)  # years at which the bands after the first begin


@dataclass(frozen=True, kw_only=True)
class Group:
    """The images of one value of an attribute, and how the model does on them."""

    attribute: str
    group: str
    num_images: int
    num_lesions: int
    intervals: dict[str, Interval]  # by name of the metric
    claimed: bool
    reason: str  # why nothing is claimed


@dataclass(frozen=True, kw_only=True)
class Subgroups:
    """Every group of every attribute, and the largest gap of each attribute that has one."""

    min_images: int
    groups: tuple[Group, ...]
    gaps: tuple[Gap, ...]
    metric: str = "balanced_accuracy"  # by which groups are compared
    note: str = ""


def evaluate_subgroups(
    scored: Scored,
    *,
    replicates: int = REPLICATES,
    permutations: int = 2000,
    min_images: int = 30,
    seed: int = 0,
) -> Subgroups:
    """Evaluate each group, and test the largest gap of each attribute.

    Args:
        scored: the images.
        replicates: draws of lesions behind each interval.
        permutations: shufflings of groups among lesions behind each p-value.
        min_images: nothing is stated about a group with fewer, or with too few lesions.
        seed: of draws and shufflings.
    """
    weights = lesion_weights(scored.lesions, replicates, seed)
    draws = Draws(weights=weights, permutations=permutations, seed=seed)
    groups: list[Group] = []
    gaps: list[Gap] = []
    for attribute in (*ATTRIBUTES, *further_columns(scored.table)):
        labels = groups_of(scored, attribute)
        found = _groups(scored, attribute, labels, weights, min_images)
        groups += found
        claimed = [group.group for group in found if group.claimed]
        grouping = Grouping(attribute=attribute, labels=labels, claimed=claimed)
        if (gap := largest_gap(scored, grouping, draws)) is not None:
            gaps.append(gap)
    adjusted = holm([gap.p_value for gap in gaps])
    return Subgroups(
        min_images=min_images,
        groups=tuple(groups),
        gaps=tuple(
            replace(gap, p_adjusted=p_value, finding=p_value < SIGNIFICANCE)
            for gap, p_value in zip(gaps, adjusted, strict=True)
        ),
        note=_note(scored),
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
    lesions = group_numbers(scored.table[["lesion_id"]])
    _, first = np.unique(lesions[known_first], return_index=True)
    return np.asarray(own[known_first[first]][lesions], dtype=object)


def _groups(
    scored: Scored,
    attribute: str,
    labels: NDArray[np.object_],
    weights: Floats,
    min_images: int,
) -> list[Group]:
    """Evaluate the groups that occur: age bands by age, others by name, `unknown` last."""
    bands = {name: place for place, name in enumerate(AGE_BANDS)}
    groups = []
    for name in sorted(set(labels), key=lambda name: (name == UNKNOWN, bands.get(name, 0), name)):
        rows = labels == name
        images = scored.take(rows)
        reason = too_small = _too_small(images, min_images)
        if name == UNKNOWN:
            reason = f"{attribute} is not recorded for these images"
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
    """Say why nothing can be stated about so few; nothing if there are enough."""
    if len(images) < min_images:
        return f"{things(len(images), 'image')}, fewer than {min_images}"
    if images.num_lesions < MIN_LESIONS:
        return f"{things(images.num_lesions, images.group_by)}, fewer than {MIN_LESIONS}"
    return ""


def _intervals(images: Scored, weights: Floats, too_small: str) -> dict[str, Interval]:
    """Return the metrics that are defined; without bounds if there are too few images."""
    once, drawn = basics(images, np.ones((1, len(images)))), basics(images, weights)
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


def _note(scored: Scored) -> str:
    unit, missing = scored.group_by, scored.taxonomy.not_recorded
    note = (
        "A gap is the mean difference of sensitivity over the classes for which both groups have "
        f"at least {MIN_LESIONS} {unit}s, so a different mix of classes does not count as a gap. "
        "Its interval ignores that these two groups were selected because they differ most; "
        "its p-value accounts for that. A gap does not show its cause."
    )
    if missing:
        note += f" {not_recorded(scored.taxonomy)}."
    return note
