"""The pages of an external validation beside its reports, and the same as text for a terminal.

Never imports torch.
"""

from collections.abc import Sequence
from pathlib import Path

from dermalyze.evaluation.evaluate import Evaluation
from dermalyze.evaluation.external import COMMON, KNOWN, UNKNOWN, Drop
from dermalyze.evaluation.report.html import Mistake, shown
from dermalyze.evaluation.report.text import Cell, cell, html, in_words
from dermalyze.evaluation.text import count, percent, things
from serving.atomic_write import write_text
from serving.taxonomy import DISCLAIMER

HEADLINES = (
    *("balanced_accuracy", COMMON, "accuracy", "macro_auc", "malignant_auc"),
    *("malignant_sensitivity", "malignant_specificity", "ece", "set_coverage"),
    *("answered", "answered_error", "out_of_scope", "referral_sensitivity", "referral_specificity"),
)


def write_mistakes(
    path: Path, evaluation: Evaluation, mistakes: Sequence[Mistake], unknown: Sequence[Mistake]
) -> None:
    """Write the page of mistakes: of the model's classes, and of those that it lacks."""
    external, taxonomy = evaluation.external, evaluation.taxonomy
    assert external is not None
    right = sum(row[i] for i, row in enumerate(evaluation.confusion_matrix))
    values = {
        "name": external.name,
        "disclaimer": DISCLAIMER,
        "unit": evaluation.group_by,
        "num_wrong": evaluation.num_images - right,
        "mistakes": [shown(mistake, taxonomy) for mistake in mistakes],
        "has_unknown": not all(external.class_map.values()),
        "unknown": [shown(mistake, taxonomy) for mistake in unknown],
    }
    write_text(path, html("mistakes.html", values))


def write_overview(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the page that shows all sources, with links to their reports."""
    sources = []
    for evaluation in evaluations:
        external = evaluation.external
        assert external is not None
        sources.append(
            {
                "name": external.name,
                "basis": _basis(evaluation),
                "num_classes": len(evaluation.taxonomy) - len(external.absent),
                "num_all": len(evaluation.taxonomy),
                "num_excluded": sum(external.excluded.values()),
                "rows": _rows(external.drops),
                "sentences": scope_sentences(evaluation) + list(external.unchecked),
            }
        )
    level = percent(evaluations[0].level)
    values = {"sources": sources, "level": level, "disclaimer": DISCLAIMER}
    write_text(path, html("overview.html", values))


def scope_sentences(evaluation: Evaluation) -> list[str]:
    """Say how many images of known and of unknown classes are called out of scope."""
    external = evaluation.external
    decisions = () if external is None else external.decisions
    return [
        f"Of {things(found.num_images, 'image')} of {found.label}, the share called out of scope "
        f"is {in_words(found.out_of_scope)}; answered: {percent(found.answered)}."
        for found in decisions
        if found.label in (KNOWN, UNKNOWN)
    ]


def format_external(evaluation: Evaluation) -> str:
    """Lay the headlines of a source out for a terminal: inside, outside, drop."""
    external = evaluation.external
    assert external is not None
    lines = [f"{external.name}: {_basis(evaluation)}"]
    lines += [f"left out: {count(n)} ({why})" for why, n in external.excluded.items()]
    lines += [f"inside: {external.inside}"] if external.inside else []
    rows = _rows(external.drops)
    width = max(len(title) for title, _ in rows) + 2
    lines += [*external.unchecked, ""]
    lines += [f"{'':<{width}}{'inside':>6}{'outside':>9}{'drop':>8}   interval of the drop"]
    for title, (inside, outside, drop) in rows:
        bounds = drop.bounds or (drop.reason and f"none: {drop.reason}")
        line = f"{title:<{width}}{inside.value:>6}{outside.value:>9}{drop.value:>8}   {bounds}"
        lines.append(line.rstrip())
    return "\n".join([*lines, "", *scope_sentences(evaluation), ""])


def _rows(drops: Sequence[Drop]) -> list[tuple[str, tuple[Cell, Cell, Cell]]]:
    known = {drop.metric: drop for drop in drops}
    return [
        (known[n].title, (cell(known[n].inside), cell(known[n].outside), cell(known[n].drop)))
        for n in HEADLINES
        if n in known
    ]


def _basis(evaluation: Evaluation) -> str:
    images = things(evaluation.num_images, "image")
    if evaluation.group_by == "image":
        return images
    return f"{images} of {things(evaluation.num_lesions, evaluation.group_by)}"
