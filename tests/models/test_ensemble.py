"""Several networks and views as one; what ensembles and turns must keep."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tiny_network import tiny_network

from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.out_of_distribution import ScopeScore
from dermalyze.models.test_time_augmentation import upright, views_of

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), np.uint8))
ALL = ("logits", "member_logits", "scope_score", "saliency")


def member(seed, head_type="simple"):
    torch.manual_seed(seed)
    scope = ScopeScore(torch.rand(6), torch.randn(6, 3))
    return Member(tiny_network(seed, head_type), scope).eval()


def answers(network, pixels=PIXELS, names=ALL):
    with torch.no_grad():
        return {name: values.numpy() for name, values in network(pixels, None, names).items()}


def test_the_views_are_eight_different_ones_and_turn_back():
    image = torch.rand(2, 3, 5, 5)
    views = views_of(image).unflatten(0, (8, 2))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    # Each is one of the quarter turns of the image or of its mirror image.
    turns = [torch.rot90(side, k, (2, 3)) for side in (image, image.flip(3)) for k in range(4)]
    assert all(any(torch.equal(view, turn) for turn in turns) for view in views)
    torch.testing.assert_close(upright(views), image.expand(8, -1, -1, -1, -1))


def test_an_ensemble_answers_with_the_mean_probability_of_its_members():
    members = [member(0), member(1), member(2)]
    found = answers(ShippedNetwork(members))
    alone = [answers(ShippedNetwork([one]), names=("logits", "scope_score")) for one in members]
    probs = np.mean([softmax(one["logits"], axis=1) for one in alone], axis=0)
    np.testing.assert_allclose(np.exp(found["logits"]), probs, atol=1e-6)
    expected = np.stack([one["logits"] for one in alone], axis=1)
    np.testing.assert_allclose(found["member_logits"], expected, atol=1e-5)
    scores = np.mean([one["scope_score"] for one in alone], axis=0)
    np.testing.assert_allclose(found["scope_score"], scores, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_with_eight_views_a_turned_image_gets_the_same_answer_and_a_turned_map(k):
    network = ShippedNetwork([member(0), member(1)], num_views=8)
    one, turned = answers(network), answers(network, torch.rot90(PIXELS, k, (1, 2)))
    np.testing.assert_allclose(turned["logits"], one["logits"], atol=1e-5)
    expected = np.rot90(one["saliency"], k, (2, 3))
    np.testing.assert_allclose(turned["saliency"], expected, atol=1e-5)
    assert one["member_logits"].shape == (5, 16, 7)
    plain = answers(ShippedNetwork([member(0)])), answers(ShippedNetwork([member(0)]))
    assert not np.allclose(plain[0]["logits"], one["logits"], atol=1e-3)


def test_the_scope_score_is_that_of_the_image_as_it_is():
    one, turned = ShippedNetwork([member(0)]), ShippedNetwork([member(0)], num_views=8)
    np.testing.assert_allclose(
        answers(one, names=("scope_score",))["scope_score"],
        answers(turned, names=("scope_score",))["scope_score"],
        rtol=1e-5,
    )


def test_a_single_network_is_handed_through():
    one = member(3)
    found = answers(ShippedNetwork([one]), names=("logits",))
    with torch.no_grad():
        expected = one.classifier(PIXELS.permute(0, 3, 1, 2) / 255).numpy()
    np.testing.assert_array_equal(found["logits"], expected)


def test_attention_of_acrnn_heads_is_averaged_and_turned_back_too():
    one, other = member(0, "acrnn"), member(1, "acrnn")
    with torch.no_grad():
        images = PIXELS.permute(0, 3, 1, 2) / 255
        expected = [
            m.classifier.head.attention(m.classifier.backbone(images)).numpy() for m in (one, other)
        ]
    found = answers(ShippedNetwork([one, other]), names=("attention",))["attention"]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-6)
    views = ShippedNetwork([one], num_views=8)
    upright_map = answers(views, names=("attention",))["attention"]
    turned = answers(views, torch.rot90(PIXELS, 1, (1, 2)), names=("attention",))["attention"]
    np.testing.assert_allclose(turned, np.rot90(upright_map, 1, (1, 2)), atol=1e-6)
    np.testing.assert_allclose(upright_map.sum((1, 2)), 1, atol=1e-5)
