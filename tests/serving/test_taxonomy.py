"""A taxonomy refuses what no model could use, and gives each class a key that is safe in paths."""

import re

import pytest

from serving.errors import ArtifactError
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import Taxonomy


def test_ham10000_has_seven_classes_in_the_order_of_old_files() -> None:
    assert HAM10000.names == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert HAM10000.malignant == ("akiec", "bcc", "mel")
    assert HAM10000.description("mel") == "Melanoma"
    assert HAM10000.keys == HAM10000.names


def test_a_taxonomy_comes_back_from_its_plain_values() -> None:
    assert Taxonomy.from_dict(HAM10000.to_dict()) == HAM10000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": ["a"]}, "taxonomy.names must have two or more names, none of them empty"),
        ({"names": ["a", " "]}, "taxonomy.names must have two or more names, none of them empty"),
        ({"names": ["a", "a"]}, "taxonomy.names has 'a' more than once"),
        ({"names": "ab"}, "taxonomy.names must be a list of strings"),
        ({"names": ["a", 1]}, "taxonomy.names must be a list of strings"),
        ({"names": ["a", "b"], "title": None}, "taxonomy.title must be text"),
        (
            {"names": ["a", "b"], "descriptions": ["A"]},
            "taxonomy.descriptions must have one text per name, or none",
        ),
        (
            {"names": ["a", "b"], "malignant": ["c"]},
            "taxonomy.malignant has 'c', which is not a class",
        ),
        ({"malignant": []}, "a taxonomy must be an object with names"),
        (
            {"names": ["a", "b"], "colour": 1},
            "a taxonomy has no field 'colour'; it has citation, descriptions, license, malignant, "
            "names, not_recorded, title",
        ),
    ],
)
def test_what_no_model_could_use_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=f"^{re.escape(message)}$"):
        Taxonomy.from_dict(values)


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (("mel/nv", "mel:nv", "mel_nv"), ("mel_nv", "mel_nv_2", "mel_nv_3")),
        (("naevus bleu", "мела", "黒色腫"), ("naevus bleu", "мела", "黒色腫")),
        (("..", ".", " x "), ("__", "_", "x")),
        (("A", "a"), ("A", "a_2")),  # one file on Windows and macOS
        (("é", "e\u0301"), ("é", "é_2")),
        (("../../etc", "a" * 99), (".._.._etc", "a" * 60)),
    ],
)
def test_every_class_has_a_key_of_its_own_that_is_safe_in_a_path(
    names: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    assert Taxonomy(names=names).keys == keys


@pytest.mark.parametrize("field", ["names", "descriptions", "title"])
def test_half_a_character_is_refused_where_it_comes_in(field):
    values = {"names": ("a", "b"), "descriptions": ("x", "y"), "title": "t"}
    text = "caf\udce9"  # a folder's name in Latin-1, as Python reads it on Linux
    values[field] = text if field == "title" else (text, "b")
    with pytest.raises(ArtifactError) as caught:
        Taxonomy(**values)
    assert str(caught.value) == "taxonomy has 'caf\\udce9', which is not Unicode text"
