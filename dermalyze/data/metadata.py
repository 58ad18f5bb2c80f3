"""What the manifest knows of each image beside its label, as numbers.  K numbers of an image."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from serving.metadata import COLUMNS, Metadata, MetadataFields, encode


def metadata_of(manifest: pd.DataFrame, fields: MetadataFields) -> NDArray[np.float32]:
    """Encode the manifest's age, sex and localization: float32 (num_images, K).

    A site that the model has no column for is not known to it.
    """
    items = []
    for _, row in manifest[list(COLUMNS)].iterrows():
        values = {str(name): value for name, value in row.items()}
        if values["localization"] not in fields.localizations:
            values["localization"] = None
        if values["sex"] not in fields.sexes:
            values["sex"] = None
        items.append(Metadata.of(values))
    return encode(items, fields)
