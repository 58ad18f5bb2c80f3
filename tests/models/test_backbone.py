"""What the first layer does to the light."""

import numpy as np
import pytest
import torch

from dermalyze.config.schema import ModelConfig
from dermalyze.models.backbone import build_backbone


@pytest.mark.parametrize("color_constancy", ["shades_of_gray", "max_rgb"])
def test_the_color_of_the_light_makes_no_difference(color_constancy):
    config = ModelConfig(
        name="test_efficientnet", pretrained=False, color_constancy=color_constancy
    )
    backbone = build_backbone(config, 32)[0].eval()
    images = torch.rand(2, 3, 32, 32) * 0.5
    light = torch.tensor([1.3, 0.9, 0.7])
    lit = images * light[:, None, None]
    seen = []
    backbone.network.conv_stem.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.inference_mode():
        backbone(images)
        backbone(lit)
    plain, other = (values * backbone.std + backbone.mean for values in seen)
    factor = (other / plain).mean((1, 2, 3), keepdim=True)  # the same for all channels
    torch.testing.assert_close(other, plain * factor, rtol=1e-4, atol=1e-4)
    channels = plain.numpy()
    power = np.inf if color_constancy == "max_rgb" else 6
    of_light = [[np.linalg.norm(c, power) for c in image.reshape(3, -1)] for image in channels]
    np.testing.assert_allclose(
        of_light, np.mean(of_light, axis=1, keepdims=True).repeat(3, 1), rtol=1e-4
    )
