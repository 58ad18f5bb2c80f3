"""PAD-UFES-20: photographs by smartphone, six classes, with patients and Fitzpatrick skin types."""

from pathlib import Path

from dermalyze.data.readers.dataset import (
    Certainty,
    DataFolder,
    Dataset,
    Fit,
    dataset_of,
    named_sources,
    plain_name,
)
from dermalyze.data.table_columns import columns_of, manifest_rows, read_file, read_frame
from serving.taxonomy import Taxonomy

LAYOUT = "PAD-UFES-20 (metadata.csv beside imgs_part_1 to imgs_part_3, or beside images/)"
TAXONOMY = Taxonomy(
    names=("ACK", "BCC", "MEL", "NEV", "SCC", "SEK"),
    descriptions=(
        "Actinic keratosis",
        "Basal cell carcinoma",
        "Melanoma",
        "Melanocytic nevus",
        "Squamous cell carcinoma or Bowen's disease",
        "Seborrheic keratosis",
    ),
    malignant=("BCC", "MEL", "SCC"),
    title="PAD-UFES-20",
    license="CC BY 4.0 (PAD-UFES-20, doi:10.17632/zr7vgbcyr2.1)",
    citation=(
        'Pacheco, A. G. C. et al. "PAD-UFES-20: A skin lesion dataset composed of patient data and '
        'clinical images collected from smartphones." Data Brief 32, 106221 (2020). '
        "doi:10.1016/j.dib.2020.106221"
    ),
)
_TABLE = "metadata.csv"
_REQUIRED = ("patient_id", "lesion_id", "diagnostic", "img_id")
_NAMES = {"img_id": "image_id", "diagnostic": "label", "gender": "sex", "region": "localization"}
_PARTS = ("imgs_part_1", "imgs_part_2", "imgs_part_3")


def fits(folder: DataFolder) -> Fit | None:
    """Say whether a table with the columns of PAD-UFES-20 lies beside images."""
    return Fit(Certainty.NAMED, TAXONOMY.title) if _tables(folder) and _sources(folder) else None


def read(folder: DataFolder) -> Dataset:
    """Read the table and list the images."""
    path = _tables(folder)[0]
    table = read_frame(read_file(path), path, _REQUIRED).rename(columns=_NAMES)
    table["label"] = table["label"].str.upper()
    rows = manifest_rows(table, path)
    return dataset_of(folder, TAXONOMY.title, TAXONOMY, rows, _sources(folder))


def _tables(folder: DataFolder) -> list[Path]:
    return [
        path
        for path in folder.entries
        if plain_name(path.name) == _TABLE
        and path.is_file()
        and {"diagnostic", "img_id"}.issubset(columns_of(path, _REQUIRED))
    ]


def _sources(folder: DataFolder) -> list[Path]:
    """Return the three parts, zips or folders, here or in `images/`; else all of `images/`."""
    images = named_sources(folder.entries, ("images",))
    inside = [path for source in images if source.is_dir() for path in sorted(source.iterdir())]
    return named_sources((*folder.entries, *inside), _PARTS) or images
