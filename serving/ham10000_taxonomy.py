"""The classes of HAM10000: for its readers, and for files from before a model carried its taxonomy.

Tschandl, Rosendahl & Kittler, Sci. Data 5, 180161 (2018), doi:10.1038/sdata.2018.161.
"""

from serving.taxonomy import Taxonomy

HAM10000 = Taxonomy(
    names=("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
    descriptions=(
        "Actinic keratosis or intraepithelial carcinoma (Bowen's disease)",
        "Basal cell carcinoma",
        "Benign keratosis-like lesion",
        "Dermatofibroma",
        "Melanoma",
        "Melanocytic nevus",
        "Vascular lesion",
    ),
    malignant=("akiec", "bcc", "mel"),
    title="HAM10000",
    license="CC BY-NC 4.0 (HAM10000, doi:10.1038/sdata.2018.161)",
    citation=(
        'Tschandl, P., Rosendahl, C. & Kittler, H. "The HAM10000 dataset, a large collection of '
        'multi-source dermatoscopic images of common pigmented skin lesions." '
        "Sci. Data 5, 180161 (2018). doi:10.1038/sdata.2018.161"
    ),
    not_recorded=("skin type",),
)
