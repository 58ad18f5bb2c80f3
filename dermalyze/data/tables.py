"""Tables about images as data frames: each fact of a row in the one form that it has everywhere."""

from pathlib import Path

import pandas as pd

from serving.errors import DataError, MetadataError
from serving.metadata import MAX_AGE, age_of, is_missing, word_of
from serving.tables import table_bytes

FACTS = ("dx_type", "age", "sex", "localization")
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
    table["lesion_id"] = table["lesion_id"].mask(table["lesion_id"].map(is_missing), "")
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


def with_own_lesions(table: pd.DataFrame) -> pd.DataFrame:
    """Take each image without a lesion id for a lesion of its own, which gets the image's name."""
    images, lesions = table["image_id"], table["lesion_id"]
    own = images.mask(images.isin(lesions), "image " + images)  # a lesion may have that name
    return table.assign(lesion_id=lesions.mask(lesions == "", own))
