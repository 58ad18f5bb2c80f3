"""The second task: where the lesion is."""

import pytest
import torch
from tiny_network import tiny_network

from dermalyze.config.schema import ModelConfig
from dermalyze.models.classifier import build_classifier
from dermalyze.models.mask_decoder import TwoTasks, build_mask_decoder


def timm_classifier():
    config = ModelConfig(name="test_efficientnet", pretrained=False)
    return build_classifier(config, 64, 7)[0]


# The tiny network gives no levels: 16 pixels to 4 places; an eighth of 64 pixels is 8.
@pytest.mark.parametrize(
    ("build", "side", "places"), [(tiny_network, 16, 4), (timm_classifier, 64, 8)]
)
def test_a_decoder_answers_by_place_and_leaves_the_logits_as_they_are(build, side, places):
    torch.manual_seed(0)
    classifier = build()
    both = TwoTasks(classifier, build_mask_decoder(classifier.backbone, side)).eval()
    images = torch.rand(3, 3, side, side)
    with torch.no_grad():
        logits, where = both(images)
        torch.testing.assert_close(logits, classifier(images))
    assert where.shape == (3, places, places)


def test_what_a_decoder_learns_reaches_the_first_layer():
    torch.manual_seed(0)
    classifier = timm_classifier()
    both = TwoTasks(classifier, build_mask_decoder(classifier.backbone, 64))
    _, where = both(torch.rand(3, 3, 64, 64))
    where.square().sum().backward()
    assert classifier.backbone.network.conv_stem.weight.grad.abs().max() > 0
