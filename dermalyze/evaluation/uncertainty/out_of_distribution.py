"""How unlike the images that a model was judged on is another one?  Fitted on validation features.

N images, E early features (means over all places of a network's first levels), D dimensions of the
reduced space.  The first levels are those that see what the last ones have learned to overlook:
noise, blur, what is no skin; EXPERIMENTS.md has the comparison.  Never imports torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermalyze.evaluation.metrics.classification import Counts, Floats
from serving.photo_quality import Measures, QualityLimits
from serving.uncertainty import Scope

KIND = "early_mahalanobis"
FALSE_ALARM_RATE = 0.05  # share of the validation lesions, photograph checks included
MAX_DIMENSIONS = 48  # of the reduced space
SHRINKAGE = 0.1  # of each direction's variance towards the mean of all
_FOLDS = 5
_TAIL = 0.001  # share of the validation lesions beyond each limit of the photograph


@dataclass(frozen=True)
class ScopeFit:
    """A Gaussian in a reduced space of early features."""

    mean: NDArray[np.float32]  # (E,)
    projection: NDArray[np.float32]  # (E, D), onto principal directions, scaled to variance 1

    def scores(self, features: NDArray[np.floating]) -> Floats:
        """Return squared Mahalanobis distances, per dimension: (N, E) -> (N,)."""
        reduced = (features - self.mean).astype(np.float64) @ self.projection
        return np.asarray((reduced**2).mean(axis=1))


def fit_scope(features: NDArray[np.floating], lesions: Counts) -> ScopeFit:
    """Fit to early features (N, E) of validation images; each lesion counts once.

    The distance is that of Lee et al., "A simple unified framework for detecting
    out-of-distribution samples" (2018), equation 2, to one Gaussian for all classes, in the space
    of the largest principal components of standardized features.
    """
    weights = lesion_shares(lesions)
    exact = features.astype(np.float64)
    mean = weights @ exact
    deviations = np.sqrt(weights @ (exact - mean) ** 2)
    deviations = np.maximum(deviations, max(1e-3 * deviations.max(), 1e-12))  # a dead channel
    standardized = (exact - mean) / deviations * np.sqrt(weights)[:, None]  # (N, E)
    _, scales, directions = np.linalg.svd(standardized, full_matrices=False)
    num_found = int((scales > 1e-6 * max(scales[0], 1e-12)).sum())
    dimensions = max(1, min(MAX_DIMENSIONS, len(np.unique(lesions)) // 5, num_found))
    variances = scales[:dimensions] ** 2
    shrunk = (1 - SHRINKAGE) * variances + SHRINKAGE * variances.mean()
    projection = directions[:dimensions].T / np.sqrt(shrunk) / deviations[:, None]
    return ScopeFit(mean.astype(np.float32), projection.astype(np.float32))


def cross_fitted(features: NDArray[np.floating], lesions: Counts) -> Floats:
    """Score each image by a fit that has not seen its lesion: (N, E), (N,) -> (N,)."""
    scores = np.empty(len(features))
    folds = lesion_folds(lesions)
    for fold in np.unique(folds):
        held_out = folds == fold
        _, rest = np.unique(lesions[~held_out], return_inverse=True)
        scores[held_out] = fit_scope(features[~held_out], rest).scores(features[held_out])
    return scores


def lesion_folds(lesions: Counts) -> Counts:
    """Deal whole lesions into five folds, always alike: (N,) -> int64 (N,)."""
    order = np.random.default_rng(0).permutation(lesions.max() + 1)
    return np.asarray(order[lesions] % min(_FOLDS, lesions.max() + 1), np.int64)


def fit_max_score(scores: Floats, problems: NDArray[np.bool_], lesions: Counts) -> Scope:
    """Choose the score beyond which an image is out of scope.

    Together with poor photographs, `FALSE_ALARM_RATE` of the lesions are to be beyond it.

    Args:
        scores: (N,), each by a fit that had not seen the image.
        problems: (N,), whether the photograph itself is poor.
        lesions: (N,).
    """
    weights = lesion_shares(lesions)
    order = np.argsort(scores)[::-1]
    # An alarm that the photograph raises anyway costs nothing more.
    alarms = weights[problems].sum() + np.cumsum((weights * ~problems)[order])
    num_allowed = int((alarms <= FALSE_ALARM_RATE).sum())
    beyond = order[:num_allowed]
    highest_inside = scores[order[num_allowed]] if num_allowed < len(order) else scores.min()
    return Scope(
        kind=KIND,
        max_score=float(highest_inside),
        false_alarm_rate=float(weights[np.union1d(beyond, np.flatnonzero(problems))].sum()),
        num_lesions=int(lesions.max()) + 1,
    )


def fit_quality(measures: Measures, lesions: Counts, input_side: int) -> QualityLimits:
    """Set the limits of a photograph just beyond what validation images have."""
    weights = lesion_shares(lesions)

    def low(values: Floats) -> float:
        return _quantile(values, weights, _TAIL)

    return QualityLimits(
        min_side=max(1, input_side // 2),
        min_sharpness=low(measures.sharpness),
        min_brightness=low(measures.brightness),
        max_brightness=-low(-measures.brightness),
        min_color=low(measures.color),
    )


def problems_of(measures: Measures, limits: QualityLimits) -> NDArray[np.bool_]:
    """Say which photographs are poor, their size aside: bool (N,)."""
    return np.asarray(
        (measures.sharpness < limits.min_sharpness)
        | (measures.brightness < limits.min_brightness)
        | (measures.brightness > limits.max_brightness)
        | (measures.color < limits.min_color)
    )


def lesion_shares(lesions: Counts) -> Floats:
    """Share 1 between the lesions, and each share between its images: (N,) -> (N,)."""
    counts = np.bincount(lesions)
    return np.asarray(1 / counts[lesions] / (counts > 0).sum())


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    """Return the lowest value that less than `share` of the weight is below."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) - weights[order]
    return float(values[order][below <= share][-1])
