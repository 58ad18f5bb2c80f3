"""Age, sex and site as numbers; what is not known is all zeros."""

import json
import math
import re
from dataclasses import replace
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dermalyze.data.patient_metadata import (
    conversion,
    fields_of,
    fields_of_members,
    metadata_of,
    words_left_out,
)
from dermalyze.models.heads import build_head
from dermalyze.training.loop import without_some
from serving.errors import ArtifactError, ConfigError, MetadataError
from serving.metadata import MISSING, Metadata, MetadataFields, encode

FIELDS = MetadataFields(
    age_mean=50.0, age_std=20.0, sexes=("female", "male"), localizations=("back", "face", "foot")
)


def test_an_encoding_done_by_hand():
    found = encode(
        [Metadata(age=70.0, sex="male", localization="face"), Metadata(age=40.0), None], FIELDS
    )
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 1, 0, 1, 0, 1, 0], [-0.5, 1, 0, 0, 0, 0, 0], [0] * 7]


def test_an_age_at_the_mean_is_not_the_same_as_no_age():
    known, unknown = encode([Metadata(age=50.0), Metadata()], FIELDS)
    assert known.tolist() != unknown.tolist()


WORDS = (
    *("", "nan", "NA", "N/A", "None", "null", "unknown", "-", "<NA>", "n.a.", "--", "\u2013", "?"),
    *("-nan", "NaT", "(null)", "\\N", "unk", "missing", "not available", "not recorded"),
    *("#N/A", "#N/A N/A", "#NA", "#VALUE!", "#REF!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!"),
)


@given(
    word=st.sampled_from(WORDS),
    change=st.sampled_from([str, str.lower, str.upper, str.title]),
    before=st.text(" \t\u00a0", max_size=2),
    after=st.text(" \t\u00a0", max_size=2),
)
def test_any_word_for_what_is_missing_is_none(word, change, before, after):
    values = dict.fromkeys(("age", "sex", "localization"), before + change(word) + after)
    assert Metadata.of(values) == Metadata()


def test_the_page_knows_the_same_words():
    page = resources.files("dermalyze.export") / "browser" / "answering.js"
    (words,) = re.findall(r"const MISSING = (\[.*?\]);", page.read_text("utf-8"), re.DOTALL)
    assert set(json.loads(re.sub(r",\s*\]", "]", words))) == MISSING


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_a_program_sends_for_what_is_missing_is_none(missing):
    values = dict.fromkeys(("age", "sex", "localization"), missing)
    assert Metadata.of(values) == Metadata() == Metadata.of({})


def test_csv_text_and_json_numbers_mean_the_same():
    text = Metadata.of({"age": "45.0", "sex": " Male", "localization": "Back "})
    assert text == Metadata.of({"age": 45, "sex": "male", "localization": "back"})
    assert text == Metadata(age=45.0, sex="male", localization="back")


@pytest.mark.parametrize(
    "age", [-1, 121, "old", True, math.inf, [], "1e9", "4_5", "55 years", 10**400, "9" * 400]
)
def test_an_age_that_nobody_has_is_refused(age):
    with pytest.raises(MetadataError) as caught:
        Metadata.of({"age": age})
    assert str(caught.value) == "an age must be a number of years from 0 to 120"


def test_a_word_that_the_model_does_not_know_is_refused_with_those_that_it_knows():
    with pytest.raises(MetadataError) as caught:
        encode([Metadata(localization="toe")], FIELDS)
    assert str(caught.value) == (
        "the localization is unknown to this model, expected one of back, face, foot, or unknown"
    )
    with pytest.raises(MetadataError) as caught:
        Metadata.of({"sex": 1})
    assert str(caught.value) == "the sex must be text, got int"


@given(
    age=st.none() | st.floats(0, 120),
    sex=st.sampled_from([None, *FIELDS.sexes]),
    localization=st.sampled_from([None, *FIELDS.localizations]),
)
def test_every_field_has_columns_of_its_own(age, sex, localization):
    row = encode([Metadata(age=age, sex=sex, localization=localization)], FIELDS)[0]
    of_age, of_sex, of_localization = (row[part] for part in FIELDS.parts)
    assert of_age[1] == (age is not None)
    assert of_sex.sum() == (sex is not None)
    assert of_localization.sum() == (localization is not None)
    assert sum(len(row[part]) for part in FIELDS.parts) == FIELDS.width == len(row)


def test_the_manifest_is_encoded_and_its_unknowns_are_missing():
    manifest = pd.DataFrame(
        {
            "age": [70.0, np.nan],
            "sex": ["female", "unknown"],
            "localization": ["foot", "somewhere new"],
        }
    )
    assert metadata_of(manifest, FIELDS).tolist() == [[1, 1, 1, 0, 0, 0, 1], [0] * 7]


def test_words_that_the_model_has_no_column_for_are_counted_and_named():
    sites = ["toe", "unknown", "foot", "Back", "N/A"]
    manifest = pd.DataFrame({"sex": ["f", "m", "Male", "f", None], "localization": sites})
    assert words_left_out(manifest, FIELDS) == [
        "3 images have a sex that the model does not know (f, m); expected one of female, male, or "
        "unknown",
        "1 images have a localization that the model does not know (toe); expected one of back, "
        "face, foot, or unknown",
    ]
    assert words_left_out(manifest.iloc[2:3], FIELDS) == []


def test_a_manifest_in_other_letters_trains_what_serving_understands():
    manifest = pd.DataFrame({"age": [50.0], "sex": ["Male"], "localization": ["Back "]})
    served = encode([Metadata.of({"age": 50, "sex": "Male", "localization": "Back "})], FIELDS)
    assert metadata_of(manifest, FIELDS).tolist() == served.tolist() == [[0, 1, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize("value", [{"age": 121.0}, {"age": math.inf}, {"sex": 1}])
def test_facts_made_by_hand_are_held_to_the_same(value):
    with pytest.raises(MetadataError):
        Metadata(**value)
    assert Metadata(age=math.nan, sex="Female ", localization="unknown") == Metadata(sex="female")


@pytest.mark.parametrize("sexes", [("female", "female"), ("Female", "male"), ("female", "")])
def test_fields_that_no_predictor_could_use_are_refused(sexes):
    with pytest.raises(ArtifactError) as caught:
        replace(FIELDS, sexes=sexes)
    assert str(caught.value) == (
        f"the model's spec has metadata.sexes {sexes}, expected different words in small "
        "letters; export the model again"
    )


@pytest.mark.parametrize("kind", ["simple", "acrnn"])
def test_a_head_that_takes_metadata_answers_otherwise_for_other_metadata(kind):
    torch.manual_seed(0)
    head = build_head(kind, 6, 7, 0.3, 4).eval()
    features = torch.randn(3, 6, 2, 2)
    known = head(features, torch.randn(3, 4))
    unknown = head(features, None)
    assert (known - unknown).abs().min() > 1e-6
    torch.testing.assert_close(unknown, head(features, torch.zeros(3, 4)))


@pytest.mark.parametrize("kind", ["simple", "acrnn"])
def test_a_head_without_metadata_has_the_weights_that_it_always_had(kind):
    torch.manual_seed(0)
    plain = build_head(kind, 6, 7, 0.3)
    torch.manual_seed(0)
    also = build_head(kind, 6, 7, 0.3, 0)
    for one, other in zip(plain.parameters(), also.parameters(), strict=True):
        assert torch.equal(one, other)
    first = {"simple": "layers.1.weight", "acrnn": "classifier.weight"}[kind]
    assert plain.state_dict()[first].shape[1] == {"simple": 6, "acrnn": 64}[kind]


def test_left_out_metadata_is_left_out_field_by_field_and_altogether():
    metadata = torch.ones(4000, FIELDS.width)
    found = without_some(metadata, FIELDS.parts, 0.3, torch.Generator().manual_seed(0))
    kept = torch.stack([found[:, part].mean(1) for part in FIELDS.parts], 1)  # 0 or 1 each
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    # Kept if neither the field (0.7) nor all of them (0.7) are left out.
    np.testing.assert_allclose(kept.mean(0), [0.49] * 3, atol=0.03)
    # Nothing is left with 0.3 + 0.7 * 0.3 ** 3.
    assert float((kept.sum(1) == 0).float().mean()) == pytest.approx(0.3189, abs=0.03)
    again = without_some(metadata, FIELDS.parts, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    assert torch.equal(
        without_some(metadata, FIELDS.parts, 0.0, torch.Generator().manual_seed(0)), metadata
    )


def test_metadata_reaches_the_logits_by_itself():
    torch.manual_seed(0)
    head = build_head("simple", 6, 7, 0.3, 4).eval()
    features, metadata = torch.randn(3, 6, 2, 2), torch.randn(3, 4)
    before = head(features, metadata)
    with torch.no_grad():
        head.direct.weight.copy_(torch.randn(7, 4))
    added = metadata @ head.direct.weight.T
    torch.testing.assert_close(head(features, metadata), before + added)


def manifest_of(ages, sexes, sites, **more):
    return pd.DataFrame({"age": ages, "sex": sexes, "localization": sites, **more})


def test_the_fields_are_what_the_training_images_share():
    rows = manifest_of(
        ["30", "50", "70", "unknown", "50"],
        ["Female"] * 4 + ["male"],
        ["oral", "back "] * 2 + ["back"],
    )
    # ages: mean 50, variance (20 ** 2 + 0 + 20 ** 2 + 0) / 4; two images show no mouth
    assert fields_of(rows) == MetadataFields(
        age_mean=50.0, age_std=14.14, sexes=("female",), localizations=("back",)
    )
    more = pd.concat([rows, rows]).sample(frac=1, random_state=0)
    assert fields_of(more).localizations == ("back", "oral")


def test_what_no_training_image_records_the_model_does_not_take():
    fields = fields_of(manifest_of([None] * 3, ["unknown"] * 3, ["face"] * 3))
    assert (fields.columns, fields.width) == (("localization",), 3)
    assert encode([Metadata(localization="face")], fields).tolist() == [[0, 0, 1]]
    for facts, name in ((Metadata(age=50.0), "age"), (Metadata(sex="male"), "sex")):
        with pytest.raises(MetadataError) as caught:
            encode([facts], fields)
        assert str(caught.value) == f"this model does not take the {name}; leave it out"
        assert facts.known_to(fields) == Metadata()


def test_one_age_alone_has_a_scale():
    fields = fields_of(manifest_of(["40"] * 3, [""] * 3, [""] * 3))
    assert encode([Metadata(age=41.0)], fields).tolist() == [[1, 1]]


def test_images_of_which_nothing_is_known_are_refused():
    with pytest.raises(ConfigError) as caught:
        fields_of(manifest_of(["", None], ["unknown", ""], ["", "nan"]))
    assert str(caught.value) == (
        "model.use_metadata needs images with a known age, sex or localization, and no training "
        "image has one; set model.use_metadata=false"
    )


def test_what_is_known_only_after_the_diagnosis_is_never_an_input():
    known = (["50"] * 4, ["male"] * 4, ["back"] * 4)
    after = {"dx_type": ["histo"] * 4, "biopsied": [True] * 4, "dataset": ["rosendahl"] * 4}
    rows = manifest_of(*known, **after)
    assert fields_of(rows) == fields_of(manifest_of(*known))
    assert metadata_of(rows, fields_of(rows)).shape == (4, 2 + 1 + 1)


def test_networks_that_learned_other_words_are_asked_together():
    one = FIELDS
    other = MetadataFields(
        age_mean=60.0, age_std=10.0, sexes=("male",), localizations=("back", "oral")
    )
    ageless = replace(other, age_mean=None, localizations=())
    common = fields_of_members([ageless, one, other])
    assert common == replace(
        one, sexes=("female", "male"), localizations=("back", "face", "foot", "oral")
    )
    facts = [
        Metadata(age=70.0, sex="male", localization="back"),
        Metadata(age=40.0, sex="female", localization="oral"),
        Metadata(localization="foot"),
        Metadata(),
    ]
    together = encode(facts, common)
    for own in (one, other, ageless):
        alone = encode([item.known_to(own) for item in facts], own)
        np.testing.assert_allclose(together @ conversion(common, own), alone, atol=1e-6)
