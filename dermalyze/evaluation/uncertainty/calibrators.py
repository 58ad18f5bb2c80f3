"""Better probabilities from the same answers: calibrators, and other class shares.

A calibrator is fitted on the validation split and sees nothing else.  N images, C classes.  Never
imports torch.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

from dermalyze.config.schema import require
from dermalyze.evaluation.metrics.classification import Counts, Floats
from dermalyze.evaluation.predictions import group_numbers
from dermalyze.evaluation.scores import Scored
from serving.errors import DataError
from serving.prediction import softmax
from serving.taxonomy import Taxonomy

MIN_LESIONS = 5  # of each class in validation; from fewer a map learns little but its priors
MAX_TEMPERATURE = 20.0  # and its inverse; without one mistake to learn from, 0 would be the best
# Standard deviations of what a map is expected to add to temperature scaling.
SCALE_STD = 0.5  # of a class's own weight, around 1
MIXING_STD = 0.1  # of its weights of the other classes, around 0
BIAS_STD = 2.0  # nats, around 0; class weights in training shift by up to 4
_IMPOSSIBLE = 1000.0  # nats below the least likely class: a probability of 0, and a finite logit


@dataclass(frozen=True, kw_only=True)
class FittedOn:
    """What a calibrator has seen."""

    num_images: int
    num_lesions: int
    split: str = "val"


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """An affine map of logits (of log-probabilities: Dirichlet), fitted on the validation split.

    Its parameters are `temperature`; or `scale` (C,) and `bias` (C,); or `weight` (C, C), what goes
    in along columns, and `bias`.  A bias is in nats.
    """

    kind: str  # one of config.CALIBRATORS
    parameters: dict[str, float | list[float] | list[list[float]]]
    fitted_on: FittedOn

    def apply(self, logits: NDArray[np.floating]) -> Floats:
        """Return calibrated logits: (N, C) -> float64 (N, C)."""
        values = {name: np.asarray(value) for name, value in self.parameters.items()}
        inputs = _inputs(self.kind, logits)
        if self.kind == "temperature":
            return np.asarray(inputs / values["temperature"])
        if self.kind == "vector":
            return np.asarray(inputs * values["scale"] + values["bias"])
        return np.asarray(inputs @ values["weight"].T + values["bias"])


def fit_calibrator(kind: str, validation: Scored) -> Calibrator:
    """Fit a calibrator of one of `config.CALIBRATORS` to validation images.

    `temperature` divides all logits by one number, from 1/20 to 20; `vector` gives each class a
    scale and a bias (both Guo et al., "On Calibration of Modern Neural Networks", 2017, section
    4.2); `dirichlet` mixes the log-probabilities of all classes (Kull et al., "Beyond temperature
    scaling", 2019).  The last two are shrunk towards the first, see `map_loss`.

    Raises:
        DataError: `vector` or `dirichlet`, and a class has too few validation lesions.
    """
    num_classes = len(validation.class_names)
    inputs = _inputs(kind, validation.logits)
    temperature = _best_temperature(inputs, validation.targets)
    parameters = np.eye(num_classes, num_classes + 1)
    if kind != "temperature":
        require_lesions(kind, validation.table, validation.taxonomy)
        free = np.full(parameters.shape, kind == "dirichlet") | (parameters > 0)
        free[:, -1] = True
        parameters = _best_map(inputs / temperature, validation.targets, free)
    weight, bias = parameters[:, :-1] / temperature, parameters[:, -1].tolist()
    return Calibrator(
        kind=kind,
        parameters={
            "temperature": {"temperature": temperature},
            "vector": {"scale": weight.diagonal().tolist(), "bias": bias},
            "dirichlet": {"weight": weight.tolist(), "bias": bias},
        }[kind],
        fitted_on=FittedOn(num_images=len(validation), num_lesions=validation.num_lesions),
    )


def map_loss(parameters: Floats, inputs: Floats, targets: Counts) -> tuple[float, Floats]:
    """Return what fitting a map minimizes, nats an image, and its gradient (C, C + 1).

    The mean negative log-likelihood plus a penalty: that of normal priors around temperature
    scaling, so it fades as images are added.  Off the diagonal and in the bias it is the ODIR of
    Kull et al. (2019) with lambda = C (C - 1) / (2 N MIXING_STD^2) and mu = C / (2 N
    BIAS_STD^2).  The diagonal, which they leave free, has one as well: else the scale of a rare
    class without a mistake grows without end.

    Args:
        parameters: weights (C, C) and, as the last column, the bias (C,).
        inputs: logits or log-probabilities (N, C), divided by the best temperature.
        targets: (N,).
    """
    num_images, num_classes = inputs.shape
    center = np.eye(num_classes, num_classes + 1)
    std = np.where(center > 0, SCALE_STD, MIXING_STD)
    std[:, -1] = BIAS_STD
    distance = (parameters - center) / std
    log_probs = log_softmax(inputs @ parameters[:, :-1].T + parameters[:, -1], axis=1)
    nll = -log_probs[np.arange(num_images), targets].sum()
    error = np.exp(log_probs) - np.eye(num_classes)[targets]  # (N, C)
    slope = error.T @ np.column_stack([inputs, np.ones(num_images)])
    loss = float(nll + (distance**2).sum() / 2) / num_images
    return loss, np.asarray((slope + distance / std) / num_images)


def require_lesions(kind: str, rows: pd.DataFrame, taxonomy: Taxonomy) -> None:
    """Refuse validation rows, of a manifest or of predictions, that are too few for a calibrator.

    Raises:
        DataError: it is `vector` or `dirichlet`, and a class has fewer than `MIN_LESIONS` lesions.
    """
    if kind == "temperature":
        return
    lesions = group_numbers(rows)
    for name in taxonomy.names:
        num_lesions = len(np.unique(lesions[(rows["label"] == name).to_numpy()]))
        if num_lesions < MIN_LESIONS:
            raise DataError(
                f"a {kind} calibrator needs {MIN_LESIONS} validation lesions of each class and "
                f"there are {num_lesions} of {name}; set evaluation.calibrator to temperature"
            )


def require_disjoint(evaluated: Scored, fitted: Scored) -> None:
    """Refuse to evaluate a calibrator on what it was fitted on.

    Raises:
        DataError: a lesion or an image is in both.
    """
    for column, what in (("lesion_id", "lesion"), ("image_id", "image")):
        shared = _ids(evaluated, column) & _ids(fitted, column)
        if shared:
            raise DataError(
                f"{what} {min(shared)!r} is in both the predictions to evaluate and those that the "
                f"calibrator is fitted on ({len(shared):,} in common); pass the predictions of the "
                "validation split, which shares nothing with them"
            )


def correct_priors(logits: NDArray[np.floating], trained: Floats, stated: Floats) -> Floats:
    """Return the logits (N, C) of a network that had seen other class shares: float64 (N, C).

    p'(c) ~ p(c) stated(c) / trained(c): Saerens et al., "Adjusting the Outputs of a Classifier to
    New a Priori Probabilities" (2002), equation 2.4; Elkan, "The Foundations of Cost-Sensitive
    Learning" (2001), theorem 2, for two classes.  A class stated as 0 gets the probability 0 from
    a finite logit.

    Args:
        logits: calibrated for `trained`.
        trained: fractions (C,) of the classes that the network learned from.
        stated: fractions (C,) of the classes where it shall answer.

    Raises:
        DataError: a class is stated that the network has never seen.
    """
    if len(unseen := np.flatnonzero((stated > 0) & (trained == 0))):
        raise DataError(
            f"class {unseen[0]} of {len(stated)}, counted from 0, is stated as "
            f"{stated[unseen[0]]:.3g} of all images, but training had no image of it; state it as 0"
        )
    possible = stated > 0
    shift = np.log(np.divide(stated, trained, out=np.ones(len(stated)), where=possible))
    corrected: Floats = logits.astype(np.float64) + shift
    corrected[:, ~possible] = corrected.min(axis=1, keepdims=True) - _IMPOSSIBLE
    return corrected


def estimate_priors(logits: NDArray[np.floating], trained: Floats) -> Floats:
    """Estimate the class shares (C,) of images without labels from their logits (N, C).

    The most likely shares if the network is calibrated for `trained` (C,) and the classes look as
    they did there, by expectation maximization: Saerens et al. (2002), equation 2.9.
    """
    seen = trained > 0
    likelihood = softmax(correct_priors(logits, trained, seen / seen.sum()))  # up to a row's factor
    shares = trained
    for _ in range(10_000):  # a bound; some hundreds are usual
        last = shares
        shares = shares * (likelihood / (likelihood @ shares)[:, None]).mean(axis=0)
        if np.abs(shares - last).max() < 1e-9:
            break
    return shares


def parse_prevalence(text: str, taxonomy: Taxonomy) -> Floats:
    """Read class shares such as `mel=0.02,nv=0.9`: fractions (C,) that sum to 1.

    A class is named as it is, or by its key.  Classes that are not named share what is left
    equally.

    Raises:
        ConfigError: it is not such a list.
    """

    def check(ok: bool, expected: str) -> None:
        require(ok, "evaluation.prevalence", expected, text)

    names = dict(zip(taxonomy.keys, taxonomy.names, strict=True)) | {n: n for n in taxonomy.names}
    shares: dict[str, float] = {}
    for part in text.split(","):
        key, _, number = (piece.strip() for piece in part.partition("="))
        check(key in names, f"CLASS=SHARE,... of the classes {', '.join(taxonomy.keys)}")
        name = names[key]
        check(name not in shares, f"a list that names {name} once")
        try:
            shares[name] = float(number)
        except ValueError:
            check(False, f"a list with a number for {name}")
        check(0 <= shares[name] <= 1, f"a list with a share from 0 to 1 for {name}")
    left, unnamed = 1 - sum(shares.values()), len(taxonomy) - len(shares)
    rounding = 1e-6  # shares are written by hand
    if unnamed:
        check(left >= -rounding, "shares that sum to at most 1")
    else:
        check(abs(left) <= rounding, "shares that sum to 1")
    others = max(left, 0.0) / max(unnamed, 1)
    values = np.array([shares.get(name, others) for name in taxonomy.names])
    return np.asarray(values / values.sum())


def _inputs(kind: str, logits: NDArray[np.floating]) -> Floats:
    exact = logits.astype(np.float64)
    return np.asarray(log_softmax(exact, axis=1)) if kind == "dirichlet" else exact


def _best_temperature(logits: Floats, targets: Counts) -> float:
    rows = np.arange(len(targets))

    def nll(log_temperature: float) -> float:
        log_probs = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(log_probs[rows, targets].mean())

    bound = np.log(MAX_TEMPERATURE)
    found = minimize_scalar(nll, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def _best_map(inputs: Floats, targets: Counts, free: NDArray[np.bool_]) -> Floats:
    start = np.eye(*free.shape)

    def loss(values: Floats) -> tuple[float, Floats]:
        parameters = start.copy()
        parameters[free] = values
        value, gradient = map_loss(parameters, inputs, targets)
        return value, gradient[free]

    tolerances = {"ftol": 1e-13, "gtol": 1e-8}
    found = minimize(loss, start[free], jac=True, method="L-BFGS-B", options=tolerances)
    best = start.copy()
    best[free] = found.x
    return best


def _ids(scored: Scored, column: str) -> set[str]:
    return set(scored.table[column].fillna("").astype(str)) - {""}
