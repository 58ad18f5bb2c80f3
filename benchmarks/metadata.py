"""What age, sex and site gain, and what a network that knows them loses when they are missing.

Two runs on the same splits, one trained with metadata and one without; paired differences by
lesion on the test split.

    python -m benchmarks.metadata DATA_DIR RUN_WITHOUT RUN_WITH
"""

import argparse

import numpy as np
import pandas as pd

from benchmarks.report import Figure, publish
from benchmarks.trained import parse, trained
from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.comparison import compare
from dermalyze.models.ensemble import ShippedNetwork
from dermalyze.workflows.finished_run import FinishedRun

METRICS = ("balanced_accuracy", "accuracy", "macro_auc", "malignant_auc", "recall/mel", "loss")


def scored_without(run: FinishedRun, columns: list[str]) -> Scored:
    """Answer for the test split as if these columns were not known."""
    manifest = run.prepared.manifest
    kept = {column: manifest[column].copy() for column in columns}
    for column in columns:
        manifest[column] = np.nan if column == "age" else "unknown"
    outputs = run.runner.outputs(
        ShippedNetwork([run.member]), run.spec, run.splits.test, ("logits",), "test"
    )
    for column, values in kept.items():
        manifest[column] = values
    rows = run.runner.manifest(run.splits.test)
    taxonomy = run.spec.taxonomy
    return scored_of(predictions_table(rows, outputs["logits"], taxonomy), taxonomy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data_dir", "run_without", "run_with"):
        parser.add_argument(name)
    arguments = parse(parser)
    models = {}
    with trained(arguments.run_without, arguments.data_dir) as run:
        models["trained without"] = scored_without(run, [])
    with trained(arguments.run_with, arguments.data_dir) as run:
        assert run.spec.metadata is not None
        models["trained with, all known"] = scored_without(run, [])
        for column in ("age", "sex", "localization"):
            models[f"trained with, {column} missing"] = scored_without(run, [column])
        models["trained with, all missing"] = scored_without(run, ["age", "sex", "localization"])
    comparison = compare(list(models), list(models.values()), metrics=METRICS)
    rows = [
        {"what": versus.name, **{k: v for k, v in vars(d).items() if k != "reason"}}
        for versus in comparison.versus
        for d in versus.differences
    ]
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    figures = [
        Figure(
            what=f"balanced accuracy, {row['what']}",
            ours=row["estimate_b"],
            baseline=row["estimate_a"],
            unit="fraction",
            against="trained without metadata",
            ratio=row["estimate_b"] / row["estimate_a"],
            goal="",
        )
        for row in rows
        if row["metric"] == "balanced_accuracy"
    ]
    publish("metadata", figures, differences=rows)


if __name__ == "__main__":
    main()
