"""The runtime half needs nothing of the training half."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image
from tiny_model import TINY_ONNX

import serving
from serving.ham10000_taxonomy import HAM10000

TRAINING = ("torch", "torchvision", "timm", "onnx", "onnxscript", "dermalyze")
WITH_MLFLOW = "serving.mlflow_model"  # which brings pandas

IMPORT = """
import importlib, sys
module, *banned = sys.argv[1:]
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in banned:
            raise AssertionError(f"{module} imports {name}")
sys.meta_path.insert(0, Ban())
importlib.import_module(module)
"""


def runtime_modules():
    folder = Path(serving.__file__).parent
    names = [
        ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        for path in folder.rglob("*.py")
    ]
    return sorted(name.removesuffix(".__init__") for name in names)


def ran(module, *banned):
    return subprocess.run(
        [sys.executable, "-c", IMPORT, module, *banned],
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_are_modules_to_look_at():
    assert {"serving", "serving.predictor", "serving.mlflow_model"} <= set(runtime_modules())


@pytest.mark.parametrize("module", runtime_modules())
def test_a_runtime_module_needs_nothing_of_the_training_half(module):
    banned = TRAINING if module == WITH_MLFLOW else (*TRAINING, "pandas", "mlflow")
    result = ran(module, *banned)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_ban_works():
    result = ran("serving.predictor", "onnxruntime")
    assert result.returncode == 1
    assert "AssertionError: serving.predictor imports onnxruntime" in result.stderr


def test_errors_and_settings_do_not_load_onnxruntime():
    """The training half imports them everywhere; onnxruntime takes a quarter of a second."""
    assert ran("serving", "onnxruntime").returncode == 0
    assert ran("dermalyze.config.schema", "onnxruntime", "torch").returncode == 0


def needed_by(names):
    """The distributions that an installation of `names` brings here, by their metadata."""
    found, todo = set(), [Requirement(name) for name in names]
    while todo:
        needed = todo.pop()
        name = needed.name.lower().replace("_", "-")
        if name in found or not (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        todo += map(Requirement, importlib.metadata.requires(name) or [])
    return found


ANSWER = """
import sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p] + [sys.argv[1], sys.argv[2]]
from dermalyze.cli.main import main
main(["predict", "--model", sys.argv[3], "--format", "json", sys.argv[4]])
"""


SERVE = """
import json, sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p] + [sys.argv[1], sys.argv[2]]
from serving.http.app import create_app
from serving.http.settings import ServiceSettings
import asyncio
app = create_app(ServiceSettings(model=sys.argv[3]))
body = open(sys.argv[4], "rb").read()
scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict",
         "query_string": b"", "headers": [(b"content-type", b"image/png")], "root_path": "",
         "scheme": "http", "server": ("x", 80), "client": ("y", 1), "http_version": "1.1"}
parts = iter([{"type": "http.request", "body": body, "more_body": False}])
sent = []
async def receive():
    for part in parts:
        return part
    await asyncio.sleep(60)
async def send(message):
    sent.append(message)
asyncio.run(app(scope, receive, send))
assert sent[0]["status"] == 200, sent
print(json.dumps(json.loads(sent[1]["body"])["predictions"][0]))
"""


@pytest.mark.parametrize("program", [ANSWER, SERVE], ids=["predict", "serve"])
def test_the_base_requirements_alone_are_enough_to_answer(tmp_path, program):
    """As an installation without the `train` extra: nothing else can be imported."""
    root = Path(serving.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    site.mkdir()
    for name in needed_by(project["dependencies"]):
        for file in importlib.metadata.files(name):
            top = file.parts[0]
            source = Path(file.locate()).parents[len(file.parts) - 1] / top
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(source)
    assert (site / "onnxruntime").exists()
    assert not (site / "torch").exists()
    image = tmp_path / "image.png"
    Image.new("RGB", (20, 10), (200, 150, 140)).save(image)
    words = [site, root, TINY_ONNX, image]
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predicted_class"] in HAM10000.names
