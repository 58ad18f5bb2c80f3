"""Compare finished runs on their test images."""

import json
from collections.abc import Sequence
from pathlib import Path

from dermalyze.evaluation.report.figures import forest, save_png
from dermalyze.evaluation.statistics.comparison import Comparison, compare
from dermalyze.workflows.finished_run import open_finished
from serving.atomic_write import whole_folder, write_text


def compare_runs(run_ids: Sequence[str], *, output: Path | None) -> Comparison:
    """Compare runs with the first of them on their test images; write it to `output` if given.

    Raises:
        DataError: their test images differ.
    """
    models = []
    for run_id in run_ids:
        with open_finished(run_id) as run:
            models.append(run.predictions.scored)
    comparison = compare(run_ids, models)
    if output is not None:
        with whole_folder(output) as folder:
            text = json.dumps(comparison.to_dict(), indent=1) + "\n"
            write_text(folder / "comparison.json", text)
            save_png(folder / "forest.png", forest(comparison))
    return comparison
