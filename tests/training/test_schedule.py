import pytest

from dermalyze.config.schema import SchedulerConfig, TrainingConfig
from dermalyze.training.schedule import image_side, learning_rate

# 10 epochs of 20 steps; a tenth of them, 20 steps, warm up.
CONFIG = SchedulerConfig(eta_min=0.1, warmup_pct=0.1)
RESTARTS = SchedulerConfig(type="cosine_warm_restarts", T_0=4, eta_min=0.1, warmup_pct=0.1)


def rate(step, config=CONFIG):
    return learning_rate(step, lr=1.0, config=config, steps_per_epoch=20, epochs=10)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.05),  # 1/20 of the way
        (9, 0.5),
        (19, 1.0),  # the end of the warm-up
        (20, 1.0),  # the top of the cosine
        (110, 0.55),  # its middle: (1 + 0.1) / 2
        (65, 0.1 + 0.9 * (2 + 2**0.5) / 4),  # a quarter: cos of 45 degrees
    ],
)
def test_the_schedule_equals_values_done_by_hand(step, expected):
    assert rate(step) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.05),
        (20, 1.0),
        (50, 0.55),  # the first period of 80 steps begins with the warm-up
        (80, 1.0),  # the restart
        (120, 0.55),
        (160, 1.0),
    ],
)
def test_periods_with_warm_restarts_include_the_warm_up(step, expected):
    assert rate(step, RESTARTS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "first", "last"), [(CONFIG, 20, 199), (RESTARTS, 20, 79), (RESTARTS, 80, 159)]
)
def test_each_cosine_comes_down_before_it_ends(config, first, last):
    rates = [rate(step, config) for step in range(first, last + 1)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_warm_up_longer_than_a_period_ends_within_a_later_one():
    config = SchedulerConfig(type="cosine_warm_restarts", T_0=1, eta_min=0.1, warmup_pct=0.15)
    assert rate(29, config) == 1.0
    assert rate(35, config) == pytest.approx(0.55)  # half way from step 30 to step 40


def test_a_constant_schedule_warms_up_and_stays():
    constant = SchedulerConfig(type="constant", warmup_pct=0.1)
    assert [rate(step, constant) for step in (0, 19, 20, 199)] == [0.05, 1.0, 1.0, 1.0]


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert rate(0, SchedulerConfig(warmup_pct=0.0)) == 1.0


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (1.0, [128] * 8),
        # 64, 74.7, 85.3, 96, 106.7, 117.3, 128: each up to a multiple of 16
        (0.5, [64, 80, 96, 96, 112, 128, 128, 128]),
    ],
)
def test_images_grow_over_three_quarters_of_the_epochs(scale, expected):
    training = TrainingConfig(epochs=8, first_scale=scale)
    assert [image_side(epoch, 128, training) for epoch in range(1, 9)] == expected


def test_no_image_is_larger_than_the_models():
    training = TrainingConfig(epochs=1, first_scale=0.9)
    assert image_side(1, 20, training) == 20
