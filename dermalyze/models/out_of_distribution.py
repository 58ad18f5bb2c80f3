"""The scope score of `evaluation.scope` as a part of the network.  N images, E early features."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ScopeScore(nn.Module):
    """How unlike the known images: early features (N, E) -> (N,)."""

    mean: Tensor
    projection: Tensor

    def __init__(self, mean: Tensor, projection: Tensor) -> None:
        """Take the arrays of a `ScopeFit`: float32 (E,), (E, D)."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> "ScopeScore":
        """Build it from its own state dict; raises KeyError where something is missing."""
        return cls(state["mean"], state["projection"])

    def forward(self, early: Tensor) -> Tensor:
        """Return squared Mahalanobis distances, per dimension."""
        reduced = (early - self.mean) @ self.projection
        return torch.square(reduced).mean(1)
