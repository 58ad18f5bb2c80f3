"""The check that two predictors agree: it must be able to fail, and must ask about every kind."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_network import TINY_SPEC, tiny_network

from dermalyze.export.parity import MAX_DIFFERENCE, MAX_SHARE, ParityReport, check_parity
from dermalyze.export.parity_images import parity_images
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.torch_predictor import SkinLesionPredictor
from serving.preprocess import decode_image


@pytest.fixture(scope="module")
def images():
    return parity_images()


def opened(data):
    return Image.open(io.BytesIO(data))


def predictor(seed=0):
    return SkinLesionPredictor.of(ShippedNetwork([Member(tiny_network(seed))]), TINY_SPEC)


def test_there_are_at_least_64_images_with_names_of_their_own(images):
    assert len(images) >= 64
    assert len({name for name, _ in images}) == len(images)
    assert len({data for _, data in images}) == len(images)


def test_every_kind_of_image_is_among_them(images):
    pictures = [opened(data) for _, data in images]
    sizes = {picture.size for picture in pictures}
    assert {(1, 1), (2, 3), (97, 203), (4000, 3000)} <= sizes
    kinds = {(picture.format, picture.mode) for picture in pictures}
    assert {("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK")} <= kinds
    assert {("PNG", mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")} <= kinds
    assert {picture.getexif().get(0x0112) for picture in pictures} >= set(range(1, 9))
    assert any("transparency" in picture.info for picture in pictures if picture.mode == "P")
    assert any("transparency" in picture.info for picture in pictures if picture.mode == "RGB")
    assert any(picture.info.get("progressive") for picture in pictures)
    flat = [p for p in pictures if all(lo == hi for lo, hi in p.convert("RGB").getextrema())]
    assert len(flat) >= 3


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(images):
    assert parity_images(0)[::9] == images[::9]
    assert parity_images(1)[0] != images[0]


def test_a_predictor_agrees_with_itself(images):
    report = check_parity(predictor(), predictor(), images[:8])
    assert report.num_images == 8
    assert report.max_difference < 1e-6  # batches of other sizes are summed in another order
    assert report.changed_classes == ()
    assert report.agrees


def test_parity_check_can_fail(images):
    """Other weights: the difference is the one that numpy finds, in the image that is named."""
    one, other = predictor(0), predictor(1)
    few = images[:12]
    report = check_parity(one, other, few)
    ours, theirs = (p.predict_batch([data for _, data in few]) for p in (one, other))
    gaps = [
        max(abs(a.probabilities[name] - b.probabilities[name]) for name in a.probabilities)
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert report.max_difference == pytest.approx(max(gaps), abs=1e-6)
    assert report.worst_image == few[int(np.argmax(gaps))][0]
    assert report.changed_classes == tuple(
        name
        for (name, _), a, b in zip(few, ours, theirs, strict=True)
        if a.predicted_class != b.predicted_class
    )
    assert not report.agrees


@pytest.mark.parametrize(
    ("difference", "changed", "share", "agrees"),
    [
        (0.0, (), 0.0, True),
        (MAX_DIFFERENCE, (), MAX_SHARE, True),
        (MAX_DIFFERENCE * 1.01, (), 0.0, False),
        (float("nan"), (), 0.0, False),
        (0.0, ("a",), 0.0, False),
        (0.0, (), MAX_SHARE * 1.01, False),
        (0.0, (), float("nan"), False),
    ],
)
def test_a_report_agrees_within_the_tolerance_and_with_no_changed_class(
    difference, changed, share, agrees
):
    report = ParityReport(
        num_images=1,
        max_difference=difference,
        worst_image="a",
        changed_classes=changed,
        output_differences={"saliency": share},
    )
    assert report.agrees is agrees


def test_the_images_show_different_things_to_the_network(images):
    """A check on images that all get one answer would prove little."""
    chosen = [data for _, data in images if max(opened(data).size) < 1000]
    answers = predictor().predict_batch(chosen)
    probs = np.array([list(answer.probabilities.values()) for answer in answers])
    assert np.ptp(probs, axis=0).max() > 0.1
    assert len({answer.predicted_class for answer in answers}) > 1
    assert all(decode_image(data).mode == "RGB" for data in chosen)


class Mapped(SkinLesionPredictor):
    """Answers with a map that is wrong for some of the images, counted by `wrong`."""

    def __init__(self, wrong):
        self._use(ShippedNetwork([Member(tiny_network())]), replace(TINY_SPEC, saliency="grad_cam"))
        self.wrong = wrong
        self.asked = 0

    def run(self, pixels, names, metadata=None):
        outputs = super().run(pixels, names, metadata)
        if "saliency" in names:
            self.asked += 1
            if self.asked <= self.wrong:
                outputs["saliency"] = outputs["saliency"][:, :, ::-1] + 0.5
        return outputs


@pytest.mark.parametrize(("wrong", "agrees"), [(0, True), (2, True), (3, False), (20, False)])
def test_a_map_may_jump_in_one_image_of_ten_and_no_more(images, wrong, agrees):
    report = check_parity(Mapped(0), Mapped(wrong), images[:20])
    assert report.agrees is agrees
