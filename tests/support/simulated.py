"""Predictions drawn from a known truth: lesions with several images that resemble each other."""

import numpy as np
import pandas as pd

from dermalyze.evaluation.evaluate import Predictions
from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.scores import Scored, scored_of
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import Taxonomy

HAM10000_SHARES = dict(
    zip(HAM10000.names, (0.033, 0.051, 0.110, 0.011, 0.111, 0.670, 0.014), strict=True)
)
THREE = {"bkl": 0.4, "mel": 0.3, "nv": 0.3}


def simulate(
    num_lesions: int,
    seed: int,
    *,
    shares: dict[str, float] = HAM10000_SHARES,
    images: tuple[int, ...] = (1, 1, 2, 4),
    signal: float = 1.5,
    likeness: float = 0.9,
) -> Scored:
    """Draw lesions by class, some images of each, and logits.

    A logit is `signal` for the true class, plus noise of variance 1, of which the share `likeness`
    belongs to the lesion and the rest to the image.  Facts are drawn at random and mean nothing.
    """
    rng = np.random.default_rng(seed)
    names = tuple(shares)
    malignant = tuple(name for name in names if name in HAM10000.malignant)
    taxonomy = HAM10000 if names == HAM10000.names else Taxonomy(names=names, malignant=malignant)
    chances = np.array(list(shares.values()))
    classes = rng.choice(len(names), num_lesions, p=chances / chances.sum())
    lesions = np.repeat(np.arange(num_lesions), rng.choice(images, num_lesions))
    n, targets = len(lesions), classes[lesions]
    of_lesion = rng.normal(size=(num_lesions, len(names)))[lesions]
    noise = np.sqrt(likeness) * of_lesion + np.sqrt(1 - likeness) * rng.normal(size=(n, len(names)))
    rows = pd.DataFrame(
        {
            "image_id": [f"ISIC_{i:07d}" for i in range(n)],
            "label": np.asarray(names, dtype=object)[targets],
            "lesion_id": [f"HAM_{lesion:07d}" for lesion in lesions],
            "dx_type": rng.choice(["histo", "follow_up", "consensus"], num_lesions)[lesions],
            "age": rng.choice(np.arange(20.0, 85.0, 5.0), num_lesions)[lesions],
            "sex": rng.choice(["female", "male"], num_lesions)[lesions],
            "localization": rng.choice(["back", "face", "lower extremity"], num_lesions)[lesions],
        }
    )
    logits = signal * np.eye(len(names))[targets] + noise
    return scored_of(predictions_table(rows, logits, taxonomy), taxonomy)


def renamed(scored, prefix):
    """The same answers for other images of other lesions."""
    table = scored.table.assign(
        image_id=prefix + scored.table["image_id"], lesion_id=prefix + scored.table["lesion_id"]
    )
    return scored_of(table, scored.taxonomy)


def predicted(scored, validation=None, split="test"):
    return Predictions(scored=scored, split=split, validation=validation, context={"run_id": "r"})
