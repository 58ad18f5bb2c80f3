"""Do maps point at the lesion?  Against masks and baselines, by hand where that is possible."""

import numpy as np
import pandas as pd
import pytest

from dermalyze.evaluation.report.captions import map_sentences
from dermalyze.evaluation.saliency_check import (
    MEASURES,
    center_gaussian,
    check_maps,
    measure_maps,
    read_explanations,
    write_explanations,
)
from dermalyze.evaluation.scores import Scored
from serving.taxonomy import Taxonomy


def half(side=8):
    """A lesion in the right half."""
    mask = np.zeros((side, side), bool)
    mask[:, side // 2 :] = True
    return mask


def measured(maps, masks):
    names = [f"i{n}" for n in range(len(maps))]
    return measure_maps(names, names, np.asarray(maps, np.float32), masks)


def images(num):
    """The images that `measured` names, each its own lesion."""
    names = [f"i{n}" for n in range(num)]
    return Scored(
        logits=np.zeros((num, 2)),
        targets=np.zeros(num, np.int64),
        taxonomy=Taxonomy(names=("a", "b")),
        table=pd.DataFrame({"image_id": names, "lesion_id": names}),
        lesions=np.arange(num),
    )


def test_a_map_as_large_as_the_mask_is_measured_by_hand():
    small = np.zeros((8, 8), np.float32)
    small[0, 0], small[0, 7] = 1, 3  # three parts of four inside, and the maximum
    row = measured([small], [half()]).iloc[0]
    assert row["mass"] == pytest.approx(0.75)
    assert row["pointing"] == 1
    assert row["mass_uniform"] == row["pointing_uniform"] == 0.5
    assert row["mass_center"] == pytest.approx(0.5)  # by symmetry
    small[0, 0] = 4
    assert measured([small], [half()]).iloc[0]["pointing"] == 0


def test_the_center_is_symmetric_and_has_the_stated_width():
    gaussian = center_gaussian((100, 60))
    np.testing.assert_allclose(gaussian, gaussian[::-1, ::-1])
    # A quarter of the side from the middle, one standard deviation: exp(-1/2).
    assert gaussian[75, 30] / gaussian[50, 30] == pytest.approx(np.exp(-0.5), abs=0.02)


def test_what_cannot_be_measured_is_left_out_and_counted():
    one, nothing = np.ones((2, 2)), np.zeros((2, 2))
    table = measured(
        [one, one, nothing, one], [half(), np.ones((8, 8), bool), half(), np.zeros((8, 8), bool)]
    )
    assert table["image_id"].tolist() == ["i0"]
    checked = check_maps(table, images(5), 200)
    assert (checked.num_images, checked.num_left_out) == (1, 4)


def study(num, shift, seed=0):
    """Lesions around the center; maps around lesions, `shift` pixels beside them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((32, 32))
    maps, masks = [], []
    for _ in range(num):
        y, x = rng.uniform(8, 24, 2)
        masks.append((rows - y) ** 2 + (columns - x) ** 2 < 36)
        maps.append(np.exp(-((rows - y - shift) ** 2 + (columns - x) ** 2) / 20))
    return measured(maps, masks)


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0, "it beats the center of the image"), (14, "it is worse than simply")]
)
def test_the_report_says_whether_a_map_beats_the_center(shift, verdict):
    checked = check_maps(study(200, shift), images(200), 500)
    sentences = map_sentences(checked)
    assert all(verdict in sentence for sentence in sentences[: len(MEASURES)])
    for name in MEASURES:
        part = getattr(checked, name)
        assert part.over_center.estimate == pytest.approx(part.map.estimate - part.center.estimate)
        assert part.over_center.low < part.over_center.estimate


def test_a_map_that_is_the_center_does_not_beat_it():
    rng = np.random.default_rng(0)
    masks = [study_mask(rng) for _ in range(100)]
    center = center_gaussian((32, 32))
    maps = [center + rng.normal(0, 1e-3, center.shape).clip(0) for _ in masks]
    checked = check_maps(measured(maps, masks), images(100), 500)
    assert "it does not beat simply pointing at the center" in " ".join(map_sentences(checked))


def study_mask(rng):
    rows, columns = np.indices((32, 32))
    y, x = rng.uniform(8, 24, 2)
    return (rows - y) ** 2 + (columns - x) ** 2 < 36


def test_measures_are_kept_beside_the_predictions_and_read_back(tmp_path):
    table = study(7, 0)
    assert read_explanations(tmp_path) is None
    write_explanations(tmp_path, table)
    again = read_explanations(tmp_path)
    assert again["image_id"].tolist() == table["image_id"].tolist()
    np.testing.assert_allclose(again["mass"], table["mass"])
    write_explanations(tmp_path, table.iloc[:0])  # of another run, without masks
    assert read_explanations(tmp_path) is None
