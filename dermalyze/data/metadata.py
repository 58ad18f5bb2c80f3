"""What the manifest knows of each image beside its label, as numbers.  K numbers of an image."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermalyze.data.tables import UNKNOWN
from serving.metadata import COLUMNS, Metadata, MetadataFields, encode, word_of


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
