"""Several processes that torchrun starts train as one does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

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
from dermalyze.training import distributed
from tests.support.rank_program import train

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
CONFIG = Config(
    data=DataConfig(image_size=32, val_size=0.25),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=2, batch_size=16, lr=3e-3, fast_mode=False, device="cpu"),
    evaluation=EvaluationConfig(replicates=100),
)


def values(dropout=0.0, metadata_dropout=0.3, loss=(), augmentation=(), **training):
    """Settings of a small training without mixed precision."""
    return {
        "model": {"dropout_rate": dropout, "metadata_dropout": metadata_dropout},
        "data": {"image_size": 24},
        "training": {
            "epochs": 2,
            "batch_size": 9,  # not divisible by two
            "lr": 1.0e-2,
            "device": "cpu",
            "use_amp": False,
            "early_stopping_patience": 0,
            **training,
        },
        "augmentation": {"level": "heavy", **dict(augmentation)},
        "loss": dict(loss),
    }


EXACT = {
    "class weights": values(accumulate=2, ema_decay=0.9),
    "MixUp and CutMix": values(augmentation={"mixup_alpha": 0.4, "cutmix_alpha": 1.0}),
    # The last batch of each epoch has two images, too few for two processes.
    "a small last batch": values(batch_size=15, loss={"class_weights": "none"}),
    "a head trained first": values(head_warmup_epochs=1),
}
STILL = {"augmentation": {"level": "none"}, "loss": {"class_weights": "none"}, "batch_size": 32}
# Batch norm sees the images of one process, as it sees those of one of two batches per update.
WITH_NORM = values(metadata_dropout=0.0, **STILL)
HALVES = values(metadata_dropout=0.0, **{**STILL, "batch_size": 16}, accumulate=2)
WITH_DROPOUT = values(dropout=0.2, **STILL)


@pytest.mark.parametrize(("size", "num"), [(1, 5), (2, 9), (3, 11), (4, 7), (2, 3), (2, 1)])
def test_the_processes_share_a_batch_without_a_gap(monkeypatch, size, num):
    monkeypatch.setattr(distributed, "size", lambda: size)
    shares, in_validation = [], []
    for rank in range(size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own, counts = distributed.training_share(num)
        assert len(own) >= min(2, num)  # for batch norm
        shares += [own] if counts else []
        in_validation.append(distributed.share_of(np.arange(num)))
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(num))
    np.testing.assert_array_equal(np.concatenate(in_validation), np.arange(num))


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    cases = [(case, False) for case in EXACT.values()] + [(WITH_NORM, True), (WITH_DROPOUT, True)]
    program = ROOT / "tests" / "support" / "rank_program.py"
    subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", program, tmp_path / "out.json", json.dumps(cases)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    *exact, with_norm, with_dropout = json.loads((tmp_path / "out.json").read_text())
    for name, history in zip(EXACT, exact, strict=True):
        alone = train(EXACT[name])
        for key in ("train/loss", "val/loss", "train/accuracy"):
            expected = values_of(alone, key)
            np.testing.assert_allclose(values_of(history, key), expected, atol=1e-5, err_msg=name)
    expected = values_of(train(HALVES, norm=True), "train/loss")
    np.testing.assert_allclose(values_of(with_norm, "train/loss"), expected, atol=1e-5)
    for case, history in ((WITH_NORM, with_norm), (WITH_DROPOUT, with_dropout)):
        expected = values_of(train(case, norm=True), "val/loss")
        np.testing.assert_allclose(values_of(history, "val/loss"), expected, rtol=0.05)


def values_of(history, key):
    return [epoch[key] for epoch in history]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("data") / "demo", num_images=70)


def start(folder, demo, program, *options, restarts=0):
    """Train in two processes that torchrun starts, without MLflow unless `options` say so."""
    return subprocess.run(
        [
            *[*TORCHRUN, "--nproc-per-node=2", f"--max-restarts={restarts}", *program, "train"],
            *["--data-dir", demo, "--config", folder / "config.yaml", *options],
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


def killed(rank, point, calls):
    return [ROOT / "tests" / "support" / "killed_rank.py", str(rank), point, str(calls)]


def losses(folder):
    history = json.loads((folder / "training_history.json").read_text())
    return [(epoch["train/loss"], epoch["val/loss"]) for epoch in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, demo):
    """The folder of a run in two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "config.yaml").write_text(to_yaml(CONFIG))
    done = start(folder, demo, ["-m", "dermalyze"], "--no-tracking", "--output", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run: run") == 1  # one process reports
    return folder / "run"


@pytest.mark.slow
def test_torchrun_continues_the_run_whose_process_died_in_a_step(tmp_path, demo, undisturbed):
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    in_second_epoch = killed(1, "dermalyze.training.loop:train_step", 6)
    done = start(tmp_path, demo, in_second_epoch, restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed run" in done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    logged = [
        client.get_metric_history(run.info.run_id, f"{name}/loss") for name in ("train", "val")
    ]
    assert [(a.value, b.value) for a, b in zip(*logged, strict=True)] == losses(undisturbed)


@pytest.mark.slow
def test_a_run_whose_first_process_died_while_it_saved_continues_in_one_process(
    tmp_path, demo, undisturbed
):
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    in_second_epochs_file = killed(0, "torch.serialization:_save", 4)  # the first has no epoch
    untracked = ("--no-tracking", "--output", "run")
    started = time.monotonic()
    done = start(tmp_path, demo, in_second_epochs_file, *untracked)
    assert time.monotonic() - started < 120  # its start included
    assert done.returncode == 1
    before = losses(tmp_path / "run")
    assert len(before) == 1
    arguments = ["train", "--data-dir", str(demo), "--config", str(tmp_path / "config.yaml")]
    done = CliRunner().invoke(
        main, [*arguments, "--no-tracking", "--output", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, done.output
    found = losses(tmp_path / "run")
    assert found[: len(before)] == before == losses(undisturbed)[: len(before)]
    # Of the training loss, batch norm makes a difference: of 8 images at a time, or of 16.
    expected = [val for _, val in losses(undisturbed)]
    np.testing.assert_allclose([val for _, val in found], expected, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--folds", "2"], "--folds needs a training in one process; start it without torchrun")],
)
def test_what_several_processes_cannot_do_is_one_line(monkeypatch, options, message):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["train", *options])
    assert (result.exit_code, result.output) == (1, f"Error: {message}\n")
