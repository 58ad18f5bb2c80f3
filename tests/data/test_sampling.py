import numpy as np

from dermalyze.data.sampling import batches_of, epoch_order, num_batches

ROWS = np.arange(100, 300)
TARGETS = np.repeat([0, 1, 2], [160, 30, 10])


def order(epoch=1, seed=0, weighted=False):
    return epoch_order(ROWS, TARGETS, seed=seed, epoch=epoch, weighted_sampling=weighted)


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


def test_batches_hold_all_images_but_a_lone_last_one():
    assert [len(batch) for batch in batches_of(ROWS[:10], 4)] == [4, 4, 2]
    assert [len(batch) for batch in batches_of(ROWS[:9], 4)] == [4, 4]


def test_the_number_of_batches_is_what_is_yielded():
    for num_images in range(20):
        assert num_batches(num_images, 4) == len(list(batches_of(ROWS[:num_images], 4)))
