"""The prediction log: whole lines from several processes, and nothing in it that names anybody."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from rich_model import RICH, rich_bytes
from servers import wait_for
from services import service
from strangers import png
from tiny_model import SPEC, TINY_ONNX

from serving.errors import ConfigError, DataError, StorageError
from serving.prediction_log import Entry, PredictionLog, entries_of, model_name, read_log

ANSWER = {"predicted_class": "nv", "confidence": 0.75, "probabilities": {"mel": 0.25, "nv": 0.75}}
BYTES = 2**20


def entry(number):
    return entries_of([ANSWER], SPEC, f"request-{number}", 0.0125)[0]


def write(address, entries, max_bytes=BYTES):
    log = PredictionLog(str(address), max_bytes)
    log.add(entries)
    log.close(30)


@pytest.mark.parametrize("place", ["log.jsonl", "sqlite:///{}/log.db"])
def test_what_was_logged_is_read_back(tmp_path, place):
    address = place.format(tmp_path) if "://" in place else str(tmp_path / place)
    rich = ANSWER | {"decision": "answer", "scope_score": 0.5, "quality": ["the photograph is \n"]}
    entries = [*entries_of([ANSWER, rich], RICH, "a", 0.0125), entry(1)]
    write(address, entries[:2])
    write(address, entries[2:])
    assert read_log(address) == (entries, 0)
    assert [each.image for each in entries] == [1, 2, 1]
    assert entries[0].latency_ms == 12.5


def test_a_full_file_gets_a_number_and_no_line_is_lost(tmp_path):
    path = tmp_path / "log.jsonl"
    for number in range(25):
        write(path, [entry(number)], max_bytes=900)  # two or three lines
    assert path.stat().st_size < 900
    assert {each.name for each in tmp_path.iterdir()} >= {"log.jsonl", "log.jsonl.1", "log.jsonl.8"}
    entries, damaged = read_log(str(path))
    assert [each.request_id for each in entries] == [f"request-{i}" for i in range(25)]
    assert damaged == 0


WRITER = """
import sys
from serving.prediction_log import PredictionLog, entries_of
from tiny_model import SPEC
answer = {"predicted_class": "nv", "confidence": 0.5, "probabilities": {"nv": 0.5}}
log = PredictionLog(sys.argv[1], 20_000)
for i in range(400):
    log.add(entries_of([answer], SPEC, f"{sys.argv[2]}-{i}", 0.1))
log.close(60)
"""


def test_several_processes_write_whole_lines_through_rotations(tmp_path):
    path = tmp_path / "log.jsonl"
    paths = os.pathsep.join([os.getcwd(), "tests/support"])  # noqa: PTH109
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(i)],
            env=os.environ | {"PYTHONPATH": paths},
        )
        for i in range(3)
    ]
    assert [each.wait(120) for each in processes] == [0, 0, 0]
    entries, damaged = read_log(str(path))
    assert damaged == 0
    expected = {f"{i}-{j}" for i in range(3) for j in range(400)}
    assert sorted(each.request_id for each in entries) == sorted(expected)
    assert (tmp_path / "log.jsonl.3").exists()


def test_a_torn_line_costs_no_other_one(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, [entry(1)])
    path.write_bytes(path.read_bytes() + b'{"time": "2026')  # the power failed
    write(path, [entry(2)])
    entries, damaged = read_log(str(path))
    assert ([each.request_id for each in entries], damaged) == (["request-1", "request-2"], 1)


@pytest.mark.parametrize(
    "change",
    [{"time": "yesterday"}, {"confidence": None}, {"probabilities": {}}, {"confidence": -1.0}],
)
def test_a_line_of_another_program_is_counted_and_passed_over(tmp_path, change):
    path = tmp_path / "log.jsonl"
    line = json.dumps(dataclasses.asdict(entry(1)) | change)
    path.write_text(f"[]\n{line}\n{json.dumps(dataclasses.asdict(entry(2)))}\n")
    entries, damaged = read_log(str(path))
    assert ([each.request_id for each in entries], damaged) == (["request-2"], 2)


def test_only_the_owner_can_read_the_file(tmp_path):
    write(tmp_path / "log.jsonl", [entry(1)])
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_used_is_one_sentence(tmp_path):
    with pytest.raises(StorageError) as missing:
        PredictionLog(str(tmp_path / "no" / "log.jsonl"), BYTES)
    assert str(missing.value).startswith(f"cannot write {tmp_path}/no/log.jsonl: no such file")
    with pytest.raises(ConfigError) as unknown:
        PredictionLog("nosql://user:secret@host/name", BYTES)
    assert str(unknown.value) == (
        "the address of the prediction log is of no known database; expected a file, or "
        "DIALECT://USER:PASSWORD@HOST/DATABASE as SQLAlchemy reads it"
    )
    with pytest.raises(DataError) as none:
        read_log(str(tmp_path / "log.jsonl"))
    assert str(none.value) == (
        f"there is no prediction log at {tmp_path}/log.jsonl; start the service with "
        "--prediction-log"
    )


def test_a_database_that_is_away_is_named_without_its_password(tmp_path):
    with pytest.raises(StorageError) as away:
        PredictionLog("postgresql+psycopg2://user:secret@127.0.0.1:1/name?sslkey=secret", BYTES)
    text = str(away.value)
    assert text.startswith("the prediction log postgresql+psycopg2://127.0.0.1/name cannot be used")
    assert "secret" not in text


def test_without_sqlalchemy_a_database_is_one_sentence(tmp_path):
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from serving.prediction_log import PredictionLog\n"
        "PredictionLog('sqlite:///log.db', 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "serving.errors.ConfigError: a prediction log in a database needs SQLAlchemy, which is not "
        "installed; run `pip install sqlalchemy` with the driver of the database, or log to a file"
    )


def test_a_log_that_hangs_keeps_no_answer_waiting_and_says_what_it_lost(tmp_path, caplog):
    path, lost = tmp_path / "log.jsonl", []
    log = PredictionLog(str(path), BYTES, lost.append)
    path.unlink()
    os.mkfifo(path)  # whose opening waits for a reader
    log.add([entry(0)])
    added = threading.Thread(target=log.add, args=([entry(i) for i in range(30_000)],))
    added.start()
    added.join(30)
    assert not added.is_alive()
    log.close(0.5)
    assert sum(lost) == 30_001
    path.unlink()


def test_the_name_of_a_model_depends_on_what_it_answers_with():
    assert model_name(RICH).startswith("0123456789abcdef:")
    assert model_name(RICH) != model_name(dataclasses.replace(RICH, temperature=3.0))
    assert model_name(SPEC).startswith("untracked:") or SPEC.run_id


@pytest.mark.slow
def test_a_service_logs_every_answer_and_its_end_waits_for_the_log(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(rich_bytes())
    path = tmp_path / "log.jsonl"
    options = ["--workers", "2", "--prediction-log", path, "--prediction-log-bytes", "30000"]
    with service(tmp_path, *options, model=model) as own:
        answers = [own.predict(png(i))["predictions"][0] for i in range(120)]
        own.predict(png(), "/predict?age=50")
        os.kill(own.pid, signal.SIGTERM)
        wait_for(lambda: not _is_running(own.pid), 30)
    entries, damaged = read_log(str(path))
    assert (len(entries), damaged) == (121, 0)
    assert (tmp_path / "log.jsonl.1").exists()
    shown = [
        (e.predicted_class, e.confidence, e.decision, e.scope_score, e.quality) for e in entries
    ]
    names = ("predicted_class", "confidence", "decision", "scope_score", "quality")
    expected = [tuple(answer[name] for name in names) for answer in answers]
    assert all(each in shown for each in expected)
    assert {each.model for each in entries} == {model_name(RICH)}
    assert len({each.request_id for each in entries}) == 121
    lines = "".join(each.read_text() for each in tmp_path.glob("log.jsonl*"))
    assert "127.0.0.1" not in lines
    assert set(json.loads(lines.splitlines()[0])) == {f.name for f in dataclasses.fields(Entry)}


@pytest.mark.slow
def test_a_service_whose_log_cannot_be_written_does_not_start(tmp_path):
    command = [sys.executable, "-m", "dermalyze", "serve", "--model", TINY_ONNX, "--port", "0"]
    environment = os.environ | {
        "DERMALYZE_PREDICTION_LOG": "postgresql+psycopg2://me:secret@127.0.0.1:1/a"
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: the prediction log postgresql")
    assert "secret" not in done.stdout + done.stderr


def _is_running(pid):
    try:
        os.waitpid(pid, os.WNOHANG)
        os.kill(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return False
    return True
