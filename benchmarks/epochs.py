"""What tracking costs in an epoch, and the memory of the process over 50 tracked epochs.

A real run on demo data: an epoch has few and small images, so 50 are soon over, but writes the
checkpoints, history and metrics that a long one writes.  The cost is compared with an epoch of
7,010 images of 128 px, whose steps are timed in the same process afterwards.

    python -m benchmarks.epochs [--epochs 50]
"""

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, publish
from dermalyze.cli.streams import log_lines
from dermalyze.config.loading import load_config
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.training.step_benchmark import time_steps
from dermalyze.workflows.finished_run import open_finished
from dermalyze.workflows.train import train

CONFIG = Path("configs/demo.yaml").resolve()


def resident_mib() -> float:
    """Return the memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def settings(side: int, epochs: int) -> list[str]:
    return [
        "model.name=mobilenetv2_100",
        "model.pretrained=false",
        f"data.image_size={side}",
        f"training.epochs={epochs}",
        "training.early_stopping_patience=0",
        "training.monitor=val/loss",
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=50)
    chosen = options.parse_args()
    moments: list[float] = []
    memory: list[float] = []

    def watch(line: str) -> None:
        if line.startswith("epoch "):
            moments.append(time.perf_counter())
            memory.append(resident_mib())
            if len(memory) % 10 == 0 or len(memory) == 1:
                print(f"epoch {len(memory)}: {memory[-1]:.0f} MiB", flush=True)

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        data = make_demo_data(Path("demo"), num_images=210)
        config = load_config(CONFIG, settings(32, chosen.epochs), {})
        with log_lines(watch):
            result = train(config, data)
        history = result_history(result.run_id)
    whole = np.diff(moments)
    logging = float(np.median(whole - [entry["epoch_seconds"] for entry in history][1:]))
    steps = time_steps(load_config(CONFIG, settings(128, 1), {}), 10, 7010)
    epoch = steps.epoch_seconds
    figures = [
        Figure(
            what="tracking an epoch of 7,010 images, MobileNetV2 at 128 px",
            ours=logging,
            baseline=epoch,
            unit="s",
            against="the epoch's steps alone",
            ratio=logging / epoch,
            goal="<= 0.01",
        ),
        Figure(
            what=f"memory after epoch {len(memory)}",
            ours=memory[-1],
            baseline=memory[min(9, len(memory) - 1)],
            unit="MiB",
            against="after epoch 10",
            ratio=memory[-1] / memory[min(9, len(memory) - 1)],
            goal="<= 1.05",
        ),
    ]
    publish("epochs", figures, memory_mib=[round(value) for value in memory])


def result_history(run_id: str) -> list[dict[str, float]]:
    """Return what the run logged of its epochs."""
    with open_finished(run_id) as run:
        return run.history


if __name__ == "__main__":
    main()
