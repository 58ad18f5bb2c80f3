"""The command line: one line for every wrong value, and nothing heavy before it is needed."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from dermalyze.cli import main


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*words):
        result = CliRunner().invoke(main, [str(word) for word in words], prog_name="dermalyze")
        return result.exit_code, result.output

    return invoke


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["train", "--epochs", "many"],
            2,
            "Invalid value for '--epochs': 'many' is not a valid integer. "
            "(see `dermalyze train --help`)",
        ),
        (["train", "--epochs", "0"], 1, "training.epochs must be at least 1, got 0"),
        (["train", "--lr", "-1"], 1, "training.lr must be greater than 0, got -1.0"),
        (["train", "--lr", "1e-9"], 1, "training.scheduler.eta_min must be at most training.lr "
         "(1e-09), got 1e-06"),
        (["train", "--size", "tiny"], 1, "model.size must be one of small, medium, large, "
         "got 'tiny'"),
        (["train", "--head-type", "x"], 1, "model.head_type must be one of simple, acrnn, got 'x'"),
        (["train", "--loss", "mse"], 1, "loss.type must be one of cross_entropy, focal, got 'mse'"),
        (["train", "--pretrained", "maybe"], 1, "model.pretrained must be auto, true, false or a "
         "path that ends in .safetensors, got 'maybe'"),
        (["train", "--seed", "-1"], 1, "training.seed must be from 0 to 2147483647, got -1"),
        (["train", "--image-size", "3"], 1, "data.image_size must be from 16 to 1024, got 3"),
        (["train", "--batch-size", "1"], 1, "training.batch_size must be at least 2, got 1"),
        (["train", "--data-dir", "nowhere"], 1, "no folder nowhere; --data-dir takes HAM10000's "
         "folder, demo or auto"),
        (["train", "--config", "no.yaml"], 1, "cannot read the config file no.yaml: "
         "No such file or directory"),
        (["train", "--size", "small", "--set", "model.name=resnet18"], 1, "--size has no effect "
         "beside model.name resnet18; leave one of them out"),
        (["train", "--set", "seed"], 1, "--set takes KEY=VALUE, got 'seed'"),
        (["train", "--resume", "r", "--lr", "0.1"], 2, "a resumed run keeps its settings; leave "
         "out all but --resume and --data-dir (see `dermalyze train --help`)"),
        (["train", "--no-such"], 2, "No such option '--no-such'. (see `dermalyze train --help`)"),
        (["trane"], 2, "No such command 'trane'. Did you mean 'train'? (see `dermalyze --help`)"),
        (["evaluate", "--run-id", "r", "--images", "d"], 2, "--images and --labels go together "
         "(see `dermalyze evaluate --help`)"),
        (["predict", "--model", "no.onnx", "a.jpg"], 1, "no model at no.onnx; create one with "
         "`dermalyze export-onnx`"),
        (["benchmark", "--num-batches", "0"], 2, "Invalid value for '--num-batches': 0 is not in "
         "the range x>=1. (see `dermalyze benchmark --help`)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_and_exit_status_1_or_2(call, words, code, message):
    assert call(*words) == (code, f"Error: {message}\n")


def test_a_run_that_does_not_exist_is_one_line(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for command in (["evaluate"], ["export-onnx"], ["check-fit"], ["plot-training"]):
        code, output = call(*command, "--run-id", "none")
        assert code == 1
        assert output.splitlines()[-1] == (
            f"Error: no run 'none' in sqlite:///{tmp_path}/mlflow.db; see `mlflow ui` for its "
            "run ids"
        )


def test_the_command_line_starts_without_torch_mlflow_or_pandas():
    code = (
        "import sys; import dermalyze.cli; "
        "print([m for m in ('torch', 'mlflow', 'pandas', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_command_has_help_and_says_what_it_is_for(call):
    for name, command in main.commands.items():
        code, output = call(name, "--help")
        assert code == 0
        assert command.help.splitlines()[0].split("  ")[0][:40] in output
    code, output = call("--help")
    assert code == 0
    assert "never a diagnosis" in output
