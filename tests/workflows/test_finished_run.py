"""A run that is over is read once; its files are fetched when they are first used."""

import json
import logging

import pytest
from mlflow.tracking._tracking_service.client import TrackingServiceClient

from dermalyze.config.loading import to_yaml
from dermalyze.config.schema import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TrainingConfig,
)
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.tracking import open_run
from dermalyze.tracking.run_folder import RunFolder
from dermalyze.workflows.evaluate import evaluate_run
from dermalyze.workflows.finished_run import FinishedRun, open_finished
from dermalyze.workflows.train import train
from serving.errors import ArtifactError, TrackingError

CONFIG = Config(
    data=DataConfig(image_size=32, val_size=0.25),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=1, batch_size=16, fast_mode=False, device="cpu"),
    evaluation=EvaluationConfig(replicates=100),
)
HISTORY = [
    {"epoch": 1, "val/loss": 0.5},
    {"epoch": 2, "val/loss": 0.3},
    {"epoch": 3, "val/loss": 0.3},
]


@pytest.fixture
def asked(monkeypatch):
    """The ids of the runs that the tracking store is asked for."""
    ids, real = [], TrackingServiceClient.get_run
    monkeypatch.setattr(
        TrackingServiceClient, "get_run", lambda self, id: ids.append(id) or real(self, id)
    )
    return ids


def logged(folder, **texts):
    """A finished run that keeps some files."""
    folder.mkdir(exist_ok=True)
    with open_run(CONFIG.tracking, tags={"dermalyze.warnings": "one; of two parts\ntwo"}) as run:
        run.log_params({"resolved.backbone": "test_efficientnet"})
        for name, text in texts.items():
            path = folder / name.replace("__", ".")
            path.write_text(text)
            run.log_file(path)
    return run


def test_a_run_is_asked_for_once_whatever_is_read_of_it(store, asked):
    files = {"config__yaml": to_yaml(CONFIG), "training_history__json": json.dumps(HISTORY)}
    run = logged(store / "whole", **files)
    asked.clear()
    with open_finished(run.run_id) as found:
        assert found.settings == CONFIG
        assert found.history == HISTORY
        assert found.best_epoch == 2  # the first of equals
        assert found.facts == {"run id": run.run_id, "backbone": "test_efficientnet"}
        assert found.warnings == ("one; of two parts", "two")
        assert (found.audit, found.split_tables) == (None, {})
    assert asked == [run.run_id]


def test_a_run_under_way_is_read_from_its_folder_and_the_store_is_not_asked(store, asked):
    with open_run(CONFIG.tracking) as run:
        asked.clear()
        (run.folder / "training_history.json").write_text(json.dumps(HISTORY))
        found = FinishedRun(RunFolder.of(run))
        assert found.history == HISTORY
        assert found.settings is None
        assert asked == []


def test_a_run_without_an_epoch_and_a_damaged_history_are_one_sentence_each(store):
    empty = logged(store / "empty", training_history__json="[]")
    damaged = logged(store / "damaged", training_history__json="[{}")
    with open_finished(empty.run_id) as found, pytest.raises(TrackingError) as caught:
        found.require_history()
    assert str(caught.value) == f"run {empty.run_id} has no finished epoch yet"
    with open_finished(damaged.run_id) as found, pytest.raises(ArtifactError) as caught:
        found.require_history()
    assert str(caught.value) == (
        "training_history.json of the run is damaged: expected what the training wrote; restore "
        "it from a copy or train again"
    )


@pytest.mark.slow
def test_evaluate_asks_the_store_for_the_run_once(store, tmp_path, asked, caplog):
    with caplog.at_level(logging.INFO, "dermalyze"):
        run_id = train(CONFIG, make_demo_data(tmp_path / "demo", num_images=70)).run_id
    assert any(line.startswith("epoch 1/1  train loss ") for line in caplog.messages)
    asked.clear()
    evaluate_run(run_id, "test", output=tmp_path / "evaluation")
    assert asked == [run_id]
    assert (tmp_path / "evaluation" / "model_card.md").is_file()
