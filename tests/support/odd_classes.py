"""Class lists of other data sets: two, and 23 with every kind of name that people give."""

from serving.taxonomy import Taxonomy

TWO = Taxonomy(
    names=("mel", "nv"),
    descriptions=("Melanoma", "Melanocytic nevus"),
    malignant=("mel",),
    title="two kinds",
    license="CC0",
)
ODD = Taxonomy(
    names=(
        "a/b",
        'say "mole"',
        "it's",
        "<script>alert(1)</script>",
        "=1+1",
        "שומה (nevus)",
        "黒色腫",
        "a very long name that somebody wrote as a whole sentence about the lesion " * 2,
        "semi;colon",
        "com,ma",
        "two\nlines",
        "__proto__",
        "constructor",
        "10",
        "2",
        "100%",
        "..",
        "🩺",
        "tab\tbed",
        "a_b",
        "A/B",
        "&amp;",
        "mel",
    )
)
