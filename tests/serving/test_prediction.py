"""Images of any kind to pixels; logits to probabilities."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.special import softmax as scipy_softmax
from tiny_model import SPEC

from serving.errors import ImageError
from serving.prediction import open_image, softmax
from serving.preprocess import to_pixels

LOGITS = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.just(7)), elements=st.floats(-50, 50, width=32)
)


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8))


def test_path_text_bytes_image_and_array_are_one_image(tmp_path):
    path = tmp_path / "lesion.png"
    picture().save(path)
    kinds = [path, str(path), path.read_bytes(), bytearray(path.read_bytes())]
    kinds += [picture(), Image.open(path), np.asarray(picture())]
    for image in kinds:
        np.testing.assert_array_equal(
            to_pixels(open_image(image), SPEC), to_pixels(picture(), SPEC)
        )


def test_a_grey_array_is_grey_and_a_clear_one_is_laid_on_white():
    grey = np.asarray(open_image(np.full((2, 2), 9, np.uint8)))
    assert grey.tolist() == [[[9, 9, 9]] * 2] * 2
    clear = np.asarray(open_image(np.zeros((2, 2, 4), np.uint8)))
    assert clear.tolist() == [[[255, 255, 255]] * 2] * 2


def test_an_array_may_lie_in_memory_in_any_order():
    array = np.asarray(picture())
    np.testing.assert_array_equal(np.asarray(open_image(array[:, ::-1])), array[:, ::-1])


def cut_short():
    data = io.BytesIO()
    picture().save(data, "JPEG")
    return Image.open(io.BytesIO(data.getvalue()[:700]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            "an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), got float32 (4, 4, 3)",
        ),
        (
            np.zeros((3, 4, 5), np.uint8),
            "an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), got uint8 (3, 4, 5)",
        ),
        (np.zeros((0, 4, 3), np.uint8), "the image is 4 x 0; the limit is 40,000,000 pixels"),
        (None, "an image must be a path, bytes, a PIL image or an array, got NoneType"),
        ([1], "an image must be a path, bytes, a PIL image or an array, got list"),
        (cut_short(), "cannot convert a PIL image of mode 'RGB' to RGB"),
        (
            Image.new("1", (8001, 5000)),
            "the image is 8001 x 5000; the limit is 40,000,000 pixels",
        ),
    ],
)
def test_what_is_no_image_is_refused_with_a_sentence(image, message):
    with pytest.raises(ImageError) as caught:
        open_image(image)
    assert str(caught.value) == message


@given(logits=LOGITS)
def test_softmax_is_scipys(logits):
    np.testing.assert_allclose(softmax(logits), scipy_softmax(logits.astype(float), axis=1))


@given(logits=LOGITS, shift=st.integers(-1000, 1000))
def test_probabilities_do_not_change_when_all_logits_move_together(logits, shift):
    logits = logits.astype(np.float64)
    np.testing.assert_allclose(softmax(logits + shift), softmax(logits), atol=1e-9)
