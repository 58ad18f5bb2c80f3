"""`dermalyze doctor` tells what works, what is missing and what to type."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from servers import free_port

from dermalyze.cli.main import main


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def checks(**environment):
    """Run it in a process of its own, as the address of the store is kept."""
    words = [sys.executable, "-m", "dermalyze", "doctor", "--json"]
    done = subprocess.run(
        words, env=os.environ | environment, capture_output=True, timeout=120, check=True
    )
    return {check["name"]: check for check in json.loads(done.stdout)}


def test_what_works_is_said_and_nothing_is_made(tmp_path):
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    for name in ("Python", "prediction", "reference model", "training", "device", "disk"):
        assert any(line.startswith(f"ok  {name} ") for line in lines), name
    assert any("mlflow.db, which the first training here makes" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_store_and_a_hub_that_are_away_are_said_with_what_to_do():
    away = f"http://user:secret@127.0.0.1:{free_port()}"
    found = checks(MLFLOW_TRACKING_URI=away, HF_HUB_OFFLINE="0", HF_ENDPOINT=away)
    store, hub = found["tracking store"], found["weight hub"]
    assert not store["works"]
    assert "MLFLOW_TRACKING_URI" in store["hint"]
    assert not hub["works"]
    assert "tf_efficientnet_lite0" in hub["hint"]
    assert "secret" not in str(found)


def test_without_tools_each_is_a_line_and_no_failure(monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0
    lines = [line for line in done.output.splitlines() if line.startswith("--")]
    assert [line.split()[1] for line in lines] == ["browser", "npm", "git"]
    assert all("install it: " in line for line in lines)


def test_without_what_a_prediction_needs_it_fails(monkeypatch):
    monkeypatch.setattr("dermalyze.cli.doctor._packages", lambda names: ("", list(names)))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "no  prediction" in done.output
    assert "pip install dermalyze" in done.output
