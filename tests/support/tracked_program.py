"""A program that logs a run as it is told on standard input, and answers each line with one.

Faults of the tracking store are injected while it waits.
"""

import random
import sys
from pathlib import Path

import click
import pandas as pd

from dermalyze.cli.main import OneLineErrors
from dermalyze.config.schema import TrackingConfig
from dermalyze.tracking import MODEL_URI_TAG, open_run, tags_of
from dermalyze.tracking.registry import Candidate, register
from dermalyze.workflows.finish import sync

CODE = """
import mlflow
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return model_input
mlflow.models.set_model(Echo())
"""
ROWS = pd.DataFrame({"image_id": ["a"], "label": ["nv"], "lesion_id": ["l"]})


def obey(run, words):
    match words:
        case ["epoch", number]:
            run.log_epoch(int(number), {"train/loss": 1 / int(number)})
            Path("state.txt").write_text(number)
            run.log_file(Path("state.txt"))
        case ["file", megabytes]:
            Path("large.bin").write_bytes(random.randbytes(int(megabytes) * 1_000_000))
            run.log_file(Path("large.bin"))
        case ["dataset"]:
            for split in ("train", "val", "test"):
                run.log_split(ROWS, split=split, name="HAM10000", source="here", digest="d" * 36)
        case ["model"]:
            Path(f"model_{run.run_id}.py").write_text(CODE)
            code = {"python_model": f"model_{run.run_id}.py", "pip_requirements": ["numpy"]}
            run.log_model(code, {"test/accuracy": 0.5})
        case ["register"]:
            run.deliver()
            nothing = {"test_split": "s", "demo_data": True, "parity": "", "predictions": None}
            uri = tags_of(run.run_id)[MODEL_URI_TAG]
            candidate = Candidate(model_uri=uri, run_id=run.run_id, description="", **nothing)
            registered = register("echo", candidate, None)
            return f"version {registered.version}"
        case ["tags", text]:
            run.set_tags({"shown": text})
            run.log_params({"shown": text})
    return "done"


def answer(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@click.group(cls=OneLineErrors)
def main():
    pass


@main.command()
@click.argument("seconds", type=float)
def log(seconds):
    with open_run(TrackingConfig(experiment="faults", timeout_seconds=seconds)) as run:
        answer(run.run_id)
        for line in sys.stdin:
            answer(obey(run, line.split()))


@main.command("sync")
@click.argument("run_id")
def deliver(run_id):
    answer(sync(run_id))


main()
