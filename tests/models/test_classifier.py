"""The network: normalization inside, plug-ins, weights that can and cannot be had."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dermalyze.config.schema import ModelConfig
from dermalyze.models.backbone import build_backbone, load_plugins, resize_filter_of
from dermalyze.models.classifier import build_classifier, to_images
from dermalyze.models.pretrained import Weights
from serving.errors import ConfigError

TINY = "test_efficientnet"  # 0.4 million weights; mean = std = 0.5

PLUGIN = """
import torch.nn as nn
from timm.models import register_model

class Net(nn.Module):
    output_fmt = "NCHW"
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3, stride=2)
        self.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0),
                               "interpolation": "lanczos"}
    def forward_features(self, images):
        return self.layer(images)

@register_model
def NAME(pretrained=False, **kwargs):
    if pretrained:
        raise OSError("the weights file is gone")
    return Net()
"""


@pytest.fixture
def plugin(tmp_path):
    name = f"plugged_{abs(hash(tmp_path)) % 10**8}"
    path = tmp_path / f"{name}.py"
    path.write_text(PLUGIN.replace("NAME", name))
    yield name, str(path)
    sys.modules.pop(f"dermalyze_plugin_{name}", None)


def build(**settings):
    settings = {"name": TINY, "pretrained": False, **settings}
    return build_classifier(ModelConfig(**settings), 32, 7)


def test_pixels_become_images_of_zero_to_one_with_channels_first():
    pixels = torch.tensor([[[[0, 51, 255], [255, 0, 0]]]], dtype=torch.uint8)  # (1, 1, 2, 3)
    images = to_images(pixels)
    assert images.shape == (1, 3, 1, 2)
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


def test_normalization_is_inside_the_network_and_comes_from_the_model(plugin):
    name, path = plugin
    classifier, _ = build(name=name, plugins=(path,))
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    expected = classifier.backbone.network.layer(images - mean)
    torch.testing.assert_close(classifier.backbone(images), expected)


def test_the_resize_filter_comes_from_the_model(plugin):
    name, path = plugin
    assert resize_filter_of(ModelConfig(name=name, plugins=(path,))) == "lanczos"
    assert resize_filter_of(ModelConfig(size="small")) == "bicubic"


def test_sizes_name_the_efficientnets_that_have_weights():
    names = [ModelConfig(size=size).timm_name for size in ("small", "medium", "large")]
    assert names == [f"tf_efficientnetv2_{letter}.in21k_ft_in1k" for letter in "sml"]


@pytest.mark.parametrize("head_type", ["simple", "acrnn"])
@pytest.mark.parametrize("name", [TINY, "test_vit", "test_resnet"])
def test_every_kind_of_backbone_fits_every_head(name, head_type):
    side = 160 if name == "test_vit" else 64
    config = ModelConfig(name=name, pretrained=False, head_type=head_type)
    classifier, _ = build_classifier(config, side, 7)
    assert classifier.eval()(torch.rand(2, 3, side, side)).shape == (2, 7)


def test_a_frozen_backbone_keeps_its_weights_and_its_batch_norm_statistics():
    classifier, _ = build(freeze_backbone=True)
    before = {k: v.clone() for k, v in classifier.backbone.state_dict().items()}
    head_before = [p.clone() for p in classifier.head.parameters()]
    classifier.train()
    trained = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    classifier(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    for key, value in classifier.backbone.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(classifier.head.parameters(), head_before, strict=True)
    ]
    assert any(changed)


def test_a_backbone_that_is_not_frozen_moves_its_batch_norm_statistics():
    classifier, _ = build()
    norm = next(m for m in classifier.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    classifier.train()(torch.rand(4, 3, 32, 32))
    assert not torch.equal(norm.running_mean, before)


def test_weights_are_read_from_a_safetensors_file(tmp_path):
    donor, _ = build()
    path = tmp_path / "weights.safetensors"
    save_file(donor.backbone.network.state_dict(), path)
    classifier, weights = build(pretrained=str(path))
    assert weights.source == str(path)
    for key, value in donor.backbone.state_dict().items():
        torch.testing.assert_close(classifier.backbone.state_dict()[key], value)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"conv_stem.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"does not fit the backbone: \d+ weights missing, 1 of"):
        build(pretrained=str(path))


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(ConfigError) as caught:
        build(pretrained=str(path))
    assert str(caught.value) == f"model.pretrained is {path}, which is not a safetensors file"


def test_wanted_weights_that_cannot_be_had_are_a_warning_or_an_error(plugin):
    name, path = plugin
    _, weights = build(name=name, plugins=(path,), pretrained="auto")
    assert weights.source == "none"
    assert weights.reason == "its plug-in cannot load them: the weights file is gone"
    with pytest.raises(ConfigError) as caught:
        build(name=name, plugins=(path,), pretrained=True)
    assert str(caught.value) == (
        f"no pretrained weights for {name}: its plug-in cannot load them: the weights file is "
        "gone; set model.pretrained to auto, false or a .safetensors file"
    )


def test_a_backbone_in_the_package_starts_from_its_weights_without_a_network(monkeypatch):
    monkeypatch.setattr("dermalyze.models.pretrained._hub_file", None)  # not even asked for
    config = ModelConfig(name="tf_efficientnet_lite0", pretrained=True)
    backbone, weights = build_backbone(config, 32)
    assert weights == Weights(source="tf_efficientnet_lite0, in this package")
    own = backbone.network.state_dict()
    assert own["conv_head.weight"].dtype == torch.float32
    # Of the published file in float32, whose origin is told beside the weights.
    assert float(own["bn1.running_var"].mean()) == pytest.approx(6.7053375, rel=1e-6)
    assert float(own["conv_stem.weight"].std()) == pytest.approx(0.7711814, rel=1e-4)
    assert float(own["conv_head.weight"].std()) == pytest.approx(0.0618234, rel=1e-4)


def test_a_hub_that_does_not_answer_fails_fast_and_plainly(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    config = ModelConfig(name="mobilenetv3_small_050", pretrained=True)
    with pytest.raises(ConfigError) as caught:
        build_classifier(config, 32, 7)
    assert str(caught.value) == (
        "no pretrained weights for mobilenetv3_small_050: the weight hub cannot be reached; "
        "set model.pretrained to auto, false or a .safetensors file"
    )


def test_an_unknown_model_is_answered_with_near_ones():
    with pytest.raises(
        ConfigError, match=r"model.name 'resnt18' is not a timm model; did you mean "
    ):
        build(name="resnt18")


def test_a_plugin_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_plugins((str(tmp_path / "no.py"),))
    assert str(caught.value) == (
        f"model.plugins names {tmp_path / 'no.py'}, and there is no such file"
    )
    with pytest.raises(ConfigError) as caught:
        load_plugins(("no_such_module_here",))
    assert str(caught.value) == (
        "model.plugins names no_such_module_here, which fails: "
        "No module named 'no_such_module_here'"
    )
