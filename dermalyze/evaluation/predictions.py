"""`predictions.csv`: one row an image, with all that the metrics can be computed from again.

N images, C classes.  Logits are written so that they read back bit for bit.  Never imports torch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.data.tables import FACTS, read_file, tidy_facts
from dermalyze.evaluation.metrics import Counts, check_logits
from serving.errors import DataError
from serving.prediction import softmax
from serving.spreadsheet import neutralized, restored
from serving.tables import read_table
from serving.taxonomy import CLASS_NAMES
from serving.whole import whole_file

# What a model measures of an image beside its class, where it does; a column each.
MEASURED = (
    "scope_score",  # how unlike the known images; of val: by a fit that had not seen the image
    "photo_problem",  # 1: the photograph itself is poor
)
TEXTS = ("image_id", "lesion_id", "label", "predicted", "dx_type", "sex", "localization")


def predictions_table(
    manifest_rows: pd.DataFrame,
    logits: NDArray[np.floating],
    class_names: Sequence[str],
    measured: Mapping[str, NDArray[np.floating]] = MappingProxyType({}),
) -> pd.DataFrame:
    """Put logits (N, C) beside the N manifest rows that they were computed for, in their order.

    The columns are image_id, lesion_id, label, predicted, confidence, prob_<class>...,
    logit_<class>... (float32), dx_type, age (years), sex, localization, and those of `measured`,
    (N,) each, by a name of `MEASURED`.

    Raises:
        DataError: a label is no class, or a logit is not a finite number.
    """
    logits = logits.astype(np.float32)
    check_logits(logits, targets_of(manifest_rows, class_names), class_names)
    probs = softmax(logits)
    predicted = logits.argmax(axis=1)
    columns: dict[str, object] = {
        name: manifest_rows[name].to_numpy() for name in ("image_id", "lesion_id", "label")
    }
    columns["predicted"] = np.asarray(class_names, dtype=object)[predicted]
    columns["confidence"] = probs.max(axis=1)
    columns |= {f"prob_{name}": probs[:, i] for i, name in enumerate(class_names)}
    columns |= {f"logit_{name}": logits[:, i] for i, name in enumerate(class_names)}
    columns |= {name: manifest_rows[name].to_numpy() for name in FACTS}
    columns |= {name: measured[name].astype(np.float32) for name in MEASURED if name in measured}
    return pd.DataFrame(columns)


def targets_of(rows: pd.DataFrame, class_names: Sequence[str]) -> Counts:
    """Return the class index of each row's label: int64 (N,).

    Raises:
        DataError: a label is no class.
    """
    targets = pd.Index(class_names).get_indexer(pd.Index(rows["label"]))
    if (targets < 0).any():
        row = rows.iloc[int((targets < 0).argmax())]
        raise DataError(
            f"image {row['image_id']!r} has the label {row['label']!r}, "
            f"expected one of {', '.join(class_names)}"
        )
    return targets.astype(np.int64)


def logits_of(table: pd.DataFrame, class_names: Sequence[str]) -> NDArray[np.float32]:
    """Return the logits in a table of predictions: float32 (N, C)."""
    return table[[f"logit_{name}" for name in class_names]].to_numpy(np.float32)


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write a table of predictions as CSV, whole or not at all; no text in it runs as a formula."""
    nine = "%.9g"  # digits tell every float32 from its neighbors
    with whole_file(path) as partial:
        for_spreadsheet(table).to_csv(
            partial, index=False, float_format=nine, lineterminator="\n", encoding="utf-8"
        )


def for_spreadsheet(table: pd.DataFrame) -> pd.DataFrame:
    """Neutralize the texts of a table and its column names; `from_spreadsheet` undoes it."""
    return _with_texts(table, neutralized)


def from_spreadsheet(table: pd.DataFrame) -> pd.DataFrame:
    """Return the texts that `for_spreadsheet` was given."""
    return _with_texts(table, restored)


def _with_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    changed = {
        str(name): [change(value) if isinstance(value, str) else value for value in column]
        for name, column in table.items()
        if not pd.api.types.is_numeric_dtype(column)
    }
    return table.assign(**changed).rename(columns=change)


def read_predictions(
    path: Path, class_names: Sequence[str] = CLASS_NAMES
) -> tuple[pd.DataFrame, NDArray[np.float32], Counts]:
    """Read what `write_predictions` wrote: the table, its logits (N, C), the targets (N,).

    Raises:
        DataError: the file is missing or no such table, or a row contradicts itself.
    """
    number_columns = [f"logit_{name}" for name in class_names]
    number_columns += [f"prob_{name}" for name in class_names] + ["confidence"]
    required = (*TEXTS, *number_columns, "age")
    try:
        table = pd.DataFrame(read_table(read_file(path), path, required, MEASURED))
    except ValueError as error:
        raise DataError(f"{path} is not a CSV table; write it with `dermalyze evaluate`") from error
    table = from_spreadsheet(table)
    if missing := [name for name in required if name not in table.columns]:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}; write it with `dermalyze evaluate`"
        )
    table = tidy_facts(table, path)
    number_columns += [name for name in MEASURED if name in table.columns]
    for name in number_columns:
        table[name] = _numbers(path, table, name)
    if (repeated := table["image_id"].duplicated()).any():
        image_id = table["image_id"][int(repeated.to_numpy().argmax())]
        raise DataError(f"{path} lists image {image_id!r} twice; expected one row an image")
    try:
        targets = targets_of(table, class_names)
        logits = logits_of(table, class_names)
        check_logits(logits, targets, class_names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    exact = [f"logit_{name}" for name in class_names]
    exact += [name for name in MEASURED if name in table.columns]
    table = table.astype(dict.fromkeys(exact, np.float32))
    claimed = table["predicted"].to_numpy()
    predicted = np.asarray(class_names, dtype=object)[logits.argmax(axis=1)]
    if (claimed != predicted).any():
        row = int((claimed != predicted).argmax())
        raise DataError(
            f"{path} says {claimed[row]!r} of image {table['image_id'][row]!r}, where its logits "
            f"say {predicted[row]!r}; the file was changed, write it again with `dermalyze "
            "evaluate`"
        )
    return table, logits, targets


def _numbers(path: Path, table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Read a column of texts as float64 (N,)."""
    values: list[float] = []
    for row, text in enumerate(table[name]):
        try:
            values.append(float(text))
        except ValueError as error:
            raise DataError(
                f"{path} has {name} {text!r} for image {table['image_id'][row]!r}, "
                "expected a number"
            ) from error
    return np.asarray(values, np.float64)
