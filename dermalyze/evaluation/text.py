"""Numbers and the titles of metrics in words, for everything that is read by people."""

import unicodedata
from collections.abc import Sequence

from serving.taxonomy import Taxonomy

TITLES = {  # in the order in which they are shown
    "balanced_accuracy": "balanced accuracy",
    "balanced_accuracy_elsewhere": "balanced accuracy elsewhere",  # on a source that was left out
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_precision": "macro precision",
    "macro_auc": "macro AUC",
    "macro_average_precision": "macro average precision",
    "cohen_kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
    "malignant_auc": "malignant: AUC",
    "malignant_partial_auc": "malignant: partial AUC",
    "malignant_sensitivity": "malignant: sensitivity",
    "malignant_specificity": "malignant: specificity",
    "malignant_sensitivity_at_90_specificity": "malignant: sensitivity at 90% specificity",
    "malignant_sensitivity_at_95_specificity": "malignant: sensitivity at 95% specificity",
    "malignant_specificity_at_90_sensitivity": "malignant: specificity at 90% sensitivity",
    "malignant_specificity_at_95_sensitivity": "malignant: specificity at 95% sensitivity",
    "loss": "loss (nats)",
    "balanced_loss": "mean loss of the classes (nats)",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}
PER_CLASS = {
    "recall": "sensitivity",
    "precision": "precision",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "average precision",
}
AT_POINTS = {
    "sensitivity_at_90_specificity": "sensitivity at 90% specificity",
    "sensitivity_at_95_specificity": "sensitivity at 95% specificity",
    "specificity_at_90_sensitivity": "specificity at 90% sensitivity",
    "specificity_at_95_sensitivity": "specificity at 95% sensitivity",
}
MAX_LISTED = 10  # names in a sentence; the rest is counted


def number(value: float) -> str:
    """Print a metric, with three decimals and no negative zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def count(value: float) -> str:
    """Print a number of things."""
    return f"{int(value):,}"


def things(value: float, name: str) -> str:
    """Print a number with what is counted: 1 image, 2 images."""
    return f"{count(value)} {name}" + ("" if value == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Name a few things, and count the rest."""
    if len(names) <= MAX_LISTED:
        return ", ".join(names)
    return f"{', '.join(names[: MAX_LISTED - 1])} and {len(names) - MAX_LISTED + 1} more"


def not_recorded(taxonomy: Taxonomy) -> str:
    """Say what the data does not record; empty: nothing is known to be missing."""
    if not taxonomy.not_recorded:
        return ""
    missing = listed(taxonomy.not_recorded)
    return (
        f"{taxonomy.title or 'The data set'} does not record {missing}, so nothing is known about "
        "how the model performs across it"
    )


def title_of(name: str, taxonomy: Taxonomy | None = None) -> str:
    """Say what a metric is called: `recall/mel` is sensitivity for mel.

    With a taxonomy the class is named as the data names it, not by its key.
    """
    stem, _, class_name = name.partition("/")
    if taxonomy is not None and class_name in taxonomy.keys:
        class_name = taxonomy.names[taxonomy.keys.index(class_name)]
    title = TITLES.get(stem) or PER_CLASS.get(stem) or AT_POINTS.get(stem)
    title = title or stem.replace("_", " ")
    return f"{title} for {class_name}" if class_name else title


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for each Chinese character."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def padded(text: str, width: int) -> str:
    """Fill a text with spaces up to a number of columns of a terminal."""
    return text + " " * (width - width_of(text))


def p_value(value: float) -> str:
    """Print a p-value."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def percent(fraction: float) -> str:
    """Print a fraction without decimals."""
    return f"{fraction:.0%}"
