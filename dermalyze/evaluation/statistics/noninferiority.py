"""Whether a new model may replace the champion: by intervals, not by a lucky third digit.

Never imports torch.
"""

from dataclasses import dataclass

from dermalyze.config.schema import CHAMPION_CLASS_METRICS, require
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.comparison import noninferior
from serving.errors import DataError
from serving.taxonomy import Taxonomy

CALIBRATION = "brier"  # a proper score; resampling raises ece, so its bound would not be honest


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a new champion must show on the champion's own test images."""

    metric: str  # such as balanced_accuracy; higher is better
    margin: float  # how much worse in it the candidate may be, with 95 % confidence
    calibration_margin: float  # likewise in the Brier score, of which calibration is a part
    must_be_better: bool  # whether its estimate must also be the higher one


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether the alias moves, why, and the numbers behind it."""

    promoted: bool
    reason: str
    numbers: dict[str, float]


def require_metric(metric: str, taxonomy: Taxonomy) -> None:
    """Refuse a `tracking.champion_metric` that no model with these classes has.

    Raises:
        ConfigError: it needs a class and names none, names another one, or is about malignancy
            where no class is known to be malignant.
    """
    stem, _, key = metric.removeprefix("test/").partition("/")
    of_class = stem in CHAMPION_CLASS_METRICS
    ok = key in taxonomy.keys if of_class else not key
    expected = f"test/{stem}"
    if of_class:
        expected += f"/ and one of {', '.join(taxonomy.keys)}"
    elif stem.startswith("malignant_") and not taxonomy.malignant:
        ok, expected = False, "test/balanced_accuracy or another metric without malignant_"
        expected += ", since none of these classes is known to be malignant"
    require(ok, "tracking.champion_metric", expected, metric)


def compare_with_champion(
    candidate: Scored, champion: Scored, rule: Rule, incumbent: str
) -> Decision:
    """Decide from both models' predictions for the same images.

    The candidate must be no worse than the champion by more than the margins, each with one-sided
    95 % confidence.  Where `must_be_better`, its estimate must be higher as well: otherwise a row
    of models, each a little worse than the last, would end far below the first.

    Args:
        candidate: its test predictions.
        champion: those of the champion.
        rule: metric and margins.
        incumbent: what the champion is called in the reason.
    """
    try:
        metric = noninferior(candidate, champion, rule.metric, margin=rule.margin)
        calibration = noninferior(candidate, champion, CALIBRATION, margin=rule.calibration_margin)
    except DataError as error:
        return Decision(promoted=False, reason=f"not compared: {error}", numbers={})
    better = metric.difference > 0
    promoted = metric.holds and calibration.holds and (better or not rule.must_be_better)
    reasons = [f"against {incumbent}, {metric.sentence}", calibration.sentence]
    if rule.must_be_better and not better:
        reasons.append("its estimate is not higher")
    numbers = {
        "difference": metric.difference,
        "bound": metric.bound,
        "margin": rule.margin,
        "calibration_difference": calibration.difference,
        "calibration_bound": calibration.bound,
        "calibration_margin": rule.calibration_margin,
    }
    return Decision(promoted=promoted, reason="; ".join(reasons), numbers=numbers)
