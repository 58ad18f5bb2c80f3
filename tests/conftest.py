"""What several tests share: a place of their own, no telemetry, the real data where it is."""

import os
import signal
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "1"
# A job in the background of a script ignores Ctrl-C, and so would every program that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture
def real_data() -> Path:
    folder = SHARED / "data" / "HAM10000"
    if not folder.is_dir():
        pytest.skip("the real HAM10000 is not beside the project, in ../shared/data/HAM10000")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A sqlite store and working directory for one module: making a store takes seconds."""
    import mlflow  # not for the many tests without a store

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("store")
        patch.chdir(folder)  # artifacts go to ./mlruns of the directory of the experiment
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
            patch.setenv(name, "")  # which MLflow sets, and would leave to others
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment("tests")  # or MLflow takes the last one, of another store
        os.environ["MLFLOW_EXPERIMENT_ID"] = ""
        yield folder
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def rich(tmp_path_factory):
    """A model file with all that a model can have."""
    from rich_model import rich_bytes

    path = tmp_path_factory.mktemp("rich") / "rich.onnx"
    path.write_bytes(rich_bytes())
    return path


@pytest.fixture(scope="session")
def rich_page(rich, tmp_path_factory):
    """The page without a server, for that model."""
    from dermalyze.export.web import export_web

    folder = tmp_path_factory.mktemp("static") / "page"
    export_web(rich, folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    from browsers import chromium

    with chromium() as browser:
        yield browser
