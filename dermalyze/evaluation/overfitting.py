"""Does a training over- or underfit?  A verdict in words, from the history of its epochs.

What a practitioner looks at: whether val/loss rises while train/loss does not, how far accuracy
on the training images is ahead of that on the validation images, whether both losses still fall,
and how high the scores are.  train/loss is compared with itself only: class weights, focal loss
and label smoothing put it on another scale than val/loss.  Train metrics are taken with
augmentation and dropout, while the weights still move, so a train/accuracy below val/accuracy is
no fault.  Never imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataError

OVERFITTING = "overfitting"
UNDERFITTING = "underfitting"
DIVERGING = "diverging"
STILL_IMPROVING = "still improving"
GOOD_FIT = "good fit"
TOO_SHORT = "too short to say"

MIN_EPOCHS = 5  # fewer points are no trend
WINDOW = 3  # epochs in a moving mean: one lucky epoch is no minimum
RISE = 0.10  # fraction by which val/loss must be above its lowest mean
GAP = 0.15  # by which train/accuracy must be ahead of val/accuracy
TINY = 1e-12  # keeps a loss of 0 from dividing
MIN_CHANGE = 0.02  # nats; a val/loss that moves less counts as constant, however small it is
FALL = 0.05  # fraction by which a loss must fall in the last third to count as falling
LOW_GAIN = 5 / 12  # of the way from chance to 1; of 7 classes a balanced accuracy of 0.5
LOW_SHARE = 0.9  # of the accuracy that answering the commonest class everywhere would have
SCORES = ("train/accuracy", "val/accuracy", "val/balanced_accuracy")
KEYS = ("epoch", "train/loss", "val/loss", *SCORES)


@dataclass(frozen=True, kw_only=True)
class FitVerdict:
    """What the history says, why, and which settings to turn; both lists are sentences."""

    verdict: str
    reasons: tuple[str, ...]
    advice: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Trends:
    """What the verdict rests on: moving means; `end` is the last, `then` that of the best epoch."""

    best_epoch: int  # of the lowest val/loss within its lowest moving mean
    train_loss_first: float  # of the first epoch alone
    train_loss_lowest: float
    train_loss_then: float
    train_loss_end: float
    train_progress: float  # fraction by which train/loss ends below all before the last third
    val_loss_lowest: float
    val_loss_end: float
    val_progress: float
    noise: float  # fraction by which val/loss jumps from one epoch to the next
    rises: bool  # val/loss ends above its lowest mean by more than noise can explain
    falls: bool  # both losses still gained ground in the last third
    train_accuracy_end: float
    val_accuracy_end: float
    gap: float  # by how much train/accuracy ends ahead of val/accuracy
    balanced_accuracy_best: float
    balanced_accuracy_then: float
    balanced_accuracy_end: float


def judge_fit(
    history: Sequence[Mapping[str, float]], images_of_classes: Sequence[int]
) -> FitVerdict:
    """Say how a training went by its history: one mapping per epoch, in order.

    What counts as low follows from the training images of each class.  The verdict is the first
    that holds of: too short to say, diverging, overfitting, underfitting, still improving, good
    fit.

    Raises:
        DataError: an epoch lacks one of the metrics, or has one that is not a finite number.
    """
    _check(history)
    if len(history) < MIN_EPOCHS:
        return _too_short(len(history))
    trends = _trends({key: np.array([entry[key] for entry in history]) for key in KEYS})
    return (
        _diverging(trends)
        or _overfitting(trends)
        or _underfitting(trends, images_of_classes)
        or _still_improving(trends)
        or _good_fit(trends)
    )


def format_verdict(verdict: FitVerdict) -> str:
    """Lay out a verdict for a terminal."""
    lines = [verdict.verdict, "", "why:", *(f"  - {reason}" for reason in verdict.reasons)]
    if verdict.advice:
        lines += ["", "what to try:", *(f"  - {advice}" for advice in verdict.advice)]
    return "\n".join(lines)


def _check(history: Sequence[Mapping[str, float]]) -> None:
    for number, entry in enumerate(history, 1):
        for key in KEYS:
            value = entry.get(key)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise DataError(
                    f"the training history has {key} {value!r} in entry {number}, expected a "
                    "finite number; it must be a training_history.json of `dermalyze train`"
                )


def _trends(values: Mapping[str, NDArray[np.float64]]) -> _Trends:
    means = {
        key: np.convolve(series, np.full(WINDOW, 1 / WINDOW), mode="valid")
        for key, series in values.items()
    }
    train_loss, val_loss = means["train/loss"], means["val/loss"]
    balanced_accuracy = means["val/balanced_accuracy"]
    then = int(val_loss.argmin())
    best = then + int(values["val/loss"][then : then + WINDOW].argmin())
    # Compared with the lowest before, so that the descent after a warm restart is no progress.
    before = max(1, len(val_loss) - max(WINDOW, len(values["epoch"]) // 3))
    noise = _noise(values["val/loss"])
    rise = float(val_loss[-1] - val_loss[then])
    gain = float(val_loss[:before].min() - val_loss[-1])
    train_progress = 1 - float(train_loss[-1] / max(train_loss[:before].min(), TINY))
    val_progress = gain / max(float(val_loss[:before].min()), TINY)
    return _Trends(
        best_epoch=int(values["epoch"][best]),
        train_loss_first=float(values["train/loss"][0]),
        train_loss_lowest=float(train_loss.min()),
        train_loss_then=float(train_loss[then]),
        train_loss_end=float(train_loss[-1]),
        train_progress=train_progress,
        val_loss_lowest=float(val_loss[then]),
        val_loss_end=float(val_loss[-1]),
        val_progress=val_progress,
        noise=noise,
        rises=rise >= max(MIN_CHANGE, max(RISE, 3 * noise) * val_loss[then]),
        falls=train_progress >= FALL
        and val_progress >= max(FALL, 2 * noise)
        and gain >= MIN_CHANGE,
        train_accuracy_end=float(means["train/accuracy"][-1]),
        val_accuracy_end=float(means["val/accuracy"][-1]),
        gap=float(means["train/accuracy"][-1] - means["val/accuracy"][-1]),
        balanced_accuracy_best=float(balanced_accuracy.max()),
        balanced_accuracy_then=float(balanced_accuracy[then]),
        balanced_accuracy_end=float(balanced_accuracy[-1]),
    )


def _noise(losses: NDArray[np.float64]) -> float:
    """Typical distance of an epoch from its neighbors' mean, as a fraction; trends drop out."""
    logs = np.log(np.maximum(losses, TINY))
    bends = logs[1:-1] - (logs[:-2] + logs[2:]) / 2
    # 1.4826: from median to standard deviation; 1.5: three epochs add up in each bend.
    return float(1.4826 * np.median(np.abs(bends)) / math.sqrt(1.5))


def _too_short(num_epochs: int) -> FitVerdict:
    counted = "1 epoch" if num_epochs == 1 else f"{num_epochs} epochs"
    return FitVerdict(
        verdict=TOO_SHORT,
        reasons=(f"the history has {counted}; a trend needs at least {MIN_EPOCHS}",),
        advice=(f"train for longer: training.epochs of {MIN_EPOCHS} or more",),
    )


def _diverging(trends: _Trends) -> FitVerdict | None:
    """Half of what was learned is lost again; a warm restart alone costs less than that."""
    first, lowest, end = trends.train_loss_first, trends.train_loss_lowest, trends.train_loss_end
    if not (end > 1.05 * first or (lowest < 0.9 * first and end > (lowest + first) / 2)):
        return None
    return FitVerdict(
        verdict=DIVERGING,
        reasons=(
            f"train/loss began at {first:.3f}, fell to {lowest:.3f} and ends at {end:.3f}"
            if lowest < first
            else f"train/loss began at {first:.3f} and ends at {end:.3f}, higher than ever before",
        ),
        advice=(
            "lower training.lr to a third",
            "lengthen the warm-up with training.scheduler.warmup_pct",
            "clip harder with training.max_grad_norm, and try training.use_amp=false",
        ),
    )


def _overfitting(trends: _Trends) -> FitVerdict | None:
    # If train/loss rose as well, the learning rate was restarted: that is no overfitting.
    rises = trends.rises and trends.train_loss_end <= 1.02 * trends.train_loss_then
    if not rises and trends.gap < GAP:
        return None
    reasons, advice = [], []
    if rises:
        reasons.append(
            f"val/loss was lowest around epoch {trends.best_epoch} ({trends.val_loss_lowest:.3f}) "
            f"and has risen to {trends.val_loss_end:.3f}, while train/loss went from "
            f"{trends.train_loss_then:.3f} to {trends.train_loss_end:.3f}"
        )
    if trends.gap >= GAP:
        reasons.append(
            f"train/accuracy ends at {trends.train_accuracy_end:.3f}, {trends.gap:.3f} ahead of "
            f"val/accuracy ({trends.val_accuracy_end:.3f})"
        )
    if rises and trends.balanced_accuracy_end > trends.balanced_accuracy_then + 0.02:
        reasons.append(
            f"val/balanced_accuracy went up meanwhile, from {trends.balanced_accuracy_then:.3f} "
            f"to {trends.balanced_accuracy_end:.3f}: the answers got better, their confidence worse"
        )
        advice.append("select epochs with training.monitor=val/balanced_accuracy")
        advice.append("reduce overconfidence with loss.label_smoothing=0.1")
    advice += [
        "vary the images more: raise augmentation.level by one step, at most heavy",
        "raise model.dropout_rate or training.weight_decay",
        "take a smaller model.size, or train the head alone with model.freeze_backbone=true",
    ]
    if rises:
        advice.append(
            f"stop sooner: lower training.early_stopping_patience, or training.epochs to about "
            f"{trends.best_epoch}"
        )
    return FitVerdict(verdict=OVERFITTING, reasons=tuple(reasons), advice=tuple(advice))


def _underfitting(trends: _Trends, images_of_classes: Sequence[int]) -> FitVerdict | None:
    chance = 1 / len(images_of_classes)  # balanced accuracy of one answer for every image
    commonest = max(images_of_classes) / sum(images_of_classes)  # its accuracy
    reasons, advice = [], []
    if trends.balanced_accuracy_best < chance + LOW_GAIN * (1 - chance):
        reasons.append(
            f"val/balanced_accuracy reached only {trends.balanced_accuracy_best:.3f}; "
            f"predicting the same class for every image would score {chance:.3f}"
        )
    # Mixed training images are hard even for a network that knows them.
    if max(trends.train_accuracy_end, trends.val_accuracy_end) < LOW_SHARE * commonest:
        reasons.append(
            f"train/accuracy ends at only {trends.train_accuracy_end:.3f}: even the training "
            "images are not learned"
        )
    if not reasons:
        return None
    if trends.falls:
        reasons.append(_falling_words(trends))
        advice.append("train for longer: raise training.epochs")
    else:
        reasons.append("the losses no longer fall: more epochs alone will not help")
        advice.append("try another training.lr, three times higher or lower")
    if trends.balanced_accuracy_best < 1.2 * chance:
        advice.append("give rare classes more weight with loss.class_weights=balanced")
    advice += [
        "start from pretrained weights with model.pretrained, and model.freeze_backbone=false",
        "reduce regularization: lower model.dropout_rate, training.weight_decay or "
        "augmentation.level",
        "take a larger model.size or data.image_size",
    ]
    return FitVerdict(verdict=UNDERFITTING, reasons=tuple(reasons), advice=tuple(advice))


def _still_improving(trends: _Trends) -> FitVerdict | None:
    if not trends.falls:
        return None
    return FitVerdict(
        verdict=STILL_IMPROVING,
        reasons=(_falling_words(trends), _level_words(trends)),
        advice=("train for longer: raise training.epochs",),
    )


def _good_fit(trends: _Trends) -> FitVerdict:
    reasons = [
        f"val/loss ends at {trends.val_loss_end:.3f}, close to its lowest mean "
        f"({trends.val_loss_lowest:.3f}, around epoch {trends.best_epoch})"
        if not trends.rises
        else f"val/loss ends at {trends.val_loss_end:.3f}, above its lowest mean "
        f"({trends.val_loss_lowest:.3f}), but train/loss rose as well",
        _level_words(trends),
    ]
    if trends.noise > RISE / 3:
        reasons.append(
            f"val/loss jumps by about {trends.noise:.0%} from epoch to epoch, which hides "
            "smaller changes"
        )
    return FitVerdict(verdict=GOOD_FIT, reasons=tuple(reasons), advice=())


def _falling_words(trends: _Trends) -> str:
    return (
        f"in the last third train/loss still fell by {trends.train_progress:.0%} and val/loss "
        f"by {trends.val_progress:.0%}"
    )


def _level_words(trends: _Trends) -> str:
    return (
        f"train/accuracy ends at {trends.train_accuracy_end:.3f}, val/accuracy at "
        f"{trends.val_accuracy_end:.3f}, val/balanced_accuracy at "
        f"{trends.balanced_accuracy_end:.3f}"
    )
