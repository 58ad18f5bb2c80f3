"""Do the limits hold that were fitted on validation images?  Judged on other ones, with intervals.

N images, C classes, R replicates.  Never imports torch.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from dermalyze.evaluation.bootstrap import Basis, interval_of, lesion_weights
from dermalyze.evaluation.limits import Limits
from dermalyze.evaluation.metrics import Floats
from dermalyze.evaluation.scope import lesion_shares
from dermalyze.evaluation.scored import Scored
from dermalyze.evaluation.selective import CONFIDENCE, area_under, risk_coverage
from serving.limits import DEFAULT_LEVEL

_CURVE_POINTS = 100


def judge_limits(scored: Scored, limits: Limits, *, replicates: int) -> dict[str, Any]:
    """Judge limits on images that they were not fitted on; the form of judgement.json.

    Args:
        scored: N images; with scope scores in their table, where the limits have a scope.
        limits: fitted on others.
        replicates: bootstrap samples of the lesions behind each interval.
    """
    probs = limits.probs(scored)
    shares = lesion_shares(scored.lesions)
    drawn = lesion_weights(scored.lesions, replicates, 0) * shares
    return {
        "temperature": limits.temperature,
        "prediction_sets": _judge_sets(scored, limits, probs, shares, drawn),
        "abstention": _judge_abstention(scored, limits, probs, shares, drawn),
        **_judge_scope(scored, limits, shares, drawn),
    }


def _judge_sets(
    scored: Scored, limits: Limits, probs: Floats, shares: Floats, drawn: Floats
) -> dict[str, Any]:
    sets = limits.prediction_sets
    members = sets.members(probs, DEFAULT_LEVEL)  # (N, C)
    covered = members[np.arange(len(scored)), scored.targets].astype(np.float64)
    sizes = members.sum(axis=1)
    unsupported = sets.unsupported(DEFAULT_LEVEL)
    classes = {}
    for target, name in enumerate(scored.class_names):
        own = scored.targets == target
        num_lesions = len(np.unique(scored.lesions[own]))
        classes[name] = {
            "calibration_lesions": sets.num_lesions[target],
            "in_every_set": bool(unsupported[target]),
            "num_lesions": num_lesions,
            "coverage": _mean(
                covered, shares * own, drawn * own, Basis(num_lesions=num_lesions, group=name)
            )
            if num_lesions
            else None,
        }
    return {
        "level": DEFAULT_LEVEL,
        "classes": classes,
        "mean_size": float(shares @ sizes),
        "single": float(shares @ (sizes == 1)),
        "sizes": [float(shares @ (sizes == size)) for size in range(1, len(classes) + 1)],
    }


def _judge_abstention(
    scored: Scored, limits: Limits, probs: Floats, shares: Floats, drawn: Floats
) -> dict[str, Any]:
    abstention = limits.abstention
    answered = (probs.max(axis=1) >= abstention.min_confidence).astype(np.float64)
    wrong = (probs.argmax(axis=1) != scored.targets).astype(np.float64)
    curve = risk_coverage(probs, scored.targets, scored.lesions)
    points = np.unique(np.linspace(0, len(scored) - 1, _CURVE_POINTS).round().astype(int))
    basis = Basis(num_lesions=scored.num_lesions)
    answered_lesions = Basis(num_lesions=len(np.unique(scored.lesions[answered > 0])))
    area = area_under(probs, scored.targets, shares[None])[0]
    areas = area_under(probs, scored.targets, drawn)
    return {
        "stated_risk": abstention.risk,
        "confidence": CONFIDENCE,
        "min_confidence": abstention.min_confidence,
        "coverage": _mean(answered, shares, drawn, basis),
        "risk": _mean(wrong, shares * answered, drawn * answered, answered_lesions)
        if answered.any()
        else None,
        "aurc": asdict(interval_of(float(area), areas, basis)),
        "curve": {
            "coverage": curve.coverage[points].tolist(),
            "risk": curve.risk[points].tolist(),
        },
    }


def _judge_scope(scored: Scored, limits: Limits, shares: Floats, drawn: Floats) -> dict[str, Any]:
    scope = limits.scope
    if scope is None or "scope_score" not in scored.table:
        return {}
    scores = scored.table["scope_score"].to_numpy(np.float64)
    problems = scored.table["photo_problem"].to_numpy(np.float64) > 0
    alarms = ((scores > scope.max_score) | problems).astype(np.float64)
    basis = Basis(num_lesions=scored.num_lesions)
    return {
        "scope": {
            "kind": scope.kind,
            "max_score": scope.max_score,
            "fitted_false_alarm_rate": scope.false_alarm_rate,
            "false_alarm_rate": _mean(alarms, shares, drawn, basis),
            "photo_problems": float(shares @ problems),
        }
    }


def _mean(values: Floats, weights: Floats, drawn: Floats, basis: Basis) -> dict[str, Any]:
    """Return the weighted mean of (N,) with its interval from replicates' weights (R, N)."""
    totals = drawn.sum(axis=1)
    means = np.divide(drawn @ values, totals, out=np.full(len(drawn), np.nan), where=totals > 0)
    return asdict(interval_of(float(weights @ values / weights.sum()), means, basis))
