"""A tracking server on PostgreSQL and S3, and a search on PostgreSQL: real servers, real faults."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from servers import free_port
from services import service
from tracking_stack import Stack

from dermalyze.data.demo.dataset import make_demo_data
from serving.predictor import Predictor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRAIN = ("train", "--data-dir", "photos", "--config", "config.yaml")


@pytest.fixture(scope="module")
def stack():
    with tempfile.TemporaryDirectory(prefix="stack-") as name:  # pytest's own is for root alone
        folder = Path(name)
        folder.chmod(0o755)
        stack = Stack(folder, {name: free_port() for name in ("postgres", "s3", "mlflow")})
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    make_demo_data(folder / "photos", num_images=140)
    (folder / "config.yaml").write_text(
        "model: {name: test_efficientnet, pretrained: false}\n"
        "data: {image_size: 32, val_size: 0.25}\n"
        "training: {epochs: 2, batch_size: 16, device: cpu}\n"
        "evaluation: {replicates: 100}\n"
        "tracking: {timeout_seconds: 20}\n"
    )
    return folder


@pytest.fixture(scope="module")
def client(stack):
    return MlflowClient(stack.url)


def environment(stack, **more):
    """What a user has: the address of the server, and the password of the database."""
    password = stack.env["PGPASSWORD"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    more |= {"PYTHONPATH": str(ROOT), "PATH": path, "PGPASSWORD": password}
    return os.environ | {"MLFLOW_TRACKING_URI": stack.url, "MLFLOW_EXPERIMENT_ID": ""} | more


def started(stack, place, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "dermalyze", *map(str, words)],
        cwd=place, env=environment(stack), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def dermalyze(stack, place, *words, code=0):
    """Run a command; return what it prints, and what it says."""
    process = started(stack, place, *words)
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert_no_secret(stack, out + err)
    return out, err


def assert_no_secret(stack, text):
    for name in ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert stack.env[name] not in text, f"{name} is in {text}"


def objects(stack, run_id):
    """The names of the files of a run that the S3 server has on its disk."""
    found = (stack.folder / "s3" / "mlflow").glob(f"*/{run_id}/artifacts/**/*")
    return {path.relative_to(path.parents[-1]).name for path in found if path.is_file()}


def run_id_in(text):
    (run_id,) = re.findall(r"^run id: (\w+)$", text, re.MULTILINE)
    return run_id


@pytest.fixture(scope="module")
def resumed(stack, client, place):
    """A training that was killed after its first epoch, and resumed."""
    training = started(stack, place, *TRAIN)
    said = []
    for line in training.stderr:
        said.append(line)
        if line.startswith("epoch 1/2"):
            training.kill()
    assert training.wait(60) == -signal.SIGKILL, said
    assert_no_secret(stack, "".join(said))
    experiment = client.get_experiment_by_name("dermalyze").experiment_id
    (run_id,) = (run.info.run_id for run in client.search_runs([experiment]))
    out, _ = dermalyze(stack, place, "train", "--resume", run_id)
    assert run_id_in(out) == run_id
    return run_id


def test_a_killed_training_is_resumed_and_registered_and_its_files_are_in_s3(
    stack, client, resumed
):
    run = client.get_run(resumed)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(resumed, "train/loss")
    assert [metric.step for metric in history] == [1, 2]
    names = {"checkpoint_best.pt", "checkpoint_latest.pt", "config.yaml", "judgement.json"}
    assert names <= objects(stack, resumed)
    assert client.get_model_version_by_alias("dermalyze", "champion").run_id == resumed


def test_its_model_is_exported_and_served_from_the_registry(
    stack, place, resumed, tmp_path, monkeypatch
):
    dermalyze(stack, place, "export-onnx", "--run-id", resumed)
    image = next((place / "photos").rglob("*.jpg"))
    (exported,) = Predictor.load(place / "model.onnx").predict([image])
    for name, value in environment(stack).items():
        monkeypatch.setenv(name, value)
    with service(tmp_path, model="models:/dermalyze@champion") as served:
        answer = served.predict(image.read_bytes())
        assert_no_secret(stack, served.log.read_text())
    assert answer["probabilities"] == pytest.approx(dict(exported.probabilities), abs=1e-6)


def test_a_deleted_run_leaves_database_and_s3_with_gc(stack, client, place):
    out, _ = dermalyze(stack, place, *TRAIN, "--folds", "2", "--epochs", "1")
    parent = run_id_in(out)
    experiment = client.get_run(parent).info.experiment_id
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    runs = [parent, *(run.info.run_id for run in below)]
    assert [client.get_run(run_id).info.status for run_id in runs] == ["FINISHED"] * 3
    assert all(objects(stack, run_id) for run_id in runs)
    for run_id in runs:
        client.delete_run(run_id)
    done = subprocess.run(
        ["mlflow", "gc"], env=environment(stack, **stack.env), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_no_secret(stack, done.stdout + done.stderr)
    assert not any(objects(stack, run_id) for run_id in runs)
    left = client.search_runs([experiment], run_view_type=3)
    assert not {run.info.run_id for run in left} & set(runs)
