"""The map of evidence, computed forward, against autograd and by hand."""

import numpy as np
import pytest
import torch
from tiny_network import tiny_network

from dermalyze.models.heads import build_head
from dermalyze.models.saliency import saliency_of


def head_of(kind, num_metadata=0, seed=0):
    """A head whose norms have statistics and scales of their own, in evaluation mode."""
    torch.manual_seed(seed)
    head = build_head(kind, 12, 7, 0.3, num_metadata)
    head.train()
    for _ in range(3):
        head(3 * torch.randn(16, 12, 3, 4), torch.randn(16, num_metadata))
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, -1.5, 1.5)
            torch.nn.init.normal_(module.bias)
    return head.eval()


def grad_cam_by_autograd(head, features, metadata):
    """Selvaraju et al. (2017), equations 1 and 2, one class after the other."""
    maps = []
    for target in range(7):
        known = features.clone().requires_grad_()
        logits = head(known, metadata)
        (gradient,) = torch.autograd.grad(logits[:, target].sum(), known)
        weights = gradient.mean((2, 3), keepdim=True)
        maps.append(torch.relu((weights * features).sum(1)))
    return torch.stack(maps, 1)


@pytest.mark.parametrize("num_metadata", [0, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_map_is_autograds_grad_cam_for_every_class(seed, num_metadata):
    head = head_of("simple", num_metadata, seed)
    features, metadata = torch.randn(9, 12, 3, 4) * 2, torch.randn(9, num_metadata)
    expected = grad_cam_by_autograd(head, features, metadata)
    found = saliency_of(head, features, metadata)
    assert found.shape == (9, 7, 3, 4)
    assert expected.amax() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_without_metadata_the_map_is_that_of_unknown_metadata():
    head = head_of("simple", 5)
    features = torch.randn(4, 12, 3, 4)
    torch.testing.assert_close(
        saliency_of(head, features, None), saliency_of(head, features, torch.zeros(4, 5))
    )


def test_the_evidence_of_all_places_and_the_bias_are_the_logits_of_acrnn():
    head = head_of("acrnn")
    features = torch.randn(4, 12, 3, 5)
    with torch.no_grad():
        states, attention = head.read(features)
        evidence = torch.einsum("nlk,ck,nl->ncl", states, head.classifier.weight, attention)
        torch.testing.assert_close(evidence.sum(2) + head.classifier.bias, head(features))
        expected = evidence.clamp(min=0).view(4, 7, 3, 5)
        torch.testing.assert_close(saliency_of(head, features), expected)


def rank_correlation(one, other):
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (one, other)]
    return np.corrcoef(*ranks)[0, 1]


@pytest.mark.parametrize("kind", ["simple", "acrnn"])
def test_a_map_changes_when_the_weights_are_drawn_anew(kind):
    # Adebayo et al., "Sanity checks for saliency maps" (2018): a map that stays shows edges.
    network = tiny_network(head_type=kind)
    images = torch.rand(20, 3, 40, 40)
    with torch.no_grad():
        features = network.backbone(images)
        before = saliency_of(network.head, features).numpy()
        torch.manual_seed(9)
        for parameter in network.head.parameters():
            parameter.normal_(0, 0.3)
        after = saliency_of(network.head, features).numpy()
    correlations = [
        rank_correlation(one, other)
        for one, other in zip(before.reshape(-1, 100), after.reshape(-1, 100), strict=True)
        if one.max() > 0 and other.max() > 0
    ]
    assert len(correlations) > 30
    assert abs(np.mean(correlations)) < 0.5
