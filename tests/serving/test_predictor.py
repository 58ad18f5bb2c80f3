"""One ONNX file in, answers out; a file that is not what it says is refused."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_model import (
    SPEC,
    TINY_ONNX,
    logits_by_hand,
    tiny_bytes,
    tiny_model,
    weights_and_bias,
)

from serving import Predictor
from serving.checksum import seal
from serving.errors import ArtifactError, ImageError
from serving.preprocess import to_pixels
from serving.spec import SPEC_KEY


@pytest.fixture(scope="module")
def predictor():
    return Predictor(TINY_ONNX)


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, (n, 2))
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]


def test_the_committed_model_is_the_one_that_the_tests_build():
    assert TINY_ONNX.read_bytes() == tiny_bytes()


def test_logits_are_those_done_by_hand(predictor):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    # 144 products are summed in float32
    np.testing.assert_allclose(predictor.logits(pixels), logits_by_hand(pixels), atol=1e-4)


def test_an_answer_is_the_softmax_of_the_logits_over_the_temperature(predictor):
    (image,) = pictures(1)
    logits = logits_by_hand(to_pixels(Image.fromarray(image), SPEC)[None])[0] / SPEC.temperature
    expected = np.exp(logits) / np.exp(logits).sum()
    answer = predictor.predict(image)
    np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-6)
    assert answer.predicted_class == SPEC.class_names[int(expected.argmax())]
    assert answer.confidence == max(answer.probabilities.values())


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(9)), batch_size=st.integers(1, 12))
def test_neither_order_nor_batches_change_an_answer(predictor, order, batch_size):
    images = pictures(9)
    alone = [predictor.predict(image) for image in images]
    together = predictor.predict_batch([images[i] for i in order], batch_size=batch_size)
    for i, answer in zip(order, together, strict=True):
        assert answer.predicted_class == alone[i].predicted_class
        for name, prob in answer.probabilities.items():
            assert abs(prob - alone[i].probabilities[name]) <= 1e-6


def test_a_generator_of_images_is_taken_and_none_gives_none(predictor):
    assert len(predictor.predict_batch(image for image in pictures(3))) == 3
    assert predictor.predict_batch([]) == []


def test_threads_may_share_a_predictor(predictor):
    images = pictures(60)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(predictor.predict, images))
    assert answers == [predictor.predict(image) for image in images]


def test_one_thread_gives_the_same_answers(predictor):
    images = pictures(3)
    assert Predictor(str(TINY_ONNX), num_threads=1).predict_batch(images) == (
        predictor.predict_batch(images)
    )


def test_a_bad_image_is_an_image_error(predictor):
    with pytest.raises(ImageError) as caught:
        predictor.predict(b"junk")
    assert str(caught.value) == "not a JPEG or PNG image (4 bytes)"


def refusal(path):
    with pytest.raises(ArtifactError) as caught:
        Predictor(path)
    return str(caught.value)


def test_a_missing_model_is_said_so(tmp_path):
    path = tmp_path / "none.onnx"
    assert refusal(path) == f"no model at {path}; create one with `dermalyze export-onnx`"


DAMAGED = "is not an ONNX model that can be loaded, or it is damaged; export or download it again"


@pytest.mark.parametrize(
    "data", [b"", b"hello", TINY_ONNX.read_bytes()[:3000]], ids=["empty", "text", "cut short"]
)
def test_a_damaged_model_is_said_so(tmp_path, capfd, data):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert refusal(path) == f"{path} {DAMAGED}"
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_says_nothing_of_its_own(tmp_path, capfd):
    model = tiny_model()
    unused = model.graph.initializer.add()  # it warns of such weights
    unused.CopyFrom(model.graph.initializer[1])
    unused.name = "unused"
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    Predictor(path).predict(pictures(1)[0])
    assert capfd.readouterr() == ("", "")


def test_a_model_of_another_program_is_said_so(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(tiny_model(metadata={"author": "someone"}), path)
    assert refusal(path) == (
        f"{path} was not written by `dermalyze export-onnx`: it has no dermalyze metadata"
    )


def test_a_newer_model_is_said_so(tmp_path):
    path = tmp_path / "model.onnx"
    newer = SPEC.to_json().replace('"format_version": 3', '"format_version": 4')
    onnx.save(tiny_model(metadata={SPEC_KEY: newer}), path)
    assert refusal(path) == (
        f"cannot use {path}: the model has spec version 4, this program reads 1 to 3; "
        "update dermalyze or export the model again"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_name": "pixels"}, "its input is pixels, expected image"),
        (
            {"input_type": onnx.TensorProto.FLOAT},
            "image is tensor(float), expected tensor(uint8)",
        ),
        (
            {"input_shape": ["batch", 8, 6, 3]},
            "image is N x 8 x 6 x 3, expected N x 6 x 8 x 3",
        ),
        ({"input_shape": [1, 6, 8, 3]}, "image is 1 x 6 x 8 x 3, expected N x 6 x 8 x 3"),
        ({"output_name": "scores"}, "its output is scores, expected logits"),
        (
            {"output_type": onnx.TensorProto.DOUBLE},
            "logits is tensor(double), expected tensor(float)",
        ),
        ({"num_logits": 6}, "logits is N x 6, expected N x 7"),
    ],
)
def test_a_graph_that_is_not_what_its_spec_says_is_refused(tmp_path, changes, message):
    path = tmp_path / "model.onnx"
    onnx.save(tiny_model(**changes), path)
    assert refusal(path) == (
        f"{path} does not match its own spec: {message}; export the model again"
    )


@pytest.mark.parametrize("place", ["../../outside.bin", "/etc/passwd", "gone.bin"])
def test_weights_outside_the_file_are_not_read(tmp_path, place):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(bytes(144 * 7 * 4))
    model = tiny_model()
    (weights,) = [value for value in model.graph.initializer if value.name == "weights"]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place), ("length", str(144 * 7 * 4))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert refusal(path) == f"{path} {DAMAGED}"


FLIP = """
import sys
from pathlib import Path
from serving import Predictor
from serving.errors import ArtifactError
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    try:
        Predictor(path)
    except ArtifactError as error:
        assert len(str(error).splitlines()) == 1
"""


def test_a_model_with_a_few_wrong_bytes_is_loaded_or_an_artifact_error(tmp_path):
    """In a process of its own: a crash of onnxruntime would end the tests without a word."""
    rng = random.Random(0)
    for i in range(200):
        data = bytearray(TINY_ONNX.read_bytes())
        for _ in range(3):
            data[rng.choice([rng.randrange(900), rng.randrange(len(data))])] = rng.randrange(256)
        (tmp_path / f"{i}.onnx").write_bytes(data)
    ran = subprocess.run(
        [sys.executable, "-c", FLIP, tmp_path], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_a_file_whose_weights_were_altered_is_refused(tmp_path):
    path = tmp_path / "altered.onnx"
    weights, _ = weights_and_bias()
    data = bytearray(TINY_ONNX.read_bytes())
    place = data.index(weights.tobytes())
    data[place] ^= 1  # the smallest change: one bit of one weight
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        Predictor(path)
    assert str(caught.value) == (
        f"{path} was changed after the export: its checksum differs; export or download it again"
    )


def test_weights_beside_the_caller_are_not_read_even_if_the_checksum_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where onnxruntime looks when it is handed bytes
    (tmp_path / "weights.bin").write_bytes(bytes(144 * 7 * 4))
    model = tiny_model()
    (weights,) = [value for value in model.graph.initializer if value.name == "weights"]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("length", str(144 * 7 * 4))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    assert refusal(path) == f"{path} {DAMAGED}"


def test_a_file_without_its_checksum_is_refused(tmp_path):
    path = tmp_path / "unsealed.onnx"
    onnx.save(tiny_model(metadata={SPEC_KEY: SPEC.to_json()}), path)
    with pytest.raises(ArtifactError, match="its checksum differs"):
        Predictor(path)


def test_a_file_of_version_1_still_answers_and_knows_nothing_of_limits():
    old, new = Predictor(TINY_ONNX.with_name("tiny-v1.onnx")), Predictor(TINY_ONNX)
    assert old.spec == new.spec
    image = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    assert old.predict(image) == new.predict(image)
    assert old.predict(image).decision is None
