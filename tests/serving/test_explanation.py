"""A map as a picture: it lies where it should, and says what it is."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from serving.explanation import MAP_IN_WORDS, Explanation
from serving.ham10000_taxonomy import HAM10000
from serving.prediction import Prediction
from serving.spec import SALIENCY_KINDS, ModelSpec
from serving.taxonomy import DISCLAIMER

SPEC = ModelSpec(taxonomy=HAM10000, input_size=(32, 32), saliency="grad_cam")
PREDICTION = Prediction(
    predicted_class="mel",
    predicted_class_description="Melanoma",
    confidence=0.7,
    probabilities={name: 0.7 if name == "mel" else 0.05 for name in HAM10000.names},
    disclaimer=DISCLAIMER,
)


def explanation(saliency, *, size=(80, 60), **changes):
    values = {
        "image": Image.new("RGB", size, (200, 150, 140)),
        "prediction": PREDICTION,
        "class_name": "mel",
        "saliency": np.asarray(saliency, np.float32),
        "spec": SPEC,
    }
    return Explanation(**values | changes)


def corner(row, column, side=4):
    saliency = np.zeros((side, side))
    saliency[row, column] = 3
    return saliency


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (3, 0), (3, 3)])
def test_the_evidence_is_shown_where_it_is(row, column):
    shown = explanation(corner(row, column)).shown_map((80, 60))
    assert shown.shape == (60, 80)
    assert (shown.min(), shown.max()) == (0, pytest.approx(1, abs=0.1))
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert (y >= 30) == (row == 3)
    assert (x >= 40) == (column == 3)


def test_what_a_crop_does_not_see_has_no_evidence():
    spec = replace(SPEC, resize_mode="center_crop")
    shown = explanation(np.ones((4, 4)), spec=spec).shown_map((80, 60))
    np.testing.assert_allclose(shown[:, 10:70], 1, atol=1e-6)  # the middle 60 x 60
    assert shown[:, :10].max() == shown[:, 70:].max() == 0


def test_the_photograph_shows_through_where_there_is_no_evidence():
    picture = explanation(corner(0, 0))
    overlay = np.asarray(picture.overlay()).astype(int)
    plain = np.array([200, 150, 140])
    assert np.abs(overlay[-1, -1] - plain).max() <= 1
    assert np.abs(overlay[5, 5] - plain).max() > 20
    assert np.abs(np.asarray(picture.overlay(strength=0.0)) - plain).max() == 0


def test_an_empty_map_is_a_plain_picture_that_says_so(monkeypatch):
    picture = explanation(np.zeros((4, 4)))
    assert len(picture.overlay().getcolors()) == 1
    assert "There is no evidence for this class anywhere" in words_of(picture, monkeypatch)


def words_of(picture, monkeypatch):
    """Return what is written on a page."""
    from PIL import ImageDraw

    written = []
    draw_text = ImageDraw.ImageDraw.text

    def noting(self, place, text, *args, **options):
        written.append(text)
        return draw_text(self, place, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    picture.page()
    return " ".join(written)


def test_a_page_says_class_probability_what_the_map_is_and_that_it_is_no_diagnosis(monkeypatch):
    words = words_of(explanation(corner(1, 1)), monkeypatch)
    for part in ("Melanoma (mel): 70.0%", MAP_IN_WORDS["grad_cam"], DISCLAIMER, "most evidence"):
        assert part in words


def test_another_class_and_a_doubtful_decision_are_said(monkeypatch):
    doubtful = replace(PREDICTION, decision="out_of_scope", decision_reason="it is a cat")
    picture = explanation(corner(1, 1), class_name="nv", prediction=doubtful)
    words = words_of(picture, monkeypatch)
    assert "Melanocytic nevus (nv): 5.0% predicted: Melanoma, 70.0%" in words
    assert "out of scope: it is a cat" in words


def test_every_kind_of_map_has_its_words():
    assert set(MAP_IN_WORDS) == set(SALIENCY_KINDS) - {""}


@pytest.mark.parametrize("size", [(2000, 10), (10, 2000), (1, 1), (3, 4)])
def test_a_photograph_of_any_shape_gets_a_page(size):
    page = explanation(corner(1, 2), size=size).page()
    assert page.width >= 560
