"""Whether a property of the photograph alone tells the class: a shortcut that a model may take.

One value for each lesion, so that images of one lesion do not count twice.  L lesions.  Never
imports torch.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from dermalyze.evaluation.metrics.classification import Floats
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import MIN_LESIONS
from dermalyze.evaluation.statistics.multiple_testing import holm
from dermalyze.evaluation.statistics.subgroups import SIGNIFICANCE

MIN_AUC = 0.65  # a property that tells a class less well is no shortcut worth looking at
_FOLDS = 5
_BINS = 10  # with equally many lesions each
_ENOUGH = 10  # shufflings that came as far: it is chance, and no more are needed


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """How well one property tells one class from the others, out of fold."""

    name: str  # of the property
    label: str  # the class that it tells best
    auc: float
    p_adjusted: float  # that it tells no class, corrected for all properties
    finding: bool
    rows: NDArray[np.int64]  # images of the class, most typical first, one for each lesion


def shortcuts(
    scored: Scored, properties: pd.DataFrame, *, permutations: int = 499, seed: int = 0
) -> list[Shortcut]:
    """Try each property alone; return the shortcuts first.

    The share of each class among the lesions with similar values predicts the classes of other
    lesions, and this is compared with shuffled classes.  Classes with few lesions, and constant
    properties, do not count.

    Args:
        scored: the images; only their classes and lesions are used.
        properties: a column for each property, a row for each image.
        permutations: shufflings behind each p-value, at most.
        seed: of folds and shufflings.
    """
    images = pd.DataFrame({"lesion": scored.lesions, "target": scored.targets})
    # A patient may have lesions of several classes: of each the images of its rarest class.
    images["count"] = images["target"].map(images["target"].value_counts())
    rarest = images.sort_values("count", kind="stable").groupby("lesion")["target"].first()
    chosen = images[images["target"] == images["lesion"].map(rarest)]
    common = chosen.groupby("target")["lesion"].nunique() >= MIN_LESIONS
    chosen = chosen[chosen["target"].map(common)]
    first = chosen.drop_duplicates("lesion").sort_values("lesion")
    targets, rows = first["target"].to_numpy(), first.index.to_numpy()
    if len(np.unique(targets)) < 2:
        return []
    found = []
    for name, column in properties.items():
        values = column[chosen.index].groupby(chosen["lesion"]).mean().to_numpy()
        if values.min() < values.max():
            found.append(_of_property(str(name), values, targets, permutations, seed))
    adjusted = holm([shortcut.p_adjusted for shortcut in found])
    found = [
        replace(
            shortcut,
            label=scored.class_names[int(shortcut.label)],
            p_adjusted=p_value,
            finding=p_value < SIGNIFICANCE and shortcut.auc >= MIN_AUC,
            rows=rows[shortcut.rows],
        )
        for shortcut, p_value in zip(found, adjusted, strict=True)
    ]
    return sorted(found, key=lambda shortcut: (not shortcut.finding, -shortcut.auc))


def _of_property(
    name: str, values: Floats, targets: NDArray[np.int64], permutations: int, seed: int
) -> Shortcut:
    """Measure one property; the label is the number of its class, the p-value not corrected."""
    rng = np.random.default_rng(seed)
    edges = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS))
    bins, folds = np.searchsorted(edges, values), rng.permutation(len(values)) % _FOLDS
    label, auc, score, probability = _told(bins, folds, targets)
    as_far = tried = 0
    while tried < permutations and as_far < _ENOUGH:  # Besag and Clifford, Biometrika 78 (1991)
        as_far += _told(bins, folds, rng.permutation(targets))[2] >= score
        tried += 1
    p_value = as_far / tried if as_far == _ENOUGH else (as_far + 1) / (tried + 1)
    members = np.flatnonzero(targets == label)
    typical = members[np.argsort(-probability[members], kind="stable")]
    return Shortcut(
        name=name, label=str(label), auc=auc, p_adjusted=p_value, finding=False, rows=typical
    )


def _told(
    bins: NDArray[np.int64], folds: NDArray[np.int64], targets: NDArray[np.int64]
) -> tuple[int, float, float, Floats]:
    """Return the class told best, its AUC, that in standard errors, its probabilities (L,).

    A lesion's probability of a class is the share of the class among the lesions of other folds in
    its bin, as if the classes were equally common.
    """
    shape = (int(folds.max()) + 1, int(bins.max()) + 1, int(targets.max()) + 1)
    counts = np.zeros(shape)
    np.add.at(counts, (folds, bins, targets), 1)
    others = counts.sum(axis=0) - counts  # (folds, bins, classes)
    shares = (others + 0.1) / (others.sum(axis=1, keepdims=True) + 1)
    probabilities = (shares / shares.sum(axis=2, keepdims=True))[folds, bins]  # (L, classes)
    label, size = np.unique(targets, return_counts=True)
    ranks = rankdata(probabilities[:, label], axis=0) * (targets[:, None] == label)
    rest = len(targets) - size
    aucs = (ranks.sum(axis=0) - size * (size + 1) / 2) / (size * rest)
    # Mann and Whitney, Annals of Mathematical Statistics 18 (1947)
    scores = (aucs - 0.5) / np.sqrt((len(targets) + 1) / 12 / size / rest)
    best = int(scores.argmax())
    return int(label[best]), float(aucs[best]), float(scores[best]), probabilities[:, label[best]]
