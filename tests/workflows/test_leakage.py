"""A run, and what it would have claimed if siblings of its test images had been learned from."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from sklearn.metrics import accuracy_score

from dermalyze.cli.streams import log_lines
from dermalyze.config.schema import Config, DataConfig, ModelConfig, TrackingConfig, TrainingConfig
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.data.readers.dataset import open_dataset
from dermalyze.data.splits import Splits, split_groups
from dermalyze.tracking import children_of, open_run
from dermalyze.workflows.leakage import LEAKAGE_TAG, leakage_of, with_siblings
from dermalyze.workflows.train import TrainingInterruptedError, train
from serving.errors import DataError

CONFIG = Config(
    data=DataConfig(image_size=32),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=2, batch_size=16, lr=3e-3, fast_mode=False, device="cpu"),
    tracking=TrackingConfig(experiment="leakage"),
)
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Drawn data in which one test image is a train image, saved again: folder and both ids."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    make_demo_data(folder, num_images=140, layout="folders")
    rows = open_dataset(folder).rows.sort_values("image_id", ignore_index=True)
    rows["group"] = rows["lesion_id"]
    splits = split_groups(rows, val_size=0.15, test_size=0.15, seed=CONFIG.training.seed)
    nevi = rows["label"] == "nv"
    of_train, of_test = (
        rows["image_id"][nevi & rows.index.isin(part)].iloc[0]
        for part in (splits.train, splits.test)
    )
    files = {path.stem: path for path in folder.glob("*/*.jpg")}
    Image.open(files[of_train]).save(files[of_test], quality=70)
    return folder, of_train, of_test


@pytest.fixture(scope="module")
def run_id(store, planted):
    """A run as it is."""
    return train(CONFIG, planted[0]).run_id


@pytest.fixture(scope="module")
def stopped(run_id):
    """The message of a first call that was stopped after an epoch."""

    def stop(line):
        if line.startswith("epoch 1/2"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterruptedError) as caught, log_lines(stop):
        leakage_of(run_id)
    return str(caught.value), children_of(run_id, LEAKAGE_TAG)


@pytest.fixture(scope="module")
def second(run_id, stopped):
    """What the second call returned and said."""
    said = []
    with log_lines(said.append):
        return leakage_of(run_id), said


def artifact(run_id, name):
    run = MlflowClient().get_run(run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / name


def images_of(run_id):
    """The image ids of each split."""
    tables = (pd.read_csv(artifact(run_id, f"{split}_split.csv")) for split in SPLITS)
    return [set(table["image_id"]) for table in tables]


def lesion_of(run_id):
    tables = [pd.read_csv(artifact(run_id, f"{split}_split.csv")) for split in SPLITS]
    return pd.concat(tables).set_index("image_id")["lesion_id"]


@pytest.mark.slow
def test_only_siblings_of_test_images_move_and_only_into_the_training_set(run_id, second):
    result, _ = second
    train_before, val_before, test_before = images_of(run_id)
    train_after, val_after, test_after = images_of(result.leaky_run_id)
    moved = train_after - train_before
    assert train_before < train_after
    assert val_after == val_before
    assert test_after | moved == test_before
    assert not test_after & moved
    lesions = lesion_of(run_id)
    assert len(set(lesions[sorted(test_after)])) == len(test_after)  # one image a lesion
    firsts = {
        lesion: min(ids)
        for lesion, ids in lesions[sorted(test_before)].groupby(lesions).groups.items()
    }
    assert test_after == set(firsts.values())
    assert (result.num_train, result.num_siblings) == (len(train_before), len(moved))


@pytest.mark.slow
def test_both_networks_are_judged_on_the_same_images(run_id, second):
    result, _ = second
    _, _, test_after = images_of(result.leaky_run_id)
    lesions = lesion_of(run_id)
    moved = images_of(result.leaky_run_id)[0] - images_of(run_id)[0]
    leaked = {i for i in test_after if lesions[i] in set(lesions[sorted(moved)])}
    for comparison, images in ((result.of_all, test_after), (result.of_leaked, leaked)):
        assert comparison.num_images == comparison.num_lesions == len(images)
        (versus,) = comparison.versus
        (found,) = [d for d in versus.differences if d.metric == "accuracy"]
        accuracy = []
        for each in (run_id, result.leaky_run_id):
            table = pd.read_csv(artifact(each, "evaluation/predictions.csv"))
            table = table[table["image_id"].isin(images)]
            accuracy.append(accuracy_score(table["label"], table["predicted"]))
        assert [found.estimate_a, found.estimate_b] == pytest.approx(accuracy)
        assert found.difference == pytest.approx(accuracy[1] - accuracy[0])


@pytest.mark.slow
def test_the_second_run_differs_in_its_training_set_alone(run_id, second):
    result, _ = second
    first, other = (MlflowClient().get_run(each).data for each in (run_id, result.leaky_run_id))
    differs = {name for name in first.params if first.params[name] != other.params[name]}
    assert differs == {"data.group_by", "tracking.register"}
    assert other.tags["dermalyze.leakage_of"] == other.tags["mlflow.parentRunId"] == run_id
    assert "metrics are too good" in other.tags["dermalyze.warnings"]
    (version,) = MlflowClient().search_model_versions("name='dermalyze'")
    assert version.run_id == run_id


@pytest.mark.slow
def test_stopped_it_goes_on_in_the_same_run_and_done_it_only_compares(run_id, stopped, second):
    message, below = stopped
    assert message == f"stopped; continue with `dermalyze leakage --run-id {run_id}`"
    ((leaky_run_id, is_finished),) = below.values()
    assert not is_finished
    result, said = second
    assert result.leaky_run_id == leaky_run_id
    assert [line.split("  ")[0] for line in said if line.startswith("epoch")] == ["epoch 2/2"]
    said = []
    with log_lines(said.append):
        assert leakage_of(run_id) == result
    assert said == [f"run {leaky_run_id}, with siblings, is already finished"]


@pytest.mark.slow
def test_a_photograph_planted_in_train_and_test_is_found_and_warned_of(planted, run_id, second):
    _, of_train, of_test = planted
    result, _ = second
    (shared,) = result.shared
    assert dict(zip(shared.image_ids, shared.splits, strict=True)) == {
        of_train: "train",
        of_test: "test",
    }
    tags = MlflowClient().get_run(run_id).data.tags
    assert shared.in_words() in tags["dermalyze.warnings"]


@pytest.mark.slow
def test_the_result_is_in_the_run_and_says_what_it_rests_on(run_id, second):
    result, _ = second
    logged = json.loads(artifact(run_id, "leakage.json").read_text())
    assert logged == json.loads(json.dumps(result.to_dict()))
    assert logged["of_leaked"]["versus"][0]["differences"][0]["metric"] == "balanced_accuracy"
    words = result.in_words()
    for part in (
        f"{result.num_siblings} siblings",
        f"{result.of_leaked.num_images} images of {result.of_leaked.num_lesions} lesions",
        "its training set is larger",
        "balanced accuracy",
        "under different names: 1",
        result.shared[0].in_words(),
    ):
        assert part in words


@pytest.mark.slow
def test_a_run_that_leaks_already_is_refused(run_id, second):
    leaky = second[0].leaky_run_id
    with pytest.raises(DataError) as caught:
        leakage_of(leaky)
    assert str(caught.value) == (
        f"run {leaky} was trained with siblings of its test images already; pass one with "
        "data.group_by lesion"
    )


def test_a_run_that_stands_for_folds_is_refused(store):
    with open_run(CONFIG.tracking, tags={"dermalyze.folds": "5"}) as run:
        pass
    with pytest.raises(DataError) as caught:
        leakage_of(run.run_id)
    assert str(caught.value) == (
        f"run {run.run_id} consists of several folds; pass the run id of one of them"
    )


MANIFEST = pd.DataFrame(
    {
        "image_id": ["i5", "i0", "i4", "i1", "i3", "i2", "i6"],
        "group": ["a", "b", "a", "c", "a", "d", "c"],
    }
)


def test_the_first_image_of_a_test_lesion_stays_whatever_the_order():
    # Lesions a (i5, i4, i3) and c (i1, i6) are tested; b is learned from, d validated on.
    splits = Splits(np.array([1]), np.array([5]), np.array([0, 2, 3, 4, 6]))
    moved = with_siblings(MANIFEST, splits)
    assert moved.train.tolist() == [0, 1, 2, 6]
    assert moved.val.tolist() == [5]
    assert moved.test.tolist() == [3, 4]


def test_test_lesions_of_one_image_each_have_nothing_to_leak():
    splits = Splits(np.array([0, 2, 4]), np.array([1]), np.array([3, 5]))
    with pytest.raises(DataError) as caught:
        with_siblings(MANIFEST, splits)
    assert str(caught.value) == (
        "none of the 2 test lesions has a second image, so there is nothing to leak; use data "
        "with several images of some lesions"
    )
