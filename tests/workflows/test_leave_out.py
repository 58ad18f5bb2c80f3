"""One source is left out: refused early where it cannot be, tested on and never learned from."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from sklearn.metrics import recall_score

from dermalyze.config.schema import Config, DataConfig, ModelConfig, TrackingConfig, TrainingConfig
from dermalyze.data.demo.dataset import METADATA, make_demo_data
from dermalyze.data.sampling import batches_of
from dermalyze.tracking import tags_of
from dermalyze.workflows.cross_validate import train_folds
from dermalyze.workflows.run_fingerprint import BEGAN_TAG, Began, began_with
from dermalyze.workflows.train import train
from serving.errors import ConfigError, DataError, TrainingError

CONFIG = Config(
    data=DataConfig(image_size=32, val_size=0.3, leave_out="dataset=B"),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=1, batch_size=16, lr=3e-3, device="cpu"),
    tracking=TrackingConfig(experiment="left out"),
)


def leaving_out(source):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, leave_out=source))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Drawn data where every other lesion of a class is of clinic B, and one is of both."""
    folder = make_demo_data(tmp_path_factory.mktemp("data") / "demo", num_images=140)
    rows = pd.read_csv(folder / METADATA)
    number = rows.drop_duplicates("lesion_id").groupby("dx").cumcount()
    clinic = {rows["lesion_id"][row]: "AB"[n % 2] for row, n in number.items()}
    rows["dataset"] = rows["lesion_id"].map(clinic)
    twice = rows["lesion_id"][rows["dx"] == "nv"].value_counts().index[0]
    rows.loc[rows.index[rows["lesion_id"] == twice], "dataset"] = "A"
    rows.loc[rows.index[rows["lesion_id"] == twice][0], "dataset"] = "B"
    rows.to_csv(folder / METADATA, index=False)
    return folder, rows, twice


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("datset=B", "data.leave_out datset=B: the data has no column datset; expected one of "),
        ("dataset=C", "data.leave_out dataset=C: no image has this dataset; there are A, B"),
        ("label=mel", "data.leave_out label=mel leaves no image of class mel for training; "),
    ],
)
def test_what_cannot_be_left_out_is_refused_before_an_image_is_decoded(table, source, message):
    folder, _, _ = table
    with pytest.raises(DataError) as caught:
        train(leaving_out(source), folder)
    assert str(caught.value).startswith(message)
    assert not (folder / "prepared").exists()


def evening(column):
    return dataclasses.replace(
        CONFIG, training=dataclasses.replace(CONFIG.training, even_sources=column)
    )


def test_a_column_of_sources_that_is_not_there_is_refused_before_an_image_is_decoded(table):
    folder, _, _ = table
    with pytest.raises(DataError, match=r"^training.even_sources datset: the data has no column "):
        train(evening("datset"), folder)
    assert not (folder / "prepared").exists()


@pytest.mark.slow
def test_each_class_is_learned_from_its_sources_evenly(store, table, tmp_path, monkeypatch):
    folder, rows, _ = table
    config = dataclasses.replace(
        evening("dataset"),
        data=DataConfig(image_size=32, val_size=0.3),
        tracking=TrackingConfig(experiment="evened", register=False),
    )
    drawn = []

    def spied(order, *arguments):
        drawn.append(order)
        return batches_of(order, *arguments)

    monkeypatch.setattr("dermalyze.training.loop.batches_of", spied)
    result = train(config, folder)
    artifacts = MlflowClient().get_run(result.run_id).info.artifact_uri.removeprefix("file://")
    card = Path(artifacts, "evaluation", "model_card.md").read_text()
    assert "were drawn from each `dataset` about equally often" in card
    learned = pd.read_csv(Path(artifacts, "train_split.csv")).merge(rows, on="image_id")
    (order,) = drawn
    assert len(order) == len(learned)
    assert len(set(order)) < len(learned)  # with replacement


def test_a_source_is_left_out_without_splits_and_without_folds():
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(CONFIG.data, splits="folder")
    assert str(caught.value) == (
        "data.splits must be auto with data.leave_out, which makes the splits, got 'folder'"
    )
    with pytest.raises(ConfigError) as caught:
        train_folds(CONFIG, Path("nowhere"), 3)
    assert str(caught.value) == "data.leave_out must be none to train folds, got 'dataset=B'"


def test_a_run_keeps_its_source_and_one_of_an_older_version_has_none():
    began = Began(config=CONFIG, data_dir=Path("data"), demo_data=False)
    with pytest.raises(TrainingError) as caught:
        began_with(began.tags()).require_same_config(leaving_out("dataset=A"), "config.yaml")
    assert str(caught.value) == (
        "config.yaml has data.leave_out 'dataset=A', and the run began with 'dataset=B'; undo "
        "that, or train a new run"
    )
    values = json.loads(
        Began(config=Config(), data_dir=Path("d"), demo_data=False).tags()[BEGAN_TAG]
    )
    del values["config"]["data"]["leave_out"]
    began_with({BEGAN_TAG: json.dumps(values)}).require_same_config(Config(), "config.yaml")


@pytest.mark.slow
def test_a_source_is_tested_on_and_never_learned_from(store, table):
    folder, rows, twice = table
    usual = train(leaving_out("none"), folder)
    result = train(CONFIG, folder)
    run = MlflowClient().get_run(result.run_id)
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    read = {
        name: pd.read_csv(artifacts / f"{name}_split.csv").merge(rows, on=["image_id", "lesion_id"])
        for name in ("train", "val", "test")
    }
    assert set(read["test"]["image_id"]) == set(rows["image_id"][rows["dataset"] == "B"])
    learned = pd.concat([read["train"], read["val"]])
    assert set(learned["image_id"]) == set(
        rows["image_id"][(rows["dataset"] == "A") & (rows["lesion_id"] != twice)]
    )
    found = pd.read_csv(artifacts / "evaluation" / "predictions.csv")
    lesions = found.groupby("label")["lesion_id"].nunique()
    classes = sorted(lesions.index[lesions >= 15])
    assert classes == ["nv"]
    recall = recall_score(found["label"], found["predicted"], labels=classes, average="macro")
    assert run.data.metrics["test/balanced_accuracy_elsewhere"] == pytest.approx(recall)
    unused = len(rows) - len(found) - len(learned)
    assert unused == (rows["lesion_id"] == twice).sum() - 1 > 0
    assert run.data.params["resolved.left_out"].startswith(f"dataset=B: {len(found)} images; ")
    for name in ("report.html", "model_card.md"):
        text = (artifacts / "evaluation" / name).read_text()
        assert "All test images are from the left-out source dataset=B, and nothing was" in text
        assert "over 1 of 7 classes" in text
    tags = tags_of(result.run_id)
    assert tags["dermalyze.left_out"] == "dataset=B"
    assert not result.registered.is_champion
    assert result.registered.reason == (
        f"not compared: version {usual.registered.version} was evaluated on another test split"
    )
    assert "dermalyze.left_out" not in tags_of(usual.run_id)
    assert "test/balanced_accuracy_elsewhere" not in usual.metrics
