"""A tracking server on PostgreSQL and S3, and a search on PostgreSQL: real servers, real faults."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from programs import Program
from servers import free_port, wait_for
from services import service
from strangers import png
from tracking_stack import Stack

from dermalyze.cli.streams import log_lines
from dermalyze.config.loading import load_config
from dermalyze.config.search_space import read_search
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.workflows import tune as tuning
from dermalyze.workflows.tune import StudyOptions, tune
from serving.errors import ConfigError
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
    inherited = {name: os.environ[name] for name in os.environ if name[:7] != "MLFLOW_"}
    return inherited | {"MLFLOW_TRACKING_URI": stack.url} | more


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
    (run_id,) = re.findall(r"^run id: (\w+)", text, re.MULTILINE)
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
    (run_id,) = (run.info.run_id for run in client.search_runs([experiment], max_results=1))
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
    image = tmp_path / "photo.png"
    image.write_bytes(png())
    exported = Predictor(place / "model.onnx").predict(image)
    for name, value in environment(stack).items():
        monkeypatch.setenv(name, value)
    with service(tmp_path, model="models:/dermalyze@champion") as served:
        answer = served.predict(image.read_bytes())
        assert_no_secret(stack, served.log.read_text())
    assert answer == {"predictions": [exported.to_dict()]}


@pytest.mark.scale
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
        ["mlflow", "gc", "--backend-store-uri", stack.database("mlflow")],
        env=environment(stack, **stack.env), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_no_secret(stack, done.stdout + done.stderr)
    assert not any(objects(stack, run_id) for run_id in runs)
    left = client.search_runs([experiment], run_view_type=3)
    assert not {run.info.run_id for run in left} & set(runs)


SEARCH = (
    "tune", "--search", "training.lr=1e-4..1e-2,log", "--search", "augmentation.rotation=0..1",
    "--data-dir", "photos", "--config", "config.yaml",
)  # fmt: skip


def study_of(stack, name):
    # The password is in the address here: nobody who uses Optuna logs it.
    address = stack.database("optuna").replace("@", f":{stack.env['PGPASSWORD']}@")
    return optuna.load_study(study_name=name, storage=address)


def assert_whole(client, study, num_trials):
    """No trial is lost or repeated, and the run of each is below that of the study."""
    trials = study.get_trials()
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    failed = [trial for trial in trials if trial not in done]
    assert num_trials <= len(done) <= num_trials + 1  # two workers may both begin the last one
    assert {trial.state.name for trial in failed} <= {"FAIL"}
    assert len({str(trial.params) for trial in done}) == len(done)
    params = [trial.params for trial in done]
    assert all(trial.params in params for trial in failed)  # each was tried again
    parent = client.get_run(study.user_attrs["run_id"])
    assert parent.info.status == "FINISHED"
    below = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    status = {int(run.data.tags["dermalyze.trial"]): run.info.status for run in below}
    ended = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}
    assert status == {trial.number: ended[trial.state.name] for trial in trials}
    return failed


def test_two_workers_share_a_study_on_postgresql_and_one_that_is_killed_is_taken_over(
    stack, client, place
):
    words = [*SEARCH, "--trials", "4", "--study", "two", "--storage", stack.database("optuna")]
    workers = [started(stack, place, *words) for _ in range(2)]
    said = []
    try:
        for line in workers[0].stderr:
            said.append(line)
            if re.match(r"epoch 1/2", line):
                workers[0].kill()
        out, err = workers[1].communicate(timeout=600)
    finally:
        for worker in workers:
            worker.kill()
    assert workers[0].wait() == -signal.SIGKILL, said
    assert workers[1].returncode == 0, err
    assert_no_secret(stack, "".join(said) + out + err)
    (failed,) = assert_whole(client, study_of(stack, "two"), 4)
    assert f"trial {failed.number} was interrupted; its settings are tried again" in err
    assert out.startswith("# Trial ")


def test_postgresql_is_restarted_during_a_trial_and_the_study_goes_on(
    stack, client, place, monkeypatch
):
    for name, value in environment(stack).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)
    restarted = []

    def restart(line):
        if line.startswith("epoch 1/2") and not restarted:
            stack.postgres.stop(signal.SIGQUIT)  # as a crash: without a checkpoint
            stack.postgres.start()
            restarted.append(line)

    config = load_config(Path("config.yaml"))
    options = StudyOptions(
        search=read_search(("training.lr=1e-4..1e-2,log",), config),
        num_trials=2,
        storage=stack.database("optuna"),
        name="restarted",
    )
    with log_lines(restart):
        tune(config, Path("photos"), options)
    assert restarted
    assert assert_whole(client, study_of(stack, "restarted"), 2) == []


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.scale)])
def test_an_upload_in_which_the_s3_server_dies_is_sent_again_when_it_is_back(
    stack, client, place, seconds
):
    program = Program(place / f"away {seconds}", stack.url).opened()
    program.tell("epoch 1", "file 64")
    parts = stack.folder / "s3" / ".nanio" / "multipart"
    wait_for(lambda: any(parts.rglob("*.bin")), seconds=120)
    stack.s3.stop(signal.SIGKILL)
    try:
        assert "large.bin" not in objects(stack, program.run_id)
        program.tell("epoch 2")
        time.sleep(seconds)
        program.said("warning: ", seconds=120)
    finally:
        stack.s3.start()
    code, text = program.end()
    assert code == 0, text
    assert re.match(rf"warning: the tracking store {stack.url} ", text)
    assert_no_secret(stack, text)
    assert_delivered(client, program, ("large.bin", "state.txt"))


def test_a_run_goes_on_while_postgresql_behind_the_server_is_restarted(stack, client, place):
    program = Program(place / "database away", stack.url).opened()
    program.tell("epoch 1")
    stack.postgres.stop(signal.SIGQUIT)
    try:
        program.tell("epoch 2")
        program.said("warning: ", seconds=120)
    finally:
        stack.postgres.start()
    code, text = program.end()
    assert code == 0, text
    assert_no_secret(stack, text)
    assert_delivered(client, program, ("state.txt",))


def assert_delivered(client, program, names):
    """All that a program has logged is in the store, to the byte, and nothing waits any more."""
    assert client.get_run(program.run_id).info.status == "FINISHED"
    history = client.get_metric_history(program.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2]
    for name in names:
        stored = Path(client.download_artifacts(program.run_id, name)).read_bytes()
        written = (program.folder / name).read_bytes()
        assert hashlib.sha256(stored).digest() == hashlib.sha256(written).digest()
    assert not (program.folder / ".dermalyze" / "runs" / program.run_id).exists()


def test_the_database_of_the_tracking_store_is_not_taken_for_a_study(stack, monkeypatch):
    password = stack.env["PGPASSWORD"]
    address = stack.database("mlflow").replace("@", f":{password}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.url)
    with pytest.raises(ConfigError) as behind_a_server:
        tuning._open_storage(address)
    shown = address.replace(password, "***")
    assert str(behind_a_server.value) == (
        f"--storage must be a database for Optuna alone, and {shown} has tables of another "
        "program, such as MLflow, or another version; pass one such as sqlite:///study.db"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ConfigError) as same:
        tuning._storage_address(address)
    assert str(same.value) == (
        f"--storage must be another database than that of the tracking store, got {shown!r}; pass "
        "one such as sqlite:///study.db"
    )


@pytest.mark.scale
def test_mlflow_run_searches_on_postgresql_and_refuses_to_log_its_password(stack, client, place):
    project = ["mlflow", "run", str(ROOT), "-e", "tune", "--env-manager", "local"]
    for name, value in {
        "search": "training.lr=1e-4..1e-2,log", "trials": "1", "study": "project",
        "data_dir": str(place / "photos"), "config": str(place / "config.yaml"),
    }.items():  # fmt: skip
        project += ["-P", f"{name}={value}"]
    address = stack.database("optuna")
    done = subprocess.run(
        [*project, "-P", f"storage={address}"], cwd=place, env=environment(stack),
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_no_secret(stack, done.stdout + done.stderr)
    assert_whole(client, study_of(stack, "project"), 1)
    storage = address.replace("@", ":another-word@")
    done = subprocess.run(
        [*project, "-P", f"storage={storage}"], cwd=place, env=environment(stack),
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(
        r"^Error: `mlflow run` has logged the password in \S+:\*\*\*@\S+ in run \w{32}; delete "
        "that run and change the password, then pass --storage without it, and set PGPASSWORD$",
        done.stderr,
        re.MULTILINE,
    ), done.stderr
