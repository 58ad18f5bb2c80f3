import numpy as np

from dermalyze.data.sampling import batches_of, draw_weights, epoch_order, num_batches

ROWS = np.arange(100, 300)
TARGETS = np.repeat([0, 1, 2], [160, 30, 10])


def order(epoch=1, seed=0, weighted=False):
    weights = draw_weights(TARGETS, None, classes_equally=weighted)
    return epoch_order(ROWS, weights, seed=seed, epoch=epoch)


def test_an_epoch_shows_every_image_once_in_another_order():
    np.testing.assert_array_equal(np.sort(order()), ROWS)
    assert not np.array_equal(order(1), order(2))
    assert not np.array_equal(order(seed=0), order(seed=1))


def test_the_same_epoch_has_the_same_order_whenever_it_is_asked_for():
    np.testing.assert_array_equal(order(5), order(5))
    np.testing.assert_array_equal(order(5, weighted=True), order(5, weighted=True))


def test_weighted_sampling_draws_every_class_equally_often():
    drawn = np.concatenate([order(epoch, weighted=True) for epoch in range(1, 51)])
    shares = np.bincount(TARGETS[drawn - 100]) / len(drawn)
    # 10,000 draws with p = 1/3: four standard deviations are 0.019
    assert np.abs(shares - 1 / 3).max() < 0.019


def test_a_class_is_drawn_from_its_sources_equally_often_and_keeps_its_share():
    # Class 0: 120 images of source 0 and 40 of source 1; class 1: 20 and 10; class 2: source 1.
    sources = np.repeat([0, 1, 0, 1, 1], [120, 40, 20, 10, 10])
    weights = draw_weights(TARGETS, sources, classes_equally=False)
    expected = np.repeat([80 / 120, 80 / 40, 15 / 20, 15 / 10, 1], [120, 40, 20, 10, 10])
    np.testing.assert_allclose(weights, expected)
    np.testing.assert_allclose(np.bincount(TARGETS, weights), [160, 30, 10])
    both = draw_weights(TARGETS, sources, classes_equally=True)
    np.testing.assert_allclose(np.bincount(TARGETS, both), [1, 1, 1])


def test_no_image_is_drawn_more_than_five_times_as_often():
    sources = np.repeat([0, 1, 1], [158, 2, 40])  # evenly, the two would be drawn 40 times
    weights = draw_weights(TARGETS, sources, classes_equally=False)
    np.testing.assert_allclose(weights[156:162], [80 / 158, 80 / 158, 5, 5, 1, 1])


def test_batches_hold_all_images_but_a_lone_last_one():
    assert [len(batch) for batch in batches_of(ROWS[:10], 4)] == [4, 4, 2]
    assert [len(batch) for batch in batches_of(ROWS[:9], 4)] == [4, 4]


def test_the_number_of_batches_is_what_is_yielded():
    for num_images in range(20):
        assert num_batches(num_images, 4) == len(list(batches_of(ROWS[:num_images], 4)))
