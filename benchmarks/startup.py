"""What a user waits for beside the work itself: help, the first answer, an evaluation's pictures.

    python -m benchmarks.startup

Whole processes, from start to end, are timed.  The first answer is compared with the same question
to PyTorch, from a checkpoint of the same network.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.models import model_files
from benchmarks.report import Figure, publish
from serving.ham10000_taxonomy import HAM10000

SERVING = "import sys; from serving import Predictor; Predictor(sys.argv[1]).predict(sys.argv[3])"
PYTORCH = (
    "import sys; from dermalyze import SkinLesionPredictor; "
    "SkinLesionPredictor(sys.argv[2]).predict(sys.argv[3])"
)
# Prints the seconds of writing; the process is the cold run.
EVALUATION = """
import sys, time
from pathlib import Path
import numpy as np
import pandas as pd
from dermalyze.config.schema import EvaluationConfig
from dermalyze.evaluation.evaluate import Predictions, evaluate
from dermalyze.evaluation.report.folder import write_folder
from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.scores import scored_of
from serving.ham10000_taxonomy import HAM10000
logits = np.load(sys.argv[1])
rows = pd.read_csv(sys.argv[2], keep_default_na=False)
start = time.perf_counter()
scored = scored_of(predictions_table(rows, logits, HAM10000), HAM10000)
predictions = Predictions(scored=scored, split="test")
write_folder(Path(sys.argv[3]), predictions, evaluate(predictions, EvaluationConfig()))
print(time.perf_counter() - start)
"""
NUM_IMAGES = 1503  # in the test split of HAM10000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of the first answers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = [help_text(), *first_answer(Path(folder), args.rounds)]
        figures += evaluation(Path(folder))
    publish("startup", figures)


def seconds(*words: object) -> float:
    """Time a process of this Python from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
    return time.perf_counter() - start


def medians(rounds: int, *sides: Sequence[object]) -> list[float]:
    """Time processes in turn, after one of each that fills the disk's cache."""
    times = [[seconds(*words) for words in sides] for _ in range(rounds + 1)][1:]
    return [statistics.median(values) for values in zip(*times, strict=True)]


def help_text() -> Figure:
    ours, empty = medians(15, ["-m", "dermalyze", "--help"], ["-c", "pass"])
    return bounded("dermalyze --help", ours, 0.2, f"0.2 s; Python alone: {empty:.3f} s")


def first_answer(folder: Path, rounds: int) -> list[Figure]:
    onnx, checkpoint = model_files("EfficientNetV2-S")
    image = folder / "lesion.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(noise).resize((600, 450), Image.Resampling.BICUBIC).save(image, quality=90)
    files = (onnx, checkpoint, image)
    command, ours, pytorch = medians(
        rounds,
        ["-m", "dermalyze", "predict", "--model", onnx, image],
        ["-c", SERVING, *files],
        ["-c", PYTORCH, *files],
    )
    figures = []
    for what, value in (("Predictor", ours), ("dermalyze predict", command)):
        name = f"{what}: start to first answer"
        figures.append(bounded(name, value, 1.0, "1 s"))
        figures.append(compared(name, value, pytorch))
    return figures


def evaluation(folder: Path) -> list[Figure]:
    rng = np.random.default_rng(0)
    targets = rng.choice(7, NUM_IMAGES, p=[0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02])
    logits = rng.standard_normal((NUM_IMAGES, 7)) + 2 * np.eye(7)[targets]
    np.save(folder / "logits.npy", logits.astype(np.float32))
    lines = ["image_id,lesion_id,label,dx_type,age,sex,localization"]
    lines += [
        f"I{i},L{i // 2},{HAM10000.names[t]},histo,50,male,back" for i, t in enumerate(targets)
    ]
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    words = [folder / "logits.npy", folder / "rows.csv", folder / "evaluation"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", EVALUATION, *map(str, words)], check=True, capture_output=True
    )
    process = time.perf_counter() - start
    writing = float(done.stdout)
    return [
        bounded("metrics and plots of 1,503 images", writing, 5, "5 s"),
        bounded("the same as a process of its own", process, 5, "5 s"),
    ]


def bounded(what: str, value: float, bound: float, against: str) -> Figure:
    """Compare seconds with a bound."""
    return Figure(
        what=what,
        ours=value,
        baseline=bound,
        unit="s",
        against=against,
        ratio=value / bound,
        goal="<= 1.0",
    )


def compared(what: str, value: float, pytorch: float) -> Figure:
    return Figure(
        what=what,
        ours=value,
        baseline=pytorch,
        unit="s",
        against="PyTorch, from its checkpoint",
        ratio=value / pytorch,
        goal="<= 0.2",
    )


if __name__ == "__main__":
    main()
