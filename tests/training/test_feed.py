"""Batches come in the order asked for, whichever way they take."""

import numpy as np
import pytest
import torch

from dermalyze.data.pixel_store.store import PixelStore
from dermalyze.training.feed import DirectFeed, ResidentFeed, open_feed

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path):
    """300 images, more than one copied part, each of a color of its own."""
    pixels = np.arange(300, dtype=np.uint16)[:, None, None, None] * np.ones((1, 2, 2, 3))
    np.save(tmp_path / "pixels.npy", np.stack([pixels // 256, pixels % 256], 1)[:, 1].astype("u1"))
    return PixelStore(tmp_path / "pixels.npy")


@pytest.mark.parametrize("way", [lambda s: DirectFeed(s, CPU), lambda s: ResidentFeed.of(s, CPU)])
def test_a_batch_has_the_images_of_its_rows_in_their_order(store, way):
    asked = [np.array([7, 299, 0]), np.array([256, 5]), np.array([5, 5])]
    given = list(way(store).batches(asked))
    assert [rows.tolist() for _, rows in given] == [rows.tolist() for rows in asked]
    for (pixels, _), rows in zip(given, asked, strict=True):
        assert pixels.dtype == torch.uint8
        np.testing.assert_array_equal(pixels.numpy(), store.pixels[rows])


def test_a_resident_feed_reads_the_store_no_more(store, tmp_path):
    feed = ResidentFeed.of(store, CPU)
    expected = store.pixels[9].copy()
    whole = np.load(tmp_path / "pixels.npy", mmap_mode="r+")
    whole[:] = 0
    ((pixels, _),) = feed.batches([np.array([9])])
    np.testing.assert_array_equal(pixels[0].numpy(), expected)


def test_a_cpu_reads_batches_as_they_are_asked_for(store):
    assert open_feed(store, CPU, passes=40) == DirectFeed(store, CPU)
