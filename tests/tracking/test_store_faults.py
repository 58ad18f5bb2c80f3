"""Tracking stores that are away, slow, locked, half made or let nobody in; each fault is real."""

import contextlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from programs import Program
from servers import free_port, mlflow_server, wait_for

from dermalyze.config.schema import TrackingConfig
from dermalyze.tracking import fetch, limit_calls, open_run, tags_of
from dermalyze.workflows.finish import sync as sync_run
from serving.errors import StorageError, TrackingError

ROOT = Path(__file__).parents[2]
REMEDY = "check that it runs, and MLFLOW_TRACKING_URI"


@pytest.fixture
def address(monkeypatch, tmp_path):
    """Set the address of the store, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def choose(uri):
        mlflow.set_tracking_uri(None)  # removes the variable, if one was set before
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    yield choose
    mlflow.set_tracking_uri(None)


@contextlib.contextmanager
def silent_server():
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def answering(status, body, missing=0):
    """A server that gives everybody the same answer, or breaks it off before its last bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + missing))
            self.send_header("Location", "/login")  # for those who are redirected
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def relay(port, fault):
    """A server that passes all on to another one, but where there is a fault.

    `fault`, given method and path, returns a status to answer with, a number of seconds to wait, or
    "lost", which breaks off the connection once the other one has answered.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            wrong = fault(f"{self.command} {self.path}")
            if isinstance(wrong, int):
                self.send_error(wrong)
                return
            time.sleep(wrong if isinstance(wrong, float) else 0)
            other = HTTPConnection("127.0.0.1", port)
            other.request(self.command, self.path, body, dict(self.headers))
            answer = other.getresponse()
            content = answer.read()
            if wrong != "lost":
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # whoever asked is gone
    with serving(server) as url:
        yield url


def refusal(seconds=2):
    """Return the message with which a run is not opened, given some seconds for each call."""
    with pytest.raises(TrackingError) as caught, open_run(TrackingConfig(timeout_seconds=seconds)):
        pass
    return str(caught.value)


def test_a_server_that_is_not_there_is_one_sentence(address):
    url = f"http://127.0.0.1:{free_port()}"
    address(url)
    assert refusal() == (
        f"cannot open a run: the tracking store {url} refused the connection; {REMEDY}"
    )


def test_a_server_that_never_answers_is_one_sentence(address):
    with silent_server() as url:
        address(url)
        assert refusal() == (
            f"cannot open a run: the tracking store {url} did not answer within 2 seconds; {REMEDY}"
        )


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (403, b"<html>no</html>", "answered 403 (Forbidden)"),
        (401, b'{"error_code": "UNAUTHENTICATED", "message": "who?"}',
         "answered 401 (Unauthorized)"),
        (200, b"<html>Log in</html>", "did not answer like an MLflow server"),
        (502, b"<html>bad gateway, timeout</html>", "answered 502 (Bad Gateway)"),
        (404, b"<html>no such page</html>", "answered 404 (Not Found)"),
        (302, b"", "did not answer like an MLflow server"),
        (200, b"{}", "did not answer like an MLflow server"),
    ],
)  # fmt: skip
def test_a_server_that_answers_something_else_is_one_sentence(address, status, body, reason):
    with answering(status, body) as url:
        address(url)
        assert refusal() == f"cannot open a run: the tracking store {url} {reason}; {REMEDY}"


def test_an_answer_that_breaks_off_is_one_sentence(address):
    with answering(200, b'{"experiment": {', missing=9) as url:
        address(url)
        assert refusal() == (
            f"cannot open a run: the tracking store {url} closed the connection; {REMEDY}"
        )


def test_a_program_that_answers_everything_with_json_is_not_taken_for_a_store(address):
    with answering(200, b'{"status": "ok"}') as url:
        address(url)
        limit_calls(2)
        for ask in (tags_of, artifacts_of, sync_run):
            with pytest.raises(TrackingError) as caught:
                ask("0" * 32)
            assert str(caught.value) == (
                f"cannot read run {'0' * 32}: the tracking store {url} did not answer like "
                f"an MLflow server; {REMEDY}"
            )


def artifacts_of(run_id):
    fetch(run_id, "config.yaml", Path("fetched"))


def test_a_missing_driver_is_named_and_the_password_is_not(address):
    address("mysql+pymysql://ann:secret@127.0.0.1/runs")
    assert refusal(30) == (
        "cannot open a run: the tracking store mysql+pymysql://ann:***@127.0.0.1/runs "
        f"needs the Python package pymysql; install it; {REMEDY}"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "localhost:5000", "127.0.0.1:5000", "mlflow.example.org", "//mlflow.example.org",
        "://mlflow.example.org", "http:/mlflow.example.org", "http://", "https:///runs",
        "http://:5000", "http://localhost:port", "http://localhost:99999", "http://local host",
        "http://[::1", "sqlite:/mlflow.db", "sqlite:mlflow.db", "sqlite://", "sqlite:///",
        "sqlite:///:memory:",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_one_is_refused(address, uri):
    address(uri)
    assert refusal() == (
        "MLFLOW_TRACKING_URI must be an address such as http://HOST:PORT or sqlite:///mlflow.db, "
        f"got {uri!r}"
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def server(place, port):
    with mlflow_server(place, port) as pid:
        yield pid


@pytest.fixture
def halted(server):
    """Stop and continue the server, all its processes, with SIGSTOP and SIGCONT."""
    yield lambda number: os.killpg(server, number)
    os.killpg(server, signal.SIGCONT)


def lines_of(text):
    return [line for line in text.splitlines() if line]  # after Ctrl-C there is an empty one


@pytest.mark.slow
def test_a_run_goes_on_while_the_server_hangs_and_delivers_all_when_it_is_back(
    place, port, server, halted
):
    url = f"http://127.0.0.1:{port}"
    program = Program(place / "hangs", url, seconds=3).opened()
    program.tell("epoch 1")
    halted(signal.SIGSTOP)
    start = time.monotonic()
    program.tell("epoch 2", "dataset", "tags later", "epoch 3")
    assert time.monotonic() - start < 2  # the program never waited; a call takes 3 seconds
    program.said("warning: ")
    halted(signal.SIGCONT)
    program.said("is back")
    code, text = program.end()
    assert code == 0, text
    warning, back = lines_of(text)
    assert warning == (
        f"warning: the tracking store {url} did not answer within 3 seconds; the run continues, "
        f"and what it logs is kept in .dermalyze/runs/{program.run_id} until it can be delivered"
    )
    assert re.fullmatch(r"the tracking store is back; \d+ entries delivered", back)
    client = MlflowClient(url)
    run = client.get_run(program.run_id)
    assert (run.info.status, run.data.tags["shown"]) == ("FINISHED", "later")
    history = client.get_metric_history(program.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert len(run.inputs.dataset_inputs) == 3
    assert not (place / "hangs" / ".dermalyze" / "runs" / program.run_id).exists()


@pytest.mark.slow
def test_a_run_whose_store_is_away_at_the_end_is_finished_by_sync(place, port, server, halted):
    url = f"http://127.0.0.1:{port}"
    program = Program(place / "ends", url, seconds=2).opened()
    program.tell("epoch 1")
    halted(signal.SIGSTOP)
    program.tell("epoch 2", "model")
    code, text = program.end()
    assert (code, len(lines_of(text))) == (1, 2), text
    kept = f".dermalyze/runs/{program.run_id}"
    assert lines_of(text)[1] == (
        f"Error: run {program.run_id} is complete but not delivered: the tracking store {url} did "
        f"not answer within 2 seconds; all of it is kept in {kept}: when the store is back, run "
        f"`dermalyze sync {program.run_id}`"
    )
    halted(signal.SIGCONT)
    done = program.sync()
    said = f"run {program.run_id} is delivered and finished\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    client = MlflowClient(url)
    run = client.get_run(program.run_id)
    assert run.info.status == "FINISHED"
    (model,) = run.outputs.model_outputs
    found = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{program.run_id}'"
    )
    assert [str(m.status) for m in found] == ["READY"]
    assert found[0].model_id == model.model_id
    assert client.get_metric_history(program.run_id, "train/loss")[-1].step == 2
    again = program.sync()
    said = f"run {program.run_id} has nothing left to deliver\n"
    assert (again.returncode, again.stdout, again.stderr) == (0, said, "")


@pytest.mark.slow
def test_ctrl_c_ends_a_run_within_two_seconds_while_the_store_hangs(place, port, server, halted):
    url = f"http://127.0.0.1:{port}"
    program = Program(place / "stops", url).opened()
    halted(signal.SIGSTOP)
    program.tell("epoch 1")
    assert program.stop(signal.SIGINT) < 4  # the two seconds, and a busy machine
    assert program.process.returncode == 130
    assert program.log.read_text().endswith("Error: stopped\n")
    halted(signal.SIGCONT)
    with relay(
        port, lambda what: 0.5 if "log-batch" in what else None
    ) as slow:  # an entry at a time
        program = Program(place / "slow", slow).opened()
        program.tell(*(f"tags {number}" for number in range(20)))
        assert program.stop(signal.SIGINT) < 4
        left = re.search(r"warning: (\d+) entries .* are not delivered", program.log.read_text())
        assert int(left[1]) > 10
    with socket.create_server(("127.0.0.1", 0)) as silent:
        opening = Program(place / "opens", f"http://127.0.0.1:{silent.getsockname()[1]}")
        silent.settimeout(60)
        silent.accept()  # it waits for an answer now
        assert opening.stop(signal.SIGINT) < 4


@pytest.mark.slow
def test_sigterm_ends_a_run_as_killed(place, port, server):
    url = f"http://127.0.0.1:{port}"
    program = Program(place / "terminated", url).opened()
    program.tell("epoch 1")
    assert program.stop(signal.SIGTERM) < 4
    assert program.process.returncode == 143
    assert program.log.read_text().endswith("Error: stopped\n")
    assert MlflowClient(url).get_run(program.run_id).info.status == "KILLED"


@pytest.mark.slow
def test_a_version_whose_making_was_not_confirmed_is_not_made_twice(place, port, server):
    lost = []

    def fault(what):
        if "model-versions/create" in what and not lost:
            lost.append(what)
            return "lost"
        return None

    with relay(port, fault) as url:
        program = Program(place / "confirmed", url).opened()
        program.tell("model")
        assert program.tell("register") == "version 1"
        assert program.end()[0] == 0
    assert lost
    client = MlflowClient(f"http://127.0.0.1:{port}")
    assert len(client.search_model_versions(f"run_id='{program.run_id}'")) == 1


@pytest.mark.slow
def test_what_a_proxy_refuses_for_its_size_is_kept_and_delivered_by_sync(place, port, server):
    refused = True
    with relay(port, lambda what: 413 if refused and what.startswith("PUT") else None) as url:
        program = Program(place / "large", url).opened()
        program.tell("epoch 1", "model")
        code, text = program.end()
        assert code == 1
        reason = f"the tracking store {url} answered 413 (Request Entity Too Large)"
        assert lines_of(text)[-1] == (
            f"Error: run {program.run_id} is complete but not delivered: {reason}; all of it is "
            f"kept in .dermalyze/runs/{program.run_id}: when the store is back, run `dermalyze "
            f"sync {program.run_id}`"
        )
        refused = False
        done = program.sync()
    assert done.stdout == f"run {program.run_id} is delivered and finished\n", done.stderr
    client = MlflowClient(f"http://127.0.0.1:{port}")
    assert [file.path for file in client.list_artifacts(program.run_id)] == ["state.txt"]
    assert len(client.get_run(program.run_id).outputs.model_outputs) == 1


@pytest.mark.slow
def test_programs_that_begin_at_once_in_a_new_folder_share_one_store(place):
    """Database, experiment, data sets, registered model and versions are all made by three."""
    folder = place / "together"
    programs = [Program(folder / str(i), f"sqlite:///{folder}/mlflow.db") for i in range(3)]
    for program in programs:
        program.opened()
    for line in ("dataset", "model", "register"):  # each told to all before any answer is read
        for program in programs:
            program.process.stdin.write(f"{line}\n")
            program.process.stdin.flush()
    answers = [
        [program.process.stdout.readline().strip() for _ in range(3)] for program in programs
    ]
    ends = [program.end() for program in programs]
    assert [code for code, _ in ends] == [0, 0, 0], ends
    assert sorted(words[-1] for words in answers) == ["version 1", "version 2", "version 3"]
    assert [path.name for path in folder.glob("*mlflow.db*")] == ["mlflow.db"]


@pytest.mark.slow
def test_a_program_that_is_killed_while_it_makes_the_database_leaves_none(place):
    folder = place / "new"
    program = Program(folder, f"sqlite:///{folder}/mlflow.db")
    wait_for(lambda: (folder / ".mlflow.db.new").exists(), seconds=120)
    program.stop(signal.SIGKILL)
    assert not (folder / "mlflow.db").exists()
    again = Program(folder, f"sqlite:///{folder}/mlflow.db").opened()
    assert again.end() == (0, "")


@pytest.mark.slow
def test_a_database_that_mlflow_left_half_made_is_one_sentence(address, tmp_path):
    path = tmp_path / "mlflow.db"
    code = (
        "from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore\n"
        f"SqlAlchemyStore('sqlite:///{path}', '.')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    def begun():
        if not path.exists():
            return False
        with contextlib.closing(sqlite3.connect(path)) as db:
            return db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 8

    wait_for(begun, seconds=120)
    process.kill()
    process.wait()
    address(f"sqlite:///{path}")
    assert refusal(60) == (
        f"{path} is incomplete: a program was stopped while it created it; it holds no runs: "
        "delete it and start again"
    )


@pytest.mark.slow
def test_a_database_whose_writer_was_killed_is_rolled_back_and_opened(place):
    folder = place / "hot"
    uri = f"sqlite:///{folder}/mlflow.db"
    assert Program(folder, uri).opened().end() == (0, "")
    code = (
        "import os, signal, sqlite3\n"
        f"db = sqlite3.connect({str(folder / 'mlflow.db')!r})\n"
        "db.execute('PRAGMA cache_size = 1')\n"  # so that pages reach the file before the commit
        "db.execute('UPDATE runs SET name = hex(zeroblob(9999))')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (folder / "mlflow.db-journal").stat().st_size > 0
    assert Program(folder, uri).opened().end() == (0, "")
    assert [path.name for path in folder.glob("mlflow.db*")] == ["mlflow.db"]


@pytest.mark.slow
def test_a_model_that_a_kill_left_half_logged_is_the_one_that_is_finished(place):
    folder = place / "killed"
    program = Program(folder, f"sqlite:///{folder}/mlflow.db").opened()
    program.process.stdin.write("model\n")
    program.process.stdin.flush()

    def begun():
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=0.1)) as db:
            return db.execute("SELECT count(*) FROM logged_models").fetchone()[0] == 1

    wait_for(begun, seconds=120)
    program.stop(signal.SIGKILL)
    done = program.sync()
    assert done.stdout == (
        f"run {program.run_id} is delivered up to its last epoch; continue with `dermalyze train "
        f"--resume {program.run_id}`\n"
    ), done.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(program.run_id)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert str(model.status) == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert run.data.tags["dermalyze.model_uri"] == f"models:/{model.model_id}"


@pytest.fixture(scope="module")
def postgres():
    """The address of a PostgreSQL with a password, and a function that starts and stops it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert found, "these tests need PostgreSQL: apt-get install postgresql (as .ci/run does)"
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses root
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:  # pytest's own is for root
        data, password, port = f"{folder}/data", Path(folder) / "password", free_port()
        password.write_text("s3cret/word\n")
        if as_user:
            shutil.chown(folder, "postgres")
            shutil.chown(password, "postgres")

        def control(program, *words):
            command = [*as_user, str(found[-1] / program), "-D", data, *words]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)

        def serve(verb):
            options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
            control("pg_ctl", verb, "-w", "-m", "fast", "-o", options, "-l", f"{folder}/log")

        control("initdb", "-A", "scram-sha-256", "-U", "ann", f"--pwfile={password}")
        serve("start")
        yield f"postgresql+psycopg2://ann:s3cret%2Fword@127.0.0.1:{port}/postgres", serve
        serve("stop")


@pytest.mark.slow
def test_a_wrong_password_is_one_sentence_without_it(postgres, address):
    uri, _ = postgres
    address(uri.replace("s3cret", "wrong"))
    place = uri.replace("s3cret%2Fword", "***")
    assert refusal(30) == (
        f"cannot open a run: the tracking store {place} refused the user name or the password; "
        f"{REMEDY}"
    )


@pytest.mark.slow
def test_a_run_goes_on_while_postgresql_is_restarted_and_nobody_sees_its_password(place, postgres):
    uri, serve = postgres
    program = Program(place / "postgres run", uri).opened()
    program.tell("epoch 1", f"tags {uri}")
    serve("stop")
    program.tell("epoch 2")
    program.said("warning: ")
    serve("start")
    program.said("is back")
    code, text = program.end()
    shown = uri.replace("s3cret%2Fword", "***")
    assert (code, len(lines_of(text))) == (0, 2), text
    assert lines_of(text)[0].startswith(f"warning: the tracking store {shown} ")
    client = MlflowClient(uri)
    run = client.get_run(program.run_id)
    assert (run.data.tags["shown"], run.data.params["shown"]) == (shown, shown)
    history = client.get_metric_history(program.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2]


def test_a_place_where_no_database_can_be_created_is_said_without_a_wait(address, tmp_path):
    (tmp_path / "file").touch()
    address(f"sqlite:///{tmp_path}/file/mlflow.db")
    started = time.monotonic()
    with pytest.raises(StorageError) as caught, open_run(TrackingConfig()):
        pass
    assert str(caught.value) == (
        f"cannot write {tmp_path}/file: file exists; a file is where a folder is needed; name "
        "another place"
    )
    assert time.monotonic() - started < 30  # seconds; 103 were the fault
    address(f"sqlite:///{'n' * 300}.db")
    with pytest.raises(StorageError) as caught, open_run(TrackingConfig()):
        pass
    assert str(caught.value) == (
        f"cannot read {'n' * 300}.db: file name too long; name one that can be read"
    )
