import torch
from torch import nn

from dermalyze.models.heads import AcrnnHead, SimpleHead


def features(n=3, f=16, h=4, w=5):
    return torch.randn(n, f, h, w, generator=torch.Generator().manual_seed(0))


def test_the_simple_head_has_the_layers_that_are_promised():
    head = SimpleHead(16, 7, 0.3)
    kinds = [type(layer) for layer in head.layers]
    hidden = [nn.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Dropout, nn.Linear]
    widths = [layer.out_features for layer in head.layers if isinstance(layer, nn.Linear)]
    assert widths == [512, 256, 7]


def test_the_simple_head_pools_so_that_the_order_of_places_is_nothing_to_it():
    head = SimpleHead(16, 7, 0.3).eval()
    flipped = features().flip(3)
    torch.testing.assert_close(head(features()), head(flipped))


def test_shuffling_places_changes_the_answer_of_the_acrnn_head():
    torch.manual_seed(0)
    head = AcrnnHead(16, 7, 0.3).eval()
    places = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = features().flatten(2)[:, :, places].view(3, 16, 4, 5)
    difference = (head(features()) - head(shuffled)).abs().max().item()
    assert difference > 1e-4  # float32 rounding is a hundred times smaller


def test_attention_covers_all_places_sums_to_one_and_is_not_constant():
    torch.manual_seed(0)
    head = AcrnnHead(16, 7, 0.3).eval()
    weights = head.attention(features())
    assert weights.shape == (3, 4, 5)
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(3))
    assert (weights > 0).all()
    assert weights.flatten(1).std(1).min() > 1e-5
    assert not torch.allclose(weights[0], weights[1], atol=1e-5)


def test_attention_learns_to_look_where_the_signal_is():
    """The label stands at one random place of noise; attention must go there."""
    torch.manual_seed(0)
    head = AcrnnHead(8, 2, 0.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)

    def batch():
        targets = torch.randint(0, 2, (64,), generator=generator)
        places = torch.randint(0, 16, (64,), generator=generator)
        maps = 0.1 * torch.randn(64, 8, 16, generator=generator)
        maps[torch.arange(64), targets, places] += 3.0
        return maps.view(64, 8, 4, 4), targets, places

    for _ in range(150):
        maps, targets, _ = batch()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(maps), targets).backward()
        optimizer.step()
    maps, targets, places = batch()
    accuracy = (head(maps).argmax(1) == targets).float().mean().item()
    assert accuracy > 0.95
    weights = head.attention(maps).flatten(1)
    # An LSTM carries what it saw onwards, so the mass lies at the place or behind it.
    behind = torch.stack([w[p:].sum() for w, p in zip(weights, places, strict=True)])
    uniform = (16 - places) / 16
    assert (behind > uniform).float().mean() > 0.8
