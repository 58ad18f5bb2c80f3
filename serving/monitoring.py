"""What answers looked like on validation images, in the spec: what `monitor` compares with.

C classes, Q cuts.  Never imports torch.
"""

from dataclasses import dataclass

from serving.uncertainty import SpecPart, is_number, require_part

Cuts = tuple[tuple[float, float], ...]  # (Q, 2): a value, and the share of images not above it


@dataclass(frozen=True, kw_only=True)
class Monitoring(SpecPart):
    """Shares of validation images; none of an image says anything about a patient."""

    num_independent: int  # images that would say as much if none showed a lesion of another
    class_shares: tuple[float, ...]  # (C,), of predicted classes
    mean_confidence: float
    confidence: Cuts
    embedding: tuple[Cuts, ...]  # (C, Q, 2), of centered log probabilities
    scope_score: Cuts  # empty: not known
    photo_problems: float | None  # share of poor photographs; None: not known
    accuracy: float

    def __post_init__(self) -> None:
        """Refuse what no comparison could use."""
        shares = [*self.class_shares, self.mean_confidence, self.accuracy]
        shares += [0.0 if self.photo_problems is None else self.photo_problems]
        every = (self.confidence, self.scope_score, *self.embedding)
        shares += [share for cuts in every for _, share in cuts]
        require_part(
            all(is_number(share) and 0 <= share <= 1 for share in shares)
            and all(is_number(value) for cuts in every for value, _ in cuts),
            "monitoring",
            "numbers, and shares from 0 to 1",
            self,
        )
        require_part(
            type(self.num_independent) is int and self.num_independent > 0,
            "monitoring.num_independent",
            "a number of images",
            self.num_independent,
        )
