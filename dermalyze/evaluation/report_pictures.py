"""The figures of a report with their words: what one sees, for those who do not see it.

N images, C classes.  Never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dermalyze.evaluation import report_figures as figures
from dermalyze.evaluation.scored import Scored
from dermalyze.evaluation.words import Judgement, in_words, number, things


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the page."""

    address: str  # data:...
    alt: str
    caption: str


def roc(judgement: Judgement, scored: Scored) -> list[Picture]:
    """Show the curve of each class and that of malignant against benign, where there are any."""
    known, curve = judgement["intervals"], judgement.get("malignant_roc")
    each = _listed(judgement, "auc")
    pictures = []
    if each:
        pictures.append(
            Picture(
                address=figures.roc(scored),
                alt=f"ROC curves, one class against the rest. AUC: {each}.",
                caption="Each class against the rest. The dotted diagonal is guessing.",
            )
        )
    if curve and curve["sensitivity"]:
        area = in_words(known.get("malignant_auc"))
        pictures.append(
            Picture(
                address=figures.malignant_roc(curve["false_positive_rate"], curve["sensitivity"]),
                alt=f"ROC curve of malignant against benign. AUC: {area}.",
                caption=f"Malignant (akiec, bcc, mel) against benign: AUC {area}.",
            )
        )
    return pictures


def precision_recall(judgement: Judgement, scored: Scored) -> Picture | None:
    """Show precision over sensitivity of each class; None where no class has a curve."""
    each = _listed(judgement, "average_precision")
    if not _listed(judgement, "auc"):
        return None
    return Picture(
        address=figures.precision_recall(scored),
        alt="Precision over sensitivity, one class against the rest."
        + (f" Average precision: {each}." if each else ""),
        caption="Each class against the rest. A dot at the left edge is the share of the class: "
        "the precision of guessing.",
    )


def reliability(judgement: Judgement, scored: Scored, calibrated: Scored | None) -> Picture:
    """Show accuracy over confidence, before and after calibration."""
    error = in_words(judgement["intervals"].get("ece"))
    alt = f"Accuracy over confidence, in bins, with the images of each bin. ECE as trained: {error}"
    if calibrated is not None and (part := judgement.get("calibration")):
        alt += f"; after calibration: {number(part['after']['ece'])}"
    return Picture(
        address=figures.reliability(scored, calibrated),
        alt=f"{alt}.",
        caption="Below the diagonal the model is surer than it is right. Hollow marks rest on few "
        "images.",
    )


def decision(judgement: Judgement) -> Picture | None:
    """Show the decision curve; None where there is none."""
    curve = judgement.get("decision_curve")
    if not curve or not curve["thresholds"]:
        return None
    thresholds, model, everyone = (curve[key] for key in ("thresholds", "model", "all"))
    useful = [benefit > max(other, 0.0) for benefit, other in zip(model, everyone, strict=True)]
    ranges = _ranges(thresholds, useful)
    where = (
        f"Following the model is of more use than referring all or none at thresholds {ranges}."
        if ranges
        else "At no threshold is following the model of more use than referring all or none."
    )
    return Picture(
        address=figures.decision_curve(thresholds, model, everyone),
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
            address=figures.training_losses(history, best),
            alt=f"Training and validation loss over the epochs. {end}{marked}",
            caption="Loss. The training loss is taken as it is optimized, with class weights, "
            "augmentation and dropout, so the two are not on one scale.",
        ),
        Picture(
            address=figures.training_scores(history, best),
            alt=f"Validation scores over the epochs. {end}{marked}",
            caption="Scores on the validation split, which chooses the best epoch.",
        ),
    ]


def _listed(judgement: Judgement, metric: str) -> str:
    known = judgement["intervals"]
    return ", ".join(
        f"{name} {number(known[f'{metric}/{name}']['estimate'])}"
        for name in judgement["class_names"]
        if f"{metric}/{name}" in known
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
