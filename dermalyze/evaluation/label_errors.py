"""Labels that are probably wrong, by predictions of models that had not seen the image.

The only module that imports cleanlab, an extra (`dermalyze[monitor]`).  C classes.
"""

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from dermalyze.evaluation.scores import Scored


def rank_labels(scored: Scored) -> pd.DataFrame:
    """Rank images by how doubtful their labels are, most doubtful first.

    Confident learning: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in
    Dataset Labels", JAIR 70 (2021).  Classes without images do not count.

    Returns:
        image_id; label; suggested, the most probable other class; probability, of that class;
        quality of the label, its probability; suspected, whether the label is thought to be wrong.
    """
    present, labels = np.unique(scored.targets, return_inverse=True)
    probs = scored.probs[:, present]
    probs = probs / probs.sum(axis=1, keepdims=True)
    quality = get_label_quality_scores(labels, probs, method="self_confidence")
    suspected = find_label_issues(labels, probs, n_jobs=1)
    rows = np.arange(len(labels))
    others = probs.copy()
    others[rows, labels] = -1
    names = np.asarray(scored.class_names, dtype=object)[present]
    ranked = pd.DataFrame(
        {
            "image_id": scored.table["image_id"].to_numpy(),
            "label": names[labels],
            "suggested": names[others.argmax(axis=1)],
            "probability": others.max(axis=1),
            "quality": quality,
            "suspected": suspected,
        }
    )
    return ranked.sort_values("quality", kind="stable", ignore_index=True)
