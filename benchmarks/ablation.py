"""One line a training: at home (validation) and elsewhere (a source that was left out).

    python -m benchmarks.ablation FOLDER [FOLDER ...]

Each folder is one of `dermalyze train --no-tracking --output FOLDER --leave-out COLUMN=VALUE`, all
with the same splits; in brackets 95 % intervals by lesion.  The second table has the paired
differences of validation metrics to the first folder.  Nothing here is chosen by a test split of
all sources: what is elsewhere is a stand-in for other clinics, and one source is never looked at.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dermalyze.evaluation.scores import read_scored
from dermalyze.evaluation.statistics.bootstrap import intervals
from dermalyze.evaluation.statistics.comparison import compare

HOME = ("balanced_accuracy", "macro_auc", "loss", "balanced_loss")
ELSEWHERE = ("balanced_accuracy_elsewhere", "auc/mel", "loss")


def shown(found: dict[str, Any]) -> str:
    bounds = "" if found["low"] is None else f" ({found['low']:.3f}-{found['high']:.3f})"
    return f"{found['estimate']:.3f}{bounds}"


def row(folder: Path) -> list[str]:
    home = intervals(read_scored(folder / "evaluation" / "val_predictions.csv"))
    history = json.loads((folder / "training_history.json").read_text())
    evaluation = json.loads((folder / "evaluation" / "judgement.json").read_text())
    limits, elsewhere = evaluation["limits"], evaluation["intervals"]
    answered = limits["abstention"]["coverage"]
    # An error rate with less than a fifth answered says nothing.
    risk = limits["abstention"]["risk"]
    wrong = shown(risk) if answered["estimate"] >= 0.2 else "not answered"
    mass = (evaluation["explanations"] or {}).get("mass")
    return [
        folder.name,
        *(shown(vars(home[name])) for name in HOME),
        *(shown(elsewhere[name]) for name in ELSEWHERE),
        shown(answered),
        wrong,
        shown(limits["prediction_sets"]["coverage"]),
        shown(mass["over_center"]) if mass else "-",
        f"{sum(entry['images_per_second'] for entry in history) / len(history):.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    home = [f"home {name}" for name in HOME]
    elsewhere = [f"elsewhere {name.removesuffix('_elsewhere')}" for name in ELSEWHERE]
    more = ["answered", "of these wrong", "set coverage", "map mass over center", "images/s"]
    titles = ["training", *home, *elsewhere, *more]
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for folder in folders:
        print("| " + " | ".join(row(folder)) + " |")
    if len(folders) == 1:
        return
    scored = [read_scored(folder / "evaluation" / "val_predictions.csv") for folder in folders]
    found = compare([folder.name for folder in folders], scored, metrics=HOME)
    print(f"\n| validation, minus {found.reference} | " + " | ".join(HOME) + " |")
    print("|" + "---|" * (1 + len(HOME)))
    for versus in found.versus:
        cells = [
            f"{d.difference:+.3f}" + ("" if d.low is None else f" ({d.low:+.3f} to {d.high:+.3f})")
            for d in versus.differences
        ]
        print(f"| {versus.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
