"""Tracking on a server elsewhere: everything goes through HTTP, artifacts too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from servers import free_port, running

from dermalyze.data.demo import make_demo_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_a_run_on_a_remote_server_is_whole_and_can_be_exported_from_there(tmp_path):
    make_demo_data(tmp_path / "demo", num_images=140)
    (tmp_path / "config.yaml").write_text(
        "model: {name: test_efficientnet, pretrained: false}\n"
        "data: {image_size: 32}\n"
        "training: {epochs: 1, batch_size: 8}\n"
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = dict(os.environ, PYTHONPATH=str(ROOT), MLFLOW_DISABLE_TELEMETRY="true")
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    server = [
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination", str(tmp_path / "artifacts"),
    ]  # fmt: skip
    log = tmp_path / "server.log"
    with running(server, health=f"{url}/health", cwd=tmp_path, env=env, log=log):
        here = tmp_path / "here"
        here.mkdir()
        client_env = {**env, "MLFLOW_TRACKING_URI": url}

        def dermalyze(*words):
            return subprocess.run(
                [sys.executable, "-m", "dermalyze", *words],
                cwd=here, env=client_env, capture_output=True, text=True, timeout=300,
            )  # fmt: skip

        done = dermalyze("train", "--data-dir", "../demo", "--config", "../config.yaml")
        assert done.returncode == 0, done.stderr
        (run_id,) = re.findall(r"^run id: (\w+)$", done.stdout, re.MULTILINE)
        client = MlflowClient(url)
        assert client.get_run(run_id).info.status == "FINISHED"
        names = {file.path for file in client.list_artifacts(run_id)}
        assert {"checkpoint_best.pt", "checkpoint_latest.pt", "config.yaml", "evaluation"} <= names
        champion = client.get_model_version_by_alias("dermalyze", "champion")
        assert champion.run_id == run_id
        done = dermalyze("export-onnx", "--run-id", run_id)
        assert done.returncode == 0, done.stderr
        assert (here / "model.onnx").is_file()
    assert not (here / "mlruns").exists()
    assert not (here / "mlflow.db").exists()
