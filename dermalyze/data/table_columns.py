"""Tables about images as data frames: each fact of a row in the one form that it has everywhere."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from serving.errors import DataError, MetadataError
from serving.metadata import MAX_AGE, age_of, is_missing, word_of
from serving.table_files import read_table, table_bytes

FACTS = ("dx_type", "age", "sex", "localization")
COLUMNS = ("image_id", "label", "lesion_id", *FACTS)  # of every manifest; others may follow
_OURS = ("group", "sha256")  # columns that are added later
UNKNOWN = "unknown"


def read_file(path: Path) -> bytes:
    """Return the bytes of a table.

    Raises:
        DataError: it cannot be read, or has another size than tables have.
    """
    try:
        return table_bytes(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'no such file'}") from error


def read_frame(
    data: bytes, path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a table with these columns and any others; `path` is what it is called in an error.

    Raises:
        DataError: it is not a table, lacks a column or has no rows.
    """
    try:
        table = pd.DataFrame(read_table(data, path, required, optional))
    except ValueError as error:
        raise DataError(
            f"{path} is not a table; expected columns {', '.join(required)} and the same number of "
            "values in every line"
        ) from error
    if missing := [column for column in required if column not in table]:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}"
        )
    if table.empty:
        raise DataError(f"{path} has a header and no rows; expected one row per image")
    return table


def columns_of(path: Path, known: Sequence[str]) -> list[str]:
    """Return the names of a table's columns; none if it cannot be read as a table.

    Args:
        path: the table.
        known: names by which the mark between its values is found.
    """
    try:
        return list(read_table(read_file(path), path, known))
    except (ValueError, DataError):
        return []


def manifest_rows(table: pd.DataFrame, where: object) -> pd.DataFrame:
    """Return the rows of a manifest: COLUMNS, `patient_id` if there is one, then the other columns.

    Facts are in the form of `tidy_facts`; texts of other columns stay, but for what is missing.

    Raises:
        DataError: as `tidy_facts`.
    """
    table = tidy_facts(table, where)
    first = [*COLUMNS, *(name for name in table if name == "patient_id")]
    others = [str(name) for name in table if name and name not in first]
    for name in others:
        table[name] = table[name].mask(table[name].map(is_missing), UNKNOWN)
    return table[[*first, *others]].rename(columns={name: f"{name}_" for name in _OURS})


def tidy_facts(table: pd.DataFrame, where: object) -> pd.DataFrame:
    """Bring texts to one form: a missing lesion id is empty, a missing word `unknown`.

    Words are in small letters, an age is in years or NaN.  A column that the table lacks is
    missing in each row.

    Raises:
        DataError: a row has no image id, or an age that nobody has.
    """
    table = table.copy()
    if nameless := int(table["image_id"].map(is_missing).sum()):
        raise DataError(f"{where} has {nameless} rows without an image id; complete or remove them")
    for name in ("lesion_id", *FACTS):
        if name not in table:
            table[name] = ""
    for name in ("lesion_id", "patient_id"):
        if name in table:
            table[name] = table[name].mask(table[name].map(is_missing), "")
    for name in ("dx_type", "sex", "localization"):
        table[name] = [word_of(text) or UNKNOWN for text in table[name]]
    ages = []
    for image_id, text in zip(table["image_id"], table["age"], strict=True):
        try:
            ages.append(age_of(text))
        except MetadataError as error:
            raise DataError(
                f"{where} has the age {text!r} for {image_id}; expected years from 0 to {MAX_AGE}, "
                "or nothing"
            ) from error
    return table.assign(age=pd.Series(ages, table.index, "float64"))


def with_groups(manifest: pd.DataFrame, group_by: str) -> pd.DataFrame:
    """Add the column `group`: equal where images must not be split.

    Args:
        manifest: with a lesion id for each image, as `with_own_lesions` leaves it.
        group_by: lesion, patient or none.  An image without a patient id belongs to the patient of
            its lesion, or else the lesion is a group of its own.
    """
    images, lesions = manifest["image_id"], manifest["lesion_id"]
    if group_by != "patient":
        return manifest.assign(group=lesions if group_by == "lesion" else images)
    patients = manifest["patient_id"]
    known = dict(zip(lesions[patients != ""], patients[patients != ""], strict=True))
    patients = patients.mask(patients == "", lesions.map(known).fillna(""))
    own = lesions.mask(lesions.isin(patients), "lesion " + lesions)  # a patient may have that name
    return manifest.assign(group=patients.mask(patients == "", own))


def with_own_lesions(table: pd.DataFrame) -> pd.DataFrame:
    """Take each image without a lesion id for a lesion of its own, which gets the image's name."""
    images, lesions = table["image_id"], table["lesion_id"]
    own = images.mask(images.isin(lesions), "image " + images)  # a lesion may have that name
    return table.assign(lesion_id=lesions.mask(lesions == "", own))
