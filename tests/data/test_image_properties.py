"""Properties of photographs, of images drawn so that they are known."""

import numpy as np
import pytest
from PIL import Image

from dermalyze.config.schema import DataConfig
from dermalyze.data.image_properties import PROPERTIES, image_properties
from dermalyze.data.preparation import prepare

SIDE = 64


def drawn(name):
    """Return grey (H, W) of a known property."""
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, SIDE)], indexing="ij")
    grey = np.full((SIDE, SIDE), 150.0)
    if name == "dark corners":
        grey[np.hypot(x, y) > 1.15] = 20
    if name == "dark middle":
        grey[np.maximum(abs(x), abs(y)) < 0.65] = 20
    if name == "halves":
        grey[:, : SIDE // 2] = 50
    if name == "checkered":
        grey[(np.add.outer(range(SIDE), range(SIDE)) % 2).astype(bool)] = 50
    return grey


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By what is drawn: the properties, by name."""
    folder, names = tmp_path_factory.mktemp("data"), []
    for name in ("plain", "dark corners", "dark middle", "halves", "checkered"):
        image = Image.fromarray(drawn(name).astype(np.uint8)).convert("RGB")
        (folder / "ab"[len(names) % 2]).mkdir(exist_ok=True)
        image.save(folder / "ab"[len(names) % 2] / f"{name}.png")
        names.append(name)
    prepared = prepare(folder, DataConfig(image_size=SIDE, resize_filter="bilinear"))
    ids = prepared.manifest["image_id"].tolist()
    files = [prepared.dataset.files[name] for name in ids]
    table = image_properties(prepared.store, np.arange(len(ids)), files)
    assert list(table) == list(PROPERTIES)
    return {name.rsplit("/")[-1]: table.iloc[row] for row, name in enumerate(ids)}


def test_only_dark_corners_are_a_vignette(found):
    assert found["dark corners"]["vignette"] == pytest.approx(130, abs=0.5)
    assert all(abs(found[n]["vignette"]) < 1 for n in ("plain", "dark middle", "halves"))


def test_the_lesion_in_the_middle_changes_nothing(found):
    measured = ["vignette", "brightness", "contrast", "sharpness"]
    expected = found["plain"][measured].tolist()
    assert found["dark middle"][measured].tolist() == pytest.approx(expected, abs=0.01)


def test_brightness_contrast_and_sharpness_have_the_values_of_their_definitions(found):
    for name, brightness, contrast in (("plain", 150, 0), ("halves", 100, 50)):
        assert found[name]["brightness"] == pytest.approx(brightness, abs=0.5)
        assert found[name]["contrast"] == pytest.approx(contrast, abs=0.5)
    assert found["checkered"]["sharpness"] == pytest.approx(100, abs=0.5)
    assert found["plain"]["sharpness"] == pytest.approx(0, abs=0.01)


def test_the_size_is_that_of_the_original(found):
    assert found["plain"]["size"] == SIDE * SIDE / 1e6
