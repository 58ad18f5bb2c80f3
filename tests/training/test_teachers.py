"""Learning from trained networks, on teachers of random weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dermalyze.config.loading import config_from
from dermalyze.config.schema import LossConfig, ModelConfig, TrainingConfig
from dermalyze.models.checkpoint import save_checkpoint
from dermalyze.models.classifier import build_classifier
from dermalyze.training.device import choose_device
from dermalyze.training.losses import distillation_loss
from dermalyze.training.teachers import open_teachers
from dermalyze.workflows.train import resolve
from serving.errors import ArtifactError, ConfigError
from serving.ham10000_taxonomy import HAM10000
from serving.spec import ModelSpec

CONFIG = ModelConfig(name="test_efficientnet", pretrained=False)
DEVICE = choose_device(TrainingConfig(device="cpu", use_amp=False))


@pytest.fixture
def teachers(tmp_path):
    """Two networks, one for images of 32 px and one for 48 px, and their files."""
    made = []
    for side in (32, 48):
        torch.manual_seed(side)
        network, _ = build_classifier(CONFIG, side, 7)
        path = tmp_path / f"{side}.pt"
        spec = ModelSpec(taxonomy=HAM10000, input_size=(side, side))
        save_checkpoint(path, network.state_dict(), CONFIG, spec)
        made.append((network.eval(), str(path)))
    return made


def test_teachers_answer_with_the_mean_of_their_softened_probabilities(teachers):
    (one, one_file), (other, other_file) = teachers
    images = torch.rand(3, 3, 32, 32)
    config = LossConfig(distill_from=(one_file, other_file), distill_temperature=4.0)
    enlarged = F.interpolate(images, (48, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = (one(images).div(4).softmax(1) + other(enlarged).div(4).softmax(1)) / 2
    probs = open_teachers(config, HAM10000.names, DEVICE)(images)
    torch.testing.assert_close(probs, expected)
    assert not probs.requires_grad
    assert open_teachers(LossConfig(), HAM10000.names, DEVICE) is None


def test_the_distance_to_a_teacher_equals_the_formula():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]], requires_grad=True)
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.0, 0.9]])
    distance = distillation_loss(logits, probs, 2.0)
    q = torch.exp(logits / 2) / torch.exp(logits / 2).sum(1, keepdim=True)
    expected = 4 * torch.special.xlogy(probs, probs / q).sum() / 2
    torch.testing.assert_close(distance, expected)
    (gradient,) = torch.autograd.grad(distance, logits)
    torch.testing.assert_close(gradient, (q - probs) * 2 / 2)  # T^2 / T, over two images


def test_a_teacher_that_knows_other_classes_is_refused(tmp_path):
    path = tmp_path / "teacher.pt"
    taxonomy = replace(HAM10000, names=("a", "b"), descriptions=("A", "B"), malignant=())
    network, _ = build_classifier(CONFIG, 32, 2)
    spec = ModelSpec(taxonomy=taxonomy, input_size=(32, 32))
    save_checkpoint(path, network.state_dict(), CONFIG, spec)
    with pytest.raises(ConfigError) as caught:
        open_teachers(LossConfig(distill_from=(str(path),)), ("b", "a"), DEVICE)
    assert str(caught.value) == (
        f"the teacher {path} knows the classes a, b, and the training data has b, a; name teachers "
        "with the same classes in the same order in loss.distill_from"
    )


def test_a_teacher_that_is_not_there_is_missed_before_the_images_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        resolve(config_from({}, ["loss.distill_from=teacher.pt"]))
    path = Path(tmp_path).resolve() / "teacher.pt"
    assert str(caught.value) == f"no checkpoint at {path}; train one with `dermalyze train`"
