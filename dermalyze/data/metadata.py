"""What the manifest knows of each image beside its label, as numbers.  K numbers of an image."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from serving.metadata import COLUMNS, Metadata, MetadataFields, encode


def metadata_of(manifest: pd.DataFrame, fields: MetadataFields) -> NDArray[np.float32]:
    """Encode the manifest's age, sex and localization: float32 (num_images, K).

    A site that the model has no column for is not known to it.
    """
    rows = manifest[list(COLUMNS)].itertuples(index=False)
    facts = [Metadata.of(dict(zip(COLUMNS, row, strict=True))) for row in rows]
    return encode([item.known_to(fields) for item in facts], fields)
