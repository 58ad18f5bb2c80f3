"""What a model knows of its limits, from a table of validation predictions and nothing else.

The same table gives the same limits: what travels in the model file is what the report judges.
Never imports torch.
"""

from dataclasses import dataclass

import numpy as np

from dermalyze.evaluation.calibrators import fit_calibrator
from dermalyze.evaluation.conformal import fit_sets
from dermalyze.evaluation.metrics import Floats
from dermalyze.evaluation.scope import fit_max_score
from dermalyze.evaluation.scored import Scored
from dermalyze.evaluation.selective import RISK, fit_abstention
from serving.limits import Abstention, PredictionSets, Scope
from serving.prediction import softmax


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is fitted on validation predictions."""

    temperature: float
    prediction_sets: PredictionSets
    abstention: Abstention
    scope: Scope | None  # None: the table has no scores

    def probs(self, scored: Scored) -> Floats:
        """Return calibrated probabilities: (N, C)."""
        return softmax(scored.logits, self.temperature)


def fit_limits(validation: Scored) -> Limits:
    """Fit temperature, prediction sets, abstention and, where scores are there, scope."""
    calibrator = fit_calibrator("temperature", validation)
    temperature = float(1 / calibrator.weight[0, 0])
    probs = softmax(validation.logits, temperature)
    scope = None
    if "scope_score" in validation.table:
        scope = fit_max_score(
            validation.table["scope_score"].to_numpy(np.float64),
            validation.table["photo_problem"].to_numpy(np.float64) > 0,
            validation.lesions,
        )
    arguments = (probs, validation.targets, validation.lesions)
    return Limits(
        temperature=temperature,
        prediction_sets=fit_sets(*arguments),
        abstention=fit_abstention(*arguments, risk=RISK),
        scope=scope,
    )
