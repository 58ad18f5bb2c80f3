"""int8 is written if it is as accurate as float32 on the validation images, and else not at all."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_network import TINY_SPEC, tiny_network
from torch import nn

from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.export.int8 import (
    IMAGES_A_CLASS,
    Int8Images,
    Int8Report,
    LabelledImages,
    describe,
    drawn_by_class,
    export_int8,
)
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.torch_predictor import SkinLesionPredictor
from serving import Predictor
from serving.errors import ArtifactError, DataError
from serving.spec import SPEC_KEY

ROOT = Path(__file__).parents[2]


class Store:
    """Pixels in memory; remembers which rows were asked for."""

    def __init__(self, pixels):
        self.pixels = pixels
        self.asked = []

    def batch(self, rows):
        self.asked += rows.tolist()
        return self.pixels[rows]


def pixels_of(num_images, seed=0):
    """Plain colors with some noise: the answers differ from image to image."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(20, 236, (num_images, 1, 1, 3))
    return (colors + rng.integers(-20, 20, (num_images, 16, 16, 3))).astype(np.uint8)


def answers_of(network, pixels):
    return SkinLesionPredictor.of(ShippedNetwork([Member(network)]), TINY_SPEC).logits(pixels)


def labelled(network, pixels, rows, *, margin=0.0):
    """Label images with what the network answers, those whose answer is clear.

    `margin` is between the two largest logits, in standard deviations of all logits.
    """
    logits = answers_of(network, pixels)
    ordered = np.sort(logits, axis=1)
    rows = rows[(ordered[:, -1] - ordered[:, -2])[rows] >= margin * logits.std()]
    return LabelledImages(Store(pixels), rows, logits.argmax(axis=1)[rows])


@pytest.mark.parametrize("num_each", [[5, 40, 33, 100]])
def test_calibration_images_are_drawn_by_class_or_all_that_there_are(num_each):
    targets = np.random.default_rng(0).permutation(np.repeat([0, 1, 4, 6], num_each))
    drawn = drawn_by_class(targets, 32)
    assert len(set(drawn)) == len(drawn)
    assert np.bincount(targets[drawn]).tolist() == [5, 32, 0, 0, 32, 0, 32]
    assert len(set(targets[drawn[:20]])) > 1  # mixed: a group has several classes
    np.testing.assert_array_equal(drawn_by_class(targets, 32), drawn)


def test_without_training_images_it_says_so():
    with pytest.raises(DataError) as caught:
        drawn_by_class(np.arange(0), 32)
    assert str(caught.value) == (
        "there is no training image to calibrate with; expected some per class"
    )


def test_without_validation_images_nothing_is_written(tmp_path):
    network = tiny_network()
    images = labelled(network, pixels_of(5), np.arange(5))
    empty = LabelledImages(images.store, images.rows[:0], images.targets[:0])
    with pytest.raises(DataError) as caught:
        export_int8(
            ShippedNetwork([Member(network)]),
            TINY_SPEC,
            tmp_path / "m.onnx",
            Int8Images(training=images, validation=empty),
        )
    assert str(caught.value) == (
        "there is no validation image to compare on; expected at least one"
    )
    assert list(tmp_path.iterdir()) == []


REPORT = Int8Report(
    num_images=1502,
    float_accuracy=0.637,
    int8_accuracy=0.6345,
    changed=0.0166,
    float_bytes=12_040_000,
    int8_bytes=3_710_000,
    speedup=1.26,
    num_layers=56,
    float_layers=("a", "b"),
    num_tries=2,
)


def test_a_report_is_one_line_with_all_that_was_measured():
    assert describe(REPORT) == (
        "int8; balanced accuracy on 1,502 validation images 63.45%, float32 63.70% "
        "(-0.25 points, try 2); 1.7% of them change their class; 3.7 MB, float32 12.0 MB; "
        "1.3 times as fast here, one image at a time; 2 of 56 layers stay in float32"
    )


@pytest.mark.parametrize(
    ("float_accuracy", "int8_accuracy", "good"),
    [(0.705, 0.7, True), (0.7, 0.9, True), (0.7051, 0.7, False), (0.7, 0.6, False)],
)
def test_half_a_point_may_be_lost_and_no_more(float_accuracy, int8_accuracy, good):
    values = {"float_accuracy": float_accuracy, "int8_accuracy": int8_accuracy}
    assert Int8Report(**{**vars(REPORT), **values}).good == good


@pytest.fixture(scope="module", params=["simple", "acrnn"])
def exported(request, tmp_path_factory):
    network = tiny_network(head_type=request.param).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = pixels_of(400)
    network.eval()
    training = labelled(network, pixels, np.arange(0, 300))
    # rounding may turn what is nearly a tie
    validation = labelled(network, pixels, np.arange(300, 400), margin=0.3)
    network.train()
    path = tmp_path_factory.mktemp("int8") / "deep" / "model.onnx"
    report = export_int8(
        ShippedNetwork([Member(network)]),
        TINY_SPEC,
        path,
        Int8Images(training=training, validation=validation),
    )
    return network, before, path, report, training, validation


@pytest.mark.slow
def test_the_file_is_one_model_that_says_that_it_is_int8(exported):
    _, _, path, report, _, _ = exported
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    predictor = Predictor(path)
    assert predictor.spec.precision == "int8"
    assert json.loads(predictor.spec.to_json()) == {
        **json.loads(TINY_SPEC.to_json()),
        "precision": "int8",
        "int8_weight_bits": 7,
    }
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key for entry in model.metadata_props} == {SPEC_KEY, "dermalyze.sha256"}
    assert any(t.data_type == onnx.TensorProto.INT8 for t in model.graph.initializer)
    assert report.int8_bytes == path.stat().st_size


@pytest.mark.slow
def test_no_two_products_of_it_are_more_than_16_bits_hold(exported):
    """What a CPU without VNNI computes is then what one with it does."""
    _, _, path, _, _, _ = exported
    tensors = onnx.load(path).graph.initializer
    weights = [numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8]
    largest = max(abs(int(values.min())) for values in weights + [-w for w in weights])
    assert 255 * 2 * largest <= np.iinfo(np.int16).max
    assert largest == 64


@pytest.mark.slow
def test_it_answers_about_as_the_network_does_for_any_number_of_images(exported):
    network, _, path, _, _, validation = exported
    predictor = Predictor(path)
    pixels = validation.store.pixels[validation.rows]
    expected = answers_of(network.eval(), pixels)
    answers = predictor.logits(pixels)
    # Some ten roundings of 1/255 of a range of six standard deviations make less than 10 %, and
    # as much again is for the few values beyond a range, which are cut off.
    assert np.sqrt(np.square(answers - expected).mean()) < 0.2 * expected.std()
    for num_images in (1, 3):
        np.testing.assert_array_equal(predictor.logits(pixels[:num_images]), answers[:num_images])


@pytest.mark.slow
def test_what_is_reported_is_what_the_file_does(exported):
    _, _, path, report, _, validation = exported
    pixels = validation.store.pixels[validation.rows]
    answers = Predictor(path).logits(pixels).argmax(axis=1)
    hits = answers == validation.targets
    classes = np.unique(validation.targets)
    balanced = np.mean([hits[validation.targets == target].mean() for target in classes])
    assert report.int8_accuracy == pytest.approx(balanced)
    assert report.float_accuracy == 1  # the labels are float32's answers
    assert report.changed == pytest.approx(1 - hits.mean())
    assert report.num_images == len(validation.rows)
    assert report.good


@pytest.mark.slow
def test_it_is_calibrated_on_training_images_alone(exported):
    _, _, _, _, training, validation = exported
    assert set(training.store.asked) <= set(training.rows)
    counts = np.bincount(training.targets[np.searchsorted(training.rows, training.store.asked)])
    available = np.bincount(training.targets)
    np.testing.assert_array_equal(counts, np.minimum(available, IMAGES_A_CLASS))
    assert set(validation.store.asked) == set(validation.rows)


@pytest.mark.slow
def test_the_network_itself_is_not_changed(exported):
    network, before, _, _, _, _ = exported
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.slow
def test_a_bad_calibration_costs_accuracy_so_nothing_is_written_and_the_old_file_stays(tmp_path):
    network = tiny_network()
    pixels = pixels_of(200)
    validation = labelled(network, pixels, np.arange(200))
    gray = Store(np.full((10, 16, 16, 3), 128, np.uint8))  # nothing like the other images
    training = LabelledImages(gray, np.arange(10), np.arange(10) % 7)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(ArtifactError) as caught:
        export_int8(
            ShippedNetwork([Member(network)]),
            TINY_SPEC,
            path,
            Int8Images(training=training, validation=validation),
        )
    assert re.fullmatch(
        rf"{re.escape(str(path))} is not written: balanced accuracy on 200 validation images "
        r"falls from 100.00% in float32 to \d\d\.\d\d% in int8 in the best of \d tries, where 0.5 "
        r"points are allowed; export with --precision float32, or train longer",
        str(caught.value),
    )
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"the old one"


class OneHugeChannel(nn.Module):
    """A channel that nothing reads makes the steps of its neighbours 10,000 times as wide."""

    output_fmt = "NCHW"

    def __init__(self):
        super().__init__()
        self.stem, self.bad, self.reader = (
            nn.Conv2d(3, 6, 3, stride=4),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 6, 1),
        )
        with torch.no_grad():
            self.bad.weight[0] *= 10_000
            self.reader.weight[:, 0] = 0

    def forward_features(self, images):
        return torch.relu(self.reader(self.bad(torch.relu(self.stem(images)))))


@pytest.mark.slow
def test_the_layers_that_suffer_stay_in_float32(tmp_path):
    network = tiny_network(features=OneHugeChannel)
    pixels = pixels_of(400)
    path = tmp_path / "model.onnx"
    report = export_int8(
        ShippedNetwork([Member(network)]),
        TINY_SPEC,
        path,
        Int8Images(
            training=labelled(network, pixels, np.arange(0, 300)),
            validation=labelled(network, pixels, np.arange(300, 400), margin=0.3),
        ),
    )
    kept = {name.rsplit(".", 2)[-2] for name in report.float_layers}
    assert {"stem", "bad", "reader"} <= kept
    assert len(report.float_layers) < report.num_layers
    stored = {t.name: numpy_helper.to_array(t).dtype for t in onnx.load(path).graph.initializer}
    assert all(stored[name] == np.float32 for name in report.float_layers)


def dermalyze(place, *words):
    env = dict(os.environ, PYTHONPATH=str(ROOT), MLFLOW_DISABLE_TELEMETRY="true")
    env["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
    return subprocess.run(
        [sys.executable, "-m", "dermalyze", *map(str, words)],
        cwd=place, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_is_exported_in_int8_with_its_own_data_and_no_other(tmp_path):
    demo = make_demo_data(tmp_path / "demo", num_images=140)
    # Trained to always answer the commonest class, by far: no rounding changes an answer.
    settings = """
model: {name: test_efficientnet, pretrained: false}
data: {image_size: 32}
training: {epochs: 1, batch_size: 8, lr: 1.0e-2, device: cpu}
loss: {class_weights: none}
tracking: {register: false}
"""
    (tmp_path / "config.yaml").write_text(settings)
    done = dermalyze(tmp_path, "train", "--data-dir", demo, "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    (run_id,) = re.findall("run id: (.*)", done.stdout)
    words = ("export-onnx", "--run-id", run_id, "--precision", "int8", "--output", "small.onnx")
    done = dermalyze(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"small.onnx: int8; balanced accuracy on \d+ validation images .* layers stay in "
        r"float32\n",
        done.stdout,
    )
    assert Predictor(tmp_path / "small.onnx").spec.precision == "int8"
    before = (tmp_path / "small.onnx").read_bytes()
    other = make_demo_data(tmp_path / "other", num_images=70, seed=1)
    done = dermalyze(tmp_path, *words, "--data-dir", other)
    assert done.returncode == 1
    assert f"run {run_id} was trained on other data" in done.stderr
    assert (tmp_path / "small.onnx").read_bytes() == before
