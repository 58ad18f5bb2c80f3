"""The runtime half needs nothing of the training half."""

import subprocess
import sys
from pathlib import Path

import pytest

import serving

TRAINING = ("torch", "torchvision", "timm", "onnx", "onnxscript", "dermalyze")
WITH_MLFLOW = "serving.pyfunc"  # which brings pandas

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
    assert {"serving", "serving.predictor", "serving.pyfunc"} <= set(runtime_modules())


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
    assert ran("dermalyze.config", "onnxruntime", "torch").returncode == 0
