"""Where in an image the evidence for each class lies, computed forward, without autograd.

N images, C classes, F features, h x w places of the final feature map, L = h * w.
"""

import torch
from torch import Tensor, nn

from dermalyze.models.heads import AcrnnHead, SimpleHead


def saliency_of(
    head: SimpleHead | AcrnnHead, features: Tensor, metadata: Tensor | None = None
) -> Tensor:
    """Return a map of each class: (N, F, h, w), (N, K) -> (N, C, h, w), at least 0.

    The head must be in evaluation mode.
    """
    if isinstance(head, AcrnnHead):
        return _attention_evidence(head, features)
    return _grad_cam(head, features, metadata)


def _grad_cam(head: SimpleHead, features: Tensor, metadata: Tensor | None) -> Tensor:
    """Grad-CAM (Selvaraju et al., "Grad-CAM", 2017, equations 1 and 2), exactly.

    In evaluation mode the head is piecewise linear, so the gradient of a logit by the pooled
    features is a product of weight matrices, batch norm scales and ReLU masks.  Pooling spreads it
    evenly over the L places.
    """
    layers: list[tuple[nn.Module, Tensor | None]] = []
    values = head.inputs(features, metadata)
    for layer in head.layers:  # forward, keeping where each ReLU lets through
        if isinstance(layer, nn.ReLU):
            layers.append((layer, values > 0))
            values = layer(values)
        elif not isinstance(layer, nn.Dropout):
            layers.append((layer, None))
            values = layer(values)
    num_classes = values.shape[1]
    gradient = torch.eye(num_classes, dtype=values.dtype, device=values.device)[None]  # (1, C, C)
    for layer, passes in reversed(layers):
        if isinstance(layer, nn.Linear):
            gradient = gradient @ layer.weight
        elif isinstance(layer, nn.BatchNorm1d):
            assert layer.running_var is not None
            gradient = gradient * (layer.weight / torch.sqrt(layer.running_var + layer.eps))
        elif passes is not None:
            gradient = gradient * passes[:, None].to(gradient.dtype)  # (N, C, width)
    places = features.flatten(2)  # (N, F, L)
    weights = gradient[..., : places.shape[1]] / places.shape[2]  # without those of metadata
    maps = torch.relu(weights @ places)  # (N, C, L)
    return maps.reshape(*maps.shape[:2], *features.shape[2:])


def _attention_evidence(head: AcrnnHead, features: Tensor) -> Tensor:
    """What each place adds to each logit, where that is more than nothing.

    A logit is a sum over places of attention times (class weights . state), plus a bias: this is
    the positive part of each summand.  The state of a place has read all places before it, so it
    is evidence as of that place, not of it alone.
    """
    states, attention = head.read(features)
    evidence = states @ head.classifier.weight[:, : states.shape[2]].T  # (N, L, C)
    maps = torch.relu(evidence * attention.unsqueeze(-1)).transpose(1, 2)
    return maps.reshape(*maps.shape[:2], *features.shape[2:])
