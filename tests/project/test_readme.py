"""The README's commands, as its reader would type them, in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme import BLOCK, FATES, README, ROOT, blocks, script, user_env
from servers import running

from dermalyze.cli.main import main
from dermalyze.cli.summary import PORT
from dermalyze.data.demo.dataset import make_demo_data


def test_every_shell_block_is_run_or_says_why_not():
    fates = [found["fate"] for found in BLOCK.finditer(README)]
    assert len(fates) == README.count("```sh")
    assert [fate for fate in fates if fate not in FATES] == []
    assert [code for code in blocks("run by .ci/run") if code not in "make test\n"] == []
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_readme_names_every_command_and_no_other():
    named = set(re.findall(r"^\| `dermalyze ([a-z-]+)", README, re.MULTILINE))
    assert named == set(main.commands)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the tracked files, with the running environment as its .venv."""
    folder = tmp_path_factory.mktemp("clone") / "dermalyze"
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    venv = Path(sys.executable).parents[1]
    if not (venv / ".ready").exists():
        pytest.skip(f"{venv} was not made by `make install`; the README's commands need it")
    made = (venv / ".ready").stat().st_mtime_ns  # in seconds it would be rounded, half of them up
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
        os.utime(folder / name, ns=(made, made))  # were it newer, `make` would install the copy
    (folder / ".venv").symlink_to(venv)
    return folder


def shell(project, code, *, activated=True, **variables):
    """Run a block as a shell would; `make` needs no active environment."""
    env = user_env(PYTHONPATH=str(project), **variables)
    if activated:
        env["PATH"] = f"{project}/.venv/bin:{env['PATH']}"
    return script(code, project, env)


@pytest.fixture(scope="module")
def demo_output(project):
    return shell(project, blocks()[0], activated=False)


@pytest.mark.slow
def test_make_demo_ends_with_three_commands_that_work_as_printed(project, demo_output, tmp_path):
    lines = demo_output.splitlines()
    ui, serve, curl = (lines[lines.index("next:") + i].strip() for i in (1, 2, 3))
    assert ui.endswith("mlflow ui")
    with running(
        ["bash", "-c", serve],
        health=f"http://127.0.0.1:{PORT}/ping",
        cwd=project,
        env=user_env(PYTHONPATH=""),
        log=tmp_path / "server.log",
    ):
        answer = shell(project, curl)
    assert "predicted_class_description" in answer
    assert "not a diagnosis" in answer


@pytest.mark.slow
def test_make_demo_ends_with_a_model_that_works_on_its_drawn_data(project, demo_output):
    assert "size has no effect" in demo_output
    assert "pretrained: tf_efficientnet_lite0, in this package" in demo_output
    (path,) = (project / "mlruns").rglob("judgement.json")
    found = json.loads(path.read_text())
    assert found["metrics"]["balanced_accuracy"] >= 0.85
    reasons = [found["intervals"][f"recall/{name}"]["reason"] for name in found["class_names"]]
    assert [reason for reason in reasons if "fewer than" in reason] == []
    assert found["limits"]["prediction_sets"]["mean_size"] <= 2
    pointing = found["explanations"]["pointing"]  # fraction of maps whose peak is on the lesion
    assert pointing["map"]["low"] > 0.7 > pointing["uniform"]["high"]
    last = "the demo model exists: see it with mlflow ui; make demo trains again if code, settings "
    last += "or store change, or after rm .dermalyze/demo-is-trained\n"
    assert demo_output.endswith(last)
    assert shell(project, blocks()[0], activated=False) == last


@pytest.mark.slow
def test_the_lines_for_real_data_run_from_another_folder_and_so_do_those_that_they_print(
    project, demo_output, tmp_path
):
    make_demo_data(project / "data" / "HAM10000", num_images=140)  # stands in for the record
    project_run = f"cd {tmp_path}\nmlflow run {project} "
    small = blocks()[1].replace("mlflow run . ", project_run)
    small = small.replace("-P size=small", "-P size=small -P epochs=1 -P image_size=32")
    output = shell(project, small)
    assert "this is drawn demo data" in output
    assert (tmp_path / "mlflow.db").exists()
    lines = output.splitlines()
    _, serve, curl = (lines[lines.index("next:") + i].strip() for i in (1, 2, 3))
    with running(
        ["bash", "-c", serve],
        health=f"http://127.0.0.1:{PORT}/ping",
        cwd=tmp_path,
        env=user_env(PYTHONPATH=""),
        log=tmp_path / "server.log",
    ):
        answer = shell(tmp_path, curl, activated=False)
    assert "predicted_class_description" in answer
