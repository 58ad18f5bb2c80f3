"""Doubtful labels, slices, duplicates and shortcuts of drawn data, and the way back of a review."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from dermalyze.cli.main import main
from dermalyze.config.loading import to_yaml
from dermalyze.config.schema import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TrackingConfig,
    TrainingConfig,
)
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.data.preparation import prepare
from dermalyze.evaluation.predictions import (
    predictions_table,
    read_predictions,
    write_predictions,
    write_taxonomy,
)
from dermalyze.workflows.cross_validate import train_folds
from dermalyze.workflows.data_issues import issues_of_predictions, issues_of_run
from dermalyze.workflows.run_context import Here
from serving.errors import DataError
from serving.taxonomy import Taxonomy

NAMES = ("bkl", "mel", "nv")
NUM_IMAGES, SIDE = 400, 48
WRONG = 12  # labels, 3 %


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with wrong labels, a pair of equal images with two labels, and a vignette on mel.

    Returns its parent, the table with the true classes, and the images with wrong labels.
    """
    parent = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    truth = rng.choice(NAMES, NUM_IMAGES)
    truth[:2] = "bkl", "nv"
    table = pd.DataFrame({"image_id": [f"IMG{i:03d}" for i in range(NUM_IMAGES)], "truth": truth})
    table["lesion_id"] = [f"L{i}" for i in range(NUM_IMAGES)]
    wrong = 2 + rng.choice(NUM_IMAGES - 2, WRONG, replace=False)
    others = [NAMES[(NAMES.index(name) + 1) % 3] for name in truth[wrong]]
    table["label"] = table["truth"]
    table.loc[wrong, "label"] = others
    (parent / "data").mkdir()
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, SIDE)], indexing="ij")
    for row, image_id in enumerate(table["image_id"]):
        pixels = rng.integers(100, 200, (SIDE, SIDE, 3), np.uint8)
        if truth[row] == "mel" and rng.random() < 0.9:
            pixels[np.hypot(x, y) > 1.25] = 5
        Image.fromarray(pixels).save(parent / "data" / f"{image_id}.png")
    shutil.copyfile(parent / "data" / "IMG000.png", parent / "data" / "IMG001.png")
    columns = ["image_id", "label", "lesion_id"]
    table[columns].to_csv(parent / "data" / "labels.csv", index=False)
    return parent, table, set(table["image_id"][wrong])


@pytest.fixture(scope="module")
def predictions(drawn):
    """What models would say that had not seen the images: right for 85 % of them."""
    parent, table, _ = drawn
    prepared = prepare(parent / "data", DataConfig(image_size=SIDE, allow_problems=True))
    rng = np.random.default_rng(1)
    targets = np.array([NAMES.index(name) for name in table["truth"]])
    logits = 4.0 * np.eye(3)[targets] + 1.6 * rng.normal(size=(NUM_IMAGES, 3))
    assert 0.8 < (logits.argmax(1) == targets).mean() < 0.97
    (parent / "evaluation").mkdir()
    path = parent / "evaluation" / "predictions.csv"
    write_predictions(path, predictions_table(prepared.manifest, logits, Taxonomy(names=NAMES)))
    write_taxonomy(path.parent, Taxonomy(names=NAMES))
    return path


@pytest.fixture(scope="module")
def asked(drawn, predictions):
    """The command: its output, and the folder that it wrote."""
    folder = drawn[0] / "issues"
    arguments = ["data-issues", "--predictions", str(predictions), "--data-dir"]
    arguments += [str(drawn[0] / "data"), "--output", str(folder)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output, folder


def review_of(folder):
    return pd.read_csv(folder / "review.csv", keep_default_na=False)


def test_most_of_the_wrong_labels_are_in_the_first_five_percent_to_review(asked, drawn):
    review = review_of(asked[1])
    assert list(review)[:3] == ["image_id", "label", "corrected_label"]
    first = set(review["image_id"][: round(0.05 * NUM_IMAGES)])
    assert len(first & drawn[2]) >= 0.8 * WRONG
    assert set(review["corrected_label"]) == {""}


def test_equal_images_with_two_labels_are_to_be_reviewed(asked):
    review = review_of(asked[1]).set_index("image_id")
    assert "Equal files with another label: IMG001" in review.loc["IMG000", "reason"]
    assert "Equal files with another label: IMG000" in review.loc["IMG001", "reason"]
    assert "1 group of near-duplicate images with several labels" in asked[0]


def test_the_planted_shortcut_is_the_only_one(asked):
    assert "; vignette tells mel (AUC 0.9" in asked[0]
    page = (asked[1] / "data_issues.html").read_text()
    assert page.count('<td class="text">shortcut</td>') == 1
    assert "vignette tells mel: typical images" in page


def test_the_page_shows_the_pictures_and_asks_for_nothing_from_elsewhere(asked, drawn):
    page = (asked[1] / "data_issues.html").read_text()
    for image_id in list(review_of(asked[1])["image_id"][:12]):
        assert f'alt="Image {image_id}: label ' in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_a_filled_in_review_is_what_the_data_is_next_time(asked, drawn, tmp_path):
    parent, table, wrong = drawn
    review = review_of(asked[1])
    doubtful = review["reason"].str.startswith("doubtful label") & review["image_id"].isin(wrong)
    truth = dict(zip(table["image_id"], table["truth"], strict=True))
    review.loc[doubtful, "corrected_label"] = review["image_id"].map(truth)
    review.loc[review["image_id"] == "IMG001", "corrected_label"] = "exclude"
    path = tmp_path / "review.csv"
    review.to_csv(path, index=False)
    prepared = prepare(parent / "data", DataConfig(image_size=SIDE, corrections=str(path)))
    now = dict(zip(prepared.manifest["image_id"], prepared.manifest["label"], strict=True))
    found = review["image_id"][doubtful]
    assert len(found) >= 0.8 * WRONG
    assert {name: now[name] for name in found} == {name: truth[name] for name in found}
    assert "IMG001" not in now


def test_the_review_of_a_corrected_run_uses_its_own_copy_and_repeats_it(
    drawn, predictions, tmp_path
):
    """The file that the training was given is gone."""
    table = read_predictions(predictions, Taxonomy(names=NAMES))[0]
    name, label = table["image_id"][5], table["label"][5]
    other = NAMES[(NAMES.index(label) + 1) % 3]
    table.loc[5, "label"] = other
    data = DataConfig(image_size=SIDE, corrections=str(tmp_path / "gone.csv"))
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(Config(data=data)))
    columns = f"image_id,label,corrected_label\n{name},{label},{other}\n"
    (tmp_path / "run" / "corrections.csv").write_text(columns)
    path = tmp_path / "run" / "evaluation" / "predictions.csv"
    write_predictions(path, table)
    write_taxonomy(path.parent, Taxonomy(names=NAMES))
    here = Here(data_dir=drawn[0] / "data")
    issues_of_predictions([path], here, "none", output=tmp_path / "out")
    row = review_of(tmp_path / "out").set_index("image_id").loc[name]
    assert (row["label"], row["corrected_label"]) == (label, other)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "label",
            "mel",
            "the predictions say that image {name!r} has the label 'mel', but the data says 'nv'; "
            "pass the data and the --corrections that the models were trained with",
        ),
        (
            "image_id",
            "x",
            "image 'x' of the predictions is not in {folder}; pass the folder that they were made "
            "for as --data-dir",
        ),
    ],
)
def test_predictions_for_other_data_are_one_sentence(
    column, value, message, drawn, predictions, tmp_path
):
    table = read_predictions(predictions, Taxonomy(names=NAMES))[0]
    row = int(np.flatnonzero(table["label"] == "nv")[0])
    name = table["image_id"][row]
    table.loc[row, column] = value
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "predictions.csv"
    write_predictions(path, table)
    write_taxonomy(path.parent, Taxonomy(names=NAMES))
    here = Here(data_dir=drawn[0] / "data")
    with pytest.raises(DataError) as caught:
        issues_of_predictions([path], here, "none", output=tmp_path / "out")
    assert str(caught.value) == message.format(name=name, folder=drawn[0] / "data")
    assert not (tmp_path / "out").exists()


def test_an_image_with_two_predictions_is_one_sentence(drawn, predictions, tmp_path):
    here = Here(data_dir=drawn[0] / "data")
    with pytest.raises(DataError) as caught:
        issues_of_predictions([predictions, predictions], here, "none", output=tmp_path / "out")
    assert str(caught.value) == (
        "image 'IMG000' is in several tables of predictions; expected one prediction per image, by "
        "a model that had not seen it"
    )


CONFIG = Config(
    data=DataConfig(image_size=32, val_size=0.25),
    model=ModelConfig(name="test_efficientnet", pretrained=False),
    training=TrainingConfig(epochs=1, batch_size=16, fast_mode=False, device="cpu"),
    evaluation=EvaluationConfig(replicates=100),
    tracking=TrackingConfig(experiment="issues"),
)


@pytest.mark.slow
def test_folds_are_reviewed_trained_again_with_the_review_and_reviewed_again(store, tmp_path):
    data = make_demo_data(tmp_path / "demo", num_images=140)
    found = issues_of_run(train_folds(CONFIG, data, 2).run_id, output=Path("first"))
    assert len(found.labels) == 140
    assert found.basis.startswith("Out-of-fold predictions of run ")
    review = review_of(Path("first"))
    chosen = review[review["label"] == "nv"].iloc[:2]  # enough lesions of the class remain
    review.loc[chosen.index, "corrected_label"] = [chosen["suggested_label"].iloc[0], "exclude"]
    review.to_csv("review.csv", index=False)
    data_config = dataclasses.replace(CONFIG.data, corrections="review.csv", allow_problems=True)
    corrected = dataclasses.replace(CONFIG, data=data_config)
    second = train_folds(corrected, data, 2)
    Path("review.csv").unlink()
    again = issues_of_run(second.run_id, output=Path("second"))
    first, excluded = chosen["image_id"]
    now = again.labels.set_index("image_id")["label"]
    assert now[first] == chosen["suggested_label"].iloc[0]
    assert excluded not in now
    carried = review_of(Path("second")).set_index("image_id")
    expected = review.loc[chosen.index].set_index("image_id")[["label", "corrected_label"]]
    pd.testing.assert_frame_equal(
        carried.loc[list(chosen["image_id"]), ["label", "corrected_label"]], expected
    )
