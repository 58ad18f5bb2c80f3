"""Do prediction sets and abstention keep what they promise on a real run?

Over 500 random halvings of its validation and test lesions: coverage of each class beside the
beta-binomial bounds of that many lesions.  Then once as it is shipped: fitted on val, checked on
test.

    python -m benchmarks.limits RUN_ID DATA_DIR
"""

import argparse
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
from scipy.stats import betabinom

from benchmarks.report import Figure, publish
from benchmarks.trained import parse, trained
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.uncertainty.calibrators import fit_calibrator
from dermalyze.evaluation.uncertainty.conformal import fit_sets
from dermalyze.evaluation.uncertainty.limits import check_limits, fit_limits
from serving.prediction import softmax

RESPLITS = 500
LEVELS = (0.8, 0.9, 0.95, 0.99)


def halves(scored: Scored, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Deal whole lesions into two halves: masks (N,)."""
    first = np.zeros(scored.num_lesions, bool)
    first[rng.permutation(scored.num_lesions)[: scored.num_lesions // 2]] = True
    return first[scored.lesions], ~first[scored.lesions]


def coverage_of(held: np.ndarray, lesions: np.ndarray) -> float:
    """Mean over lesions of the share of their images that are held."""
    counts = np.bincount(lesions)
    return float((np.bincount(lesions, held)[counts > 0] / counts[counts > 0]).mean())


def resplit(scored: Scored, probs: np.ndarray) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(RESPLITS):
        fit, rest = halves(scored, rng)
        _, lesions = np.unique(scored.lesions[fit], return_inverse=True)
        sets = fit_sets(probs[fit], scored.targets[fit], lesions)
        for target, name in enumerate(scored.class_names):
            own = rest & (scored.targets == target)
            num_judged = len(np.unique(scored.lesions[own]))
            for level in LEVELS:
                members = sets.members(probs[own], level)
                supported = not sets.unsupported(level)[target]
                n, k = (
                    sets.num_lesions[target],
                    int(np.ceil((sets.num_lesions[target] + 1) * level)),
                )
                low, high = (
                    betabinom.ppf([0.025, 0.975], num_judged, k, n + 1 - k) / num_judged
                    if supported
                    else (1.0, 1.0)
                )
                found = coverage_of(members[:, target].astype(float), scored.lesions[own])
                rows.append(
                    {
                        "class": name,
                        "level": level,
                        "calibration": n,
                        "checked": num_judged,
                        "supported": supported,
                        "coverage": found,
                        "low": low,
                        "not_below": found >= low,
                        "inside": low <= found <= high,
                        "size": float(members.sum(axis=1).mean()),
                    }
                )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_id")
    parser.add_argument("data_dir")
    arguments = parse(parser)
    with trained(arguments.run_id, arguments.data_dir) as run:
        tables = [run.predictions.validation.table, run.predictions.scored.table]
        both = scored_of(pd.concat(tables, ignore_index=True), run.predictions.scored.taxonomy)
        test, validation = run.predictions.scored, run.predictions.validation
    temperature = fit_calibrator("temperature", validation).parameters["temperature"]
    table = resplit(both, softmax(both.logits, float(temperature)))
    means = table.groupby(["level", "class"]).mean(numeric_only=True)
    print(means.round(3).to_string())
    checked = asdict(check_limits(test, fit_limits(validation), replicates=2000))
    checked["abstention"].pop("curve")
    print(json.dumps(checked, indent=1))
    figures = [
        Figure(
            what=f"coverage of {name}, level {level:g}",
            ours=float(row["coverage"]),
            baseline=level,
            unit="fraction",
            against=f"promised; {row['calibration']:.0f} lesions, mean of {RESPLITS} resplits",
            ratio=float(row["coverage"]) / level,
            goal=">= 0.99",
        )
        for (level, name), row in means.iterrows()
    ]
    inside = str(means["not_below"].to_dict())
    publish("limits", figures, shipped=checked, inside_bounds=inside)


if __name__ == "__main__":
    main()
