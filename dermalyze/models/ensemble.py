"""What is shipped: one or several networks with all that they answer, as one module.

PyTorch answers with it and the ONNX graph is made of it, so that both are the same computation.
N images of H x W pixels, C classes, M members (networks times views), h x w places of a map, E
early features.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dermalyze.models.classifier import Classifier, to_images
from dermalyze.models.heads import AcrnnHead
from dermalyze.models.out_of_distribution import ScopeScore
from dermalyze.models.saliency import saliency_of
from dermalyze.models.test_time_augmentation import NUM_VIEWS, upright, views_of


class Member(nn.Module):
    """One network, and how unlike the images that it was judged on an image is."""

    conversion: Tensor | None

    def __init__(self, classifier: Classifier, scope: ScopeScore | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.scope = scope
        # (K, K'), from the metadata of an ensemble to the member's own; None: they are the same.
        self.register_buffer("conversion", None)

    def forward(
        self, images: Tensor, metadata: Tensor | None, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return logits (N, C) and what is asked for beside them.

        That may be early (N, E), scope_score (N,), saliency (N, C, h, w) and, of an acrnn head,
        attention (N, h, w).

        Args:
            images: float32 (N, 3, H, W) in 0..1.
            metadata: float32 (N, K), for a network that takes it.
            names: what is wanted beside the logits.
        """
        if metadata is not None and self.conversion is not None:
            metadata = metadata @ self.conversion
        early = None
        if "early" in names or "scope_score" in names:
            features, early = self.classifier.backbone.with_early(images)
        else:
            features = self.classifier.backbone(images)
        outputs = {"logits": self.classifier.head(features, metadata)}
        if early is not None:
            outputs["early"] = early
        if "scope_score" in names:
            assert self.scope is not None
            outputs["scope_score"] = self.scope(early)
        if "saliency" in names:
            outputs["saliency"] = saliency_of(self.classifier.head, features, metadata)
        if "attention" in names:
            assert isinstance(self.classifier.head, AcrnnHead)
            outputs["attention"] = self.classifier.head.attention(features)
        return outputs


class ShippedNetwork(nn.Module):
    """Pixels to answers: the members' probabilities and the rest of what they say, averaged."""

    def __init__(self, members: Sequence[Member], *, num_views: int = 1) -> None:
        super().__init__()
        assert num_views in (1, NUM_VIEWS)
        self.members = nn.ModuleList(members)
        self.num_views = num_views

    @property
    def only(self) -> Member:
        """The member of a network that has one."""
        (member,) = self.members
        assert isinstance(member, Member)
        return member

    def forward(
        self, pixels: Tensor, metadata: Tensor | None = None, names: Sequence[str] = ("logits",)
    ) -> dict[str, Tensor]:
        """Return what is asked for.

        The logits of several members are the logarithm of their mean probability (Lakshminarayanan
        et al., "Simple and scalable predictive uncertainty estimation using deep ensembles", 2017,
        section 2.4).

        Args:
            pixels: uint8 (N, H, W, 3); square for eight views.
            metadata: float32 (N, K), for networks that take it.
            names: some of logits (N, C), member_logits (N, M, C), scope_score (N,), saliency
                (N, C, h, w), of acrnn heads attention (N, h, w), and of one network alone early
                (N, E).
        """
        images = to_images(pixels)
        if self.num_views > 1:
            images = views_of(images)
            metadata = None if metadata is None else metadata.repeat(self.num_views, 1)
        found = [member(images, metadata, names) for member in self.members]
        return {name: self._pooled(name, found) for name in names}

    def _pooled(self, name: str, found: Sequence[dict[str, Tensor]]) -> Tensor:
        if len(found) == 1 and self.num_views == 1 and name != "member_logits":
            return found[0][name]
        if name in ("logits", "member_logits"):
            logits = torch.cat([self._views(outputs["logits"]) for outputs in found])  # (M, N, C)
            if name == "member_logits":
                return logits.transpose(0, 1)
            return torch.logsumexp(torch.log_softmax(logits, 2), 0) - math.log(len(logits))
        parts = [self._views(outputs[name]) for outputs in found]  # each (V, N, ...)
        if name == "scope_score":  # its limit was fitted on images as they are
            return torch.stack([part[0] for part in parts]).mean(0)
        if name in ("saliency", "attention"):
            maps = [part if name == "saliency" else part.unsqueeze(2) for part in parts]
            if self.num_views > 1:
                maps = [upright(part) for part in maps]
            size = maps[0].shape[3:]
            maps = [part if part.shape[3:] == size else _resized(part, size) for part in maps]
            mean = torch.cat(maps).mean(0)  # (N, C, h, w), or (N, 1, h, w)
            return mean if name == "saliency" else mean.squeeze(1)
        raise AssertionError(f"{name} of several networks is not one value")

    def _views(self, values: Tensor) -> Tensor:
        """(V N, ...) -> (V, N, ...)."""
        return values.reshape(self.num_views, -1, *values.shape[1:])


def _resized(maps: Tensor, size: torch.Size) -> Tensor:
    """(V, N, C, h, w) -> (V, N, C, *size)."""
    flat = nn.functional.interpolate(maps.flatten(0, 1), tuple(size), mode="bilinear")
    return flat.reshape(*maps.shape[:3], *size)
