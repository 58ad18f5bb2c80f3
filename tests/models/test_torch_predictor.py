"""The same answers through PyTorch (`dermalyze/models/torch_predictor.py`)."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny_network import TINY_SPEC, tiny_network

from dermalyze.config.schema import ModelConfig
from dermalyze.models.checkpoint import save_checkpoint
from dermalyze.models.classifier import build_classifier
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.torch_predictor import SkinLesionPredictor
from serving.errors import ArtifactError, ImageError
from serving.ham10000_taxonomy import HAM10000
from serving.spec import ModelSpec
from serving.taxonomy import DISCLAIMER

CONFIG = ModelConfig(name="test_efficientnet", pretrained=False)


@pytest.fixture(scope="module")
def predictor():
    return SkinLesionPredictor.of(ShippedNetwork([Member(tiny_network())]), TINY_SPEC)


def pictures(n):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + i, 30, 3), np.uint8) for i in range(n)]


def test_a_checkpoint_answers_as_the_network_that_was_saved(tmp_path):
    torch.manual_seed(0)
    network, _ = build_classifier(CONFIG, 32, 7)
    spec = ModelSpec(taxonomy=HAM10000, input_size=(32, 32), temperature=3.0)
    path = tmp_path / "checkpoint_best.pt"
    save_checkpoint(path, network.state_dict(), CONFIG, spec)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with torch.no_grad():  # the network's input and the softmax, written out
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        expected = torch.softmax(network.eval()(images).double() / 3.0, 1)[0].numpy()
    answer = SkinLesionPredictor(str(path)).predict(pixels)
    np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-6)
    assert list(answer.to_dict()) == [
        "predicted_class",
        "predicted_class_description",
        "confidence",
        "probabilities",
        "logits",
        "disclaimer",
    ]
    assert answer.disclaimer == DISCLAIMER


def test_a_network_in_training_mode_is_put_into_evaluation():
    network = tiny_network().train()
    images = pictures(3)
    first = SkinLesionPredictor.of(ShippedNetwork([Member(network)]), TINY_SPEC).predict_batch(
        images
    )
    assert not network.training
    assert first == SkinLesionPredictor.of(
        ShippedNetwork([Member(tiny_network())]), TINY_SPEC
    ).predict_batch(images)


def test_batches_do_not_change_an_answer(predictor):
    images = pictures(7)
    for size in (1, 3, 7):
        for one, other in zip(
            predictor.predict_batch(images, batch_size=size),
            predictor.predict_batch(images),
            strict=True,
        ):
            for name, prob in one.probabilities.items():
                assert abs(prob - other.probabilities[name]) <= 1e-6


def test_threads_may_share_a_predictor(predictor):
    images = pictures(20)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(predictor.predict, images))
    assert answers == [predictor.predict(image) for image in images]


def test_a_bad_image_is_an_image_error(predictor):
    with pytest.raises(ImageError) as caught:
        predictor.predict(b"junk")
    assert str(caught.value) == "not a JPEG or PNG image (4 bytes)"


def test_a_missing_checkpoint_is_said_so(tmp_path):
    path = tmp_path / "none.pt"
    with pytest.raises(ArtifactError) as caught:
        SkinLesionPredictor(path)
    assert str(caught.value) == f"no checkpoint at {path}; train one with `dermalyze train`"


def test_it_is_imported_from_the_package_and_torch_only_then():
    code = """
import sys
import dermalyze
assert "torch" not in sys.modules
from dermalyze import SkinLesionPredictor
assert SkinLesionPredictor.__name__ == "SkinLesionPredictor" and "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
