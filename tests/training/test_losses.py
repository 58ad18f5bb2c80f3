import math

import pytest
import torch
import torch.nn.functional as F

from dermalyze.config.schema import LossConfig
from dermalyze.data.mixing import Mix
from dermalyze.training.losses import (
    build_loss,
    class_weights,
    effective_weights,
    logit_shift,
    mask_loss,
)

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [-3.0, 1.0, 4.0]])
TARGETS = torch.tensor([0, 2, 1])


def test_class_weights_are_total_over_classes_times_count():
    weights = class_weights(torch.tensor([8, 2, 0, 10]))
    # 20 / (4 * 8), 20 / (4 * 2), nothing to weight, 20 / (4 * 10)
    assert weights.tolist() == [0.625, 2.5, 0.0, 0.5]


def test_effective_weights_are_one_over_the_effective_numbers_with_a_mean_of_1_over_images():
    weights = effective_weights(torch.tensor([3, 1, 0]), 0.5)
    # Effective numbers (1 - 0.5^n) / 0.5 are 1.75 and 1; 3 images at 1 / 1.75 and one at 1 have a
    # mean of 19 / 28.
    assert weights.tolist() == pytest.approx([16 / 19, 28 / 19, 0.0], rel=1e-6)
    assert effective_weights(torch.tensor([3, 1, 0]), 0.0).tolist() == [1.0, 1.0, 0.0]


def test_adjusted_logits_are_those_of_the_training_fractions_in_the_loss_alone():
    shift = logit_shift(torch.tensor([6, 3, 1]), 1.0)
    loss = build_loss(LossConfig(class_weights="none", logit_adjustment=1.0), None, shift)
    exps = [0.6 * math.exp(0.5), 0.3 * math.exp(0.5), 0.1 * math.exp(0.0)]  # of LOGITS[1]
    expected = -math.log(exps[2] / sum(exps))
    assert loss(LOGITS[1:2], TARGETS[1:2]).item() == pytest.approx(expected, rel=1e-6)
    half = logit_shift(torch.tensor([6, 3, 1]), 0.5)
    assert half.tolist() == pytest.approx([0.5 * math.log(p) for p in (0.6, 0.3, 0.1)])
    assert logit_shift(torch.tensor([1, 0]), 1.0).isfinite().all()


def test_cross_entropy_with_weights_and_smoothing_equals_torch():
    weights = torch.tensor([0.5, 1.0, 3.0])
    loss = build_loss(LossConfig(label_smoothing=0.1), weights)
    expected = F.cross_entropy(LOGITS, TARGETS, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(loss(LOGITS, TARGETS), expected)


def test_focal_loss_equals_the_formula_by_hand():
    loss = build_loss(LossConfig(type="focal", focal_gamma=2.0), None)
    p = math.exp(2.0) / (math.exp(2.0) + 1 + math.exp(-1.0))
    expected = -((1 - p) ** 2) * math.log(p)
    assert loss(LOGITS[:1], TARGETS[:1]).item() == pytest.approx(expected, rel=1e-6)


def test_focal_loss_with_gamma_zero_is_cross_entropy():
    weights = torch.tensor([0.5, 1.0, 3.0])
    focal = build_loss(LossConfig(type="focal", focal_gamma=0.0, label_smoothing=0.1), weights)
    plain = build_loss(LossConfig(label_smoothing=0.1), weights)
    torch.testing.assert_close(focal(LOGITS, TARGETS), plain(LOGITS, TARGETS))


def test_focal_loss_counts_easy_images_less_than_cross_entropy_does():
    focal = build_loss(LossConfig(type="focal", focal_gamma=2.0), None)
    plain = build_loss(LossConfig(), None)
    easy, hard = LOGITS[:1], LOGITS[2:]
    easy_ratio = focal(easy, TARGETS[:1]) / plain(easy, TARGETS[:1])
    hard_ratio = focal(hard, TARGETS[2:]) / plain(hard, TARGETS[2:])
    assert easy_ratio < hard_ratio < 1


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_the_loss_of_mixed_images_is_that_of_torch_for_probabilities(weights):
    loss = build_loss(LossConfig(label_smoothing=0.1), weights)
    mix = Mix(partners=torch.tensor([1, 2, 0]), share=0.7)
    # Targets 0, 2, 1 have the partners' targets 2, 1, 0.
    probs = torch.tensor([[0.7, 0.0, 0.3], [0.0, 0.3, 0.7], [0.3, 0.7, 0.0]])
    expected = F.cross_entropy(LOGITS, probs, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(loss(LOGITS, TARGETS, mix), expected)


def test_the_focal_loss_of_a_mixed_image_is_that_of_both_classes_by_their_shares():
    loss = build_loss(LossConfig(type="focal", focal_gamma=2.0), None)
    mix = Mix(partners=torch.tensor([1, 0]), share=0.7)
    exps = [math.exp(2.0), 1, math.exp(-1.0)]
    own, of_partner = (exps[c] / sum(exps) for c in (0, 2))
    expected = [s * -((1 - p) ** 2) * math.log(p) for s, p in ((0.7, own), (0.3, of_partner))]
    twice = LOGITS[:1].expand(2, 3)  # the other one has the classes the other way round
    reverse = [s * -((1 - p) ** 2) * math.log(p) for s, p in ((0.7, of_partner), (0.3, own))]
    assert loss(twice, TARGETS[:2], mix).item() == pytest.approx(
        (sum(expected) + sum(reverse)) / 2, rel=1e-6
    )


def test_the_loss_of_masks_is_cross_entropy_plus_dice_by_hand():
    logits = torch.tensor([[[0.0, 2.0]], [[5.0, 5.0]]])
    masks = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    entropy = (math.log(2) + math.log(1 + math.exp(2))) / 2
    inside = 0.5, 1 / (1 + math.exp(-2))
    dice = 1 - (2 * inside[0] + 1) / (sum(inside) + 1 + 1)
    found = mask_loss(logits, masks, torch.tensor([True, False]))
    assert float(found) == pytest.approx(entropy + dice)
    assert float(mask_loss(logits, masks, torch.tensor([False, False]))) == 0
