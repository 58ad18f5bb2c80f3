"""Mixing of feature statistics."""

import pytest
import torch
from tiny_network import tiny_network

from dermalyze.config.schema import ModelConfig
from dermalyze.models.backbone import build_backbone
from dermalyze.training.mixstyle import mixed_styles
from serving.errors import ConfigError


@pytest.fixture
def backbone():
    config = ModelConfig(name="test_efficientnet", pretrained=False)
    return build_backbone(config, 32)[0].train()


def levels_of(backbone, images, probability):
    """Return what the first two levels give, the second of the first's."""
    found = []

    def keep(module, inputs, output):
        found.append((inputs[0], output))

    names = [info["module"] for info in backbone.network.feature_info][:3]
    hooks = []
    with mixed_styles(backbone, probability):
        for name in names:
            hooks.append(backbone.network.get_submodule(name).register_forward_hook(keep))
        with torch.no_grad():
            backbone(images)
    for hook in hooks:
        hook.remove()
    return found


def of_images(features):
    return features.mean((2, 3)), features.std((2, 3), correction=0)


def test_content_stays_and_statistics_are_between_those_of_two_images(backbone):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 32, 32) * torch.linspace(0.2, 1, 6)[:, None, None, None]
    level = backbone.network.get_submodule(backbone.network.feature_info[0]["module"])
    (given, mixed), *_ = levels_of(backbone, images, 1.0)
    with torch.no_grad():
        plain = level(given)
    (mean, deviation), (new_mean, new_deviation) = of_images(plain), of_images(mixed)
    assert not torch.allclose(new_mean, mean, atol=1e-3)
    content = (plain - mean[..., None, None]) / deviation[..., None, None]
    new_content = (mixed - new_mean[..., None, None]) / new_deviation[..., None, None]
    torch.testing.assert_close(new_content, content, atol=1e-2, rtol=1e-2)
    for image in range(6):  # one other image and one share explain all channels
        shares = [
            (new_mean[image] - mean[other]) / (mean[image] - mean[other]) for other in range(6)
        ]
        spread = [share.std() for other, share in enumerate(shares) if other != image]
        own = (new_mean[image] - mean[image]).abs().max()
        assert own < 1e-4 or min(spread) < 1e-2


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (1.0, False)])
def test_without_chance_and_outside_training_nothing_is_mixed(backbone, probability, training):
    backbone.train(training)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)
        with mixed_styles(backbone, probability):
            found = backbone(images)
    torch.testing.assert_close(found, expected)


def test_a_model_without_named_levels_is_refused():
    with (
        pytest.raises(ConfigError, match=r"^training\.mixstyle needs a model whose feature levels"),
        mixed_styles(tiny_network().backbone.train(), 0.5),
    ):
        pass
