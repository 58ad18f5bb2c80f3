"""What the manifest knows of each image beside its label, as numbers.  K numbers of an image.

Only age, sex and site: what is known before a diagnosis (`serving.metadata.COLUMNS`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.data.table_columns import UNKNOWN
from serving.errors import ConfigError
from serving.metadata import COLUMNS, Metadata, MetadataFields, age_of, encode, word_of

MIN_IMAGES = 3  # of the training split, that show a word; fewer may be a slip of the pen


def fields_of(training: pd.DataFrame) -> MetadataFields:
    """Choose the columns of metadata from the manifest's rows of the training split.

    They are the words that some images share, sorted, and mean and standard deviation of the ages.

    Raises:
        ConfigError: nothing is known of any image.
    """
    ages = [age for value in training["age"] if (age := age_of(value)) is not None]
    words = {
        name: tuple(
            sorted(
                word
                for word, count in Counter(map(word_of, training[name])).items()
                if word is not None and count >= MIN_IMAGES
            )
        )
        for name in ("sex", "localization")
    }
    if not ages and not any(words.values()):
        raise ConfigError(
            "model.use_metadata needs images with a known age, sex or localization, and no "
            "training image has one; set model.use_metadata=false"
        )
    return MetadataFields(
        age_mean=round(float(np.mean(ages)), 2) if ages else None,
        age_std=round(float(np.std(ages)), 2) or 1.0 if ages else 1.0,
        sexes=words["sex"],
        localizations=words["localization"],
    )


def fields_of_members(members: Sequence[MetadataFields]) -> MetadataFields:
    """Return the columns of several networks together: every word that one of them knows."""
    of_age = next((fields for fields in members if fields.age_mean is not None), members[0])
    return replace(
        of_age,
        sexes=tuple(sorted({word for fields in members for word in fields.sexes})),
        localizations=tuple(sorted({word for fields in members for word in fields.localizations})),
    )


def conversion(common: MetadataFields, own: MetadataFields) -> NDArray[np.float32]:
    """Return the matrix (K, K') that turns metadata encoded for all members into one's own.

    A word that the member has no column for is unknown to it.
    """
    matrix = np.zeros((common.width, own.width), np.float32)
    if common.age_mean is not None and own.age_mean is not None:
        matrix[:2, 0] = common.age_std, common.age_mean - own.age_mean
        matrix[:2, 0] /= own.age_std
        matrix[1, 1] = 1
    words = [(fields.sexes, fields.localizations) for fields in (common, own)]
    for (from_, to), known, taken in zip(
        zip(common.parts[1:], own.parts[1:], strict=True), *words, strict=True
    ):
        for i, word in enumerate(taken):
            matrix[from_.start + known.index(word), to.start + i] = 1
    return matrix


def metadata_of(manifest: pd.DataFrame, fields: MetadataFields) -> NDArray[np.float32]:
    """Encode the manifest's age, sex and localization: float32 (num_images, K).

    A site that the model has no column for is not known to it.
    """
    rows = manifest[list(COLUMNS)].itertuples(index=False)
    facts = [Metadata.of(dict(zip(COLUMNS, row, strict=True))) for row in rows]
    return encode([item.known_to(fields) for item in facts], fields)


def words_left_out(manifest: pd.DataFrame, fields: MetadataFields) -> list[str]:
    """Say which sexes and sites of the manifest the model has no column for, a sentence each."""
    sentences = []
    for name, known in (("sex", fields.sexes), ("localization", fields.localizations)):
        words = [word_of(text) or UNKNOWN for text in manifest[name]]
        if others := [word for word in words if word not in (*known, UNKNOWN)]:
            named = ", ".join(sorted(set(others))[:5])
            sentences.append(
                f"{len(others):,} images have a {name} that the model does not know ({named}); "
                f"expected one of {', '.join(known)}, or unknown"
            )
    return sentences
