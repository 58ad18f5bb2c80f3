"""ISIC 2019: eight classes of dermoscopic images from three sources.

Its ground truth has a ninth column, UNK, for images that are of none of them.  In the training set
no image has it; where one does, it is left out and counted.
"""

from dataclasses import replace

from dermalyze.data.readers.challenge import joined, one_hot_labels, read_table_of
from dermalyze.data.readers.dataset import (
    Certainty,
    DataFolder,
    Dataset,
    Fit,
    dataset_of,
    named_sources,
)
from dermalyze.data.table_columns import manifest_rows
from serving.taxonomy import Taxonomy

LAYOUT = (
    "ISIC 2019 (ISIC_2019_Training_Input, ISIC_2019_Training_GroundTruth.csv and "
    "ISIC_2019_Training_Metadata.csv)"
)
TAXONOMY = Taxonomy(
    names=("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"),  # in the order of the columns
    descriptions=(
        "Melanoma",
        "Melanocytic nevus",
        "Basal cell carcinoma",
        "Actinic keratosis",
        "Benign keratosis (solar lentigo, seborrheic keratosis, lichen planus-like keratosis)",
        "Dermatofibroma",
        "Vascular lesion",
        "Squamous cell carcinoma",
    ),
    malignant=("MEL", "BCC", "SCC"),
    title="ISIC 2019",
    license="CC BY-NC 4.0 (ISIC 2019 challenge, challenge.isic-archive.com)",
    citation=(
        "ISIC 2019 challenge data: HAM10000 (Tschandl et al., Sci. Data 5, 180161 (2018), "
        "doi:10.1038/sdata.2018.161), MSK (Codella et al., arXiv:1710.05006 (2017)) and BCN20000 "
        "(Hernandez-Perez et al., Sci. Data 11, 641 (2024), doi:10.1038/s41597-024-03387-w)"
    ),
    not_recorded=("skin type",),
)
_PREFIX = "ISIC_2019_Training_"
_IMAGES = (f"{_PREFIX}Input".lower(),)
_NO_CLASS = "UNK"
_FACTS = {"age_approx": "age", "anatom_site_general": "localization"}  # ISIC's name -> ours


def fits(folder: DataFolder) -> Fit | None:
    """Say whether the images of the challenge are there."""
    return Fit(Certainty.NAMED, TAXONOMY.title) if named_sources(folder.entries, _IMAGES) else None


def read(folder: DataFolder) -> Dataset:
    """Read both tables and list the images."""
    classes = (*TAXONOMY.names, _NO_CLASS)
    path, truth = read_table_of(
        folder, TAXONOMY.title, f"{_PREFIX}GroundTruth", ("image", *classes)
    )
    _, facts = read_table_of(
        folder, TAXONOMY.title, f"{_PREFIX}Metadata", ("image", *_FACTS, "lesion_id", "sex")
    )
    rows = truth[["image"]].assign(label=one_hot_labels(truth, classes, path))
    table = joined(rows, facts).rename(columns=_FACTS)
    sources = named_sources(folder.entries, _IMAGES)
    dataset = dataset_of(folder, TAXONOMY.title, TAXONOMY, manifest_rows(table, path), sources)
    of_no_class = dataset.rows["label"] == _NO_CLASS
    return replace(
        dataset,
        rows=dataset.rows[~of_no_class].reset_index(drop=True),
        left_out=tuple(dataset.rows["image_id"][of_no_class].unique()),
    )
