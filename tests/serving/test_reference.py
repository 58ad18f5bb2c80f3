"""The model in the package: its file, its answers, and that it answers where none is named."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dermalyze.config.loading import config_from
from dermalyze.export.parity_images import parity_images
from dermalyze.models.checkpoint import start_from
from dermalyze.models.classifier import build_classifier
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.reference import load_reference
from dermalyze.models.torch_predictor import SkinLesionPredictor
from serving import Predictor
from serving.ham10000_taxonomy import HAM10000
from serving.reference import REFERENCE, in_words
from serving.spec import ModelSpec

ANSWERS = Path(__file__).parents[1] / "support" / "reference_answers.json"
FOLDER = REFERENCE.parent


@pytest.fixture(scope="module")
def predictor():
    return Predictor()


def test_the_files_are_those_that_were_made_and_small_enough():
    sums = dict(line.split()[::-1] for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {"model.onnx", "network.json"}
    for name, digest in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest
    assert REFERENCE.stat().st_size <= 12e6


def test_drawn_images_are_answered_as_when_it_was_made(predictor):
    stored = json.loads(ANSWERS.read_text())
    images = dict(parity_images())
    assert stored.keys() == images.keys()
    for name, probabilities in stored.items():
        found = predictor.predict(images[name]).probabilities
        assert found == pytest.approx(probabilities, abs=1e-3), name


def test_it_knows_its_limits_its_classes_and_its_license(predictor):
    spec = predictor.spec
    assert spec.taxonomy == HAM10000
    assert None not in (spec.prediction_sets, spec.abstention, spec.scope, spec.referral)
    assert spec.saliency
    assert "CC BY-NC 4.0" in in_words(REFERENCE, spec)
    assert "reference model" in in_words(REFERENCE, spec)
    assert "CC BY-NC 4.0" in (FOLDER / "model_card.md").read_text()
    assert "/" not in in_words("m.onnx", spec).split(",")[0]


def test_the_weights_to_train_from_answer_as_the_file_does(predictor):
    content = load_reference()
    spec = ModelSpec.from_json(content["spec"])
    config = config_from({"model": json.loads(content["model"])}).model
    classifier, _ = build_classifier(config, spec.input_size[0], len(spec.taxonomy), None)
    taken = start_from(classifier, content, config.timm_name, spec.taxonomy.names)
    assert taken == "backbone and head"
    classifier.eval()
    plain = replace(spec, scope=None, saliency="")
    torch_predictor = SkinLesionPredictor.of(ShippedNetwork([Member(classifier, None)]), plain)
    for name, image in parity_images()[:5]:
        ours = predictor.predict(image).probabilities
        assert torch_predictor.predict(image).probabilities == pytest.approx(ours, abs=1e-4), name


def test_without_it_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("serving.predictor.REFERENCE", tmp_path / "model.onnx")
    with pytest.raises(Exception, match="this installation has no reference model; name an ONNX"):
        Predictor(tmp_path / "model.onnx")
