"""What every benchmark ends with: a table on the screen and the same figures as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from serving.atomic_write import write_text

RESULTS = Path("build/benchmarks")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One comparison, both sides measured in one run of one script."""

    what: str
    ours: float
    baseline: float
    unit: str  # images/s, ms, s, MB
    against: str  # what the baseline is
    ratio: float  # as the goal states it: ours / baseline, or baseline / ours for times
    goal: str  # such as ">= 1.8" or "<= 1.10"; empty: none stated

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches the goal; None: no goal."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def publish(name: str, figures: Sequence[Figure], **context: object) -> None:
    """Print the figures and write `build/benchmarks/NAME.json`.

    Args:
        name: of the benchmark.
        figures: the comparisons.
        context: whatever else a reader must know: image counts, settings, curves.
    """
    print(f"\n{name}")
    rows = [("", "ours", "baseline", "", "ratio", "goal", "", "against")]
    for figure in figures:
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        sides = (f"{figure.ours:.4g}", f"{figure.baseline:.4g}", figure.unit)
        rows.append(
            (figure.what, *sides, f"{figure.ratio:.3g}", figure.goal, verdict, figure.against)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "onnxruntime", "pillow", "numpy")},
    }
    values = [{**asdict(figure), "met": figure.met} for figure in figures]
    content = {"figures": values, "context": context, "machine": machine}
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / f"{name}.json", json.dumps(content, indent=1, default=str))
    print(f"written: {RESULTS / name}.json")
