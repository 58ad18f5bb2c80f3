"""Planted histories: the curves are drawn by hand, so each verdict is known beforehand."""

import math

import numpy as np
import pytest

from dermalyze.config.schema import Config, flatten
from dermalyze.evaluation.overfitting import FitVerdict, format_verdict
from dermalyze.evaluation.overfitting import judge_fit as judge_any
from serving.errors import DataError


def epochs(
    num_epochs, *, train_loss, val_loss, train=0.85, val=0.83, balanced=0.75, noise=0.0, seed=0
):
    """A history; each curve is a number or a function of the epoch, from 1."""
    rng = np.random.default_rng(seed)

    def at(curve, epoch):
        return curve(epoch) if callable(curve) else curve

    return [
        {
            "epoch": epoch,
            "train/loss": at(train_loss, epoch),
            "val/loss": at(val_loss, epoch) * (1 + noise * rng.normal()),
            "train/accuracy": at(train, epoch),
            "val/accuracy": at(val, epoch),
            "val/balanced_accuracy": at(balanced, epoch),
        }
        for epoch in range(1, num_epochs + 1)
    ]


def settling(start, end, pace=4.0):
    """A curve that goes from start to end and stays there."""
    return lambda epoch: end + (start - end) * math.exp(-(epoch - 1) / pace)


SETTLED = {"train_loss": settling(1.9, 0.4), "val_loss": settling(1.5, 0.55)}
HAM10000_IMAGES = (327, 514, 1099, 115, 1113, 6705, 142)


def judge_fit(history, images_of_classes=HAM10000_IMAGES):
    return judge_any(history, images_of_classes)


HARD_TO_LEARN = {"train": 0.5, "val": 0.45, "balanced": 0.3}


def test_val_loss_rising_while_train_loss_falls_is_overfitting():
    history = epochs(
        20,
        train_loss=settling(1.9, 0.1, 6),
        val_loss=lambda epoch: 0.6 + 0.03 * abs(epoch - 8),
    )
    verdict = judge_fit(history)
    assert verdict.verdict == "overfitting"
    # Means of three: epochs 7-9 give 0.62, 18-20 give 0.93.
    then = sum(entry["train/loss"] for entry in history[6:9]) / 3
    end = sum(entry["train/loss"] for entry in history[-3:]) / 3
    assert verdict.reasons == (
        "val/loss was lowest around epoch 8 (0.620) and has risen to 0.930, "
        f"while train/loss went from {then:.3f} to {end:.3f}",
    )
    assert verdict.advice[-1] == (
        "stop sooner: lower training.early_stopping_patience, or training.epochs to about 8"
    )


def test_train_accuracy_far_ahead_is_overfitting_though_val_loss_stands_still():
    verdict = judge_fit(epochs(20, **SETTLED, train=0.99, val=0.8))
    assert verdict.verdict == "overfitting"
    assert verdict.reasons == ("train/accuracy ends at 0.990, 0.190 ahead of val/accuracy (0.800)",)


def test_memorized_images_are_overfitting_though_train_loss_cannot_fall_further():
    history = epochs(20, train_loss=0.01, val_loss=lambda epoch: 0.5 + 0.02 * epoch)
    assert judge_fit(history).verdict == "overfitting"


def test_a_steady_rise_is_not_taken_for_noise():
    """Each epoch is 5 % off the one before, yet on the line of its neighbors."""
    history = epochs(12, train_loss=settling(1.9, 0.1), val_loss=lambda e: 0.6 * 1.05 ** abs(e - 8))
    assert judge_fit(history).verdict == "overfitting"


def test_poor_scores_of_a_network_that_knows_its_training_images_are_overfitting():
    history = epochs(20, **SETTLED, train=0.99, val=0.5, balanced=0.3)
    assert judge_fit(history).verdict == "overfitting"


def test_growing_confidence_is_told_from_worse_answers():
    curves = {"train_loss": settling(1.9, 0.1, 6), "val_loss": lambda e: 0.6 + 0.03 * abs(e - 8)}
    better = judge_fit(epochs(20, **curves, balanced=lambda epoch: 0.5 + 0.01 * epoch))
    # Means of three again: 0.58 at epochs 7-9, 0.69 at 18-20.
    assert better.reasons[1] == (
        "val/balanced_accuracy went up meanwhile, from 0.580 to 0.690: "
        "the answers got better, their confidence worse"
    )
    assert better.advice[0] == "select epochs with training.monitor=val/balanced_accuracy"
    worse = judge_fit(epochs(20, **curves, balanced=lambda epoch: 0.7 - 0.005 * epoch))
    assert len(worse.reasons) == 1
    assert not any("monitor" in advice for advice in worse.advice)


def test_a_low_plateau_is_underfitting_and_more_epochs_are_not_advised():
    history = epochs(
        20, train_loss=settling(1.9, 1.5), val_loss=settling(1.6, 1.3), **HARD_TO_LEARN
    )
    verdict = judge_fit(history)
    assert verdict.verdict == "underfitting"
    assert verdict.reasons == (
        "val/balanced_accuracy reached only 0.300; predicting the same class for every image would "
        "score 0.143",
        "train/accuracy ends at only 0.500: even the training images are not learned",
        "the losses no longer fall: more epochs alone will not help",
    )
    assert not any("training.epochs" in advice for advice in verdict.advice)


def test_a_low_accuracy_on_mixed_training_images_alone_is_no_underfitting():
    verdict = judge_fit(epochs(30, **SETTLED, train=0.5, val=0.83, balanced=0.75))
    assert verdict.verdict == "good fit"


def test_high_losses_that_still_fall_are_underfitting_and_more_epochs_are_advised():
    history = epochs(
        8,
        train_loss=lambda epoch: 2.0 - 0.1 * epoch,
        val_loss=lambda epoch: 1.8 - 0.08 * epoch,
        **HARD_TO_LEARN,
    )
    verdict = judge_fit(history)
    assert verdict.verdict == "underfitting"
    # Means of three, a third being three epochs: train 1.6 -> 1.3, val 1.48 -> 1.24.
    assert verdict.reasons[-1] == (
        "in the last third train/loss still fell by 19% and val/loss by 16%"
    )
    assert verdict.advice[0] == "train for longer: raise training.epochs"


def test_one_answer_for_every_image_is_underfitting_however_high_the_accuracy():
    """67 % of HAM10000 are nv: accuracy alone looks fine."""
    verdict = judge_fit(
        epochs(12, train_loss=1.13, val_loss=1.13, train=0.669, val=0.669, balanced=1 / 7)
    )
    assert verdict.verdict == "underfitting"
    assert "give rare classes more weight with loss.class_weights=balanced" in verdict.advice


@pytest.mark.parametrize(
    ("images", "balanced", "chance"),
    [((50, 50), 0.6, "0.500"), ((10,) * 23, 0.4, "0.043"), ((99, 1), 0.6, "0.500")],
)
def test_what_counts_as_low_follows_from_the_classes(images, balanced, chance):
    verdict = judge_fit(epochs(20, **SETTLED, train=0.93, val=0.9, balanced=balanced), images)
    assert verdict.verdict == "underfitting"
    assert f"predicting the same class for every image would score {chance}" in verdict.reasons[0]
    better = judge_fit(epochs(20, **SETTLED, train=0.93, val=0.9, balanced=0.75), images)
    assert better.verdict != "underfitting"


def test_good_scores_with_falling_losses_are_still_improving():
    history = epochs(
        9, train_loss=lambda epoch: 1.5 * 0.9**epoch, val_loss=lambda epoch: 1.3 * 0.92**epoch
    )
    verdict = judge_fit(history)
    assert verdict.verdict == "still improving"
    # Three epochs: 1 - 0.9^3 = 0.271, 1 - 0.92^3 = 0.221.
    assert verdict.reasons[0] == (
        "in the last third train/loss still fell by 27% and val/loss by 22%"
    )
    assert verdict.advice == ("train for longer: raise training.epochs",)


def test_losses_that_settled_close_together_are_a_good_fit():
    verdict = judge_fit(epochs(30, **SETTLED))
    assert verdict == FitVerdict(
        verdict="good fit",
        reasons=(
            "val/loss ends at 0.551, close to its lowest mean (0.551, around epoch 30)",
            "train/accuracy ends at 0.850, val/accuracy at 0.830, val/balanced_accuracy at 0.750",
        ),
        advice=(),
    )


def test_a_train_loss_above_val_loss_and_a_lower_train_accuracy_are_no_fault():
    """Class weights, augmentation and dropout make training look worse than validation."""
    history = epochs(
        30, train_loss=settling(2.5, 1.1), val_loss=settling(1.5, 0.55), train=0.7, val=0.83
    )
    assert judge_fit(history).verdict == "good fit"


def test_a_tiny_val_loss_that_doubles_is_no_overfitting():
    history = epochs(
        20, train_loss=0.001, val_loss=lambda e: 0.004 + 0.0004 * e, train=1.0, val=0.99
    )
    assert judge_fit(history).verdict == "good fit"


def test_a_tiny_val_loss_that_halves_is_not_worth_more_epochs():
    history = epochs(
        12, train_loss=lambda e: 0.9**e, val_loss=lambda e: 0.02 * 0.9**e, train=1.0, val=0.99
    )
    assert judge_fit(history).verdict == "good fit"


@pytest.mark.parametrize("seed", range(20))
def test_noise_in_val_loss_is_not_taken_for_a_trend(seed):
    history = epochs(25, **SETTLED, noise=0.08, seed=seed)
    assert judge_fit(history).verdict == "good fit"


def test_noise_that_hides_changes_is_said():
    verdict = judge_fit(epochs(25, train_loss=0.5, val_loss=lambda e: 0.6 + 0.05 * (e % 2)))
    # Every epoch stands about 8 % from both its neighbors; 1.4826 / sqrt(1.5) of that is 9.7 %.
    assert verdict.verdict == "good fit"
    assert verdict.reasons[-1] == (
        "val/loss jumps by about 10% from epoch to epoch, which hides smaller changes"
    )


def restarted(start, low, high):
    """Falls to `low` in ten epochs, jumps to `high` and falls back in every ten after them."""

    def loss(epoch):
        top = start if epoch <= 10 else high
        return low + (top - low) * (1 + math.cos(math.pi * ((epoch - 1) % 10) / 9)) / 2

    return loss


@pytest.mark.parametrize("num_epochs", [22, 25, 30, 33, 40, 45])
def test_a_warm_restart_is_neither_overfitting_nor_diverging_nor_progress(num_epochs):
    history = epochs(
        num_epochs, train_loss=restarted(1.9, 0.4, 0.7), val_loss=restarted(1.5, 0.55, 0.8)
    )
    assert judge_fit(history).verdict == "good fit"


@pytest.mark.parametrize(
    ("train_loss", "reason"),
    [
        (
            lambda epoch: 2.0 * 0.7 ** (epoch - 1) if epoch <= 6 else 3.0,
            # The lowest mean is that of epochs 4-6: 2 (0.343 + 0.2401 + 0.16807) / 3.
            "train/loss began at 2.000, fell to 0.501 and ends at 3.000",
        ),
        (
            lambda epoch: 2.0 * 0.7 ** (epoch - 1) if epoch <= 6 else 1.5,  # half of it is lost
            "train/loss began at 2.000, fell to 0.501 and ends at 1.500",
        ),
        (
            lambda epoch: 1.9 + 0.2 * (epoch - 1),
            "train/loss began at 1.900 and ends at 3.900, higher than ever before",
        ),
    ],
)
def test_a_train_loss_that_climbs_back_is_diverging(train_loss, reason):
    verdict = judge_fit(epochs(12, train_loss=train_loss, val_loss=train_loss))
    assert verdict.verdict == "diverging"
    assert verdict.reasons == (reason,)
    assert verdict.advice[0] == "lower training.lr to a third"


@pytest.mark.parametrize("num_epochs", [0, 1, 4])
def test_fewer_than_five_epochs_are_too_short_to_say(num_epochs):
    verdict = judge_fit(epochs(num_epochs, **SETTLED, **HARD_TO_LEARN))
    assert verdict.verdict == "too short to say"
    counted = "1 epoch" if num_epochs == 1 else f"{num_epochs} epochs"
    assert verdict.reasons == (f"the history has {counted}; a trend needs at least 5",)
    assert verdict.advice == ("train for longer: training.epochs of 5 or more",)


def test_every_setting_that_the_advice_names_exists():
    known = set(flatten(Config()))
    histories = [
        epochs(4, **SETTLED),
        epochs(20, train_loss=lambda e: e, val_loss=1.0),
        epochs(20, train_loss=0.01, val_loss=lambda e: 0.5 + 0.1 * e, balanced=lambda e: e / 30),
        epochs(20, train_loss=1.1, val_loss=1.1, train=0.6, val=0.6, balanced=1 / 7),
        epochs(9, train_loss=lambda e: 0.9**e, val_loss=lambda e: 0.9**e, **HARD_TO_LEARN),
        epochs(9, train_loss=lambda e: 0.9**e, val_loss=lambda e: 0.9**e),
    ]
    verdicts = [judge_fit(history) for history in histories]
    assert len({verdict.verdict for verdict in verdicts}) == 5
    words = " ".join(advice for verdict in verdicts for advice in verdict.advice).split()
    sections = ("training.", "model.", "loss.", "augmentation.", "data.")
    named = {word.split("=")[0].rstrip(",;:") for word in words if word.startswith(sections)}
    assert len(named) >= 12
    assert named <= known


@pytest.mark.parametrize(
    ("value", "shown"),
    [(float("nan"), "nan"), (float("inf"), "inf"), ("0.5", "'0.5'"), (None, None)],
)
def test_a_history_with_a_hole_is_refused_in_one_sentence(value, shown):
    history = epochs(6, **SETTLED)
    if value is None:
        del history[2]["val/loss"]
    else:
        history[2]["val/loss"] = value
    with pytest.raises(DataError) as caught:
        judge_fit(history)
    assert str(caught.value) == (
        f"the training history has val/loss {shown} in entry 3, expected a finite number; "
        "it must be a training_history.json of `dermalyze train`"
    )


def test_a_verdict_is_laid_out_with_reasons_and_advice():
    verdict = FitVerdict(verdict="underfitting", reasons=("a", "b"), advice=("c",))
    assert format_verdict(verdict) == "underfitting\n\nwhy:\n  - a\n  - b\n\nwhat to try:\n  - c"
    verdict = FitVerdict(verdict="good fit", reasons=("a",), advice=())
    assert format_verdict(verdict) == "good fit\n\nwhy:\n  - a"
