"""The figures of a report, as SVG inside `data:` addresses: sharp on paper, small on a phone.

N images, C classes.  Okabe and Ito's colors and different dashes, as in `plots`.  The same input
gives the same bytes.  Never imports torch.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dermalyze.evaluation.metrics import Counts, Floats, reliability_bins
from dermalyze.evaluation.plots import (
    BLUE,
    COLORS,
    DASHES,
    FEW_IMAGES,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
)
from dermalyze.evaluation.scored import Scored

_STYLE: Any = {  # rc_context names every key in its type
    "font.size": 11,
    "legend.fontsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",  # looks alike wherever it is opened
    "svg.hashsalt": "dermalyze",
}
_DIAGONAL: dict[str, Any] = {"color": GREY, "lw": 1.2, "ls": (0, (2, 4))}


def data_address(content: bytes, media_type: str) -> str:
    """Put a file into an address, so that a page needs no second file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def training_losses(history: Sequence[Mapping[str, float]], best_epoch: int) -> str:
    """Draw the losses over the epochs; `best_epoch` is marked, 0 marks none."""
    lines = (("train/loss", "training, as optimized", BLUE), ("val/loss", "validation", VERMILION))
    return _epochs(history, lines, best_epoch, "loss (nats)")


def training_scores(history: Sequence[Mapping[str, float]], best_epoch: int) -> str:
    """Draw the validation scores over the epochs; `best_epoch` is marked, 0 marks none."""
    lines = (
        ("val/balanced_accuracy", "balanced accuracy", VERMILION),
        ("val/macro_auc", "macro AUC", ORANGE),
        ("val/macro_f1", "macro F1", GREEN),
    )
    return _epochs(history, lines, best_epoch, "validation score", top=1.02)


def roc(scored: Scored) -> str:
    """Draw each class against the rest, where there is one."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square("1 - specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], **_DIAGONAL)
        for index, name in _judged(scored):
            hits, false_alarms = ranked(scored.probs[:, index], scored.targets == index)
            axes.plot(false_alarms / false_alarms[-1], hits / hits[-1], label=name, **_line(index))
        axes.legend(loc="lower right", handlelength=3)
        return _svg(figure)


def malignant_roc(false_positive_rate: Sequence[float], sensitivity: Sequence[float]) -> str:
    """Draw the curve of malignant against benign."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square("1 - specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], **_DIAGONAL)
        axes.plot(false_positive_rate, sensitivity, color=BLUE, lw=2, label="malignant")
        axes.legend(loc="lower right", handlelength=3)
        return _svg(figure)


def precision_recall(scored: Scored) -> str:
    """Draw precision over sensitivity of each class; dots at the left stand at its share."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square("sensitivity (recall)", "precision", height=5.0)
        for index, name in _judged(scored):
            is_class = scored.targets == index
            hits, false_alarms = ranked(scored.probs[:, index], is_class)
            found = hits + false_alarms > 0
            precision = hits[found] / (hits + false_alarms)[found]
            line = _line(index)
            axes.plot(hits[found] / hits[-1], precision, drawstyle="steps", label=name, **line)
            axes.plot(0, is_class.mean(), "o", color=line["color"], ms=5, clip_on=False)
        figure.legend(loc="outside lower center", ncols=4, handlelength=2.6, frameon=False)
        return _svg(figure)


def reliability(before: Scored, after: Scored | None) -> str:
    """Draw accuracy over confidence, bin by bin, and below the images of each bin."""
    series = [("as trained", before, BLUE, "-", "o")]
    if after is not None:
        series.append(("after calibration", after, VERMILION, "--", "s"))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 5.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], label="perfect", **_DIAGONAL)
        for label, scored, color, dashes, marker in series:
            bins = reliability_bins(scored.probs.max(axis=1), scored.predicted == scored.targets)
            filled, many = bins.count > 0, bins.count >= FEW_IMAGES
            style: dict[str, Any] = {"color": color, "ls": dashes, "lw": 1.5}
            upper.plot(bins.confidence[filled], bins.accuracy[filled], **style)
            for which, face in ((many, color), (filled & ~many, "white")):
                if which.any():  # no marks at all would stand at the corner of the figure
                    places = bins.confidence[which], bins.accuracy[which]
                    upper.plot(*places, marker, color=color, mfc=face, ms=6, clip_on=False)
            upper.plot([], [], marker=marker, label=label, **style)
            lower.stairs(bins.count, bins.edges, color=color, ls=dashes, lw=1.5)
        upper.plot([], [], "o", color=GREY, mfc="white", label=f"fewer than {FEW_IMAGES} images")
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        upper.legend(loc="upper left")
        lower.set(xlabel="confidence", ylabel="images")
        lower.set_ylim(bottom=0)
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in (upper, lower):
            axes.grid(alpha=0.25)
        return _svg(figure)


def decision_curve(
    thresholds: Sequence[float], model: Sequence[float], all_: Sequence[float]
) -> str:
    """Draw net benefit over the threshold: of the model, of treating all, of treating none."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(thresholds, model, color=BLUE, lw=2, label="the model")
        axes.plot(thresholds, all_, color=VERMILION, lw=1.8, ls="--", label="refer every image")
        axes.axhline(0, color="black", lw=1.2, ls=":", label="refer none")
        top = max(max(model), max(all_), 0.01)
        axes.set(xlim=(0, max(thresholds)), ylim=(-0.25 * top, 1.08 * top))  # "all" falls far below
        axes.set(xlabel="threshold on the probability of malignant", ylabel="net benefit per image")
        axes.grid(alpha=0.25)
        axes.legend(loc="upper right", handlelength=3)
        return _svg(figure)


def risk_coverage(
    coverage: Sequence[float], risk: Sequence[float], stated: float, answered: float
) -> str:
    """Draw the share of wrong answers over that of answered lesions, and the model's threshold."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(coverage, risk, color=BLUE, lw=2, label="the model")
        axes.axhline(stated, color="black", lw=1.2, ls=":", label="stated risk")
        if answered > 0:
            at = float(np.interp(answered, coverage, risk))
            axes.plot(answered, at, "o", color=VERMILION, ms=8, label="its threshold")
        axes.set(xlim=(0, 1), ylim=(0, max(*risk, stated) * 1.1))
        axes.set(xlabel="share of the lesions that are answered", ylabel="share of wrong answers")
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", handlelength=3)
        return _svg(figure)


def ranked(scores: Floats, is_class: NDArray[np.bool_]) -> tuple[Counts, Counts]:
    """Count hits and false alarms above each threshold, from none to all: (N,) -> (M,), (M,)."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(is_class[order])[last_of_tie]
    return np.append(0, hits), np.append(0, last_of_tie + 1 - hits)


def _judged(scored: Scored) -> Iterable[tuple[int, str]]:
    """Yield the classes that have images and do not fill the split."""
    for index, name in enumerate(scored.class_names):
        if 0 < (scored.targets == index).sum() < len(scored):
            yield index, name


def _line(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "ls": DASHES[index % len(DASHES)], "lw": 1.8}


def _epochs(
    history: Sequence[Mapping[str, float]],
    lines: Sequence[tuple[str, str, str]],
    best_epoch: int,
    unit: str,
    top: float | None = None,
) -> str:
    epochs = [entry["epoch"] for entry in history]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 3.8), layout="constrained")
        axes = figure.subplots()
        for index, (name, label, color) in enumerate(lines):
            values = [entry.get(name, np.nan) for entry in history]
            dots = "o" if len(history) <= 20 else ""  # a single epoch would be invisible without
            axes.plot(epochs, values, DASHES[index], color=color, marker=dots, ms=4, label=label)
        if best_epoch:
            axes.axvline(best_epoch, color=GREY, ls=":", label=f"best epoch, {best_epoch}")
        axes.set(xlabel="epoch", ylabel=unit, xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=2, handlelength=2.6, frameon=False)
        return _svg(figure)


def _square(x: str, y: str, height: float = 4.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    # Without the date and the creator, the same numbers give the same bytes.
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_address(buffer.getvalue(), "image/svg+xml")
