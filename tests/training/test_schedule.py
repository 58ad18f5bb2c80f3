import pytest

from dermalyze.config.schema import SchedulerConfig
from dermalyze.training.schedule import learning_rate

# 10 epochs of 20 steps; a tenth of them, 20 steps, warm up; cosines of 4 epochs, 80 steps.
CONFIG = SchedulerConfig(T_0=4, eta_min=0.1, warmup_pct=0.1)


def rate(step, config=CONFIG):
    return learning_rate(step, lr=1.0, config=config, steps_per_epoch=20, epochs=10)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.05),  # 1/20 of the way
        (9, 0.5),
        (19, 1.0),  # the end of the warm-up
        (20, 1.0),  # the top of the first cosine
        (60, 0.55),  # its middle: (1 + 0.1) / 2
        (100, 1.0),  # the restart
        (140, 0.55),
    ],
)
def test_the_schedule_equals_values_done_by_hand(step, expected):
    assert rate(step) == pytest.approx(expected)


def test_the_cosine_falls_until_just_before_the_restart():
    rates = [rate(step) for step in range(20, 100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_constant_schedule_warms_up_and_stays():
    constant = SchedulerConfig(type="constant", warmup_pct=0.1)
    assert [rate(step, constant) for step in (0, 19, 20, 199)] == [0.05, 1.0, 1.0, 1.0]


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert rate(0, SchedulerConfig(warmup_pct=0.0)) == 1.0
