"""Two processes never work on one run: a lock on one machine, a tag for the others."""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest
from mlflow.tracking import MlflowClient
from servers import free_port, mlflow_server, wait_for

from dermalyze.config.schema import TrackingConfig
from dermalyze.workflows import run_lock
from dermalyze.workflows.run_lock import HELD_TAG, hold, lock, open_held
from serving.errors import TrainingError

CONFIG = TrackingConfig(experiment="held")
# Holds a lock as `lock` does, until it is killed.
HOLDER = """
import json, os, sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1] + ".lock")
lock.acquire()
holder = {"token": "t", "host": "here", "process": os.getpid(), "since": 0}
with open(sys.argv[1] + ".jsonl", "a") as file:
    print(json.dumps(holder), file=file)
print("held", flush=True)
time.sleep(60)
"""
# On a host of the name argv[1], resumes each run that is named on stdin.
RESUMER = """
import sys
from dermalyze.config.schema import TrackingConfig
from dermalyze.workflows import run_lock
run_lock._SELF["host"] = sys.argv[1]
print("ready", flush=True)
for line in sys.stdin:
    try:
        with run_lock.open_held(TrackingConfig(experiment="held"), resume=line.strip()):
            print("held", flush=True)
            sys.stdin.readline()
    except run_lock.TrainingError as error:
        print(error, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """The folder of the locks."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with lock("any", "any"):
        pass
    (folder,) = tmp_path.iterdir()
    return folder


@pytest.fixture
def killed(store, locks):
    """A run whose process on this machine was killed; its holder's tag is from a minute ago."""
    run = MlflowClient().create_run("0")
    set_holder(run.info.run_id, token="t", seen=time.time() - 60)
    return run.info.run_id


def set_holder(run_id, **holder):
    values = {"host": "elsewhere", "process": 7, "since": 0, **holder}
    MlflowClient().set_tag(run_id, HELD_TAG, json.dumps(values))


def test_a_second_process_is_told_who_holds_the_run_until_that_is_killed(killed, locks):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, locks / killed], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TrainingError) as caught, hold(killed):
            pass
        assert str(caught.value) == (
            f"run {killed} is in use by process {process.pid} on here since 1970-01-01 00:00; "
            "wait for it, or stop it first"
        )
    finally:
        process.kill()
        process.wait()
    with hold(killed), hold(killed):  # at once: the lock has gone with the process
        pass


def test_a_process_on_another_machine_holds_a_run_until_ten_minutes_without_a_sign(killed):
    set_holder(killed, token="other", seen=time.time() - 179)
    with pytest.raises(TrainingError) as caught, hold(killed):
        pass
    assert str(caught.value) == (
        f"run {killed} is in use by process 7 on elsewhere since 1970-01-01 00:00; wait for it, or "
        "stop it first; if that process is gone, try again in 7 minutes"
    )
    set_holder(killed, token="other", seen=time.time() - 601)
    with hold(killed):
        pass


def test_a_run_that_has_ended_is_held_by_nobody(killed):
    set_holder(killed, token="other", seen=time.time())
    MlflowClient().set_terminated(killed, "KILLED")
    with hold(killed):
        pass


def test_a_held_run_shows_that_it_is_alive_whatever_it_does(store, locks, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.01)
    with open_held(CONFIG) as run:
        for _ in range(3):  # a long evaluation; the first sign may be that of the beginning
            set_holder(run.run_id, token="", seen=0)
            for _ in range(1000):
                holder = json.loads(MlflowClient().get_run(run.run_id).data.tags[HELD_TAG])
                if holder["process"] == os.getpid():
                    break
                time.sleep(0.01)
            assert time.time() - holder["seen"] < 60
    assert MlflowClient().get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_of_two_machines_that_resume_a_run_at_once_one_goes_on(tmp_path):
    port = free_port()
    (tmp_path / "server").mkdir()
    url = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port), contextlib.ExitStack() as stack:
        processes = {}
        for host in ("east", "west"):
            (tmp_path / host).mkdir()
            process = subprocess.Popen(
                [sys.executable, "-c", RESUMER, host],
                cwd=tmp_path / host,
                env={**os.environ, "MLFLOW_TRACKING_URI": url, "TMPDIR": str(tmp_path / host)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.stdin.close)
            processes[host] = process
        assert [process.stdout.readline() for process in processes.values()] == ["ready\n"] * 2
        client = MlflowClient(url)
        for _ in range(2):
            run_id = client.create_run("0").info.run_id
            client.set_terminated(run_id, "KILLED")
            for process in processes.values():
                process.stdin.write(f"{run_id}\n")
                process.stdin.flush()
            said = {host: process.stdout.readline() for host, process in processes.items()}
            (winner,) = [host for host, line in said.items() if line == "held\n"]
            (lost,) = [line for line in said.values() if line != "held\n"]
            of_winner = f"run {run_id} is in use by process {processes[winner].pid} on {winner} "
            assert lost.startswith(of_winner)
            assert lost.endswith("; wait for it, or stop it first\n")
            for process in processes.values():
                process.stdin.write("\n")
                process.stdin.flush()
            wait_for(lambda run=run_id: client.get_run(run).info.status == "FINISHED", 30)


def test_a_folder_for_locks_that_belongs_to_somebody_else_is_refused(locks, tmp_path):
    real = tmp_path / "real"
    locks.rename(real)
    locks.symlink_to(real)
    with pytest.raises(TrainingError) as caught, lock("run", "the run"):
        pass
    assert str(caught.value) == (
        f"cannot lock {locks / 'run.lock'}: the folder belongs to somebody else; set TMPDIR to a "
        "folder that can be written"
    )
