"""All statistics of a set of predictions in one place: what the report, the cards and tests read.

Everything follows from two tables of predictions, so it can be made again without a network, for
anybody's predictions in that form.  C classes.  Never imports torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.config import EvaluationConfig
from dermalyze.evaluation.bootstrap import LEVEL, intervals, replicated
from dermalyze.evaluation.calibration import calibration_errors
from dermalyze.evaluation.calibrators import (
    Calibrator,
    correct_priors,
    estimate_priors,
    fit_calibrator,
    parse_prevalence,
    require_disjoint,
    require_lesions,
)
from dermalyze.evaluation.clinical import decision_curve, malignant_roc
from dermalyze.evaluation.explanations import judge_maps
from dermalyze.evaluation.limits import fit_limits
from dermalyze.evaluation.limits_judged import judge_limits
from dermalyze.evaluation.metrics import Counts, Floats
from dermalyze.evaluation.scored import Scored
from dermalyze.evaluation.subgroups import judge_subgroups
from serving.errors import ConfigError
from serving.whole import write_text

JUDGEMENT = "judgement.json"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What predictions are worth."""

    judgement: dict[str, Any]  # what judgement.json holds
    calibrated: Scored | None  # the same images after the calibrator; None without one


def judge(
    scored: Scored,
    validation: Scored | None,
    settings: EvaluationConfig,
    *,
    split: str,
    trained_priors: Floats | None = None,
    explanations: pd.DataFrame | None = None,
) -> Judged:
    """Judge predictions; every number with what it rests on.

    Args:
        scored: the predictions that are judged.
        validation: those that calibrator and limits are fitted on; None: there are none.
        settings: replicates, calibrator, stated prevalence.
        split: what `scored` is called.
        trained_priors: fractions (C,) of the classes that training made the network see.
        explanations: how maps of evidence did on lesion masks, as `measure_maps` gave it.

    Raises:
        DataError: what is judged holds a lesion that the calibrator was fitted on.
        ConfigError: the prevalence is not one.
    """
    calibrated, calibration = scored, {}
    if validation is not None:
        require_disjoint(scored, validation)
        calibrator = fit_calibrator(settings.calibrator, validation)
        calibrated = scored.with_logits(calibrator.apply(scored.logits))
        calibration = {"calibration": _calibration(scored, calibrated, calibrator)}
        if (
            settings.calibrator != "temperature"
        ):  # it has moved the priors to those it was fitted on
            trained_priors = seen_priors(
                validation.targets, len(validation.class_names), balanced=False
            )
    found = intervals(
        scored, replicates=settings.replicates, min_sensitivity=settings.min_sensitivity
    )
    roc, decision = malignant_roc(scored), decision_curve(calibrated)
    limits = {}
    if validation is not None:
        fitted = fit_limits(validation)
        limits = {"limits": judge_limits(scored, fitted, replicates=settings.replicates)}
    maps = {}
    if explanations is not None:
        maps = {"explanations": judge_maps(explanations, len(scored), settings.replicates)}
    judgement: dict[str, Any] = {
        "split": split,
        "num_images": len(scored),
        "num_lesions": scored.num_lesions,
        "class_names": list(scored.class_names),
        "level": LEVEL,
        "replicates": settings.replicates,
        "min_sensitivity": settings.min_sensitivity,
        "intervals": {name: asdict(interval) for name, interval in found.items()},
        "subgroups": judge_subgroups(scored, replicates=settings.replicates).to_dict(),
        **calibration,
        **limits,
        **maps,
    }
    if roc is not None and decision is not None:
        judgement |= {"malignant_roc": roc.to_dict(), "decision_curve": decision.to_dict()}
    if settings.prevalence != "none":
        if trained_priors is None:
            raise ConfigError(
                "evaluation.prevalence needs the shares that training made the network see, which "
                "are not known of these predictions; set it to none"
            )
        judgement["prevalence"] = _prevalence(calibrated, settings, trained_priors)
    return Judged(judgement=judgement, calibrated=None if validation is None else calibrated)


def check_settings(
    settings: EvaluationConfig, validation_rows: pd.DataFrame, class_names: Sequence[str]
) -> None:
    """Refuse before a training what `judge` would refuse after it.

    Raises:
        DataError: there are too few validation lesions for the calibrator.
        ConfigError: the prevalence is not one.
    """
    require_lesions(settings.calibrator, validation_rows, class_names)
    if settings.prevalence not in ("none", "estimate"):
        parse_prevalence(settings.prevalence, class_names)


def write_judgement(folder: Path, judgement: Mapping[str, Any]) -> None:
    """Write a judgement as JSON, whole or not at all."""
    text = json.dumps(judgement, indent=1, allow_nan=False) + "\n"
    write_text(folder / JUDGEMENT, text)


def seen_priors(targets: Counts, num_classes: int, *, balanced: bool) -> Floats:
    """Return the class fractions (C,) that a network learns from targets (N,).

    Class weights and weighted sampling make all classes that occur equally common.
    """
    counts = np.bincount(targets, minlength=num_classes)
    seen = (counts > 0 if balanced else counts).astype(np.float64)
    return np.asarray(seen / seen.sum())


def _calibration(scored: Scored, calibrated: Scored, calibrator: Calibrator) -> dict[str, Any]:
    return {
        "calibrator": calibrator.to_dict(),
        "before": calibration_errors(scored.logits, scored.targets).to_dict(),
        "after": calibration_errors(calibrated.logits, calibrated.targets).to_dict(),
    }


def _prevalence(
    calibrated: Scored, settings: EvaluationConfig, trained_priors: Floats
) -> dict[str, Any]:
    """Judge the answers as if classes were as common as stated, with and without the correction.

    Images are weighted so that each class has its stated share.
    """
    if settings.prevalence == "estimate":
        stated = estimate_priors(calibrated.logits, trained_priors)
    else:
        stated = parse_prevalence(settings.prevalence, calibrated.class_names)
    corrected = calibrated.with_logits(correct_priors(calibrated.logits, trained_priors, stated))
    counts = np.bincount(calibrated.targets, minlength=len(stated))
    share = np.divide(stated, counts, out=np.zeros(len(stated)), where=counts > 0)
    weights = share[calibrated.targets][None, :] * len(calibrated)  # (1, N)
    result: dict[str, Any] = {
        "trained": dict(zip(calibrated.class_names, trained_priors.tolist(), strict=True)),
        "stated": dict(zip(calibrated.class_names, stated.tolist(), strict=True)),
    }
    for name, answers in (("before", calibrated), ("after", corrected)):
        values = replicated(answers, weights)
        result[name] = {key: float(values[key][0]) for key in ("loss", "accuracy", "ece")}
    return result
