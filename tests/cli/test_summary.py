"""The commands that a run ends by printing work where the user types them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dermalyze.cli.summary import summarize
from dermalyze.tracking.registry import Registered
from dermalyze.workflows.finish import RunResult
from serving.ham10000_taxonomy import HAM10000

PROGRAMS = Path(sys.executable).parent


def result():
    return RunResult(
        run_id="r",
        metrics={"test/balanced_accuracy": 0.5},
        intervals={},
        taxonomy=HAM10000,
        parity="same",
        registered=Registered(name="dermalyze", version="1", is_champion=True, reason="first"),
        report=Path("mlruns/report.html"),
    )


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The checkout, in which the run works, and the folder of the user's shell."""
    checkout, elsewhere = tmp_path / "a checkout", tmp_path / "elsewhere"
    checkout.mkdir()
    elsewhere.mkdir()
    (checkout / ".dermalyze").mkdir()
    (checkout / ".dermalyze" / "request.json").write_text('{"dataframe_records": []}')
    monkeypatch.chdir(checkout)
    for name in ("DERMALYZE_SHELL_PATH", "DERMALYZE_SHELL_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{PROGRAMS}:/usr/bin:/bin")
    return checkout, elsewhere


def printed(**options):
    lines = summarize(result(), **options).splitlines()
    return [line.strip() for line in lines[lines.index("next:") + 1 :][:3]]


def test_typed_in_its_folder_the_commands_are_short(folders, monkeypatch):
    checkout, _ = folders
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{checkout}/mlflow.db")
    ui, serve, curl = printed()
    assert ui == "mlflow ui"
    assert serve.startswith("mlflow models serve -m models:/dermalyze@champion ")
    assert curl.endswith(" -d @.dermalyze/request.json")
    lines = summarize(result()).splitlines()
    assert [line.strip() for line in lines[lines.index("open:") + 1 :][:2]] == [
        "dermalyze serve --model models:/dermalyze@champion",
        "python3 -m webbrowser mlruns/report.html",
    ]


def test_after_mlflow_run_the_commands_work_from_any_folder(folders, monkeypatch):
    checkout, elsewhere = folders
    store = f"sqlite:///{elsewhere}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    ui, serve, curl = printed(typed_here=False)
    assert ui == f'PATH={PROGRAMS}:"$PATH" mlflow ui --backend-store-uri {store}'
    assert serve.startswith(
        f'MLFLOW_TRACKING_URI={store} PATH={PROGRAMS}:"$PATH" mlflow models serve -m '
    )
    shown = subprocess.run(
        ["bash", "-c", "curl() { cat \"${@: -1:1}\"; }; " + curl.replace("-d @", "-d ")],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert shown.stdout == (checkout / ".dermalyze" / "request.json").read_text()
    found = subprocess.run(
        ["bash", "-c", ui.replace("mlflow ui", "type -P mlflow #")],
        cwd=elsewhere, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == f"{PROGRAMS}/mlflow\n"


def test_make_in_another_folder_says_where_the_user_is(folders, monkeypatch):
    checkout, elsewhere = folders
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{checkout}/mlflow.db")
    monkeypatch.setenv("DERMALYZE_SHELL_PATH", os.environ["PATH"])
    monkeypatch.setenv("DERMALYZE_SHELL_FOLDER", str(checkout))
    assert printed(typed_here=False)[0] == "mlflow ui"
    monkeypatch.setenv("DERMALYZE_SHELL_FOLDER", str(elsewhere))
    assert printed(typed_here=False)[0] == (
        f"mlflow ui --backend-store-uri 'sqlite:///{checkout}/mlflow.db'"
    )


def test_a_server_shows_its_runs_itself_and_its_password_is_not_printed(folders, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000")
    ui, serve, _ = printed()
    assert ui == "python3 -m webbrowser http://127.0.0.1:5000"
    assert serve.startswith("mlflow models serve ")
