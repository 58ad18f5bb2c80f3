"""Code is run because the user names it, never because a file does."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from dermalyze import SkinLesionPredictor
from dermalyze.cli.main import main
from dermalyze.cli.train import _config
from dermalyze.config.loading import to_yaml
from dermalyze.config.schema import Config, DataConfig, ModelConfig
from dermalyze.models.checkpoint import save_checkpoint
from dermalyze.models.classifier import build_classifier
from serving.errors import ArtifactError
from serving.ham10000_taxonomy import HAM10000
from serving.spec import ModelSpec

ROOT = Path(__file__).parents[2]
SPEC = ModelSpec(taxonomy=HAM10000, input_size=(32, 32))


def refusal(plugin):
    return (
        f"the model needs the plug-in '{plugin}', and a stored file never loads code; "
        "if you trust it, name the module or .py file yourself: --plugin FILE_OR_MODULE"
    )


def leaving(trace):
    return f"import pathlib\npathlib.Path({str(trace)!r}).write_text('was here')\n"


@pytest.fixture
def plugin(tmp_path):
    """A plug-in that leaves a trace where it is imported; its name is never used twice."""
    name = f"net_{abs(hash(tmp_path)) % 10**8}"
    path = tmp_path / f"{name}.py"
    path.write_text(leaving(tmp_path / "trace"))
    yield path
    sys.modules.pop(f"dermalyze_plugin_{name}", None)


def asking_for(plugin):
    return ModelConfig(name="test_efficientnet", pretrained=False, plugins=(str(plugin),))


def save(path, plugin):
    plain = replace(asking_for(plugin), plugins=())
    network, _ = build_classifier(plain, 32, 7)
    save_checkpoint(
        path, network.state_dict(), asking_for(plugin), SPEC, {"training": {"epoch": 1, "step": 0}}
    )


def test_a_checkpoint_imports_no_plugin_that_the_caller_has_not_named(tmp_path, plugin):
    path = tmp_path / "checkpoint.pt"
    save(path, plugin)
    with pytest.raises(ArtifactError) as caught:
        SkinLesionPredictor(path)
    assert str(caught.value) == f"the network of {path} cannot be built: {refusal(plugin)}"
    assert not (tmp_path / "trace").exists()


def test_a_plugin_of_that_name_from_another_folder_serves_the_checkpoint(tmp_path, plugin):
    path = tmp_path / "checkpoint.pt"
    save(path, f"/where/it/was/{plugin.name}")
    assert SkinLesionPredictor(path, plugins=[str(plugin)]).spec.input_size == (32, 32)
    assert (tmp_path / "trace").exists()


def test_a_checkpoint_with_a_name_that_timm_would_fetch_is_refused(tmp_path):
    for name in ("hf-hub:evil/net", "hf_hub:evil/net", "local-dir:/evil"):
        path = tmp_path / "checkpoint.pt"
        config = ModelConfig(name=name, pretrained=False)
        save_checkpoint(path, {}, config, SPEC)
        with pytest.raises(ArtifactError, match=f"model.name '{name}' is not a timm model"):
            SkinLesionPredictor(path)


def test_the_option_names_a_missing_plugin_before_anything_else(tmp_path):
    result = CliRunner().invoke(
        main, ["train", "--plugin", "no.py", "--epochs", "0"], prog_name="dermalyze"
    )
    assert result.output == "Error: model.plugins names no.py, and there is no such file\n"


def test_a_plugin_named_for_a_new_run_becomes_its_setting():
    config = _config("auto", True, (), {"plugins": ["a.py", "b"], "epochs": 1})
    assert config.model.plugins == ("a.py", "b")
    assert _config("auto", True, (), {"plugins": []}).model.plugins == ()


@pytest.mark.slow
def test_a_plugin_named_on_the_command_line_may_be_the_first_to_import_timm(tmp_path):
    (tmp_path / "net.py").write_text("import timm\n")
    done = subprocess.run(
        [sys.executable, "-m", "dermalyze", "train", "--plugin", "net.py", "--epochs", "0"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == "Error: training.epochs must be at least 1, got 0\n"


@pytest.fixture(scope="module")
def hostile_run(store, tmp_path_factory):
    """A run whose config and checkpoints ask for a plug-in, and the trace that it would leave."""
    import mlflow

    folder = tmp_path_factory.mktemp("hostile")
    plugin = folder / "hostile_net.py"
    plugin.write_text(leaving(folder / "trace"))
    for name in ("checkpoint_best.pt", "checkpoint_latest.pt"):
        save(folder / name, plugin)
    config = Config(
        model=asking_for(plugin), data=DataConfig(image_size=32, resize_filter="bicubic")
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    for name in ("train", "val", "test"):
        (folder / f"{name}_split.csv").write_text("image_id,label\na,nv\n")
    (folder / "training_history.json").write_text("[]")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "predictions.csv").write_text("image_id\n")
    ids = {}
    for kind in ("ended", "stopped", "folds"):
        with mlflow.start_run() as run:
            mlflow.log_artifacts(str(folder))
            mlflow.log_param("data.dir", str(folder))
            if kind == "folds":
                mlflow.set_tag("dermalyze.folds", "2")
            ids[kind] = run.info.run_id
        if kind != "ended":
            mlflow.MlflowClient().set_terminated(run.info.run_id, "KILLED")
    return ids, folder, plugin


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["evaluate", "--run-id"], "ended"),
        (["export-onnx", "--run-id"], "ended"),
        (["export-web", "--output", "page", "--run-id"], "ended"),
        (["leakage", "--run-id"], "ended"),
        (["train", "--resume"], "stopped"),
        (["train", "--resume"], "folds"),
    ],
)
def test_a_run_imports_no_plugin_that_the_command_does_not_name(hostile_run, words, kind):
    ids, folder, plugin = hostile_run
    result = CliRunner().invoke(main, [*words, ids[kind]], prog_name="dermalyze")
    assert result.exit_code == 1
    assert result.output.endswith(f"{refusal(plugin)}\n")
    assert result.output.count("\n") == 1
    assert not (folder / "trace").exists()
