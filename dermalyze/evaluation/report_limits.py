"""The parts of a report on what a model knows of its limits, and on its maps of evidence.

Never imports torch.
"""

from collections.abc import Mapping
from typing import Any

from dermalyze.evaluation import report_figures as figures
from dermalyze.evaluation.report_pictures import Picture
from dermalyze.evaluation.words import Judgement, cell, in_words, percent, things

_MEASURES = {
    "mass": "share of the map inside the lesion",
    "pointing": "maximum of the map inside the lesion",
}


def known_limits(judgement: Judgement) -> dict[str, Any] | None:
    """Return what the section on sets, decisions and scope prints; None where nothing is known."""
    part = judgement.get("limits")
    if part is None:
        return None
    sets, abstention = part["prediction_sets"], part["abstention"]
    rows = [
        {**values, "name": name, "coverage": cell(values["coverage"])}
        for name, values in sets["classes"].items()
    ]
    return {
        "sets": sets,
        "classes": rows,
        "curve": _curve(abstention),
        "sentences": [*_decisions(abstention), *_scope(part.get("scope"))],
    }


def known_maps(judgement: Judgement) -> dict[str, Any] | None:
    """Return what the section on maps prints; None where there are no masks."""
    part = judgement.get("explanations")
    if part is None:
        return None
    return {
        "num_images": part["num_images"],
        "center_sigma": part.get("center_sigma"),
        "sentences": map_sentences(part),
        "rows": [
            (
                title,
                [cell(part[name][key]) for key in ("map", "center", "uniform", "over_center")],
            )
            for name, title in _MEASURES.items()
            if name in part
        ],
    }


def map_sentences(part: Mapping[str, Any]) -> list[str]:
    """Say plainly whether maps point at lesions better than the middle of the image does."""
    left_out = f"{things(part['num_left_out'], 'image')} could not be measured."
    if "mass" not in part:
        return [f"No map could be measured on a lesion mask: {left_out}"]
    verdicts = []
    for name, title in _MEASURES.items():
        difference = part[name]["over_center"]
        if difference["low"] is None:
            verdict = f"whether it beats the center is not known: {difference['reason']}"
        elif difference["low"] > 0:
            verdict = "it beats the center of the image"
        elif difference["high"] < 0:
            verdict = "it is worse than simply pointing at the center of the image"
        else:
            verdict = "it does not beat simply pointing at the center of the image"
        verdicts.append(
            f"{title[0].upper()}{title[1:]}: {in_words(part[name]['map'])}, of the center "
            f"{in_words(part[name]['center'])}; {verdict}."
        )
    return [*verdicts, f"A map shows what the network used, not what is true. {left_out}"]


def _curve(abstention: Mapping[str, Any]) -> Picture:
    curve = abstention["curve"]
    area = in_words(abstention["aurc"])
    return Picture(
        address=figures.risk_coverage(
            curve["coverage"],
            curve["risk"],
            abstention["stated_risk"],
            abstention["coverage"]["estimate"],
        ),
        alt=f"Share of wrong answers among the most confident ones. Area under the curve: {area}.",
        caption=f"Risk over coverage: area {area}. Answering only the most confident images makes "
        "fewer mistakes; the dot is the threshold that the model comes with.",
    )


def _decisions(abstention: Mapping[str, Any]) -> list[str]:
    stated = percent(abstention["stated_risk"])
    if abstention["min_confidence"] > 1:
        return [
            f"At no confidence could it be shown on validation lesions that at most {stated} of "
            "the answers are wrong, so every decision is uncertain."
        ]
    said = [
        f"From a confidence of {abstention['min_confidence']:.2f} on the model answers; on "
        f"validation lesions at most {stated} of such answers were wrong, with "
        f"{percent(abstention['confidence'])} confidence.",
        f"Here it answers for {in_words(abstention['coverage'])} of the lesions.",
    ]
    if abstention["risk"] is not None:
        said.append(f"Of these answers {in_words(abstention['risk'])} are wrong.")
    return said


def _scope(scope: Mapping[str, Any] | None) -> list[str]:
    if scope is None:
        return []
    return [
        f"{in_words(scope['false_alarm_rate'])} of these lesions, which are in scope, are called "
        f"out of scope; {percent(scope['fitted_false_alarm_rate'])} of the validation lesions were."
    ]
