"""Every picture of a training and of its evaluation, drawn once: PNG in folders, SVG in a report.

N images, C classes.  Figures are plain objects: there is no pyplot, no window and nothing to close.
Colors are Okabe and Ito's, which color-blind readers tell apart; lines differ in their dashes as
well.  The same input gives the same bytes.  Never imports torch.
"""

import base64
import functools
import io
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import matplotlib.dates as mdates
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from dermalyze.evaluation.metrics.calibration import expected_calibration_error
from dermalyze.evaluation.metrics.classification import (
    Answers,
    confusion_matrix,
    normalized_confusion_matrix,
    reliability_bins,
    score,
)
from dermalyze.evaluation.metrics.roc import area, curves_of
from dermalyze.evaluation.statistics.comparison import LOWER_IS_BETTER, Comparison
from dermalyze.evaluation.text import percent, things, title_of
from serving.atomic_write import whole_file
from serving.errors import DataError
from serving.taxonomy import DISCLAIMER

P = ParamSpec("P")
_Place = Literal["outside lower center", "outside upper center"]
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#000000", "#D55E00", "#0072B2", "#CC79A7")
BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#767676"
PALE = "#C9C9C9"  # of what is not named
FEW_IMAGES = 10
MAX_LINES = 28  # of as many colors and dashes; of more classes those of the lowest AUC are shown
MAX_BARS = 12  # classes whose bars fit beside each other
DPI = 160  # of a PNG; a column of a report, 4.8 inches wide, is then 768 pixels
_WIDTH = 4.8  # inches
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":")
_MARKERS = "osD^v*P"
_MAX_NAME = 28  # characters of a class name in a picture
_DIAGONAL: dict[str, Any] = {"color": GREY, "lw": 1.2, "ls": (0, (2, 4))}
_STYLE: Any = {  # rc_context names every key in its type
    "font.size": 11,
    "legend.fontsize": 9.5,
    "legend.handlelength": 2.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "path",  # looks alike wherever it is opened
    "svg.hashsalt": "dermalyze",
}


def _drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Give a figure the common style, and texts fonts that have their characters; lay it out."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _styled():
            figure = draw(*args, **kwargs)
            _set_fonts(figure)
            engine = figure.get_layout_engine()
            assert engine is not None
            for _ in range(3):  # square axes need more than one
                engine.execute(figure)
            # Else a tight box that is larger than the figure would move the legend.
            figure.set_layout_engine("none")
            for legend in figure.legends:
                legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)
            return figure

    return styled


def save_png(path: Path, figure: Figure, *, disclaimer: bool = True) -> None:
    """Write a figure as PNG, whole or not at all."""
    options: dict[str, Any] = {}
    if disclaimer:
        low = -0.1 / figure.get_figheight()  # below the figure; a tight box takes it in
        figure.text(0.5, low, DISCLAIMER, fontsize=7, color=GREY, ha="center", va="top")
        options |= {"bbox_inches": "tight"}
    with whole_file(path) as partial:
        _render(figure, partial, format="png", dpi=DPI, facecolor="white", **options)


def svg_address(figure: Figure) -> str:
    """Return a figure as SVG in an address: sharp on paper, small on a phone."""
    buffer = io.BytesIO()
    # Without the date and the creator, the same numbers give the same bytes.
    _render(figure, buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_address(buffer.getvalue(), "image/svg+xml")


def data_address(content: bytes, media_type: str) -> str:
    """Put a file into an address, so that a page needs no second file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@_drawn
def confusion(answers: Answers) -> Figure:
    """Draw counts and shares of each true class, written into the cells where they fit."""
    num_classes = len(answers.taxonomy)
    counts = confusion_matrix(answers.targets, answers.predicted, num_classes)
    shares = normalized_confusion_matrix(counts)
    side = min(max(0.62 * num_classes, 3.6), 7.6)  # inches
    figure = Figure(figsize=(side + 2.3, side + 1.6), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    cell = side / num_classes
    for row, column in np.ndindex(*counts.shape if cell >= 0.22 else (0, 0)):
        count, share = int(counts[row, column]), float(shares[row, column])
        text = f"{count:,}" + (f"\n{_percent(share)}" if count and cell >= 0.45 else "")
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=9 if cell >= 0.45 else 18 * cell,
            fontweight="bold" if row == column else "normal",
            color="white" if share > 0.55 else GREY if count == 0 else "black",
        )
    names = _names(answers)
    size = min(10.0, max(4.0, 60 * cell))  # points; a line of text is 1/72 inch a point
    gap = "\n" if cell >= 0.45 else "  "
    labels = [f"{name}{gap}n = {n:,}" for name, n in zip(names, counts.sum(axis=1), strict=True)]
    long = max(map(len, names)) * size * 0.6 > 72 * cell
    axes.set_xticks(range(num_classes), names, fontsize=size, rotation=90 if long else 0)
    axes.set_yticks(range(num_classes), labels, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    accuracy = counts.trace() / len(answers)
    figure.suptitle(
        f"Confusion matrix: {things(len(answers), 'image')}, accuracy {accuracy:.1%}", fontsize=11
    )
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, format=PercentFormatter(1.0))
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


@_drawn
def roc(answers: Answers) -> Figure:
    """Draw each class against the rest, with its AUC; classes without a curve are named."""
    areas = _areas(answers)
    figure, axes = _square("1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], **_DIAGONAL)
    handles = []
    for target, name in enumerate(_names(answers)):
        is_class = answers.targets == target
        label = f"{name}  AUC {areas[target]:.3f}  (n = {is_class.sum():,})"
        line, shown = _line(areas, target)
        if math.isfinite(areas[target]):
            curves = curves_of(answers.probs[:, target], is_class, np.ones((1, len(answers))))
            alarms, hits = curves.false_alarms[0], curves.hits[0]
            axes.plot(alarms / alarms[-1], hits / hits[-1], label=label, **line)
        else:
            label = f"{name}  no curve: {'no other class' if is_class.all() else 'no image'}"
            line["color"] = "none"
        if shown:
            handles.append(Line2D([], [], label=label, **line))
    mean = f"macro AUC {np.nanmean(areas):.3f}" if np.isfinite(areas).any() else "no AUC"
    axes.set_title(f"Each class against the rest: {mean}", fontsize=10)
    _legend_of(figure, handles, len(areas))
    return figure


@_drawn
def malignant_roc(false_positive_rate: Sequence[float], sensitivity: Sequence[float]) -> Figure:
    """Draw the curve of malignant against benign."""
    figure, axes = _square("1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], **_DIAGONAL)
    axes.plot(false_positive_rate, sensitivity, color=BLUE, lw=2, label="malignant")
    axes.legend(loc="lower right")
    return figure


@_drawn
def precision_recall(answers: Answers) -> Figure:
    """Draw precision over sensitivity of each class; dots at the left mark its share."""
    areas = _areas(answers)
    figure, axes = _square("sensitivity (recall)", "precision")
    handles = []
    for target, name in enumerate(_names(answers)):
        if not math.isfinite(areas[target]):
            continue
        is_class = answers.targets == target
        curves = curves_of(answers.probs[:, target], is_class, np.ones((1, len(answers))))
        hits, found = curves.hits[0, 1:], curves.hits[0, 1:] + curves.false_alarms[0, 1:]
        line, shown = _line(areas, target)
        axes.plot(hits / hits[-1], hits / found, drawstyle="steps", **line)
        axes.plot(0, is_class.mean(), "o", color=line["color"], ms=5, clip_on=False)
        if shown:
            handles.append(Line2D([], [], label=name, **line))
    _legend_of(figure, handles, len(areas))
    return figure


@_drawn
def per_class(answers: Answers) -> Figure:
    """Draw precision, sensitivity and F1 of each class, with its number of images."""
    metrics = score(answers.logits, answers.targets, answers.class_names)
    columns = (
        ("precision", "precision", BLUE),
        ("recall", "sensitivity (recall)", ORANGE),
        ("f1", "F1", GREEN),
    )
    keys, names = answers.taxonomy.keys, _names(answers)
    support = [int(metrics[f"support/{key}"]) for key in keys]
    many = len(names) > MAX_BARS
    size = (6.0, 1.2 + 0.22 * len(names)) if many else (6.0, 3.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    for offset, (metric, label, color) in enumerate(columns):
        values = np.array([metrics.get(f"{metric}/{key}", math.nan) for key in keys])
        if many:
            axes.plot(values, places, _MARKERS[offset], color=color, ms=5, label=label)
            continue
        own = places + (offset - 1) * 0.27
        axes.bar(own, np.nan_to_num(values), 0.25, label=label, color=color)
        for place, value in zip(own, values, strict=True):
            if math.isfinite(value):
                axes.text(place, value + 0.012, f"{value:.2f}", ha="center", fontsize=5.5)
    for place in np.flatnonzero(np.array(support) == 0).tolist():
        x, y = (0.02, place) if many else (place, 0.02)
        axes.text(x, y, "no image", ha="left" if many else "center", color=GREY, fontsize=7)
    if many:
        labels = [f"{name}  n = {n:,}" for name, n in zip(names, support, strict=True)]
        axes.set_yticks(places, labels, fontsize=7)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.4, -0.6), xlabel="fraction")
        axes.grid()
    else:
        labels = [f"{name}\nn = {n:,}" for name, n in zip(names, support, strict=True)]
        long = max(map(len, names)) * len(names) > 70
        axes.set_xticks(places, labels, fontsize=8, rotation=90 if long else 0)
        axes.set(ylim=(0, 1.08), ylabel="fraction")
        axes.grid(axis="y")
    axes.set_title(
        f"Per class: balanced accuracy {metrics['balanced_accuracy']:.3f}, "
        f"macro F1 {metrics['macro_f1']:.3f}",
        fontsize=10,
    )
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


@_drawn
def reliability(before: Answers, after: Answers | None = None) -> Figure:
    """Draw accuracy over confidence, bin by bin, and below the images of each bin."""
    series = [("as trained", before, BLUE, "-", "o")]
    if after is not None:
        series.append(("after calibration", after, VERMILION, "--", "s"))
    figure = Figure(figsize=(_WIDTH, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], label="perfect", **_DIAGONAL)
    for label, answers, color, dashes, marker in series:
        confidence, correct = answers.probs.max(axis=1), answers.predicted == answers.targets
        bins = reliability_bins(confidence, correct)
        filled, many = bins.count > 0, bins.count >= FEW_IMAGES
        style: dict[str, Any] = {"color": color, "ls": dashes, "lw": 1.5}
        upper.plot(bins.confidence[filled], bins.accuracy[filled], **style)
        for which, face in ((many, color), (filled & ~many, "white")):
            if which.any():  # no marks at all would be at the corner of the figure
                places = bins.confidence[which], bins.accuracy[which]
                upper.plot(*places, marker, color=color, mfc=face, ms=6, clip_on=False)
        label += f": ECE {expected_calibration_error(confidence, correct):.3f}"
        upper.plot([], [], marker=marker, label=label, **style)
        lower.stairs(bins.count, bins.edges, color=color, ls=dashes, lw=1.5)
    upper.plot([], [], "o", color=GREY, mfc="white", label=f"fewer than {FEW_IMAGES} images")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.legend(loc="upper left")
    lower.set(xlabel="confidence", ylabel="images")
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (upper, lower):
        axes.grid()
    return figure


@_drawn
def decision_curve(
    thresholds: Sequence[float], model: Sequence[float], all_: Sequence[float]
) -> Figure:
    """Draw net benefit over the threshold: of the model, of treating all, of treating none."""
    figure = Figure(figsize=(_WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(thresholds, model, color=BLUE, lw=2, label="the model")
    axes.plot(thresholds, all_, color=VERMILION, lw=1.8, ls="--", label="refer every image")
    axes.axhline(0, color="black", lw=1.2, ls=":", label="refer none")
    top = max(max(model), max(all_), 0.01)
    axes.set(xlim=(0, max(thresholds)), ylim=(-0.25 * top, 1.08 * top))  # "all" falls far below
    axes.set(xlabel="threshold on the probability of malignant", ylabel="net benefit per image")
    axes.grid()
    axes.legend(loc="upper right")
    return figure


@_drawn
def risk_coverage(
    coverage: Sequence[float], risk: Sequence[float], stated: float, answered: float
) -> Figure:
    """Draw the error rate over the share of answered lesions, and the model's threshold."""
    figure = Figure(figsize=(_WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(coverage, risk, color=BLUE, lw=2, label="the model")
    axes.axhline(stated, color="black", lw=1.2, ls=":", label="stated risk")
    if answered > 0:
        at = float(np.interp(answered, coverage, risk))
        axes.plot(answered, at, "o", color=VERMILION, ms=8, label="its threshold")
    axes.set(xlim=(0, 1), ylim=(0, max(*risk, stated) * 1.1))
    axes.set(xlabel="share answered", ylabel="error rate among the answered")
    axes.grid()
    axes.legend(loc="upper left")
    return figure


@_drawn
def training_losses(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Draw the losses over the epochs; `best_epoch` is marked, 0 marks none."""
    figure = Figure(figsize=(_WIDTH, 3.8), layout="constrained")
    axes = figure.subplots()
    _losses(axes, history, best_epoch)
    axes.set(xlabel="epoch", ylabel="loss (nats)", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


@_drawn
def training_scores(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Draw the validation scores over the epochs; `best_epoch` is marked, 0 marks none."""
    figure = Figure(figsize=(_WIDTH, 3.8), layout="constrained")
    axes = figure.subplots()
    _scores(axes, history, best_epoch)
    axes.set(xlabel="epoch", ylabel="validation score", ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


@_drawn
def training_curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Draw losses, accuracies, validation scores and learning rate over the epochs.

    `history` holds one mapping per epoch: `epoch` and the metrics that `training_history.json`
    lists; a metric that an epoch lacks is a gap.  `best_epoch` is marked; 0 marks none.

    Raises:
        DataError: the history is empty.
    """
    if not history:
        raise DataError(
            "the training history is empty; expected at least one finished epoch, train first"
        )
    figure = Figure(figsize=(9.0, 6.6), layout="constrained")
    ((loss, accuracy), (scores, lr)) = figure.subplots(2, 2, sharex=True)
    _losses(loss, history, best_epoch)
    lines = {"train/accuracy": ("training", BLUE), "val/accuracy": ("validation", VERMILION)}
    _epochs(accuracy, history, lines, best_epoch)
    _scores(scores, history, best_epoch)
    _epochs(lr, history, {"lr": ("learning rate", "black")}, best_epoch)
    loss.set_title("loss (training: as optimized; validation: nats)", fontsize=10)
    accuracy.set_title("accuracy (training: with augmentation, dropout)", fontsize=10)
    scores.set_title("validation scores", fontsize=10)
    seconds = [entry["epoch_seconds"] for entry in history if "epoch_seconds" in entry]
    mean = f"; {np.mean(seconds):,.1f} s per epoch" if seconds else ""
    lr.set_title(f"learning rate{mean}", fontsize=10)
    lr.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes, keys in ((loss, ("train/loss", "val/loss")), (lr, ("lr",))):
        values = [entry[key] for entry in history for key in keys if key in entry]
        axes.set_ylim(0, 1.08 * max(values, default=1.0))
    for axes in (accuracy, scores):
        axes.set_ylim(0, 1.02)
    for axes in (loss, accuracy, scores):
        axes.legend(fontsize=9)
    for axes in (scores, lr):
        axes.set_xlabel("epoch")
    return figure


@_drawn
def forest(comparison: Comparison) -> Figure:
    """Draw the differences from the reference with their intervals.

    Metrics of which less is better have axes of their own.
    """
    metrics = [found.metric for found in comparison.versus[0].differences]
    parts = [
        (
            "higher is better \N{RIGHTWARDS ARROW}",
            [name for name in metrics if name not in LOWER_IS_BETTER],
        ),
        (
            "\N{LEFTWARDS ARROW} lower is better",
            [name for name in metrics if name in LOWER_IS_BETTER],
        ),
    ]
    parts = [(better, names) for better, names in parts if names]
    row = 0.2 + 0.15 * len(comparison.versus)  # inches per metric
    heights = [(len(names) + 0.4) * row for _, names in parts]
    figure = Figure(figsize=(5.9, sum(heights) + 0.7 * len(parts) + 0.9), layout="constrained")
    rows = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (better, names) in zip(rows, parts, strict=True):
        _differences(axes, comparison, names)
        axes.set_title(better, fontsize=10, loc="left")
    rows[-1].set_xlabel(
        f"difference from {comparison.reference}, {percent(comparison.level)} intervals by "
        f"{comparison.group_by}; {things(comparison.num_images, 'image')} of "
        f"{things(comparison.num_lesions, comparison.group_by)}",
        fontsize=7.5,
    )
    handles = [
        Line2D([], [], lw=2, label=_shown(versus.name), **_versus_style(index))
        for index, versus in enumerate(comparison.versus)
    ]
    differences = [found for versus in comparison.versus for found in versus.differences]
    if any(found.low is None and found.difference is not None for found in differences):
        hollow = f"hollow: no interval, too few {comparison.group_by}s or none that differ"
        handles.append(Line2D([], [], color=GREY, marker="o", mfc="white", lw=0, label=hollow))
    _legend(figure, handles, "outside upper center", fontsize=9)
    return figure


@_drawn
def tuning_history(
    values: Mapping[int, float], pruned: Collection[int], metric: str, *, higher_is_better: bool
) -> Figure:
    """Draw the value of each trial, by its number, and the best so far of those not pruned."""
    figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    numbers = sorted(values)
    kept = [number for number in numbers if number not in pruned]
    best = np.maximum if higher_is_better else np.minimum
    dots: dict[str, Any] = {"color": BLUE, "lw": 0, "ms": 5}
    axes.plot(kept, [values[number] for number in kept], "o", label="trial", **dots)
    if early := [number for number in numbers if number in pruned]:
        at = [values[number] for number in early]
        axes.plot(early, at, "o", mfc="white", label="pruned, best until then", **dots)
    axes.step(
        kept,
        best.accumulate([values[number] for number in kept]),
        where="post",
        color=VERMILION,
        label="best so far",
    )
    axes.set(xlabel="trial", ylabel=metric)
    if min(values.values()) > 0 and max(values.values()) > 100 * min(values.values()):
        axes.set_yscale("log")  # or a loss that exploded would hide all others
    axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.grid()
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@_drawn
def importances(shares: Mapping[str, float], metric: str) -> Figure:
    """Draw how much each searched setting matters for a metric; the shares add up to 1."""
    names = sorted(shares, key=lambda name: shares[name])
    figure = Figure(figsize=(_WIDTH + 1, 1.2 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(names)), [shares[name] for name in names], color=BLUE)
    axes.bar_label(bars, [_percent(shares[name]) for name in names], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, 1.12), xlabel=f"importance for {metric}")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="y", length=0)
    return figure


@_drawn
def over_looks(
    days: Sequence[date],
    lines: Mapping[str, Sequence[float]],
    expected: float | None,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Draw shares at the end of some days, NaN where there is none, and what was expected."""
    figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    at: Any = days  # which matplotlib puts on its axis
    if band is not None:
        axes.fill_between(at, *band, color=PALE, alpha=0.6, lw=0)
    if expected is not None:
        axes.axhline(expected, color="black", lw=1.2, ls=":", label="validation images")
    for i, (name, values) in enumerate(lines.items()):
        style = {"color": BLUE, "lw": 1.8} if len(lines) == 1 else line_style(i)
        axes.plot(at, values, label=_shown(name), marker="o", ms=3, **style)
    locator = mdates.AutoDateLocator(maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    dates = mdates.ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(dates)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(0, 1.02)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Return color and dashes of a class by its place; `MAX_LINES` of them all differ."""
    turn, color = divmod(index, len(COLORS))
    return {"color": COLORS[color], "ls": _DASHES[(color + turn) % len(_DASHES)], "lw": 1.8}


def _line(areas: NDArray[np.float64], target: int) -> tuple[dict[str, Any], bool]:
    """Return how to draw a class, and whether the legend names it: of many, those of lowest AUC."""
    if len(areas) <= MAX_LINES:
        return line_style(target), True
    lowest = np.argsort(areas, kind="stable")[: len(COLORS)].tolist()  # NaN last
    if target in lowest:
        return line_style(lowest.index(target)), True
    return {"color": PALE, "ls": "-", "lw": 0.8, "zorder": 1}, False


def _legend_of(figure: Figure, handles: list[Line2D], num_classes: int) -> None:
    """Name the classes below the axes, and make the figure higher by as much."""
    if num_classes > MAX_LINES:
        others: dict[str, Any] = {"color": PALE, "lw": 0.8}
        rest = f"{num_classes - len(handles)} other classes"
        handles = [*handles, Line2D([], [], label=rest, **others)]
    height = _legend(
        figure, handles, "outside lower center", fontsize=8 if len(handles) <= 12 else 7
    )
    figure.set_figheight(figure.get_figheight() + height)


def _legend(figure: Figure, handles: list[Line2D], place: _Place, fontsize: float) -> float:
    """Put a legend outside the axes, in as many columns as fit; return its height in inches."""
    for columns in (4, 3, 2, 1):
        legend = figure.legend(
            handles=handles, loc=place, ncols=columns, fontsize=fontsize, frameon=False
        )
        _set_fonts(legend)
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    return float(box.height / figure.dpi)


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    """Make axes from 0 to 1."""
    figure = Figure(figsize=(_WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel=x, ylabel=y)
    axes.grid()
    return figure, axes


def _areas(answers: Answers) -> NDArray[np.float64]:
    """Return the AUC of each class, NaN where it has none: (C,)."""
    ones = np.ones((1, len(answers)))
    return np.array(
        [
            area(answers.probs[:, target], answers.targets == target, ones)[0]
            for target in range(len(answers.taxonomy))
        ]
    )


def _losses(axes: Axes, history: Sequence[Mapping[str, float]], best_epoch: int) -> None:
    lines = {"train/loss": ("training, as optimized", BLUE), "val/loss": ("validation", VERMILION)}
    _epochs(axes, history, lines, best_epoch)


def _scores(axes: Axes, history: Sequence[Mapping[str, float]], best_epoch: int) -> None:
    lines = {
        "val/balanced_accuracy": ("balanced accuracy", VERMILION),
        "val/macro_auc": ("macro AUC", ORANGE),
        "val/macro_f1": ("macro F1", GREEN),
    }
    _epochs(axes, history, lines, best_epoch)


def _epochs(
    axes: Axes,
    history: Sequence[Mapping[str, float]],
    lines: Mapping[str, tuple[str, str]],
    best_epoch: int,
) -> None:
    """Draw metrics over the epochs; `lines`: metric -> label and color."""
    epochs = [entry["epoch"] for entry in history]
    dots = "o" if len(history) <= 20 else ""  # a single epoch would be invisible without
    for index, (name, (label, color)) in enumerate(lines.items()):
        values = [entry.get(name, math.nan) for entry in history]
        axes.plot(epochs, values, _DASHES[index], color=color, marker=dots, ms=4, label=label)
    if best_epoch:
        axes.axvline(best_epoch, color=GREY, ls=":", lw=1.2, label=f"best epoch {best_epoch}")
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.grid()


def _differences(axes: Axes, comparison: Comparison, metrics: Sequence[str]) -> None:
    axes.axvline(0, color=GREY, lw=1.2, ls="--")
    step = 0.7 / len(comparison.versus)
    for index, versus in enumerate(comparison.versus):
        style = _versus_style(index)
        shift = (index - (len(comparison.versus) - 1) / 2) * step
        by_name = {found.metric: found for found in versus.differences}
        for row, name in enumerate(metrics):
            found, place = by_name[name], row + shift
            if found.difference is None:
                axes.annotate("not defined", (0, place), color=GREY, fontsize=8, va="center")
                continue
            face = "white"
            if found.low is not None and found.high is not None:
                face = style["color"]
                axes.plot([found.low, found.high], [place, place], color=style["color"], lw=2)
            axes.plot(found.difference, place, **style, mfc=face, ms=6)
    titles = {found.metric: found.title for found in comparison.versus[0].differences}
    axes.set_yticks(range(len(metrics)), [_named(titles[n], title_of(n), n) for n in metrics])
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _versus_style(index: int) -> dict[str, Any]:
    colors = (BLUE, VERMILION, GREEN, ORANGE, "#000000")
    return {"color": colors[index % len(colors)], "marker": _MARKERS[index % len(_MARKERS)]}


def _names(answers: Answers) -> list[str]:
    taxonomy = answers.taxonomy
    return [
        _named(name, key, f"class no. {place}")
        for place, (name, key) in enumerate(zip(taxonomy.names, taxonomy.keys, strict=True), 1)
    ]


def _named(*names: str) -> str:
    """Return the first name whose characters some font here has, else the last one."""
    shown = [_shown(name) for name in names]
    return next((name for name in shown if _fonts_of(name) is not None), shown[-1])


def _shown(name: str) -> str:
    """Return a name as matplotlib shows it: no formula, never hidden, not longer than its place."""
    name = " ".join(name.split())
    if len(name) > _MAX_NAME:
        name = f"{name[: _MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _set_fonts(artist: Artist) -> None:
    for text in artist.findobj(Text):
        if fonts := _fonts_of(text.get_text()):
            text.set_fontfamily(["sans-serif", *fonts])


@functools.lru_cache(maxsize=1024)
def _fonts_of(text: str) -> tuple[str, ...] | None:
    """Return the installed fonts that have what the default one lacks; None: no font has it all."""
    missing = frozenset(map(ord, text)) - {ord("\n")} - _characters(findfont(FontProperties()))
    fonts = []
    for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        if not missing:
            break
        if font.style != "normal" or font.name.startswith("Last Resort"):  # boxes for everything
            continue
        if found := missing & _characters(font.fname):
            missing -= found
            fonts.append(font.name)
    return None if missing else tuple(fonts)


@functools.cache
def _characters(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


def _percent(share: float) -> str:
    return "<1%" if share < 0.005 else f"{share:.0%}"


@contextmanager
def _styled() -> Iterator[None]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of scripts without a font here
        yield


def _render(figure: Figure, target: Any, **options: Any) -> None:
    with _styled():
        figure.savefig(target, **options)
