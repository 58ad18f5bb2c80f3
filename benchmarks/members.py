"""What eight views, several networks and several photographs of a lesion gain, and what they cost.

On the test split that the runs share: paired differences by lesion to the first run alone, with
95 % intervals, and milliseconds of one image in onnxruntime.

    python -m benchmarks.members DATA_DIR RUN_ID [RUN_ID ...]
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.report import Figure, publish
from benchmarks.trained import parse, trained
from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.bootstrap import lesion_weights
from dermalyze.evaluation.statistics.comparison import compare
from dermalyze.export.onnx import export_onnx
from dermalyze.models.ensemble import ShippedNetwork
from dermalyze.models.test_time_augmentation import NUM_VIEWS
from serving import Predictor
from serving.prediction import softmax

METRICS = ("balanced_accuracy", "accuracy", "macro_auc", "malignant_auc", "loss", "brier")
ROUNDS, RUNS = 8, 40  # the first runs after a pause are slower


def pooled_lesions(scored: Scored, temperature: float) -> dict[str, float]:
    """Accuracy on lesions with several photographs: of all pooled, and of one at random.

    The interval is that of the difference, by lesion.
    """
    probs = softmax(scored.logits, temperature)
    counts = np.bincount(scored.lesions)
    several = counts > 1
    mean = np.stack(
        [np.bincount(scored.lesions, column) / counts for column in probs.T], axis=1
    )  # (L, C)
    truth = np.zeros(len(counts), np.int64)
    truth[scored.lesions] = scored.targets
    together = (mean.argmax(axis=1) == truth).astype(float)
    alone = np.bincount(scored.lesions, probs.argmax(axis=1) == scored.targets) / counts
    gain = (together - alone)[several]
    weights = lesion_weights(np.arange(len(gain)), 2000, 0)
    drawn = weights @ gain / weights.sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "num_lesions": int(several.sum()),
        "pooled": float(together[several].mean()),
        "one": float(alone[several].mean()),
        "gain": float(gain.mean()),
        "low": float(low),
        "high": float(high),
    }


def milliseconds(files: dict[str, Path]) -> dict[str, float]:
    predictors = {name: Predictor(path) for name, path in files.items()}
    (size,) = {predictor.spec.input_size for predictor in predictors.values()}
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    taken: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        for name, predictor in predictors.items():
            time.sleep(0.02)
            predictor.logits(pixels)
            for _ in range(RUNS):
                start = time.perf_counter()
                predictor.logits(pixels)
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir")
    parser.add_argument("run_ids", nargs="+")
    arguments = parse(parser)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        runs = [stack.enter_context(trained(r, arguments.data_dir)) for r in arguments.run_ids]
        first, ids = runs[0], tuple(run.run_id for run in runs)
        members = [run.member for run in runs]
        kinds = {"one network": (members[:1], 1), "eight views": (members[:1], NUM_VIEWS)}
        if len(runs) > 1:
            kinds[f"{len(runs)} networks"] = (members, 1)
            kinds[f"{len(runs)} networks, eight views"] = (members, NUM_VIEWS)
        scored, files = {}, {}
        for name, (some, num_views) in kinds.items():
            network = ShippedNetwork(some, num_views=num_views)
            outputs = first.runner.outputs(
                network, first.spec, first.splits.test, ("logits",), name
            )
            table = predictions_table(
                first.runner.manifest(first.splits.test), outputs["logits"], first.spec.taxonomy
            )
            scored[name] = scored_of(table, first.spec.taxonomy)
            spec = replace(
                first.spec, num_views=num_views, member_run_ids=ids if len(some) > 1 else (),
                scope=None, saliency="",
            )  # fmt: skip
            files[name] = Path(folder) / f"{len(files)}.onnx"
            export_onnx(network, spec, files[name])
        cost = milliseconds(files)
        temperature = first.spec.temperature
    comparison = compare(list(scored), list(scored.values()), metrics=METRICS)
    rows = [
        {"what": versus.name, **{k: v for k, v in vars(d).items() if k != "reason"}}
        for versus in comparison.versus
        for d in versus.differences
    ]
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    lesions = pooled_lesions(scored["one network"], temperature)
    print("several photographs of one lesion:", lesions)
    figures = [
        Figure(
            what=f"{name}, one image",
            ours=value,
            baseline=cost["one network"],
            unit="ms",
            against="one network, one view",
            ratio=value / cost["one network"],
            goal="",
        )
        for name, value in cost.items()
    ]
    publish("members", figures, differences=rows, lesions=lesions)


if __name__ == "__main__":
    main()
