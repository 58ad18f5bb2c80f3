"""The figures of a report with their words, and what is said of limits and maps.

Never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from dermalyze.evaluation.evaluate import Evaluation
from dermalyze.evaluation.report import figures
from dermalyze.evaluation.report.text import error_rate, in_words
from dermalyze.evaluation.saliency_check import MapsCheck
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.text import listed, number, percent, things
from dermalyze.evaluation.uncertainty.limits import AbstentionCheck, LimitsCheck

MAP_MEASURES = {
    "mass": "share of the map inside the lesion",
    "pointing": "maximum of the map inside the lesion",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the page, its words for those who do not see it, and its caption."""

    figure: Figure
    alt: str
    caption: str

    @property
    def address(self) -> str:
        """The figure in a `data:` address."""
        return figures.svg_address(self.figure)


def roc(evaluation: Evaluation, scored: Scored) -> list[Picture]:
    """Show the curve of each class and that of malignant against benign, where there are any."""
    curve, pictures = evaluation.malignant_roc, []
    if each := _each(evaluation, "auc"):
        pictures.append(
            Picture(
                figure=figures.roc(scored),
                alt=f"ROC curves, one class against the rest. AUC: {each}.",
                caption="Each class against the rest. The dotted diagonal is guessing.",
            )
        )
    if curve is not None:
        area = in_words(evaluation.intervals.get("malignant_auc"))
        names = listed(evaluation.taxonomy.malignant)
        pictures.append(
            Picture(
                figure=figures.malignant_roc(curve.false_positive_rate, curve.sensitivity),
                alt=f"ROC curve of malignant against benign. AUC: {area}.",
                caption=f"Malignant ({names}) against benign: AUC {area}.",
            )
        )
    return pictures


def precision_recall(evaluation: Evaluation, scored: Scored) -> Picture | None:
    """Show precision over sensitivity of each class; None where no class has a curve."""
    if not _each(evaluation, "auc"):
        return None
    each = _each(evaluation, "average_precision")
    return Picture(
        figure=figures.precision_recall(scored),
        alt="Precision over sensitivity, one class against the rest."
        + (f" Average precision: {each}." if each else ""),
        caption="Each class against the rest. A dot at the left edge is the share of the class: "
        "the precision of guessing.",
    )


def reliability(evaluation: Evaluation, scored: Scored) -> Picture:
    """Show accuracy over confidence, before and after calibration."""
    error = in_words(evaluation.intervals.get("ece"))
    alt = f"Accuracy over confidence, in bins, with the images of each bin. ECE as trained: {error}"
    if evaluation.calibration is not None:
        alt += f"; after calibration: {number(evaluation.calibration.after.ece)}"
    return Picture(
        figure=figures.reliability(scored, evaluation.calibrated(scored)),
        alt=f"{alt}.",
        caption="Below the diagonal the model is overconfident. Hollow marks: few images.",
    )


def decision(evaluation: Evaluation) -> Picture | None:
    """Show the decision curve; None where there is none."""
    curve = evaluation.decision_curve
    if curve is None:
        return None
    useful = [model > max(every, 0.0) for model, every in zip(curve.model, curve.all, strict=True)]
    ranges = _ranges(curve.thresholds, useful)
    where = (
        f"The model is more useful than referring all or none at thresholds {ranges}."
        if ranges
        else "The model is not more useful than referring all or none at any threshold."
    )
    return Picture(
        figure=figures.decision_curve(curve.thresholds, curve.model, curve.all),
        alt=f"Net benefit over the threshold probability of malignant. {where}",
        caption=where,
    )


def training(history: Sequence[Mapping[str, float]], best: int) -> list[Picture]:
    """Show losses and scores over the epochs, with the best one; 0: it is not known."""
    if not history:
        return []
    marked = f" The best epoch is {best}." if best else ""
    last = history[-1]
    ends = [
        f"{label} {number(last[name])}"
        for name, label in (
            ("train/loss", "training loss"),
            ("val/loss", "validation loss"),
            ("val/balanced_accuracy", "validation balanced accuracy"),
        )
        if name in last
    ]
    end = f"In the last of {things(len(history), 'epoch')}: {', '.join(ends)}."
    return [
        Picture(
            figure=figures.training_losses(history, best),
            alt=f"Training and validation loss over the epochs. {end}{marked}",
            caption="Loss. The training loss is the optimized one, with class weights, "
            "augmentation and dropout, so the two curves are not comparable.",
        ),
        Picture(
            figure=figures.training_scores(history, best),
            alt=f"Validation scores over the epochs. {end}{marked}",
            caption="Scores on the validation split, which selects the best epoch.",
        ),
    ]


def risk_coverage(check: AbstentionCheck) -> Picture:
    """Show the error rate over the share of answered lesions."""
    area = in_words(check.aurc)
    dot = "; the dot is the threshold in the model file" if check.coverage.estimate > 0 else ""
    return Picture(
        figure=figures.risk_coverage(
            check.curve.coverage, check.curve.risk, check.stated_risk, check.coverage.estimate
        ),
        alt=f"Error rate among the most confident answers. Area under the curve: {area}.",
        caption=f"Error rate over coverage: area {area}. Answering only the most confident images "
        f"makes fewer mistakes{dot}.",
    )


def limits_sentences(limits: LimitsCheck, unit: str, min_answered: float = 0.0) -> list[str]:
    """Say how often the model answers, how often it is then wrong, and what is out of scope.

    If fewer than `min_answered`, a share, are answered, no error rate is stated.
    """
    check, scope = limits.abstention, limits.scope
    stated = percent(check.stated_risk)
    if check.min_confidence > 1:
        sentences = [
            f"No confidence threshold reliably kept the error rate on validation {unit}s at "
            f"{stated} or below, so every decision is uncertain."
        ]
    else:
        sentences = [
            f"The model answers if its confidence is at least {check.min_confidence:.2f}; on "
            f"validation {unit}s at most {stated} of such answers were wrong on average over all "
            f"classes, with {percent(check.confidence)} confidence.",
            f"Share of {unit}s it answers here: {in_words(check.coverage)}.",
        ]
        if check.risk is not None:
            risk = error_rate(check, min_answered)
            sentences.append(f"Error rate among answered {unit}s: {risk}.")
    if scope is not None:
        sentences.append(
            f"Share of these {unit}s wrongly called out of scope: "
            f"{in_words(scope.false_alarm_rate)}; of the validation {unit}s: "
            f"{percent(scope.fitted_false_alarm_rate)}."
        )
    return sentences


def map_sentences(maps: MapsCheck) -> list[str]:
    """Say plainly whether maps point at lesions better than the middle of the image does."""
    verdicts = []
    for name, title in MAP_MEASURES.items():
        measure = getattr(maps, name)
        difference = measure.over_center
        if difference.low is None:
            verdict = f"whether it beats the center is not known: {difference.reason}"
        elif difference.low > 0:
            verdict = "it beats the center of the image"
        elif difference.high < 0:
            verdict = "it is worse than simply pointing at the center of the image"
        else:
            verdict = "it does not beat simply pointing at the center of the image"
        verdicts.append(
            f"{title[0].upper()}{title[1:]}: {in_words(measure.map)}; for the center: "
            f"{in_words(measure.center)}; {verdict}."
        )
    return [
        *verdicts,
        "A map shows what the network used, not what is true. "
        f"{things(maps.num_left_out, 'image')} could not be measured.",
    ]


def _each(evaluation: Evaluation, metric: str) -> str:
    known = evaluation.intervals
    return ", ".join(
        f"{name} {number(known[f'{metric}/{key}'].estimate)}"
        for key, name in zip(evaluation.taxonomy.keys, evaluation.taxonomy.names, strict=True)
        if f"{metric}/{key}" in known
    )


def _ranges(values: Sequence[float], chosen: Sequence[bool]) -> str:
    """Name the stretches of ascending values that are chosen: 0.05 to 0.30, 0.40."""
    stretches: list[list[float]] = []
    before = False
    for value, is_chosen in zip(values, chosen, strict=True):
        if is_chosen and before:
            stretches[-1].append(value)
        elif is_chosen:
            stretches.append([value])
        before = is_chosen
    return ", ".join(
        f"{s[0]:.2f} to {s[-1]:.2f}" if len(s) > 1 else f"{s[0]:.2f}" for s in stretches
    )
