"""The command line: one line for every wrong value, and nothing heavy before it is needed."""

import ast
import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image
from strangers import header_of_a_large_png
from tiny_model import TINY_ONNX, logits_by_hand

from dermalyze.cli.main import main
from dermalyze.cli.train import _config
from serving.session import PROVIDERS

INSTALLED = ", ".join(
    name for name, theirs in PROVIDERS.items() if theirs in onnxruntime.get_available_providers()
)
CONFIG = Path(__file__).parents[2] / "configs" / "default.yaml"


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*words):
        result = CliRunner().invoke(main, [str(word) for word in words], prog_name="dermalyze")
        return result.exit_code, result.output

    return invoke


LONG = "n" * 300  # more than a file system takes


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
        (["train", "--pretrained", "maybe"], 1, "model.pretrained must be auto, true, false, "
         "reference, run:ID or a path that ends in .pt or .safetensors, got 'maybe'"),
        (["train", "--seed", "-1"], 1, "training.seed must be from 0 to 2147483647, got -1"),
        (["train", "--image-size", "3"], 1, "data.image_size must be from 16 to 1024, got 3"),
        (["train", "--batch-size", "1"], 1, "training.batch_size must be at least 2, got 1"),
        (["train", "--data-dir", "nowhere"], 1, "no folder nowhere; --data-dir takes a folder "
         "of images, demo or auto"),
        (["train", "--data-dir", LONG], 1, f"cannot read {LONG}: file name too long; name one "
         "that can be read"),
        (["train", "--plugin", f"{LONG}.py"], 1, f"cannot read {LONG}.py: file name too long; name "
         "one that can be read"),
        (["serve", "--model", LONG], 1, f"cannot read {LONG}: file name too long; name one "
         "that can be read"),
        (["predict", LONG, "--model", "m"], 2, f"Invalid value for 'IMAGES...': {LONG} cannot be "
         "looked up: file name too long (see `dermalyze predict --help`)"),
        (["demo-data", f"{__file__}/new"], 1, f"cannot write {__file__}: file exists; a file is "
         "where a folder is needed; name another place"),
        (["train", "--config", "no.yaml"], 1, "cannot read the config file no.yaml: "
         "No such file or directory"),
        (["train", "--size", "small", "--set", "model.name=resnet18"], 1, "--size has no effect "
         "with model.name resnet18; leave one of them out"),
        (["train", "--set", "seed"], 1, "--set takes KEY=VALUE, got 'seed'"),
        (["train", "--resume", "r", "--lr", "0.1"], 2, "a resumed run keeps its settings; with "
         "--resume pass only --data-dir, --device, --prepared, --pretrained and --plugin (see "
         "`dermalyze train --help`)"),
        (["train", "--no-such"], 2, "No such option '--no-such'. (see `dermalyze train --help`)"),
        (["trian"], 2, "No such command 'trian'. Did you mean 'train'? (see `dermalyze --help`)"),
        (["evaluate", "--run-id", "r", "--images", "d"], 2, "--images and --labels go together "
         "(see `dermalyze evaluate --help`)"),
        (["evaluate", "--external", "o=d"], 2, "give either --run-id or --model (see `dermalyze "
         "evaluate --help`)"),
        (["evaluate", "--model", "m"], 2, "--model, --map and --prevalence go with --external (see "
         "`dermalyze evaluate --help`)"),
        (["export-onnx", "--run-id", "r", "--precision", "int4"], 2, "Invalid value for "
         "'--precision': 'int4' is not one of 'float32', 'float16', 'int8'. (see `dermalyze "
         "export-onnx --help`)"),
        (["predict", "--model", "m", "--one-lesion", "--explain", "d", "a"], 2, "--explain shows "
         "one image at a time; leave out --one-lesion (see `dermalyze predict --help`)"),
        (["predict", "--model", "m", "--metadata", "no.csv", __file__], 1, "cannot read no.csv: no "
         "such file or directory; expected a CSV with image_id and any of age, sex, localization"),
        (["predict", "--model", "no.onnx", __file__], 1, "no model at no.onnx; create one with "
         "`dermalyze export-onnx`"),
        (["predict", "--model", "no.onnx", "a.jpg"], 1, "no image at a.jpg; expected a file or a "
         "folder"),
        (["predict", "--model", TINY_ONNX, "--provider", "abacus", __file__], 1, "the provider "
         f"'abacus' is not installed, expected one of {INSTALLED}; others come with other builds "
         "of onnxruntime"),
        (["predict", "--model", TINY_ONNX, "--threads", "-1", __file__], 2, "Invalid value for "
         "'--threads': -1 is not in the range x>=0. (see `dermalyze predict --help`)"),
        (["serve", "--model", "no.onnx"], 1, "no model at no.onnx; create one with `dermalyze "
         "export-onnx`"),
        (["serve", "--model", TINY_ONNX, "--max-images", "0"], 1, "DERMALYZE_MAX_IMAGES must be "
         "from 1 to 1,000, got 0"),
        (["serve", "--model", "models:/x/1", "--watch"], 1, "--watch needs a file or "
         "models:/NAME@ALIAS, got 'models:/x/1'"),
        (["export-web", "--run-id", "r", "--model", "m", "--output", "page"], 2, "give either "
         "--run-id or --model (see `dermalyze export-web --help`)"),
        (["export-web", "--model", "no.onnx", "--output", "page"], 1, "no model at no.onnx; create "
         "one with `dermalyze export-onnx`"),
        (["benchmark", "--num-batches", "0"], 2, "Invalid value for '--num-batches': 0 is not in "
         "the range x>=1. (see `dermalyze benchmark --help`)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_and_exit_status_1_or_2(call, words, code, message):
    assert call(*words) == (code, f"Error: {message}\n")


def test_a_run_that_does_not_exist_is_one_line(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    int8 = ["export-onnx", "--precision", "int8"]
    for command in (["evaluate"], ["export-onnx"], int8, ["check-fit"], ["plot-training"]):
        code, output = call(*command, "--run-id", "none")
        assert code == 1
        assert output.splitlines()[-1] == (
            f"Error: no run 'none' in sqlite:///{tmp_path}/mlflow.db; see `mlflow ui` for its "
            "run ids"
        )


WITHOUT = """
import json, sys
banned = ("torch", "torchvision", "timm", "mlflow", "pandas", "sklearn", "scipy", "matplotlib")
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in banned:
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, Ban())
from dermalyze.cli.train import _config
from dermalyze.cli.main import main
for words in json.loads(sys.argv[1]):
    try:
        main(words, prog_name="dermalyze")
    except SystemExit as stop:
        print("exit", stop.code)
"""


def exits_without_the_training_half(*calls):
    words = [sys.executable, "-c", WITHOUT, json.dumps(calls)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("exit ")]


def test_help_and_wrong_options_of_every_command_need_neither_torch_nor_mlflow():
    commands = list(main.commands)
    calls = [["--help"], ["--version"], *([name, "--help"] for name in commands)]
    assert exits_without_the_training_half(*calls) == ["exit 0"] * len(calls)
    calls = [["no-such"], *([name, "--no-such"] for name in commands)]
    assert exits_without_the_training_half(*calls) == ["exit 2"] * len(calls)


def test_wrong_settings_and_missing_files_are_found_before_torch_and_mlflow_are_loaded(tmp_path):
    calls = [
        ["train", "--config", str(tmp_path / "none.yaml")],
        ["train", "--epochs", "0", "--config", str(CONFIG)],
        ["train", "--data-dir", str(tmp_path / "none")],
        ["benchmark", "--config", str(CONFIG), "--set", "seed"],
        ["prepare-data", "--data-dir", str(tmp_path / "none")],
        ["predict", "--model", str(TINY_ONNX), str(tmp_path / "none.jpg")],
        ["predict", "--model", str(tmp_path / "none.onnx"), __file__],
    ]
    assert exits_without_the_training_half(*calls) == ["exit 1"] * len(calls)


def test_predict_never_loads_torch_or_mlflow(tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (20, 10), (200, 150, 140)).save(image)
    call = ["predict", "--model", str(TINY_ONNX)]
    calls = [[*call, "--format", kind, str(image)] for kind in ("table", "csv", "json")]
    assert exits_without_the_training_half(*calls) == ["exit 0"] * 3


def test_the_ban_of_torch_works():
    with pytest.raises(AssertionError, match="is imported"):
        exits_without_the_training_half(["check-fit", "--run-id", "none"])


def test_the_command_line_starts_without_onnxruntime_numpy_and_pillow():
    code = "import sys; import dermalyze.cli.main; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert "dermalyze.cli.serve" in loaded
    assert not {"onnxruntime", "numpy", "PIL", "fastapi", "uvicorn"} & loaded


PREDICT = [sys.executable, "-m", "dermalyze", "predict", "--model", str(TINY_ONNX)]


@pytest.fixture
def many_images(tmp_path):
    """A folder of one picture, slow to decode, under 300 names."""
    folder = tmp_path / "many"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "000.jpg")
    for i in range(1, 300):
        os.link(folder / "000.jpg", folder / f"{i:03d}.jpg")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_ctrl_c_ends_predict_with_130_and_a_word(many_images, kind):
    running = subprocess.Popen(
        [*PREDICT, "--format", kind, many_images],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = [running.stdout.readline() for _ in range(2)]
    running.send_signal(signal.SIGINT)
    rest, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.splitlines()[-1] == "Error: stopped"
    assert "Traceback" not in errors
    lines = first + rest.splitlines()
    assert 2 <= len(lines) < 300
    assert str(many_images) in lines[1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_lines_are_written_while_the_last_image_is_not_there_yet(tmp_path, kind):
    for i in range(9):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{i}.png")
    last = tmp_path / "z.png"
    os.mkfifo(last)  # whoever reads it waits until somebody writes
    command = [*PREDICT, "--format", kind, tmp_path]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rescue = threading.Timer(60, running.kill)
    rescue.start()
    lines = [running.stdout.readline() for _ in range(8)]
    rescue.cancel()
    assert all(lines)  # or it was killed
    last.write_bytes(b"junk")
    rest, errors = running.communicate(timeout=60)
    assert "z.png" in rest
    assert errors == "Error: 1 of 10 images could not be read\n"


def test_a_broken_image_is_told_at_the_end_with_exit_status_1(call, tmp_path):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"junk")
    code, output = call("predict", "--model", TINY_ONNX, "--format", "csv", tmp_path)
    assert code == 1
    *lines, last = output.splitlines()
    assert last == "Error: 1 of 3 images could not be read"
    assert [bool(row["error"]) for row in csv.DictReader(lines)] == [False, True, False]


def test_an_image_over_the_limit_is_refused_with_the_option_that_raises_it(call, tmp_path):
    photograph = tmp_path / "48-megapixels.png"
    photograph.write_bytes(header_of_a_large_png(8000, 6000))
    small = tmp_path / "small.png"
    Image.new("RGB", (20, 10)).save(small)
    words = ("predict", "--model", TINY_ONNX, "--format", "csv")
    code, output = call(*words, photograph)
    assert code == 1
    (row,) = csv.DictReader(output.splitlines()[:-1])
    assert row["error"] == (
        "the image is 8000 x 6000; the limit is 40,000,000 pixels; --max-pixels raises it"
    )
    code, output = call(*words, "--max-pixels", 48_000_000, photograph)  # a header alone
    assert "it is damaged or cut short" in output
    code, output = call(*words, "--max-pixels", 199, "--one-lesion", small)
    assert (code, output.splitlines()[-1]) == (
        1,
        "Error: image 1 of 1: the image is 20 x 10; the limit is 199 pixels; "
        "--max-pixels raises it",
    )
    assert call(*words, "--max-pixels", 200, small)[0] == 0
    code, output = call(*words, "--max-pixels", 178_956_971, small)
    assert code == 2
    assert "178956971 is not in the range 1<=x<=178956970" in output


@pytest.mark.slow
def test_a_photograph_of_48_megapixels_gets_the_answer_of_all_its_pixels(call, tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image = Image.fromarray(small).resize((8000, 6000), Image.Resampling.NEAREST)
    path = tmp_path / "photograph.jpg"
    image.save(path, quality=90)
    words = ("predict", "--model", TINY_ONNX, "--format", "json", "--max-pixels", 48_000_000)
    code, output = call(*words, path)
    assert code == 0
    (line,) = output.splitlines()
    whole = Image.open(path).resize((8, 6), Image.Resampling.BILINEAR)
    logits = logits_by_hand(np.asarray(whole)[None])[0]
    assert list(json.loads(line)["logits"].values()) == pytest.approx(logits, abs=1e-4)


def on_a_terminal(folder, *words):
    """What `predict` writes to a terminal on stderr, stdout being a pipe."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [*PREDICT, *words, folder]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 1000):
            text += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert running.wait(timeout=60) == 0
    return text.decode()


def test_a_terminal_sees_a_bar_for_several_images_and_a_file_sees_none(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    assert "100%" in on_a_terminal(tmp_path, "--format", "json")
    assert on_a_terminal(tmp_path / "a.png") == ""
    done = subprocess.run([*PREDICT, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_every_command_has_help_and_says_what_it_is_for(call):
    for name, command in main.commands.items():
        code, output = call(name, "--help")
        assert code == 0
        assert command.help.splitlines()[0].split("  ")[0][:40] in output
    code, output = call("--help")
    assert code == 0
    assert "never a diagnosis" in output


def test_a_network_that_the_config_names_is_taken_and_said_where_a_size_is_given(caplog):
    with caplog.at_level("INFO"):
        config = _config("auto", True, (), {"size": "small"})
    assert config.model.timm_name == "tf_efficientnet_lite0"
    assert caplog.messages == [
        f"model: tf_efficientnet_lite0, named in {CONFIG.with_name('demo.yaml')}; "
        "--size has no effect"
    ]
