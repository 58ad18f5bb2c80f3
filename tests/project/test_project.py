"""The files that MLflow, pip and conda read: they agree with each other and with the program."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from dermalyze import __version__
from dermalyze.cli.main import main
from dermalyze.config.loading import load_config

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "dermalyze" / "models" / "weights"
ENTRY_POINTS = ("main", "main_distributed", "tune", "prepare_data", "evaluate", "export_onnx")


def requirements():
    names = [f"requirements{end}.txt" for end in ("", "-tune", "-spark", "-monitor", "-tracking")]
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_same_requirements_feed_every_environment():
    references = ["-r requirements.txt", "-r requirements-tune.txt"]
    assert yaml.safe_load((ROOT / "python_env.yaml").read_text())["dependencies"] == references
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert {"pip": references} in conda
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dynamic = project["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
    assert dynamic == {
        "train": {"file": ["requirements.txt"]},
        "monitor": {"file": ["requirements-monitor.txt"]},
        "tune": {"file": ["requirements-tune.txt"]},
        "spark": {"file": ["requirements-spark.txt"]},
        "tracking": {"file": ["requirements-tracking.txt"]},
    }
    assert {*references, "-r requirements-spark.txt", "-r requirements-monitor.txt"} <= set(
        (ROOT / "requirements-dev.txt").read_text().splitlines()
    )


def test_every_requirement_is_pinned():
    assert [line for line in requirements() if line.count("==") != 1] == []


def test_the_tracking_stack_listens_on_this_machine_alone_and_its_file_holds_no_password():
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert [port for port in service.get("ports", []) if port[:10] != "127.0.0.1:"] == [], name
        for variable, value in service["environment"].items():
            if variable.endswith(("PASSWORD", "_KEY", "_KEY_ID")):
                assert re.fullmatch(r"\$\{\w+:\?set it in \.env\}", value), variable


def test_the_base_installation_is_the_runtime_half():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {text.split(">")[0] for text in project["dependencies"]}
    service = {"fastapi", "uvicorn", "uvloop", "python-multipart", "prometheus-client"}
    assert names == {"numpy", "pillow", "onnxruntime", "click"} | service
    pinned = {line.split("==")[0] for line in requirements()}
    assert names <= pinned


@pytest.fixture(scope="module")
def project():
    from mlflow.projects.utils import load_project

    return load_project(str(ROOT))


def test_mlflow_reads_the_entry_points_that_are_promised(project):
    assert set(project._entry_points) == set(ENTRY_POINTS)
    assert list(project.get_entry_point("main").parameters) == [
        "size",
        "data_dir",
        "config",
        "epochs",
        "batch_size",
        "lr",
        "image_size",
        "head_type",
        "loss",
        "pretrained",
        "seed",
        "experiment",
        "folds",
        "leave_out",
    ]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_calls_a_command_with_options_that_it_has(project, name):
    entry = project.get_entry_point(name)
    given = {name: "r" for name in ("run_id", "search") if name in entry.parameters}
    words = entry.compute_command(given, None).split()
    if name == "main_distributed":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        assert words[1:6] == torchrun
        words[1:8] = []
    assert words[:3] == ["python", "-m", "dermalyze"]
    command = main.commands[words[3]]
    known = {option for param in command.params for option in param.opts}
    used = {word for word in words if word.startswith("--")}
    assert used <= known
    assert len(used) == len(entry.parameters.keys() - {"processes", "restarts"})  # of torchrun


def test_no_parameter_has_an_empty_default(project):
    for name in ENTRY_POINTS:
        for parameter in project.get_entry_point(name).parameters.values():
            assert parameter.default != ""


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_loads_and_opens_with_its_command(path):
    load_config(path)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert any(word in first for word in ("make demo", "dermalyze train", "mlflow run"))


def test_the_citation_and_the_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == __version__
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert citation["authors"] == project["authors"] == [{"name": "Dermalyze contributors"}]


def test_the_license_is_the_one_that_is_named():
    text = (ROOT / "LICENSE").read_text()
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    )  # of apache.org/licenses/LICENSE-2.0.txt
    assert text == (WEIGHTS / "LICENSE").read_text()


def test_packaged_weights_are_those_whose_origin_is_told_and_stay_small():
    told = (WEIGHTS / "README.md").read_text()
    for path in WEIGHTS.glob("*.safetensors"):
        assert f"`{path.name}`" in told
        assert hashlib.sha256(path.read_bytes()).hexdigest() in told
        assert path.stat().st_size <= 10_000_000


def test_the_workflow_runs_what_must_pass_before_a_change_lands():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
