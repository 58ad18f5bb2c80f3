"""The seven classes of HAM10000: their order, their names in words, which are malignant.

The order is the order of the logits in every checkpoint and ONNX file.  Source: Tschandl,
Rosendahl & Kittler, Sci. Data 5, 180161 (2018), doi:10.1038/sdata.2018.161.
"""

from types import MappingProxyType

CLASS_NAMES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

CLASS_DESCRIPTIONS = MappingProxyType(
    {
        "akiec": "Actinic keratosis or intraepithelial carcinoma (Bowen's disease)",
        "bcc": "Basal cell carcinoma",
        "bkl": "Benign keratosis-like lesion",
        "df": "Dermatofibroma",
        "mel": "Melanoma",
        "nv": "Melanocytic nevus",
        "vasc": "Vascular lesion",
    }
)

MALIGNANT = frozenset({"akiec", "bcc", "mel"})

DISCLAIMER = "For education and research only. This is not a medical device and not a diagnosis."
DATA_LICENSE = "CC BY-NC 4.0 (HAM10000, doi:10.1038/sdata.2018.161)"
