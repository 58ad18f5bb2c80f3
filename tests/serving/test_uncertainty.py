"""The parts of the spec that hold limits: what cannot be is refused with one sentence."""

import pytest

from serving.errors import ArtifactError
from serving.uncertainty import Abstention, PredictionSets, Referral, Scope

SETS = {"levels": (0.8, 0.9), "min_probs": ((0.5, 0.2), (0.4, 0.0)), "num_lesions": (30, 5)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ()}, "prediction_sets.levels (), expected ascending fractions"),
        ({"levels": (0.9, 0.8)}, "prediction_sets.levels (0.9, 0.8), expected ascending fractions"),
        ({"levels": (0.8, 1.0)}, "prediction_sets.levels (0.8, 1.0), expected ascending fractions"),
        (
            {"min_probs": ((0.5, 0.2), (0.1, 0.4))},  # a higher level must not ask for more
            "prediction_sets.min_probs ((0.5, 0.2), (0.1, 0.4)), expected one row per "
            "class, with probabilities that fall from level to level",
        ),
        (
            {"min_probs": ((0.5, 0.2),)},
            "prediction_sets.min_probs ((0.5, 0.2),), expected one row per class, with "
            "probabilities that fall from level to level",
        ),
        (
            {"num_lesions": (30, -1)},
            "prediction_sets.num_lesions (30, -1), expected a number of lesions per class",
        ),
    ],
)
def test_sets_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ArtifactError) as caught:
        PredictionSets(**SETS | changes)
    assert str(caught.value) == f"the model's spec has {message}; export the model again"


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            Abstention,
            {"risk": 0.1, "min_confidence": -0.1, "coverage": 0.5, "num_lesions": 9},
            "abstention.min_confidence -0.1, expected a number from 0 to 2",
        ),
        (
            Abstention,
            {"risk": 0.1, "min_confidence": 0.5, "coverage": 0.5, "num_lesions": 9.5},
            "abstention.num_lesions 9.5, expected a number of lesions",
        ),
        (
            Scope,
            {"kind": "x", "max_score": float("nan"), "false_alarm_rate": 0.1, "num_lesions": 9},
            "scope.max_score nan, expected a number",
        ),
        (
            Scope,
            {"kind": "", "max_score": 1.0, "false_alarm_rate": 0.1, "num_lesions": 9},
            "scope.kind '', expected a name",
        ),
        (
            Scope,
            {"kind": "x", "max_score": 1.0, "false_alarm_rate": 5, "num_lesions": 9},
            "scope.false_alarm_rate 5, expected a number from 0 to 1",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(kind, values, message):
    with pytest.raises(ArtifactError) as caught:
        kind(**values)
    assert str(caught.value) == f"the model's spec has {message}; export the model again"


REFERRAL = {
    "levels": (0.8, 0.9),
    "min_probs": (0.3, 0.2),
    "specificities": (0.9, 0.8),
    "confidence": 0.95,
    "num_malignant": 40,
    "num_benign": 90,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (0.9, 0.8)}, "referral.levels (0.9, 0.8), expected ascending fractions"),
        (
            {"min_probs": (0.2, 0.3)},
            "referral.min_probs (0.2, 0.3), expected a fraction per level, none above the one "
            "before",
        ),
        (
            {"specificities": (0.9,)},
            "referral.specificities (0.9,), expected a fraction per level, none above the one "
            "before",
        ),
        ({"confidence": 1}, "referral.confidence 1, expected a fraction"),
        ({"num_benign": -1}, "referral.num_benign -1, expected a number of lesions"),
    ],
)
def test_a_referral_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ArtifactError) as caught:
        Referral(**REFERRAL | changes)
    assert str(caught.value) == f"the model's spec has {message}; export the model again"
