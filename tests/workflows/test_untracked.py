"""Training without MLflow: everything is in one folder, and the same command continues it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dermalyze.cli.main import main
from dermalyze.config.loading import to_yaml
from dermalyze.config.schema import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TrainingConfig,
)
from dermalyze.data.demo.dataset import make_demo_data
from serving import Predictor

CONFIG = Config(
    data=DataConfig(image_size=32, val_size=0.25),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=2, batch_size=16, lr=3e-3, fast_mode=False, device="cpu"),
    evaluation=EvaluationConfig(replicates=100),
)
ROOT = Path(__file__).parents[2]
# The command line without some packages; it gets a signal when a function is called the n-th time.
PROGRAM = """
import importlib, json, os, sys

missing, point, calls, number, words = json.loads(sys.argv[1])
for name in missing:
    sys.modules[name] = None
if point:
    module, name = point.split(":")
    owner = importlib.import_module(module)
    real, left = getattr(owner, name), calls

    def stop(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)
        return real(*arguments, **named)

    setattr(owner, name, stop)
sys.argv[1:] = words
from dermalyze.__main__ import run
run()
"""


def dermalyze(place, words, *, missing=("mlflow",), stop=("", 0, 0)):
    """Run a command in a folder as a user without `missing` does."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([missing, *stop, [str(w) for w in words]])],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def refusal(place, words):
    done = dermalyze(place, words)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("data") / "demo", num_images=70)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, demo):
    """A folder with a run that was never stopped, and what its command printed."""
    place = tmp_path_factory.mktemp("finished")
    (place / "tiny.yaml").write_text(to_yaml(CONFIG))
    done = dermalyze(place, train_words(demo))
    assert done.returncode == 0, done.stderr
    return place, done.stdout


@pytest.fixture(scope="module")
def killed(tmp_path_factory, demo):
    """A folder with a run that was stopped in its first epoch, and killed in its second."""
    place = tmp_path_factory.mktemp("killed")
    (place / "tiny.yaml").write_text(to_yaml(CONFIG))
    words, run = train_words(demo), place / "run"
    stopped = dermalyze(
        place, words, stop=("dermalyze.training.loop:train_step", 2, signal.SIGTERM)
    )
    assert stopped.returncode == 143  # as a shell says of a program that SIGTERM ended
    assert stopped.stderr.splitlines()[-1] == (
        "Error: stopped in epoch 1 of 2; continue with the same command"
    )
    assert json.loads((run / "run.json").read_text())["status"] == "KILLED"
    killed = dermalyze(
        place, words, stop=("dermalyze.workflows.train:save_latest", 3, signal.SIGKILL)
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(json.loads((run / "training_history.json").read_text())) == 1
    return place


def train_words(demo, *more):
    return [
        *("train", "--no-tracking", "--output", "run", "--data-dir", demo),
        *("--config", "tiny.yaml", *more),
    ]


def weights(run, name):
    return torch.load(run / f"checkpoint_{name}.pt", weights_only=True)["weights"]


@pytest.mark.slow
def test_a_training_without_mlflow_has_everything_in_one_folder(finished):
    place, printed = finished
    run = place / "run"
    assert {path.name for path in place.iterdir()} == {"tiny.yaml", "run"}
    assert {path.name for path in run.iterdir()} == {
        *("audit.json", "augmentation.png", "config.yaml", "evaluation", "model.onnx", "run.json"),
        *("checkpoint_best.pt", "checkpoint_latest.pt"),
        *("train_split.csv", "val_split.csv", "test_split.csv"),
        *("training_curves.png", "training_history.json"),
    }
    assert {"report.html", "model_card.md", "data_card.md", "predictions.csv"} <= {
        path.name for path in (run / "evaluation").iterdir()
    }
    kept = json.loads((run / "run.json").read_text())
    assert kept["status"] == "FINISHED"
    assert kept["params"]["training.lr"] == "0.003"
    assert Predictor(run / "model.onnx").spec.run_id == kept["run_id"]
    assert "\nrun: run\nONNX and PyTorch differ by at most " in printed
    report = ["report", "--predictions", "run/evaluation/predictions.csv", "--output", "again"]
    assert dermalyze(place, report).returncode == 0
    assert (place / "again" / "report.html").is_file()


@pytest.mark.slow
def test_a_finished_checkpoint_alone_is_exported_as_its_training_exported_it(finished, tmp_path):
    place, _ = finished
    checkpoint = shutil.copy(place / "run" / "checkpoint_best.pt", tmp_path / "mine.pt")
    done = dermalyze(tmp_path, ["export-onnx", "--checkpoint", checkpoint])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model.onnx: one network; differs from PyTorch by at most ")
    assert "without prediction sets" not in done.stderr
    batch = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    ours, theirs = Predictor(tmp_path / "model.onnx"), Predictor(place / "run" / "model.onnx")
    assert ours.spec == theirs.spec
    assert ours.spec.scope is not None
    np.testing.assert_array_equal(ours.logits(batch), theirs.logits(batch))


@pytest.mark.slow
def test_the_checkpoint_of_a_stopped_training_has_limits_only_with_what_is_beside_it(
    killed, demo, tmp_path
):
    words = ["export-onnx", "--checkpoint", "run/checkpoint_best.pt", "--data-dir", demo]
    shutil.copytree(killed / "run", tmp_path / "run")
    done = dermalyze(tmp_path, words)
    assert done.returncode == 0, done.stderr
    assert Predictor(tmp_path / "model.onnx").spec.scope is not None
    (tmp_path / "run" / "val_split.csv").unlink()
    done = dermalyze(tmp_path, words)
    assert done.returncode == 0, done.stderr
    assert (
        "warning: without prediction sets and decisions: run has no val_split.csv; did its "
        "training end?\n"
    ) in done.stderr
    assert Predictor(tmp_path / "model.onnx").spec.scope is None


@pytest.mark.parametrize("words", [[], ["--run-id", "r", "--checkpoint", "c.pt"]])
def test_an_export_takes_either_a_run_or_a_checkpoint(words):
    result = CliRunner().invoke(main, ["export-onnx", *words])
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: give either --run-id or --checkpoint (see `main export-onnx --help`)\n"
    )


@pytest.mark.slow
def test_a_finished_folder_is_not_trained_again(finished, demo):
    place, _ = finished
    before = (place / "run" / "run.json").read_bytes()
    assert refusal(place, train_words(demo)) == (
        "Error: the run in run is already finished; name another folder"
    )
    assert (place / "run" / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_stopped_and_killed_training_ends_with_the_bits_of_an_uninterrupted_one(
    finished, killed, demo, tmp_path
):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    words, run = train_words(demo), tmp_path / "run"
    assert refusal(tmp_path, train_words(demo, "--lr", 0.004)) == (
        "Error: the command has training.lr 0.004, and the run began with 0.003; undo that, or "
        "train a new run"
    )
    other = make_demo_data(tmp_path / "other", num_images=77)
    assert refusal(tmp_path, train_words(other)).startswith(
        f"Error: run {json.loads((run / 'run.json').read_text())['run_id']} was trained on other "
        "data (fingerprint "
    )
    done = dermalyze(tmp_path, words, missing=("mlflow", "onnx"))
    assert done.returncode == 0, done.stderr
    assert " after 1 epochs and 0 steps\n" in done.stderr
    assert (
        "\nmodel.onnx was not written: onnx is not installed; where onnx and onnxscript are, run "
        "`dermalyze export-onnx --checkpoint run/checkpoint_best.pt`\n"
    ) in done.stdout
    for name in ("latest", "best"):
        expected, found = weights(finished[0] / "run", name), weights(run, name)
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.equal(expected[key], found[key]), key


@pytest.mark.slow
def test_a_folder_that_holds_something_else_is_left_alone(demo, tmp_path):
    (tmp_path / "tiny.yaml").write_text(to_yaml(CONFIG))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert refusal(tmp_path, train_words(demo)) == (
        "Error: run holds files but no run: expected a new or empty folder, or one of `dermalyze "
        "train --no-tracking`; name another folder"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--no-tracking"],
            "--no-tracking and --output belong together: give both, or neither for a run in MLflow",
        ),
        (
            ["--output", "run"],
            "--no-tracking and --output belong together: give both, or neither for a run in MLflow",
        ),
        *(
            (
                ["--no-tracking", "--output", "run", *more],
                "--no-tracking goes with none of --resume, --folds and --experiment; the same "
                "command continues a stopped run",
            )
            for more in (["--resume", "r"], ["--folds", "5"], ["--experiment", "e"])
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(words, sentence):
    result = CliRunner().invoke(main, ["train", *words])
    assert result.exit_code == 2
    assert result.stderr == f"Error: {sentence} (see `main train --help`)\n"
