"""The contract inside the model file: what is written reads back, what is wrong is named."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ArtifactError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import MetadataFields
from serving.photo_quality import QualityLimits
from serving.spec import PRECISIONS, RESIZE_FILTERS, RESIZE_MODES, SALIENCY_KINDS, ModelSpec
from serving.taxonomy import Taxonomy
from serving.uncertainty import Abstention, PredictionSets, Referral, Scope

WORDS = st.text(min_size=1).filter(str.strip)
NAMES = st.lists(WORDS, min_size=2, max_size=9, unique=True).map(tuple)


FIELDS = MetadataFields(
    age_mean=52.0, age_std=17.0, sexes=("female", "male"), localizations=("back", "face", "foot")
)
ABSTENTION = Abstention(risk=0.1, min_confidence=0.6, coverage=0.7, num_lesions=900)
SCOPE = Scope(kind="mahalanobis", max_score=1.5, false_alarm_rate=0.05, num_lesions=900)
REFERRAL = Referral(
    levels=(0.8, 0.9),
    min_probs=(0.3, 0.2),
    specificities=(0.9, 0.8),
    confidence=0.95,
    num_malignant=40,
    num_benign=90,
)
QUALITY = QualityLimits(
    min_side=64, min_sharpness=0.5, min_brightness=40.0, max_brightness=230.0, min_color=5.0
)


@st.composite
def sets(draw, num_classes):
    probs = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(
        lambda row: tuple(sorted(row, reverse=True))
    )
    return PredictionSets(
        levels=(0.8, 0.9),
        min_probs=tuple(draw(probs) for _ in range(num_classes)),
        num_lesions=(7,) * num_classes,
    )


@st.composite
def specs(draw):
    names = draw(NAMES)
    precision = draw(st.sampled_from(PRECISIONS))
    malignant = draw(st.sampled_from([(), names[1:], names]))
    texts = st.lists(st.text(), min_size=len(names), max_size=len(names))
    return ModelSpec(
        taxonomy=Taxonomy(
            names=names,
            descriptions=tuple(draw(texts)),
            malignant=malignant,
            title=draw(st.text()),
            license=draw(st.text()),
        ),
        input_size=draw(st.tuples(st.integers(1, 4096), st.integers(1, 4096))),
        resize_mode=draw(st.sampled_from(RESIZE_MODES)),
        resize_filter=draw(st.sampled_from(RESIZE_FILTERS)),
        precision=precision,
        int8_weight_bits=draw(st.sampled_from([None, 7, 8])) if precision == "int8" else None,
        temperature=draw(st.floats(0.01, 100)),
        run_id=draw(st.text()),
        data_fingerprint=draw(st.text()),
        calibrated_on=draw(st.text()),
        prediction_sets=draw(st.none() | sets(len(names))),
        abstention=draw(st.none() | st.just(ABSTENTION)),
        scope=draw(st.none() | st.just(SCOPE)),
        referral=draw(st.sampled_from([None, REFERRAL])) if malignant == names[1:] else None,
        quality=draw(st.none() | st.just(QUALITY)),
        metadata=draw(st.none() | st.just(FIELDS)),
        saliency=draw(st.sampled_from(SALIENCY_KINDS)),
        num_views=draw(st.sampled_from([1, 8])),
        member_run_ids=draw(st.sampled_from([(), ("a", "b"), ("a", "b", "c")])),
    )


@given(spec=specs())
def test_a_spec_reads_back_as_it_was_written(spec):
    assert ModelSpec.from_json(spec.to_json()) == spec


@given(
    text=st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    ).map(json.dumps)
)
def test_any_text_is_a_spec_or_an_artifact_error(text):
    with pytest.raises(ArtifactError):
        ModelSpec.from_json(text)


@given(
    key=st.sampled_from(
        sorted(json.loads(ModelSpec(taxonomy=HAM10000, input_size=(8, 8)).to_json()))
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=5,
    ),
)
def test_a_spec_with_any_value_changed_is_a_spec_or_an_artifact_error(key, value):
    values = json.loads(ModelSpec(taxonomy=HAM10000, input_size=(8, 8)).to_json()) | {key: value}
    try:
        ModelSpec.from_json(json.dumps(values))
    except ArtifactError as error:
        message = str(error)
    else:
        return
    assert len(message.splitlines()) == 1
    assert len(message) < 300


def message_of(**changes):
    values = json.loads(ModelSpec(taxonomy=HAM10000, input_size=(8, 8)).to_json()) | changes
    with pytest.raises(ArtifactError) as caught:
        ModelSpec.from_json(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return str(caught.value)


VERSION = "this program reads 1 to 3; update dermalyze or export the model again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 4}, f"the model has spec version 4, {VERSION}"),
        ({"format_version": "1"}, f"the model has spec version '1', {VERSION}"),
        ({"format_version": True}, f"the model has spec version True, {VERSION}"),
        (
            {"colour": 1},
            "the model's spec has unknown keys ['colour']; export the model again",
        ),
        (
            {"temperature": 0},
            "the model's spec has temperature 0, expected a number from 0.01 to 100; "
            "export the model again",
        ),
        (
            {"temperature": 10**400},
            f"the model's spec has temperature {'1' + '0' * 96}..., expected a number from 0.01 "
            "to 100; export the model again",
        ),
        (
            {"taxonomy": {"names": [["a"], ["b"]]}},
            "the model's spec cannot be used: taxonomy.names must be a list of strings; "
            "export the model again",
        ),
        (
            {"taxonomy": ["a", "b"]},
            "the model's spec cannot be used: a taxonomy must be an object with names; "
            "export the model again",
        ),
        (
            {"taxonomy": {"names": ["a", "b"], "benign": ["a"]}},
            "the model's spec cannot be used: a taxonomy has no field 'benign'; it has citation, "
            "descriptions, license, malignant, names, not_recorded, title; export the model again",
        ),
        (
            {"class_names": ["a", "b"]},
            "the model's spec has unknown keys ['class_names']; export the model again",
        ),
        (
            {"input_size": [8, 5000]},
            "the model's spec has input_size (8, 5000), expected height and width from 1 to 4096; "
            "export the model again",
        ),
        (
            {"input_size": 8},
            "the model's spec has input_size 8, expected a list; export the model again",
        ),
        (
            {"resize_mode": "pad"},
            "the model's spec has resize_mode 'pad', expected squash or center_crop; "
            "export the model again",
        ),
        (
            {"resize_filter": None},
            "the model's spec has resize_filter None, expected bilinear or bicubic or lanczos; "
            "export the model again",
        ),
        (
            {"precision": "int4"},
            "the model's spec has precision 'int4', expected float32 or float16 or int8; "
            "export the model again",
        ),
        (
            {"thresholds": {"mel": 0.5}},
            "the model's spec has unknown keys ['thresholds']; export the model again",
        ),
        (
            {"disclaimer": 3},
            "the model's spec has disclaimer 3, expected text; export the model again",
        ),
    ],
)
def test_a_wrong_value_is_named(changes, message):
    assert message_of(**changes) == message


def test_a_missing_key_is_named():
    values = json.loads(ModelSpec(taxonomy=HAM10000, input_size=(8, 8)).to_json())
    del values["temperature"]
    with pytest.raises(ArtifactError) as caught:
        ModelSpec.from_json(json.dumps(values))
    assert str(caught.value) == "the model's spec lacks ['temperature']; export the model again"


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000])
def test_what_is_no_json_is_said_so(text):
    with pytest.raises(ArtifactError) as caught:
        ModelSpec.from_json(text)
    assert str(caught.value) == "the model's spec is not JSON; export the model again"


def test_json_that_is_no_object_is_said_so():
    with pytest.raises(ArtifactError) as caught:
        ModelSpec.from_json("[1]")
    assert str(caught.value) == "the model's spec is not a JSON object; export the model again"


VERSION_1 = """{"class_descriptions": ["a mole", "a melanoma"], "class_names": ["nv", "mel"],
"data_fingerprint": "f", "data_license": "CC", "disclaimer": "no diagnosis", "format_version": 1,
"input_size": [8, 6], "precision": "int8", "resize_filter": "bilinear", "resize_mode": "squash",
"run_id": "r", "temperature": 1.5, "thresholds": {"mel": 0.2}}"""


def test_a_spec_of_version_1_still_reads_and_has_no_limits():
    assert ModelSpec.from_json(VERSION_1) == ModelSpec(
        taxonomy=Taxonomy(names=("nv", "mel"), descriptions=("a mole", "a melanoma"), license="CC"),
        input_size=(8, 6),
        resize_filter="bilinear",
        precision="int8",
        temperature=1.5,
        run_id="r",
        data_fingerprint="f",
        disclaimer="no diagnosis",
    )


def test_the_bits_of_int8_weights_are_written_where_they_are_known_and_only_there():
    spec = ModelSpec(taxonomy=HAM10000, input_size=(8, 8), precision="int8", int8_weight_bits=7)
    values = json.loads(spec.to_json())
    assert values.pop("int8_weight_bits") == 7
    # A file from before they were recorded, which has 8.
    assert ModelSpec.from_json(json.dumps(values)) == replace(spec, int8_weight_bits=None)
    assert "int8_weight_bits" not in ModelSpec(taxonomy=HAM10000, input_size=(8, 8)).to_json()


@pytest.mark.parametrize(("precision", "bits"), [("int8", 6), ("int8", "7"), ("float32", 7)])
def test_bits_of_int8_weights_that_cannot_be_are_refused(precision, bits):
    with pytest.raises(ArtifactError) as caught:
        ModelSpec(taxonomy=HAM10000, input_size=(8, 8), precision=precision, int8_weight_bits=bits)
    assert str(caught.value) == (
        f"the model's spec has int8_weight_bits {bits!r}, expected 7 or 8, where precision is "
        "int8; export the model again"
    )


def test_a_spec_of_version_1_has_no_keys_of_version_2():
    values = json.loads(VERSION_1) | {"saliency": "grad_cam"}
    with pytest.raises(ArtifactError) as caught:
        ModelSpec.from_json(json.dumps(values))
    assert str(caught.value) == (
        "the model's spec has unknown keys ['saliency']; export the model again"
    )


def test_a_part_that_lacks_a_field_is_refused():
    values = json.loads(ModelSpec(taxonomy=HAM10000, input_size=(8, 8), scope=SCOPE).to_json())
    del values["scope"]["max_score"]
    with pytest.raises(ArtifactError) as caught:
        ModelSpec.from_json(json.dumps(values))
    assert str(caught.value) == (
        "the model's spec has another scope than this program reads, expected an object with kind, "
        "max_score, false_alarm_rate, num_lesions; export the model again"
    )


@pytest.mark.parametrize("value", [3, "x", None, [[1], 2], [0.9, "a"], {"a": 1}])
@pytest.mark.parametrize("field", ["levels", "min_probs", "num_lesions"])
def test_a_part_with_values_of_another_type_is_refused(field, value):
    values = json.loads(
        ModelSpec(
            taxonomy=Taxonomy(names=("a", "b")),
            input_size=(8, 8),
            prediction_sets=PredictionSets(
                levels=(0.9,), min_probs=((0.5,), (0.5,)), num_lesions=(20, 20)
            ),
        ).to_json()
    )
    values["prediction_sets"][field] = value
    with pytest.raises(ArtifactError):
        ModelSpec.from_json(json.dumps(values))


def test_a_model_without_a_referral_has_no_such_key_and_one_with_it_reads_back():
    spec = ModelSpec(taxonomy=HAM10000, input_size=(8, 8))
    assert "referral" not in json.loads(spec.to_json())
    assert ModelSpec.from_json(replace(spec, referral=REFERRAL).to_json()).referral == REFERRAL


@pytest.mark.parametrize("malignant", [(), HAM10000.names])
def test_a_referral_needs_classes_that_are_malignant_and_others(malignant):
    with pytest.raises(ArtifactError) as caught:
        ModelSpec(
            taxonomy=replace(HAM10000, malignant=malignant), input_size=(8, 8), referral=REFERRAL
        )
    assert str(caught.value).endswith(
        "expected none where not both malignant and benign classes are known; "
        "export the model again"
    )
