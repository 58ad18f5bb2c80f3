"""`predictions.csv`: one row per image, with all that the metrics can be computed from again.

N images, C classes.  Logits are written so that they read back bit for bit.  `taxonomy.json` beside
the table says what its classes are.  Never imports torch.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.data.table_columns import FACTS, UNKNOWN, read_file, tidy_facts
from dermalyze.evaluation.metrics.classification import Counts, check_logits
from serving.atomic_write import whole_file, write_text
from serving.errors import ArtifactError, DataError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import is_missing
from serving.prediction import softmax
from serving.spreadsheet import neutralized, restored
from serving.table_files import read_table
from serving.taxonomy import Taxonomy

TAXONOMY = "taxonomy.json"
# What a model measures of an image beside its class, where it does; a column each.
MEASURED = (
    "scope_score",  # how unlike the known images; of val: by a fit that had not seen the image
    "photo_problem",  # 1: the photograph itself is poor
)
TEXTS = ("image_id", "lesion_id", "label", "predicted", "dx_type", "sex", "localization")
MAX_GROUPS = 12  # values of a further column; one with more does not name groups of images
_NOT_GROUPS = (*TEXTS, *FACTS, *MEASURED, "confidence", "group", "patient_id", "sha256")


def predictions_table(
    manifest_rows: pd.DataFrame,
    logits: NDArray[np.floating],
    taxonomy: Taxonomy,
    measured: Mapping[str, NDArray[np.floating]] = MappingProxyType({}),
) -> pd.DataFrame:
    """Put logits (N, C) beside the N manifest rows that they were computed for, in their order.

    The columns are image_id, lesion_id, label, predicted, confidence, prob_<class>...,
    logit_<class>... (float32), dx_type, age (years), sex, localization, those of `measured`,
    (N,) each, by a name of `MEASURED`, `group` where images are not grouped by lesion, and what
    else the manifest has with few distinct values.  <class> is the key of the taxonomy.

    Raises:
        DataError: a label is not a class, or a logit is not a finite number.
    """
    logits = logits.astype(np.float32)
    check_logits(logits, targets_of(manifest_rows, taxonomy), taxonomy.names)
    probs = softmax(logits)
    columns: dict[str, object] = {
        name: manifest_rows[name].to_numpy() for name in ("image_id", "lesion_id", "label")
    }
    columns["predicted"] = np.asarray(taxonomy.names, dtype=object)[logits.argmax(axis=1)]
    columns["confidence"] = probs.max(axis=1)
    columns |= {f"prob_{key}": probs[:, i] for i, key in enumerate(taxonomy.keys)}
    columns |= {f"logit_{key}": logits[:, i] for i, key in enumerate(taxonomy.keys)}
    columns |= {name: manifest_rows[name].to_numpy() for name in FACTS}
    columns |= {name: measured[name].astype(np.float32) for name in MEASURED if name in measured}
    if group_kind(manifest_rows) != "lesion":
        columns["group"] = manifest_rows["group"].to_numpy()
    columns |= {name: texts_of(manifest_rows[name]) for name in further_columns(manifest_rows)}
    return pd.DataFrame(columns)


def further_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns beyond the known ones that name groups of images, sorted."""
    return sorted(
        name
        for name in map(str, rows.columns)
        if name not in _NOT_GROUPS
        and name == name.strip().lower()
        and not name.startswith(("prob_", "logit_"))
        and 2 <= len(set(texts_of(rows[name])) - {"", UNKNOWN}) <= MAX_GROUPS
    )


def texts_of(column: pd.Series) -> list[str]:
    """Return values as texts; empty: missing."""
    return ["" if is_missing(value) else str(value).strip() for value in column]


def group_kind(rows: pd.DataFrame) -> str:
    """Say what keeps images together, in splits and in intervals: lesion, patient or image."""
    if "group" not in rows or (rows["group"] == rows["lesion_id"]).all():
        return "lesion"
    return "image" if (rows["group"] == rows["image_id"]).all() else "patient"


def group_numbers(rows: pd.DataFrame) -> Counts:
    """Number the groups, lesions for the most part: int64 (N,) from 0.

    An image without an id of its group is one of its own.
    """
    ids = rows["group" if "group" in rows else "lesion_id"].to_numpy(dtype=object)
    own = [("image", row) if is_missing(name) else ("group", name) for row, name in enumerate(ids)]
    numbers: dict[tuple[str, object], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in own], np.int64)


def targets_of(rows: pd.DataFrame, taxonomy: Taxonomy) -> Counts:
    """Return the class index of each row's label: int64 (N,).

    Raises:
        DataError: a label is not a class.
    """
    targets = pd.Index(taxonomy.names).get_indexer(pd.Index(rows["label"]))
    if (targets < 0).any():
        row = rows.iloc[int((targets < 0).argmax())]
        raise DataError(
            f"image {row['image_id']!r} has the label {row['label']!r}, "
            f"expected one of {', '.join(taxonomy.names)}"
        )
    return targets.astype(np.int64)


def logits_of(table: pd.DataFrame, taxonomy: Taxonomy) -> NDArray[np.float32]:
    """Return the logits in a table of predictions: float32 (N, C)."""
    return table[[f"logit_{key}" for key in taxonomy.keys]].to_numpy(np.float32)


def write_taxonomy(folder: Path, taxonomy: Taxonomy) -> None:
    """Write the taxonomy of the tables in a folder beside them."""
    text = json.dumps(taxonomy.to_dict(), indent=1, ensure_ascii=False) + "\n"
    write_text(folder / TAXONOMY, text)


def taxonomy_beside(table: Path) -> Taxonomy:
    """Return the taxonomy of a table of predictions; HAM10000 where its folder has none.

    Raises:
        DataError: `taxonomy.json` is damaged.
    """
    path = table.parent / TAXONOMY
    if not path.exists():  # written before models had a taxonomy
        return HAM10000
    try:
        return Taxonomy.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ArtifactError) as error:
        raise DataError(
            f"{path} is not a taxonomy; write it again with `dermalyze evaluate`"
        ) from error


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
    path: Path, taxonomy: Taxonomy
) -> tuple[pd.DataFrame, NDArray[np.float32], Counts]:
    """Read what `write_predictions` wrote: the table, its logits (N, C), the targets (N,).

    Raises:
        DataError: the file is missing or is not such a table, or a row contradicts itself.
    """
    number_columns = [f"logit_{key}" for key in taxonomy.keys]
    number_columns += [f"prob_{key}" for key in taxonomy.keys] + ["confidence"]
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
        raise DataError(f"{path} lists image {image_id!r} twice; expected one row per image")
    try:
        targets = targets_of(table, taxonomy)
        logits = logits_of(table, taxonomy)
        check_logits(logits, targets, taxonomy.names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    exact = [f"logit_{key}" for key in taxonomy.keys]
    exact += [name for name in MEASURED if name in table.columns]
    table = table.astype(dict.fromkeys(exact, np.float32))
    claimed = table["predicted"].to_numpy()
    predicted = np.asarray(taxonomy.names, dtype=object)[logits.argmax(axis=1)]
    if (claimed != predicted).any():
        row = int((claimed != predicted).argmax())
        raise DataError(
            f"{path} says {claimed[row]!r} for image {table['image_id'][row]!r}, but its logits "
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
