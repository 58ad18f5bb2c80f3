"""The model card and the data card of a run, in Markdown, written from its own artifacts alone.

Every number in them comes from the evaluation, `config.yaml`, the split files, `audit.json`,
`training_history.json` or the facts of the run.  The model card has the sections of Mitchell et
al., "Model Cards for Model Reporting" (2019).  Never imports torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from dermalyze.config.schema import Config
from dermalyze.data.table_columns import UNKNOWN
from dermalyze.evaluation.evaluate import Evaluation
from dermalyze.evaluation.report.text import (
    CALIBRATION,
    elsewhere_sentences,
    gap_sentences,
    group_columns,
    headlines,
    markdown,
    referral_sentences,
)
from dermalyze.evaluation.text import AT_POINTS, PER_CLASS, not_recorded, title_of
from serving.taxonomy import DISCLAIMER

REGISTRY_LIMIT = 5000  # characters of a description in MLflow's database


@dataclass(frozen=True, kw_only=True)
class CardInputs:
    """The artifacts of a run, as they are stored."""

    evaluation: Evaluation
    config: Config  # config.yaml
    splits: Mapping[str, pd.DataFrame]  # train, val, test -> the split file: image_id, label, ...
    audit: Mapping[str, Any]  # audit.json
    history: Sequence[Mapping[str, float]]  # training_history.json
    best_epoch: int
    facts: Mapping[str, object] = field(default_factory=dict)  # what it is called -> what it is
    demo_data: bool = False  # drawn images: the numbers mean nothing


def model_card(inputs: CardInputs) -> str:
    """Write what the model is, what it is for and not for, and how it was judged."""
    evaluation = inputs.evaluation
    taxonomy = evaluation.taxonomy
    referral = evaluation.limits.referral if evaluation.limits else None
    return _rendered(
        "model_card.md",
        inputs,
        evaluation=evaluation,
        best=next(entry for entry in inputs.history if entry["epoch"] == inputs.best_epoch),
        classes=list(zip(taxonomy.keys, taxonomy.names, strict=True)),
        attributes=list(dict.fromkeys(group.attribute for group in evaluation.subgroups.groups)),
        headlines=headlines(evaluation),
        per_class={name: title for name, title in PER_CLASS.items() if _known(evaluation, name)},
        at_points={name: title for name, title in AT_POINTS.items() if _known(evaluation, name)},
        calibration_titles=CALIBRATION,
        group_columns={name: title_of(name) for name in group_columns(evaluation)},
        gaps=gap_sentences(evaluation),
        elsewhere=elsewhere_sentences(evaluation),
        referral=referral,
        referral_sentences=referral_sentences(referral, evaluation.group_by) if referral else [],
    )


def data_card(inputs: CardInputs) -> str:
    """Write where the images come from, what was found in them and how they are split."""
    confirmed = any(
        group.attribute == "dx_type" and group.group != UNKNOWN
        for group in inputs.evaluation.subgroups.groups
    )
    return _rendered("data_card.md", inputs, audit=inputs.audit, confirmed=confirmed)


def shortened(card: str, limit: int = REGISTRY_LIMIT) -> str:
    """Leave out parts of a card until it has at most `limit` characters; say what and where it is.

    The parts under a heading of the third level go first, the last one first; then lines.
    """
    parts = re.split(r"(?=^#{1,3} )", card, flags=re.MULTILINE)
    left_out: list[str] = []

    def text() -> str:
        kept = "".join(parts)
        if not left_out:
            return kept
        names = ", ".join(left_out)
        return f"{kept.rstrip()}\n\nLeft out here: {names}; the whole card is with the run.\n"

    for index in reversed(range(len(parts))):
        if len(text()) > limit and parts[index].startswith("### "):
            left_out.insert(0, parts[index].partition("\n")[0].removeprefix("### "))
            parts[index] = ""
    if len(text()) > limit:
        left_out.append("the end")
    while len(text()) > limit:
        parts[:] = ["".join(parts).rstrip().rpartition("\n")[0]]
    return text()


def _rendered(template: str, inputs: CardInputs, **values: object) -> str:
    taxonomy = inputs.evaluation.taxonomy
    sizes = {name: _sizes(rows, taxonomy.names) for name, rows in inputs.splits.items()}
    context = {
        "inputs": inputs,
        "config": inputs.config,
        "taxonomy": taxonomy,
        "sizes": sizes,
        "disclaimer": DISCLAIMER,
        "not_recorded": not_recorded(taxonomy),
        **values,
    }
    return markdown(template, context)


def _sizes(rows: pd.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    """Count the images and lesions of a split, and its images of each class."""
    labels = rows["label"].value_counts()
    return {
        "num_images": len(rows),
        "num_lesions": int(rows["lesion_id"].nunique()),
        "images": {name: int(labels.get(name, 0)) for name in class_names},
    }


def _known(evaluation: Evaluation, metric: str) -> bool:
    return any(name.startswith(f"{metric}/") for name in evaluation.intervals)
