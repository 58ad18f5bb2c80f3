"""From images to answers around any network; the network here says what the test tells it to."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_model import SPEC

from serving.base_predictor import AnyPredictor, optional_fields
from serving.errors import ArtifactError, ConfigError, ImageError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import Metadata
from serving.photo_quality import QualityLimits
from serving.taxonomy import DISCLAIMER
from serving.uncertainty import Abstention, PredictionSets, Referral, Scope

GREY = np.full((4, 5, 3), 128, np.uint8)
# Divided by the temperature of 2: 0, 0, 0, 0, ln 2, 0, ln 3; the powers sum to 5 + 2 + 3.
TENTHS = [0, 0, 0, 0, 2 * math.log(2), 0, 2 * math.log(3)]
SETS = PredictionSets(
    levels=(0.8, 0.9),
    # At 90 %: akiec must have 0.15, bcc 0.05, mel 0.1; df has too few lesions.
    min_probs=tuple((0.3, low) for low in (0.15, 0.05, 0.15, 0.0, 0.1, 0.15, 0.2)),
    num_lesions=(40, 50, 60, 3, 70, 80, 30),
)
ABSTENTION = Abstention(risk=0.1, min_confidence=0.25, coverage=0.8, num_lesions=300)
SCOPE = Scope(kind="distance", max_score=40.0, false_alarm_rate=0.05, num_lesions=300)
LIMITED = replace(SPEC, prediction_sets=SETS, abstention=ABSTENTION, scope=SCOPE)


class Told(AnyPredictor):
    """Gives back what it was made with, row by row, whatever the images."""

    def __init__(self, spec, **outputs):
        self.spec = spec
        self.outputs = {name: np.asarray(rows, np.float32) for name, rows in outputs.items()}
        self.asked = []
        self.row = 0

    def run(self, pixels, names, metadata=None):
        self.asked.append((pixels.shape, list(names), metadata))
        rows = slice(self.row, self.row + len(pixels))
        self.row += len(pixels)
        return {name: self.outputs[name][rows] for name in names}


def test_an_answer_done_by_hand():
    answer = Told(SPEC, logits=[TENTHS]).predict(GREY)
    tenth = pytest.approx(0.1)
    assert answer.to_dict() == {
        "predicted_class": "vasc",
        "predicted_class_description": "Vascular lesion",
        "confidence": pytest.approx(0.3),
        "probabilities": {
            "akiec": tenth,
            "bcc": tenth,
            "bkl": tenth,
            "df": tenth,
            "mel": pytest.approx(0.2),
            "nv": tenth,
            "vasc": pytest.approx(0.3),
        },
        "logits": dict(zip(HAM10000.names, map(pytest.approx, TENTHS), strict=True)),
        "disclaimer": DISCLAIMER,
    }
    assert all(type(value) is float for value in answer.probabilities.values())


def test_a_model_with_limits_says_its_set_and_its_decision():
    values = Told(LIMITED, logits=[TENTHS], scope_score=[10]).predict(GREY).to_dict()
    # 0.1 reaches the 0.05 of bcc, 0.2 the 0.1 of mel, 0.3 the 0.2 of vasc; df always is there.
    assert values["prediction_set"] == ["bcc", "df", "mel", "vasc"]
    assert (values["set_size"], values["set_level"]) == (4, 0.9)
    assert values["set_note"] == "always included (too few calibration lesions): df (3)"
    assert values["decision"] == "answer"
    assert values["decision_reason"] == (
        "confidence 30.0% is at or above the 25.0% threshold "
        "(at most 10% errors on validation images)"
    )
    assert values["scope_score"] == 10


def test_another_level_gives_another_set_from_the_same_file():
    answer = Told(LIMITED, logits=[TENTHS], scope_score=[10]).predict(GREY, level=0.8)
    assert answer.prediction_set == ("vasc",)  # 0.3 is reached by the most probable class alone
    assert answer.set_note is None


def test_the_most_probable_class_is_in_the_set_even_where_none_reaches_its_threshold():
    spec = replace(LIMITED, prediction_sets=replace(SETS, min_probs=((0.9, 0.9),) * 7))
    answer = Told(spec, logits=[TENTHS], scope_score=[0]).predict(GREY)
    assert answer.prediction_set == ("vasc",)


@pytest.mark.parametrize("level", [0.79, 0.91, 1.0, float("nan"), True])
def test_a_level_that_the_file_does_not_have_is_refused(level):
    with pytest.raises(ConfigError) as caught:
        Told(LIMITED, logits=[TENTHS], scope_score=[0]).predict(GREY, level=level)
    assert str(caught.value) == (
        f"the level of prediction sets must be from 0.8 to 0.9, got {level!r}"
    )


def test_a_confidence_below_the_threshold_is_uncertain():
    spec = replace(LIMITED, abstention=replace(ABSTENTION, min_confidence=0.31))
    answer = Told(spec, logits=[TENTHS], scope_score=[10]).predict(GREY)
    assert answer.decision == "uncertain"
    assert answer.decision_reason.startswith("confidence 30.0% is below the 31.0% threshold ")


@pytest.mark.parametrize(("gap", "decision"), [(0, "answer"), (1e-9, "uncertain")])
def test_the_threshold_itself_is_answered(gap, decision):
    confidence = Told(SPEC, logits=[TENTHS]).predict(GREY).confidence
    spec = replace(LIMITED, abstention=replace(ABSTENTION, min_confidence=confidence + gap))
    answer = Told(spec, logits=[TENTHS], scope_score=[10]).predict(GREY)
    assert answer.decision == decision


def test_a_poor_photograph_is_out_of_scope_and_the_reason_is_what_is_wrong_with_it():
    limits = QualityLimits(
        min_side=6, min_sharpness=0, min_brightness=0, max_brightness=100, min_color=0
    )
    spec = replace(LIMITED, quality=limits)
    answer = Told(spec, logits=[TENTHS], scope_score=[10]).predict(GREY)
    assert len(answer.quality) == 2  # small and bright
    assert answer.decision == "out_of_scope"
    assert answer.decision_reason == "; ".join(answer.quality)


def test_where_no_confidence_kept_to_the_risk_nothing_is_answered():
    spec = replace(LIMITED, abstention=replace(ABSTENTION, min_confidence=1.01))
    answer = Told(spec, logits=[[0, 0, 0, 0, 0, 0, 500]], scope_score=[10]).predict(GREY)
    assert (answer.confidence, answer.decision) == (1.0, "uncertain")
    assert answer.decision_reason == ("no confidence threshold kept validation errors below 10%")


def test_out_of_scope_comes_before_confidence():
    answer = Told(LIMITED, logits=[[0, 0, 0, 0, 0, 0, 500]], scope_score=[41]).predict(GREY)
    assert answer.decision == "out_of_scope"
    assert answer.decision_reason == (
        "the image does not resemble the validation images (score 41, limit 40)"
    )


def test_the_score_at_the_limit_is_still_in_scope():
    answer = Told(LIMITED, logits=[TENTHS], scope_score=[40]).predict(GREY)
    assert answer.decision == "answer"


def test_a_plain_model_has_no_field_that_it_cannot_fill():
    answer = Told(SPEC, logits=[TENTHS]).predict(GREY)
    assert not set(answer.to_dict()) & {"prediction_set", "decision", "scope_score", "spread"}
    assert optional_fields(SPEC) == ()
    assert optional_fields(LIMITED) == (
        "prediction_set",
        "set_size",
        "set_level",
        "decision",
        "decision_reason",
        "scope_score",
    )


def test_the_spread_is_the_standard_deviation_between_the_members():
    spec = replace(SPEC, temperature=1.0, member_run_ids=("a", "b"))
    # vasc: 3 / 10 in one member, 4 / 10 in the other; two values deviate by half their distance.
    one = np.log([1, 1, 1, 1, 2, 1, 3])
    other = np.log([1, 1, 1, 1, 1, 1, 4])
    answer = Told(spec, logits=[one], member_logits=[[one, other]]).predict(GREY)
    assert answer.spread == pytest.approx(0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["logits", "scope_score"])
def test_a_network_that_answers_no_number_is_not_believed(name, value):
    outputs = {"logits": np.zeros((1, 7), np.float32), "scope_score": np.zeros(1, np.float32)}
    outputs[name][..., -1] = value
    with pytest.raises(ArtifactError) as caught:
        Told(LIMITED, **outputs).predict(GREY)
    assert str(caught.value) == (
        "the model returned values that are not finite numbers; train or export it again"
    )


def test_no_more_images_than_a_batch_are_in_memory_at_a_time():
    opened = []

    class Counting(Told):
        def run(self, pixels, names, metadata=None):
            self.asked.append((pixels.shape, len(opened)))
            return {"logits": np.zeros((len(pixels), 7), np.float32)}

    def images():
        for i in range(9):
            opened.append(i)
            yield np.full((2, 2), i, np.uint8)

    predictor = Counting(SPEC)
    assert len(predictor.predict_batch(images(), batch_size=4)) == 9
    assert predictor.asked == [((4, 6, 8, 3), 4), ((4, 6, 8, 3), 8), ((1, 6, 8, 3), 9)]


def test_metadata_for_a_model_that_takes_none_is_refused():
    with pytest.raises(ConfigError) as caught:
        Told(SPEC, logits=[TENTHS]).predict(GREY, metadata=Metadata(age=40.0))
    assert str(caught.value) == (
        "this model takes no metadata, only images; leave age, sex and localization out"
    )


LN2, LN3 = math.log(2), math.log(3)


def test_a_lesion_is_answered_with_the_mean_of_its_probabilities():
    spec = replace(SPEC, temperature=1.0)
    # vasc 3 / 9 and 1 / 9, mel 1 / 9 and 3 / 9, nv 1 / 9 twice ... and the rest alike.
    one, other = [0, 0, 0, 0, 0, 0, LN3], [0, 0, 0, 0, LN3, 0, LN2]
    answer = Told(spec, logits=[one, other]).predict_lesion([GREY, GREY])
    assert answer.probabilities["vasc"] == pytest.approx((3 / 9 + 2 / 10) / 2)
    assert answer.probabilities["mel"] == pytest.approx((1 / 9 + 3 / 10) / 2)
    assert (answer.predicted_class, answer.num_images) == ("vasc", 2)
    assert answer.confidence == answer.probabilities["vasc"]
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_one_photograph_of_a_lesion_is_answered_as_an_image_is():
    answer = Told(LIMITED, logits=[TENTHS], scope_score=[1]).predict_lesion([GREY])
    assert answer.to_dict() == {
        **Told(LIMITED, logits=[TENTHS], scope_score=[1]).predict(GREY).to_dict(),
        "num_images": 1,
    }


def test_photographs_out_of_scope_are_left_out_of_a_lesion():
    wrong = [0, 90, 0, 0, 0, 0, 0]
    told = Told(LIMITED, logits=[wrong, TENTHS, TENTHS], scope_score=[99, 1, 1])
    answer = told.predict_lesion([GREY] * 3)
    assert (answer.predicted_class, answer.decision) == ("vasc", "answer")
    assert answer.confidence == pytest.approx(0.3)
    assert answer.decision_reason.endswith("; 1 of 3 photographs are out of scope and left out")
    assert answer.prediction_set is None  # nothing was calibrated for several photographs


def test_a_lesion_of_photographs_out_of_scope_is_out_of_scope():
    told = Told(LIMITED, logits=[TENTHS, TENTHS], scope_score=[99, 98])
    answer = told.predict_lesion([GREY] * 2)
    assert answer.decision == "out_of_scope"
    assert answer.decision_reason == (
        "all 2 photographs are out of scope: the image does not resemble the validation "
        "images (score 99, limit 40)"
    )


def test_a_lesion_without_a_photograph_is_refused():
    with pytest.raises(ImageError) as caught:
        Told(SPEC, logits=[]).predict_lesion([])
    assert str(caught.value) == "a lesion needs at least one image, got none"


def test_a_model_without_a_map_explains_nothing():
    with pytest.raises(ConfigError) as caught:
        Told(SPEC, logits=[TENTHS]).explain(GREY)
    assert str(caught.value) == (
        "this model has no map; export the run again with this version of dermalyze"
    )


def test_the_map_of_the_class_that_is_asked_for_is_returned():
    spec = replace(SPEC, saliency="grad_cam")
    maps = np.arange(7 * 2 * 3).reshape(1, 7, 2, 3)
    told = Told(spec, logits=[TENTHS] * 3, saliency=np.repeat(maps, 3, axis=0))
    np.testing.assert_array_equal(told.explain(GREY).saliency, maps[0, 6])
    explanation = told.explain(GREY, class_name="bcc")
    np.testing.assert_array_equal(explanation.saliency, maps[0, 1])
    assert (explanation.class_name, explanation.prediction.predicted_class) == ("bcc", "vasc")
    with pytest.raises(ConfigError) as caught:
        told.explain(GREY, class_name="wart")
    assert str(caught.value) == (
        "the class must be one of akiec, bcc, bkl, df, mel, nv, vasc, got 'wart'"
    )


def test_a_map_is_computed_only_where_it_is_asked_for():
    told = Told(replace(SPEC, saliency="grad_cam"), logits=[TENTHS])
    told.predict(GREY)
    assert told.asked[0][1] == ["logits"]


def test_a_broken_photograph_of_a_lesion_is_named_by_its_place():
    with pytest.raises(ImageError) as caught:
        Told(SPEC, logits=[]).predict_lesion([GREY, b"junk"])
    assert str(caught.value) == "image 2 of 2: not a JPEG or PNG image (4 bytes)"


REFERRAL = Referral(
    levels=(0.8, 0.9),
    min_probs=(0.4, 0.25),
    specificities=(0.9, 0.655),
    confidence=0.95,
    num_malignant=40,
    num_benign=300,
)
REFERRING = replace(LIMITED, temperature=1.0, referral=REFERRAL)
THIRD = np.log([2, 1, 1, 1, 1, 2, 2])  # akiec, bcc and mel: 4 / 10


def test_the_malignant_classes_together_decide_on_a_referral():
    told = Told(REFERRING, logits=[THIRD], scope_score=[1])
    answer = told.predict(GREY, sensitivity=0.85)
    assert answer.malignant_probability == pytest.approx(0.4)
    assert (answer.referral, answer.referral_level, answer.referral_specificity) == (
        True,
        0.9,
        0.655,
    )
    assert answer.referral_reason == (
        "malignant probability 40.00% is at or above the 25.00% threshold (at least 90% of "
        "malignant validation lesions are referred, with 95% confidence, and 34% of benign ones)"
    )
    assert answer.decision_reason.endswith(
        "(at most 10% errors on validation images, on average over all classes)"
    )


@pytest.mark.parametrize(("gap", "referral"), [(0, True), (1e-9, False)])
def test_the_threshold_of_a_referral_itself_is_referred(gap, referral):
    told = Told(REFERRING, logits=[THIRD], scope_score=[1])
    exact = told.predict(GREY, sensitivity=0.8).malignant_probability
    limits = replace(REFERRAL, levels=(0.8,), min_probs=(exact + gap,), specificities=(0.9,))
    told = Told(replace(REFERRING, referral=limits), logits=[THIRD], scope_score=[1])
    assert told.predict(GREY, sensitivity=0.8).referral is referral


def test_a_sensitivity_that_too_few_lesions_could_show_has_a_reason_instead_of_a_flag():
    answer = Told(REFERRING, logits=[THIRD], scope_score=[1]).predict(GREY).to_dict()
    assert answer["malignant_probability"] == pytest.approx(0.4)
    assert not {"referral", "referral_level", "referral_specificity"} & set(answer)
    assert answer["referral_reason"] == (
        "no threshold is known to find 95% of malignant lesions: it takes 59 malignant validation "
        "lesions and a benign one, there were 40 and 300"
    )
    several = Told(REFERRING, logits=[THIRD] * 2, scope_score=[1] * 2).predict_lesion([GREY] * 2)
    assert several.referral_reason == answer["referral_reason"]
    assert several.malignant_probability == pytest.approx(0.4)


@pytest.mark.parametrize("sensitivity", [0.79, 0.995, float("nan"), True])
def test_a_sensitivity_that_no_model_has_is_refused(sensitivity):
    with pytest.raises(ConfigError) as caught:
        Told(REFERRING, logits=[THIRD], scope_score=[1]).predict(GREY, sensitivity=sensitivity)
    assert str(caught.value) == (
        f"the sensitivity of the referral must be from 0.8 to 0.99, got {sensitivity!r}"
    )


def test_a_lesion_is_referred_by_the_mean_of_its_photographs_in_scope():
    benign = np.log([1, 1, 1, 1, 1, 94, 1])  # akiec, bcc and mel: 3 / 100
    told = Told(REFERRING, logits=[THIRD, benign, THIRD], scope_score=[1, 1, 99])
    answer = told.predict_lesion([GREY] * 3, sensitivity=0.9)
    assert answer.malignant_probability == pytest.approx((0.4 + 0.03) / 2)
    assert (answer.referral, answer.referral_level) == (False, 0.9)


def test_each_answer_of_a_model_with_a_referral_has_its_fields():
    assert optional_fields(REFERRING) == (
        "prediction_set",
        "set_size",
        "set_level",
        "decision",
        "decision_reason",
        "malignant_probability",
        "referral",
        "referral_level",
        "referral_specificity",
        "referral_reason",
        "scope_score",
    )
