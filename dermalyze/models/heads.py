"""From the final feature map (N, F, h, w) to logits (N, C): two heads.

L = h * w is the number of places of the feature map, K that of the numbers of metadata, 0 for a
head that takes none.
"""

import torch
from torch import Tensor, nn


class SimpleHead(nn.Module):
    """Global average pooling and two hidden layers: (N, F, h, w), (N, K) -> (N, C)."""

    def __init__(
        self, num_features: int, num_classes: int, dropout_rate: float, num_metadata: int = 0
    ) -> None:
        super().__init__()
        self.num_metadata = num_metadata
        self.layers = nn.Sequential(
            nn.Dropout(dropout_rate),
            nn.Linear(num_features + num_metadata, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(dropout_rate),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Dropout(dropout_rate),
            nn.Linear(256, num_classes),
        )
        if num_metadata:
            # Beside its way through the hidden layers: what age or site says of a class by itself
            # would take these many epochs to pass on.
            self.direct = nn.Linear(num_metadata, num_classes, bias=False)
            nn.init.zeros_(self.direct.weight)

    def forward(self, features: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return logits."""
        inputs = self.inputs(features, metadata)
        logits: Tensor = self.layers(inputs)
        if self.num_metadata:
            logits = logits + self.direct(inputs[:, -self.num_metadata :])
        return logits

    def inputs(self, features: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return what enters the first layer: pooled features, then metadata: (N, F + K)."""
        return _with_metadata(features.mean((2, 3)), metadata, self.num_metadata)


class AcrnnHead(nn.Module):
    """Attention over a recurrent reading of all places: (N, F, h, w), (N, K) -> (N, C).

    The map is read row by row as a sequence of L places through a convolution to 128, an LSTM to
    64 and additive attention of width 16 (Bahdanau et al. 2015, eq. 6), whose weighted mean of
    the LSTM's states is classified.
    """

    def __init__(
        self, num_features: int, num_classes: int, dropout_rate: float, num_metadata: int = 0
    ) -> None:
        super().__init__()
        self.num_metadata = num_metadata
        self.convolution = nn.Conv1d(num_features, 128, kernel_size=3, padding=1)
        self.lstm = nn.LSTM(128, 64, batch_first=True)
        self.attention_hidden = nn.Linear(64, 16)
        self.attention_score = nn.Linear(16, 1)
        self.dropout = nn.Dropout(dropout_rate)
        self.classifier = nn.Linear(64 + num_metadata, num_classes)

    def forward(self, features: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return logits."""
        states, weights = self.read(features)
        pooled = (states * weights.unsqueeze(-1)).sum(1)  # (N, 64)
        inputs = _with_metadata(self.dropout(pooled), metadata, self.num_metadata)
        logits: Tensor = self.classifier(inputs)
        return logits

    def attention(self, features: Tensor) -> Tensor:
        """Return how much each place counts: (N, F, h, w) -> (N, h, w), summing to 1 an image."""
        _, weights = self.read(features)
        return weights.view(features.shape[0], *features.shape[2:])

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Read the map: (N, F, h, w) -> states (N, L, 64), attention (N, L), summing to 1."""
        sequence = torch.relu(self.convolution(features.flatten(2)))  # (N, 128, L)
        states, _ = self.lstm(sequence.transpose(1, 2))  # (N, L, 64)
        scores = self.attention_score(torch.tanh(self.attention_hidden(states)))  # (N, L, 1)
        return states, torch.softmax(scores.squeeze(-1).float(), dim=1)


def build_head(
    head_type: str,
    num_features: int,
    num_classes: int,
    dropout_rate: float,
    num_metadata: int = 0,
) -> SimpleHead | AcrnnHead:
    """Build the head that `model.head_type` names."""
    kind = AcrnnHead if head_type == "acrnn" else SimpleHead
    return kind(num_features, num_classes, dropout_rate, num_metadata)


def _with_metadata(pooled: Tensor, metadata: Tensor | None, num_metadata: int) -> Tensor:
    """(N, F), (N, K) -> (N, F + K); without metadata nothing is known, which is all zeros."""
    if num_metadata == 0:
        return pooled
    if metadata is None:
        metadata = pooled.new_zeros((pooled.shape[0], num_metadata))
    return torch.cat([pooled, metadata.to(pooled.dtype)], 1)
