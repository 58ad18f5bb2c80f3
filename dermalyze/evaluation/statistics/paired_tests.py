"""Two models on the same test images: put side by side, and tested for being right as often.

N images, L lesions.  Never imports torch.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from dermalyze.evaluation.metrics.classification import Counts
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.text import count, things
from serving.errors import DataError


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """What one model gets right and the other does not, and whether that may be chance.

    `p_value` takes images for independent, which those of one lesion are not, so it is too small
    where lesions have several; a finding is what `lesion_p_value` says, corrected for the number
    of runs.
    """

    only_reference: int  # images that the reference alone gets right
    only_other: int
    p_value: float
    lesion_p_value: float
    lesion_p_adjusted: float = 1.0
    finding: bool = False


def paired(a: Scored, b: Scored) -> tuple[Scored, Scored]:
    """Return both predictions with the images in the order of `a`.

    Raises:
        DataError: they are not for the same images, classes, labels and lesions.
    """
    if a.class_names != b.class_names:
        raise DataError(
            f"the classes differ: {', '.join(a.class_names)} and {', '.join(b.class_names)}; "
            "compare models of the same classes"
        )
    ids_a, ids_b = (scored.table["image_id"].astype(str) for scored in (a, b))
    in_a, in_b = set(ids_a), set(ids_b)
    if in_a != in_b:
        parts = [
            f"{things(len(only), 'image')} only in the {which}, such as {min(only)!r}"
            for which, only in (("first", in_a - in_b), ("second", in_b - in_a))
            if only
        ]
        raise DataError(
            f"the test sets differ: {' and '.join(parts)}, and {count(len(in_a & in_b))} in both; "
            "compare runs with the same test split"
        )
    place = {image_id: row for row, image_id in enumerate(ids_b)}
    rows = np.array([place[image_id] for image_id in ids_a], np.int64)
    table = b.table.iloc[rows].reset_index(drop=True)
    for column, what in (("label", "label"), ("lesion_id", "lesion id")):
        ours, theirs = (t[column].fillna("").astype(str).to_numpy(object) for t in (a.table, table))
        if (differs := ours != theirs).any():
            row = int(differs.argmax())
            raise DataError(
                f"the test sets differ: {things(int(differs.sum()), 'image')} with another {what}, "
                f"such as {ids_a.iloc[row]!r} with {ours[row]!r} and {theirs[row]!r}; compare runs "
                "on the same data"
            )
    return a, replace(a, table=table, logits=b.logits[rows])


def mcnemar(reference: Scored, other: Scored) -> McNemar:
    """Test whether two models, given in the same order of images, are right equally often.

    `p_value` is McNemar's, exact and two-sided ("Note on the sampling error of the difference
    between correlated proportions or percentages", Psychometrika 12, 1947).  For images in
    clusters see Obuchowski, "On the comparison of correlated proportions for clustered data"
    (1998); `lesion_p_value` is the exact form: if neither model were better, each lesion's lead,
    images right of one less those of the other, could as well be the other one's.  Where every
    lesion has one image, both are the same.
    """
    lead = (other.predicted == other.targets).astype(np.int64) - (
        reference.predicted == reference.targets
    )
    only_reference, only_other = int((lead < 0).sum()), int((lead > 0).sum())
    discordant = only_reference + only_other
    return McNemar(
        only_reference=only_reference,
        only_other=only_other,
        p_value=float(binomtest(only_other, discordant).pvalue) if discordant else 1.0,
        lesion_p_value=_sign_flips(np.bincount(reference.lesions, weights=lead).astype(np.int64)),
    )


def _sign_flips(leads: Counts) -> float:
    """Return how often random signs take the sum of (L,) as far from 0 as it is; exact."""
    sizes = np.abs(leads[leads != 0])
    chances = np.ones(1)  # of the sum of those with a plus, from 0
    for size in sizes:
        shifted = np.concatenate([np.zeros(size), chances])
        chances = (np.concatenate([chances, np.zeros(size)]) + shifted) / 2
    sums = 2 * np.arange(len(chances)) - sizes.sum()  # pluses less minuses
    return min(1.0, float(chances[np.abs(sums) >= abs(leads.sum())].sum()))
