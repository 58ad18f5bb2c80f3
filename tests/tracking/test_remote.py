"""Tracking on a server elsewhere: everything goes through HTTP, artifacts too."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from servers import free_port, mlflow_server

from dermalyze.data.demo.dataset import make_demo_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRAIN = ("train", "--data-dir", "../demo", "--config", "../config.yaml", "--set")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    make_demo_data(folder / "demo", num_images=140)
    (folder / "config.yaml").write_text(
        "model: {name: test_efficientnet, pretrained: false}\n"
        "data: {image_size: 32}\n"
        "training: {epochs: 1, batch_size: 8}\n"
        "tracking: {timeout_seconds: 20}\n"
    )
    (folder / "here").mkdir()
    return folder


@pytest.fixture(scope="module")
def url():
    return f"http://127.0.0.1:{free_port()}"


def started(place, url, *words):
    env = dict(os.environ, PYTHONPATH=str(ROOT), MLFLOW_TRACKING_URI=url)
    return subprocess.Popen(
        [sys.executable, "-m", "dermalyze", *words],
        cwd=place / "here", env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def dermalyze(place, url, *words):
    process = started(place, url, *words)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_a_run_on_a_remote_server_is_whole_and_can_be_exported_from_there(place, url):
    with mlflow_server(place, int(url.rpartition(":")[2])):
        done = dermalyze(place, url, *TRAIN, "training.epochs=1")
        (run_id,) = re.findall(r"^run id: (\w+)$", done, re.MULTILINE)
        client = MlflowClient(url)
        assert client.get_run(run_id).info.status == "FINISHED"
        names = {file.path for file in client.list_artifacts(run_id)}
        assert {"checkpoint_best.pt", "checkpoint_latest.pt", "config.yaml", "evaluation"} <= names
        champion = client.get_model_version_by_alias("dermalyze", "champion")
        assert champion.run_id == run_id
        dermalyze(place, url, "export-onnx", "--run-id", run_id)
        assert (place / "here" / "model.onnx").is_file()
    assert not (place / "here" / "mlruns").exists()
    assert not (place / "here" / "mlflow.db").exists()


def test_a_training_outlives_its_server_and_sync_registers_its_model(place, url):
    said = []
    port = int(url.rpartition(":")[2])
    with mlflow_server(place, port) as pid:
        training = started(place, url, *TRAIN, "training.epochs=3")
        for line in training.stderr:
            said.append(line)
            if line.startswith("epoch 1/3"):
                os.killpg(pid, signal.SIGKILL)
                break
        said += training.stderr
    assert training.wait(300) == 1, said
    away = f"the tracking store {url} refused the connection"
    (run_id,) = re.findall(r"dermalyze sync (\w+)", said[-1])
    assert said[-1] == (
        f"Error: run {run_id} is complete but not delivered: {away}; all of it is kept in "
        f".dermalyze/runs/{run_id}: when the store is back, run `dermalyze sync {run_id}`\n"
    )
    warnings = [line for line in said if line.startswith("warning: ")]
    assert [line for line in warnings if "tracking store" in line] == [
        f"warning: {away}; the run continues, and what it logs is kept in "
        f".dermalyze/runs/{run_id} until it can be delivered\n"
    ]
    assert "Traceback" not in "".join(said)
    assert "epoch 3/3" in "".join(said)
    with mlflow_server(place, port):
        done = dermalyze(place, url, "sync", run_id)
        client = MlflowClient(url)
        run = client.get_run(run_id)
        (version,) = client.search_model_versions(f"run_id='{run_id}'")
        assert done.startswith(
            f"run {run_id} is delivered and finished; registered: dermalyze version "
            f"{version.version} ("
        )
        assert run.info.status == "FINISHED"
        assert len(run.outputs.model_outputs) == 1
        history = client.get_metric_history(run_id, "train/loss")
        assert [metric.step for metric in history] == [1, 2, 3]
        assert "test/accuracy" in run.data.metrics
        names = {file.path for file in client.list_artifacts(run_id)}
        assert {"checkpoint_best.pt", "checkpoint_latest.pt", "config.yaml", "evaluation"} <= names
    assert not (place / "here" / ".dermalyze" / "runs" / run_id).exists()
