"""Pictures of a training and of its evaluation, as PNG files.

N images, C classes.  Figures are plain objects: there is no pyplot, no window and nothing to
close.  Colors are Okabe and Ito's, which color-blind readers tell apart; lines differ in their
dashes as well.  Never imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from dermalyze.evaluation.metrics import (
    Counts,
    confusion_matrix,
    expected_calibration_error,
    normalized_confusion_matrix,
    one_vs_rest_auc,
    reliability_bins,
    score,
)
from serving.errors import DataError
from serving.prediction import softmax
from serving.taxonomy import DISCLAIMER
from serving.whole import whole_file

COLORS = ("#E69F00", "#56B4E9", "#009E73", "#000000", "#D55E00", "#0072B2", "#CC79A7")
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")
BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#767676"
PALE = "#A6CBE3"  # the blue, for what rests on few images
FEW_IMAGES = 10
DPI = 100  # what MLflow's artifact view shows without shrinking

Logits = NDArray[np.floating]


def save_confusion_matrix(
    path: Path, logits: Logits, targets: Counts, class_names: Sequence[str]
) -> None:
    """Draw counts and shares of each true class; logits (N, C), targets (N,)."""
    confusion = confusion_matrix(targets, logits.argmax(axis=1), len(class_names))
    shares = normalized_confusion_matrix(confusion)
    figure = _figure(7.4, 6.2)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*confusion.shape):
        count, share = int(confusion[row, column]), float(shares[row, column])
        axes.text(
            column,
            row,
            f"{count:,}\n{_percent(share)}" if count else "0",
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold" if row == column else "normal",
            color="white" if share > 0.55 else GREY if count == 0 else "black",
        )
    support = confusion.sum(axis=1)
    axes.set_xticks(range(len(class_names)), class_names)
    axes.set_yticks(
        range(len(class_names)),
        [f"{name}\nn = {n:,}" for name, n in zip(class_names, support, strict=True)],
    )
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    accuracy = confusion.trace() / len(targets)
    axes.set_title(f"Confusion matrix: {_images(len(targets))}, accuracy {accuracy:.1%}")
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, format=PercentFormatter(1.0))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    _save(figure, path, with_disclaimer=True)


def save_roc_curves(
    path: Path, logits: Logits, targets: Counts, class_names: Sequence[str]
) -> None:
    """Draw each class against the rest, with its AUC; classes without a curve are named."""
    probs = softmax(logits)
    auc = one_vs_rest_auc(probs, targets)
    figure = _figure(7.4, 6.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (2, 4)))
    for index, name in enumerate(class_names):
        if math.isfinite(auc[index]):
            false_positive, true_positive = _roc_curve(probs[:, index], targets == index)
            label = f"{name}  AUC {auc[index]:.3f}  (n = {(targets == index).sum():,})"
            color = COLORS[index % len(COLORS)]
        else:
            false_positive, true_positive = np.empty(0), np.empty(0)
            only = "no other class" if (targets == index).all() else "no image"
            label, color = f"{name}  no curve: {only}", "none"
        axes.plot(
            false_positive,
            true_positive,
            label=label,
            color=color,
            ls=DASHES[index % len(DASHES)],
            lw=2,
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    mean = f"macro AUC {np.nanmean(auc):.3f}" if np.isfinite(auc).any() else "no AUC to be had"
    axes.set_title(f"ROC curves, one class against the rest: {mean}")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=9, handlelength=3)
    _save(figure, path, with_disclaimer=True)


def save_per_class_metrics(
    path: Path, logits: Logits, targets: Counts, class_names: Sequence[str]
) -> None:
    """Draw precision, sensitivity and F1 of each class, with its number of images."""
    metrics = score(logits, targets, class_names)
    figure = _figure(9.0, 5.0)
    axes = figure.subplots()
    width = 0.27
    bars = (("precision", "precision", BLUE), ("recall", "sensitivity (recall)", ORANGE))
    for offset, (name, label, color) in enumerate((*bars, ("f1", "F1", GREEN))):
        values = [metrics.get(f"{name}/{class_name}", math.nan) for class_name in class_names]
        places = np.arange(len(class_names)) + (offset - 1) * width
        axes.bar(places, np.nan_to_num(values), width * 0.94, label=label, color=color)
        for place, value in zip(places, values, strict=True):
            if math.isfinite(value):
                axes.text(place, value + 0.012, f"{value:.2f}", ha="center", fontsize=8)
    ticks = []
    for index, name in enumerate(class_names):
        support = int(metrics[f"support/{name}"])
        ticks.append(f"{name}\nn = {support:,}")
        if support == 0:
            axes.text(index, 0.02, "no image", ha="center", color=GREY, fontsize=9)
    axes.set_xticks(range(len(class_names)), ticks)
    axes.set(ylim=(0, 1.08), ylabel="fraction")
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_title(
        f"Per class: balanced accuracy {metrics['balanced_accuracy']:.3f}, "
        f"macro F1 {metrics['macro_f1']:.3f}",
        pad=26,
    )
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    _save(figure, path, with_disclaimer=True)


def save_calibration_curve(path: Path, logits: Logits, targets: Counts) -> None:
    """Draw accuracy against confidence, and below how often each confidence is given."""
    probs = softmax(logits)
    confidences, correct = probs.max(axis=1), logits.argmax(axis=1) == targets
    table = reliability_bins(confidences, correct)
    error = expected_calibration_error(confidences, correct)
    figure = _figure(6.8, 7.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = table.edges[1] - table.edges[0]
    middles = table.edges[:-1] + width / 2
    filled = table.count > 0
    few = table.count < FEW_IMAGES
    for bins, color in ((filled & ~few, BLUE), (filled & few, PALE)):
        upper.bar(middles[bins], table.accuracy[bins], width * 0.94, color=color)
    upper.plot([0, 1], [0, 1], color=GREY, lw=1.2, ls="--")
    upper.plot(
        table.confidence[filled],
        table.accuracy[filled],
        color=VERMILION,
        marker="o",
        ms=5,
        lw=1.5,
        clip_on=False,
    )
    upper.set(ylim=(0, 1.02), ylabel="accuracy", xlim=(0, 1))
    upper.set_title(
        f"Calibration: ECE {error:.3f} ({len(table.count)} bins, {_images(len(targets))})\n"
        f"mean confidence {confidences.mean():.1%}, accuracy {correct.mean():.1%}"
    )
    upper.legend(
        handles=[
            Patch(color=BLUE, label="accuracy in the bin"),
            Patch(color=PALE, label=f"the same, fewer than {FEW_IMAGES} images"),
            Line2D([], [], color=VERMILION, marker="o", ms=5, label="at the bin's mean confidence"),
            Line2D([], [], color=GREY, ls="--", label="perfect calibration"),
        ],
        loc="upper left",
        fontsize=9,
    )
    lower.bar(middles, table.count, width * 0.94, color=GREY)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in (upper, lower):
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    _save(figure, path, with_disclaimer=True)


def save_training_curves(
    path: Path, history: Sequence[Mapping[str, float]], best_epoch: int
) -> None:
    """Draw losses, accuracies, validation scores and learning rate over the epochs.

    `history` holds one mapping an epoch: `epoch` and the metrics that `training_history.json`
    lists; a metric that an epoch lacks is a gap.  `best_epoch` is marked; 0 marks none.

    Raises:
        DataError: the history is empty.
    """
    if not history:
        raise DataError(
            "the training history is empty; expected at least one finished epoch, train first"
        )
    figure = _figure(10.0, 7.0)
    ((loss, accuracy), (scores, lr)) = figure.subplots(2, 2, sharex=True)
    _curves(loss, history, {"train/loss": BLUE, "val/loss": VERMILION})
    _curves(accuracy, history, {"train/accuracy": BLUE, "val/accuracy": VERMILION})
    _curves(
        scores,
        history,
        {"val/balanced_accuracy": VERMILION, "val/macro_f1": GREEN, "val/macro_auc": ORANGE},
    )
    _curves(lr, history, {"lr": "black"})
    loss.set_title("loss (train: as optimized, val: nats)")
    losses = [entry[k] for entry in history for k in ("train/loss", "val/loss") if k in entry]
    loss.set_ylim(0, 1.08 * max(losses, default=1.0))
    accuracy.set_title("accuracy (train: with augmentation, dropout)")
    scores.set_title("validation scores")
    seconds = [entry["epoch_seconds"] for entry in history if "epoch_seconds" in entry]
    lr.set_title(
        "learning rate" + (f"; {np.mean(seconds):,.1f} s an epoch" if seconds else ""),
    )
    lr.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lr.set_ylim(0, 1.08 * max((entry["lr"] for entry in history if "lr" in entry), default=1.0))
    for axes in (accuracy, scores):
        axes.set_ylim(0, 1.02)
    first, last = int(history[0]["epoch"]), int(history[-1]["epoch"])
    for axes in (loss, accuracy, scores, lr):
        if best_epoch:
            axes.axvline(best_epoch, color=GREY, ls="--", lw=1.2, label=f"best epoch {best_epoch}")
        axes.set_xlim(first - 0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
    for axes in (loss, accuracy, scores):
        axes.legend(fontsize=9)
    for axes in (scores, lr):
        axes.set_xlabel("epoch")
    _save(figure, path, with_disclaimer=False)


def _curves(axes: Axes, history: Sequence[Mapping[str, float]], colors: Mapping[str, str]) -> None:
    epochs = [entry["epoch"] for entry in history]
    dots = "o" if len(history) <= 20 else ""  # a single epoch would be invisible without
    for index, (name, color) in enumerate(colors.items()):
        values = [entry.get(name, math.nan) for entry in history]
        axes.plot(epochs, values, DASHES[index], color=color, marker=dots, ms=4, label=name)


def _roc_curve(
    probs: NDArray[np.float64], is_class: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return 1 - specificity and sensitivity at every threshold, from none to all."""
    order = np.argsort(-probs, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(probs[order]) != 0, True))
    hits = np.cumsum(is_class[order])[last_of_tie]
    false_alarms = last_of_tie + 1 - hits
    return (
        np.append(0.0, false_alarms / false_alarms[-1]),
        np.append(0.0, hits / hits[-1]),
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _percent(share: float) -> str:
    return "<1%" if share < 0.005 else f"{share:.0%}"


def _figure(width: float, height: float) -> Figure:
    """Make an empty figure, in inches of `DPI` pixels."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _save(figure: Figure, path: Path, *, with_disclaimer: bool) -> None:
    """Write the figure as PNG, whole or not at all."""
    if with_disclaimer:
        figure.supxlabel(DISCLAIMER, fontsize=8, color=GREY)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, facecolor="white")
