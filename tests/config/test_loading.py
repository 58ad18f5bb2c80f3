import dataclasses
import json
from pathlib import Path

import pytest

from dermalyze.config.loading import RENAMED, config_from, load_config, to_yaml
from dermalyze.config.schema import Config, flatten
from dermalyze.workflows.run_fingerprint import BEGAN_TAG, Began, began_with
from serving.errors import ConfigError, TrainingError


def test_a_config_written_as_yaml_reads_back_equal(tmp_path):
    config = config_from(
        {}, ["training.lr=0.00001", "model.plugins=[a.py, b]", "model.pretrained=false"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_every_name_of_the_original_project_is_a_setting():
    sections = {
        "model": "name size pretrained head_type dropout_rate freeze_backbone",
        "training": "batch_size epochs lr weight_decay num_workers use_amp use_torch_compile "
        "fast_mode use_weighted_sampling early_stopping_patience seed",
        "training.scheduler": "type T_0 eta_min warmup_pct",
        "loss": "type label_smoothing",
        "data": "val_size test_size lesion_aware",
    }
    names = [f"{section}.{key}" for section, keys in sections.items() for key in keys.split()]
    assert set(names) <= {*flatten(Config()), *RENAMED}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=0", "training.epochs must be at least 1, got 0"),
        ("training.epochs=2.5", "training.epochs must be a whole number, got 2.5"),
        ("training.epochs=true", "training.epochs must be a whole number, got True"),
        (
            "training.lr=1e-3",
            "training.lr must be a number, got '1e-3' (YAML reads 1e-3 as text; write 1.0e-3)",
        ),
        ("training.lr=.nan", "training.lr must be a number, got nan"),
        ("training.lr=-1", "training.lr must be greater than 0, got -1"),
        ("training.lrr=1", "unknown setting training.lrr; did you mean training.lr?"),
        ("epochs=1", "unknown setting epochs; did you mean training.epochs?"),
        ("zzz=1", "unknown setting zzz"),
        ("training=1", "training must be a section of settings, got 1"),
        ("training.lr.x=1", "training.lr must be a number, got {'x': 1}"),
        ("seed", "--set takes KEY=VALUE, got 'seed'"),
        ("training.lr=[", "training.lr has a value that is not YAML: '['"),
        ("model.size=huge", "model.size must be one of small, medium, large, got 'huge'"),
        ("model.plugins=3", "model.plugins must be a list of strings, got 3"),
        (
            "model.pretrained=yess",
            "model.pretrained must be auto, true, false, reference, run:ID or a path that ends "
            "in .pt or .safetensors, got 'yess'",
        ),
        (
            "training.persistent_workers=true",
            "training.persistent_workers has no meaning here: nothing is decoded during training, "
            "so no worker persists; leave it out",
        ),
        ("data.val_size=0.9", "data.val_size must be greater than 0 and less than 0.8, got 0.9"),
        (
            "training.ema_decay=1",
            "training.ema_decay must be at least 0 and less than 1, got 1",
        ),
        (
            "augmentation.affine_scale_min=2",
            "augmentation.affine_scale_min must be at most augmentation.affine_scale_max (1.1), "
            "got 2.0",
        ),
        (
            "training.head_warmup_epochs=40",
            "training.head_warmup_epochs must be less than training.epochs (40), got 40",
        ),
        (
            "loss.logit_adjustment=1",
            "loss.class_weights must be none with loss.logit_adjustment, which corrects the "
            "imbalance too, got 'balanced'",
        ),
        ("data.leave_out=dataset", "data.leave_out must be none or COLUMN=VALUE, got 'dataset'"),
        ("data.leave_out=dataset=", "data.leave_out must be none or COLUMN=VALUE, got 'dataset='"),
        ("loss.type=mse", "loss.type must be one of cross_entropy, focal, got 'mse'"),
        (
            "training.monitor=train/loss",
            "training.monitor must be a validation metric such as val/loss or val/macro_auc, "
            "got 'train/loss'",
        ),
    ],
)
def test_a_wrong_setting_is_explained_in_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        config_from({}, [override])
    assert str(caught.value) == message


def test_sampling_by_class_is_refused_with_logit_adjustment():
    overrides = ["loss.class_weights=none", "loss.logit_adjustment=1"]
    assert config_from({}, overrides).loss.logit_adjustment == 1
    with pytest.raises(ConfigError) as caught:
        config_from({}, [*overrides, "training.use_weighted_sampling=true"])
    assert str(caught.value) == (
        "training.use_weighted_sampling must be false with loss.logit_adjustment, which corrects "
        "the imbalance too, got True"
    )


def test_a_compiled_network_is_refused_with_mixed_styles():
    with pytest.raises(ConfigError) as caught:
        config_from({}, ["training.mixstyle=0.5", "training.use_torch_compile=true"])
    assert str(caught.value) == (
        "training.use_torch_compile must be false with training.mixstyle, which a compiled network "
        "leaves out, got True"
    )


def test_the_last_override_wins_and_an_integer_serves_as_a_number():
    config = config_from({"training": {"lr": 0.5}}, ["training.lr=2", "training.lr=1"])
    assert config.training.lr == 1.0
    assert isinstance(config.training.lr, float)


def test_a_settings_object_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.lr = 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"training: [1", "the config file config.yaml is not YAML at line 1"),
        (b"- 1", "a config must be a mapping of sections, got [1]"),
        (b"\xff\xfe\x00", "the config file config.yaml is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_config_is_explained(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path.joinpath("config.yaml").relative_to(tmp_path))
    assert str(caught.value) == message


def test_a_missing_file_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path.joinpath("no.yaml").relative_to(tmp_path))
    assert str(caught.value) == ("cannot read the config file no.yaml: No such file or directory")


@pytest.mark.parametrize(
    ("metric", "mode", "higher"),
    [
        ("val/loss", "auto", False),
        ("val/macro_auc", "auto", True),
        ("val/ece", "auto", False),
        ("val/loss", "max", True),
        ("val/macro_f1", "min", False),
    ],
)
def test_the_monitored_metric_knows_its_direction(metric, mode, higher):
    config = config_from({}, [f"training.monitor={metric}", f"training.monitor_mode={mode}"])
    assert config.training.higher_is_better is higher


@pytest.mark.parametrize("content", [{"data": {"group_by": "patient"}}, {}])
def test_lesion_aware_false_reads_as_group_by_none_with_a_line(caplog, content):
    config = config_from(content, ["data.lesion_aware=false"])  # the last one wins
    assert config.data.group_by == "none"
    assert caplog.messages == ["data.lesion_aware false is deprecated; write data.group_by none"]


def test_lesion_aware_in_a_file_reads_as_group_by_and_beside_it_is_refused(caplog):
    assert config_from({"data": {"lesion_aware": False}}).data.group_by == "none"
    caplog.clear()
    assert config_from({"data": {"lesion_aware": True}}).data.group_by == "lesion"
    assert caplog.messages == []  # as each run of an older version has it
    with pytest.raises(ConfigError) as caught:
        config_from({"data": {"lesion_aware": True, "group_by": "none"}})
    assert str(caught.value) == "data.lesion_aware is an older form of data.group_by; leave it out"
    with pytest.raises(ConfigError) as caught:
        config_from({}, ["data.lesion_aware=no way"])
    assert str(caught.value) == "data.lesion_aware must be true or false, got 'no way'"


def test_a_run_that_began_with_lesion_aware_is_compared_by_group_by():
    values = json.loads(Began(config=Config(), data_dir=Path(), demo_data=False).tags()[BEGAN_TAG])
    for name in ("group_by", "image_column", "label_column", "group_column"):
        del values["config"]["data"][name]
    values["config"]["data"]["lesion_aware"] = True
    began = began_with({BEGAN_TAG: json.dumps(values)})
    assert began is not None
    began.require_same_config(Config(), "config.yaml")
    with pytest.raises(TrainingError) as caught:
        began.require_same_config(config_from({"data": {"group_by": "none"}}), "config.yaml")
    assert str(caught.value) == (
        "config.yaml has data.group_by 'none', and the run began with 'lesion'; undo that, or "
        "train a new run"
    )
