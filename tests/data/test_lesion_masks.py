"""Lesion masks beside the images."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from dermalyze.data.lesion_masks import UNKNOWN, find_masks, read_mask, read_masks
from dermalyze.data.readers.dataset import ImageReader
from serving.errors import DataError, ImageError

FOLDER = "HAM10000_segmentations_lesion_tschandl"


def png(levels):
    data = io.BytesIO()
    Image.fromarray(np.asarray(levels, np.uint8)).save(data, "PNG")
    return data.getvalue()


def test_masks_are_found_in_a_zip_and_in_a_folder(tmp_path):
    data = png(np.zeros((4, 4)))
    with zipfile.ZipFile(tmp_path / f"{FOLDER}.zip", "w") as archive:
        archive.writestr("masks\\isic_1_segmentation.PNG", data)
        archive.writestr("ISIC_9.png", data)  # no mask
    (tmp_path / FOLDER.lower()).mkdir()
    (tmp_path / FOLDER.lower() / "ISIC_2_segmentation.png").write_bytes(data)
    masks = find_masks(tmp_path, ["ISIC_1", "ISIC_2", "ISIC_9"])
    assert sorted(masks) == ["ISIC_1", "ISIC_2"]
    with ImageReader() as reader:
        assert reader.read(masks["ISIC_1"]) == reader.read(masks["ISIC_2"]) == data


def test_without_masks_there_are_none(tmp_path):
    assert find_masks(tmp_path, ["ISIC_1"]) == {}
    assert find_masks(tmp_path / "nowhere", ["ISIC_1"]) == {}


def test_a_mask_is_what_the_network_sees_of_it():
    levels = np.zeros((40, 80))
    levels[:, 40:] = 255
    levels[:20, 40:] = 128  # still inside
    squashed = read_mask(png(levels), (20, 20), mode="squash")
    np.testing.assert_array_equal(squashed, np.arange(20)[None, :].repeat(20, 0) >= 10)
    cropped = read_mask(png(levels), (20, 20), mode="center_crop")  # columns 20 to 60
    np.testing.assert_array_equal(cropped, squashed)
    levels[:, 60:] = 0  # outside of that crop
    assert read_mask(png(levels), (20, 20), mode="center_crop").sum() == 200
    assert read_mask(png(levels), (20, 20), mode="squash").sum() == 100


def test_a_damaged_mask_is_an_image_error():
    with pytest.raises(ImageError):
        read_mask(b"no mask", (8, 8), mode="squash")


def test_all_masks_are_read_and_a_damaged_one_is_as_good_as_none(tmp_path):
    levels = np.zeros((8, 8))
    levels[:, 4:] = 255
    with zipfile.ZipFile(tmp_path / f"{FOLDER}.zip", "w") as archive:
        archive.writestr("ISIC_1_segmentation.png", png(levels))
        archive.writestr("ISIC_2_segmentation.png", b"no mask")
    masks = read_masks(tmp_path, ["ISIC_3", "ISIC_1", "ISIC_2"], (4, 4), mode="squash")
    assert masks.dtype == np.uint8
    assert (masks[[0, 2]] == UNKNOWN).all()
    assert masks[1].tolist() == [[0, 0, 1, 1]] * 4


def test_no_mask_at_all_is_one_sentence(tmp_path):
    with pytest.raises(DataError) as caught:
        read_masks(tmp_path, ["ISIC_1"], (4, 4), mode="squash")
    assert str(caught.value) == (
        f"there are no lesion masks in {tmp_path}; expected {FOLDER.lower()}.zip for "
        "loss.mask_weight above 0"
    )
