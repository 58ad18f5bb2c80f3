"""A forest plot of a comparison: each difference with its interval.  Never imports torch."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dermalyze.evaluation.bootstrap import LEVEL
from dermalyze.evaluation.compare import LOWER_IS_BETTER, Comparison
from dermalyze.evaluation.plots import BLUE, DPI, GREEN, GREY, ORANGE, VERMILION
from dermalyze.evaluation.words import percent, things, title_of
from serving.taxonomy import DISCLAIMER
from serving.whole import whole_file

_COLORS, _MARKERS = (BLUE, VERMILION, GREEN, ORANGE, "#000000"), "osD^v*P"
_HIGHER = "higher is better \N{RIGHTWARDS ARROW}"
_LOWER = "\N{LEFTWARDS ARROW} lower is better"


def save_forest(path: Path, comparison: Comparison) -> None:
    """Draw the differences from the reference as PNG, whole or not at all.

    Metrics of which less is better have axes of their own.
    """
    metrics = [found.metric for found in comparison.versus[0].differences]
    parts = [
        (_HIGHER, [name for name in metrics if name not in LOWER_IS_BETTER]),
        (_LOWER, [name for name in metrics if name in LOWER_IS_BETTER]),
    ]
    parts = [(better, names) for better, names in parts if names]
    row = 0.2 + 0.15 * len(comparison.versus)  # inches a metric
    heights = [(len(names) + 0.4) * row for _, names in parts]
    figure = Figure(
        figsize=(8.4, sum(heights) + 0.7 * len(parts) + 0.9), dpi=DPI, layout="constrained"
    )
    rows = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (better, names) in zip(rows, parts, strict=True):
        _draw(axes, comparison, names)
        axes.set_title(better, fontsize=10, loc="left")
    rows[-1].set_xlabel(
        f"difference from {comparison.reference}, {percent(LEVEL)} intervals by lesion; "
        f"{things(comparison.num_images, 'image')} of {things(comparison.num_lesions, 'lesion')}"
    )
    figure.legend(
        handles=_handles(comparison), loc="outside upper center", ncols=3, fontsize=9, frameon=False
    )
    figure.supxlabel(DISCLAIMER, fontsize=8, color=GREY)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, facecolor="white")


def _draw(axes: Axes, comparison: Comparison, metrics: Sequence[str]) -> None:
    axes.axvline(0, color=GREY, lw=1.2, ls="--")
    step = 0.7 / len(comparison.versus)
    for index, versus in enumerate(comparison.versus):
        color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
        shift = (index - (len(comparison.versus) - 1) / 2) * step
        by_name = {found.metric: found for found in versus.differences}
        for row, name in enumerate(metrics):
            found, place = by_name[name], row + shift
            if found.difference is None:
                axes.annotate("cannot be had", (0, place), color=GREY, fontsize=8, va="center")
                continue
            known = found.low is not None and found.high is not None
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=color, lw=2)
            face = color if known else "white"
            axes.plot(found.difference, place, marker, color=color, mfc=face, ms=6)
    axes.set_yticks(range(len(metrics)), [title_of(name) for name in metrics])
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _handles(comparison: Comparison) -> list[Line2D]:
    handles = []
    for index, versus in enumerate(comparison.versus):
        color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
        handles.append(Line2D([], [], color=color, marker=marker, lw=2, label=versus.name))
    differences = [found for versus in comparison.versus for found in versus.differences]
    if any(found.low is None and found.difference is not None for found in differences):
        hollow = "hollow: no interval, too few lesions or none that differ"
        handles.append(Line2D([], [], color=GREY, marker="o", mfc="white", lw=0, label=hollow))
    return handles
