"""The loop on a tiny network and 48 images in memory."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dermalyze.config.loading import config_from
from dermalyze.data.lesion_masks import UNKNOWN
from dermalyze.data.mixing import draw_mix
from dermalyze.models.checkpoint import save_checkpoint
from dermalyze.models.classifier import build_classifier, to_images
from dermalyze.models.mask_decoder import TwoTasks, build_mask_decoder
from dermalyze.training.device import choose_device, set_determinism
from dermalyze.training.loop import (
    LearningData,
    Part,
    fit,
    open_context,
    parts_of,
    train_step,
    training_network,
    val_logits,
)
from dermalyze.training.losses import distillation_loss
from dermalyze.training.state import new_state
from serving.errors import ConfigError, TrainingError
from serving.ham10000_taxonomy import HAM10000
from serving.spec import ModelSpec
from tests.support.tiny_network import tiny_network

SETTINGS = {
    "model": {"name": "test_efficientnet", "pretrained": False, "dropout_rate": 0.2},
    "training": {
        "epochs": 3,
        "batch_size": 8,
        "lr": 3.0e-3,
        "device": "cpu",
        "fast_mode": False,
        "use_amp": False,
        "early_stopping_patience": 0,
        "scheduler": {"warmup_pct": 0.1},
    },
    "data": {"image_size": 32},
}


class MemoryStore:
    """A pixel store without a file."""

    def __init__(self, pixels):
        self.pixels = pixels

    def batch(self, rows):
        return self.pixels[rows]


@pytest.fixture(scope="module")
def data():
    """Two classes, bright and dark, 24 images each; four of each are for validation."""
    rng = np.random.default_rng(0)
    targets = np.repeat([4, 5], 24)
    level = np.where(targets == 4, 70, 180)[:, None, None, None]
    pixels = np.clip(level + rng.normal(0, 40, (48, 32, 32, 3)), 0, 255).astype(np.uint8)
    val = np.array([0, 1, 2, 3, 24, 25, 26, 27])
    train = np.setdiff1d(np.arange(48), val)
    masks = np.zeros((48, 32, 32), np.uint8)
    masks[:, 8:24, 8:24] = 1
    masks[::5] = UNKNOWN
    return LearningData(
        store=MemoryStore(pixels),
        class_names=HAM10000.names,
        targets=targets,
        train=train,
        val=val,
        masks=masks,
    )


def settings(*overrides):
    return config_from(SETTINGS, overrides)


def start(config):
    set_determinism(deterministic=not config.training.fast_mode)
    torch.manual_seed(config.training.seed)
    classifier, _ = build_classifier(config.model, config.data.image_size, 7)
    device = choose_device(config.training)
    decoder = None
    if config.loss.mask_weight:
        decoder = build_mask_decoder(classifier.backbone, config.data.image_size)
    return new_state(classifier, config.training, device, decoder), device


def run(config, data, should_stop=lambda: False):
    state, device = start(config)
    epochs = list(fit(state, data, config, device, should_stop))
    return state, epochs


def weights_of(state):
    return {k: v.clone() for k, v in state.classifier.state_dict().items()}


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


def without_times(history):
    timed = ("epoch_seconds", "images_per_second")
    return [{k: v for k, v in entry.items() if k not in timed} for entry in history]


def test_a_difference_that_is_easy_to_see_is_learned_by_heart(data):
    config = settings("training.epochs=12", "augmentation.level=none")
    state, epochs = run(config, data)
    assert epochs[-1].metrics["train/accuracy"] > 0.95
    assert epochs[-1].metrics["val/balanced_accuracy"] == 1.0
    assert epochs[-1].metrics["train/loss"] < 0.5 * epochs[0].metrics["train/loss"]
    assert len(state.history) == 12


def test_an_epoch_logs_the_metrics_that_users_rely_on(data):
    _, (epoch,) = run(settings("training.epochs=1"), data)
    assert {
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
        "val/balanced_accuracy",
        "val/macro_f1",
        "val/macro_auc",
        "lr",
        "epoch_seconds",
        "images_per_second",
    } <= set(epoch.metrics)
    of_classes = {name for name in epoch.metrics if name.count("/") == 2}
    assert of_classes == {"val/recall/mel", "val/recall/nv"}  # the two that occur


def test_two_deterministic_runs_have_equal_weights_and_another_seed_has_others(data):
    one, _ = run(settings(), data)
    two, _ = run(settings(), data)
    other, _ = run(settings("training.seed=7"), data)
    assert_equal_weights(weights_of(one), weights_of(two))
    assert without_times(one.history) == without_times(two.history)
    assert one.history[0]["train/loss"] != other.history[0]["train/loss"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The settings that name a network of random weights as a teacher."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    config = settings("model.head_type=acrnn").model
    torch.manual_seed(5)
    network, _ = build_classifier(config, 32, 7)
    save_checkpoint(
        path, network.state_dict(), config, ModelSpec(taxonomy=HAM10000, input_size=(32, 32))
    )
    return f"loss.distill_from={path}"


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("TEACHER", "training.accumulate=3"),
        ("training.use_weighted_sampling=true", "training.ema_decay=0.9"),
        ("model.head_type=acrnn", "loss.type=focal"),
        ("training.layer_decay=0.5", "training.head_warmup_epochs=1"),
        ("training.accumulate=2", "augmentation.mixup_alpha=0.4"),
        ("augmentation.mixup_alpha=0.4", "augmentation.cutmix_alpha=1"),
        ("loss.mask_weight=1", "training.accumulate=2", "augmentation.cutmix_alpha=1"),
        ("training.mixstyle=0.5", "training.ema_decay=0.9"),
    ],
)
@pytest.mark.parametrize("stop_after", [3, 7, 10])
def test_a_run_stopped_at_any_step_and_resumed_equals_one_that_was_not(
    data, teacher, overrides, stop_after
):
    overrides = [teacher if name == "TEACHER" else name for name in overrides]
    config = settings("training.epochs=2", *overrides)  # 5 steps an epoch and a look after each
    whole, _ = run(config, data)

    questions = iter(range(1000))
    state, device = start(config)
    list(fit(state, data, config, device, lambda: next(questions) >= stop_after))
    assert (state.epoch, state.step) != (2, 0)
    weights, saved = weights_of(state), state.state_dict()

    torch.manual_seed(999)  # whatever else a new process would have drawn
    resumed, device = start(config)
    resumed.load_state_dict(weights, saved)
    list(fit(resumed, data, config, device))
    assert_equal_weights(weights_of(resumed), weights_of(whole))
    assert without_times(resumed.history) == without_times(whole.history)


def test_masks_are_learned_where_they_are_known(data):
    """All lesions are in the middle; a decoder that learned it beats one that learned nothing."""
    shown = []
    for weight in (1, 0.0000001):
        config = settings("training.epochs=6", f"loss.mask_weight={weight:.7f}")
        state, _ = run(config, data)
        both = TwoTasks(state.classifier, state.decoder).eval()
        images = to_images(torch.from_numpy(data.store.batch(data.val)))
        with torch.inference_mode():
            _, places = both(images)
        middle, edge = places[:, 1:3, 1:3].mean(), places[:, 0].mean()
        shown.append(float(middle - edge))
    assert shown[0] > shown[1] + 1


def test_the_last_epochs_are_trained_without_mixing(data):
    once, twice = "training.epochs=1", "training.epochs=2"
    mixing = ("augmentation.mixup_alpha=0.4", "augmentation.cutmix_alpha=1")
    never, _ = run(settings(once), data)
    off, _ = run(settings(once, *mixing, "augmentation.off_last_epochs=1"), data)
    always, _ = run(settings(once, *mixing), data)
    assert_equal_weights(weights_of(never), weights_of(off))
    assert without_times(never.history) == without_times(off.history)
    assert never.history[0]["train/loss"] != always.history[0]["train/loss"]

    all_twice, _ = run(settings(twice, *mixing), data)
    first_only, _ = run(settings(twice, *mixing, "augmentation.off_last_epochs=1"), data)
    assert without_times(all_twice.history)[0] == without_times(first_only.history)[0]
    assert all_twice.history[1]["train/loss"] != first_only.history[1]["train/loss"]


def test_metadata_is_mixed_in_the_shares_of_the_images(data):
    config = settings("augmentation.mixup_alpha=1", "model.metadata_dropout=0")
    known = np.eye(48, dtype=np.float32)  # each image by itself
    parts = (slice(0, 16), slice(16, 32), slice(32, 48))
    data = dataclasses.replace(data, metadata=known, metadata_parts=parts)
    state, device = start(config)
    context, seen = open_context(state.classifier, data, config, device), []

    def network(images, metadata):
        seen.append(metadata)
        return state.classifier(images)

    rows = np.array([1, 25, 7, 40])
    (batch,) = context.feed.batches([rows])
    part = Part(seed=3, side=32, mixes=True)
    train_step(state, dataclasses.replace(context, network=network), batch, part)
    mix = draw_mix(torch.empty(4, 3, 32, 32), config.augmentation, 3)
    expected = np.zeros((4, 48))
    for number, partner in enumerate(mix.partners.tolist()):
        expected[number, rows[number]] += mix.share
        expected[number, rows[partner]] += 1 - mix.share
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)


def test_a_loss_that_is_no_number_stops_with_a_sentence(data):
    # Without normalization layers in between, a rate of 1e30 overflows within a few steps.
    config = settings("training.lr=1.0e+30", "training.max_grad_norm=0", "training.epochs=9")
    with pytest.raises(TrainingError) as caught:
        run(config, data)
    assert str(caught.value).startswith("the training loss is not a finite number in epoch ")
    assert str(caught.value).endswith("; try a lower training.lr, or training.use_amp=false")


def test_early_stopping_counts_epochs_without_a_better_one(data, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.7, 0.6, 0.9])
    monkeypatch.setattr(
        "dermalyze.training.loop.score", lambda *_: {"accuracy": next(accuracies), "loss": 1.0}
    )
    state, epochs = run(
        settings(
            "training.epochs=5",
            "training.early_stopping_patience=2",
            "training.monitor=val/accuracy",
            "training.monitor_mode=max",
        ),
        data,
    )
    assert state.stopped_early
    assert state.best_epoch == 2
    assert [epoch.is_best for epoch in epochs] == [True, True, False, False]  # as good: not better


@pytest.mark.parametrize(("mode", "choose"), [("min", min), ("max", max)])
def test_the_best_epoch_is_that_of_the_monitored_metric_in_its_direction(data, mode, choose):
    config = settings("training.epochs=4", f"training.monitor_mode={mode}")
    state, _ = run(config, data)
    losses = [entry["val/loss"] for entry in state.history]
    assert state.best_value == choose(losses)
    assert state.history[state.best_epoch - 1]["val/loss"] == choose(losses)


def test_an_unknown_monitored_metric_is_answered_with_the_known_ones(data):
    with pytest.raises(ConfigError, match=r"^training.monitor must be .*'val/auroc'; known: val/"):
        run(settings("training.monitor=val/auroc", "training.epochs=1"), data)


def test_the_learning_rate_warms_up_and_is_stepped_per_update(data):
    config = settings("training.epochs=2", "training.scheduler.warmup_pct=0.5")
    _, epochs = run(config, data)
    # 10 updates, 5 of them warm-up: the first epoch ends at the peak.
    assert epochs[0].metrics["lr"] == pytest.approx(3e-3)
    assert 0 < epochs[1].metrics["lr"] < 3e-3


def test_a_frozen_backbone_stays_as_it_was_while_the_head_learns(data):
    config = settings("model.freeze_backbone=true", "training.epochs=1")
    before, _ = start(config)
    after, _ = run(config, data)
    assert_equal_weights(
        before.classifier.backbone.state_dict(), after.classifier.backbone.state_dict()
    )
    assert not torch.equal(
        before.classifier.head.layers[1].weight, after.classifier.head.layers[1].weight
    )


@pytest.mark.parametrize("mask_weight", [0, 1])
def test_in_the_warm_up_of_the_head_the_backbone_stays_as_it_was(data, mask_weight):
    config = settings(
        "training.epochs=2", "training.head_warmup_epochs=1", f"loss.mask_weight={mask_weight}"
    )
    state, device = start(config)
    before, in_warmup, after = (
        weights_of(state),
        *[weights_of(state) for _ in fit(state, data, config, device)],
    )
    assert before.keys() == after.keys()
    of_backbone = [name for name in before if name.startswith("backbone.network.")]
    assert any(name.endswith("running_mean") for name in of_backbone)
    assert [name for name in of_backbone if not torch.equal(before[name], in_warmup[name])] == []
    assert [name for name in of_backbone if torch.equal(before[name], after[name])] == []
    assert not torch.equal(before["head.layers.1.weight"], in_warmup["head.layers.1.weight"])


def test_layers_further_from_the_head_learn_at_lower_rates(data):
    config = settings(
        "training.layer_decay=0.5",
        "training.weight_decay=0",
        "training.lr=1.0e-4",
        "training.scheduler.type=constant",
        "training.scheduler.warmup_pct=0",
    )
    state, device = start(config)
    before, questions = weights_of(state), iter([False, True])
    assert list(fit(state, data, config, device, lambda: next(questions))) == []
    after = weights_of(state)
    # The first step of Adam moves every weight by the learning rate, whatever its gradient.  timm
    # counts six layers: the stem and five stages, the last one with what follows it.
    for name, rate in {
        "backbone.network.conv_stem.weight": 1e-4 / 32,
        "backbone.network.blocks.0.0.conv.weight": 1e-4 / 16,
        "backbone.network.blocks.3.0.conv_pw.weight": 1e-4 / 2,
        "backbone.network.conv_head.weight": 1e-4,
        "head.layers.1.weight": 1e-4,
    }.items():
        moved = (after[name] - before[name]).abs().median().item()
        assert moved == pytest.approx(rate, rel=0.01), name


def test_rates_per_layer_are_refused_where_there_are_no_layers():
    config = settings("training.layer_decay=0.5")
    with pytest.raises(ConfigError) as caught:
        new_state(tiny_network(), config.training, choose_device(config.training))
    assert str(caught.value) == (
        "training.layer_decay 0.5 has no effect on this network: timm finds no layers to train in "
        "its backbone; set it to 1.0"
    )


# Nothing whose effect depends on how images are put into batches.
WITHOUT_BATCH_NORM = (
    "model.head_type=acrnn",
    "model.freeze_backbone=true",
    "model.dropout_rate=0.0",
    "augmentation.level=none",
)


@pytest.mark.parametrize("class_weights", ["balanced", "effective", "none"])
@pytest.mark.parametrize("distills", [False, True])
def test_the_update_of_accumulated_batches_is_that_of_one_large_batch(
    data, teacher, class_weights, distills
):
    data = dataclasses.replace(data, train=data.train[:30])  # 20 of one class, 10 of the other
    common = (*WITHOUT_BATCH_NORM, f"loss.class_weights={class_weights}", "training.epochs=1")
    common += (teacher,) if distills else ()
    common += ("training.lr=1.0e-9", "training.scheduler.eta_min=0", "training.max_grad_norm=0.1")
    whole, _ = run(settings(*common, "training.batch_size=16"), data)  # 16 and 14 images
    parts, _ = run(settings(*common, "training.batch_size=4", "training.accumulate=4"), data)
    assert len(whole.optimizer.state) > 0
    # Adam's moments are the mean of the gradients and that of their squares.
    for one, other in zip(
        whole.optimizer.state.values(), parts.optimizer.state.values(), strict=True
    ):
        assert one["step"] == other["step"] == 2
        torch.testing.assert_close(one["exp_avg"], other["exp_avg"], rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(one["exp_avg_sq"], other["exp_avg_sq"], rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_labels_and_the_distance_to_the_teacher_by_weight(
    data, teacher, weight
):
    config = settings(teacher, f"loss.distill_weight={weight}", "augmentation.level=none")
    state, device = start(config)
    context = open_context(state.classifier, data, config, device)
    seen = []

    def network(images, metadata):
        seen.append((images, state.classifier(images)))
        return seen[0][1]

    (batch,) = context.feed.batches([np.array([1, 25, 7, 40])])
    context = dataclasses.replace(context, network=network)
    loss, _ = train_step(state, context, batch, Part(seed=3, side=32))
    ((images, logits),) = seen
    of_labels = context.loss(logits, torch.tensor([4, 5, 4, 5]), None)
    of_teacher = distillation_loss(logits, context.teacher(images), 2.0)
    torch.testing.assert_close(loss, ((1 - weight) * of_labels + weight * of_teacher).detach())


@pytest.mark.parametrize("how", ["effective", "adjusted"])
def test_a_correction_of_the_imbalance_knows_the_training_images_of_each_class(data, how):
    data = dataclasses.replace(data, train=data.train[:30])  # 20 of class 4, 10 of class 5
    overrides = {
        "effective": ["loss.class_weights=effective", "loss.effective_beta=0.9"],
        "adjusted": ["loss.class_weights=none", "loss.logit_adjustment=1"],
    }[how]
    config = settings(*overrides)
    state, device = start(config)
    logits, targets = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), [4, 5, 5, 4, 4]
    logits[:, [0, 1, 2, 3, 6]] = -30  # classes that do not occur
    if how == "effective":
        weights = torch.zeros(7)
        weights[4], weights[5] = 0.1 / (1 - 0.9**20), 0.1 / (1 - 0.9**10)
        expected = F.cross_entropy(logits, torch.tensor(targets), weight=weights)
    else:
        odds = torch.stack([logits[:, 4] + np.log(20 / 30), logits[:, 5] + np.log(10 / 30)], 1)
        expected = F.cross_entropy(odds, torch.tensor(targets) - 4)
    loss = open_context(state.classifier, data, config, device).loss
    torch.testing.assert_close(loss(logits, torch.tensor(targets), None), expected)


def test_the_schedule_counts_updates_and_the_last_of_an_epoch_has_the_batches_left(data):
    config = settings(
        "training.epochs=2", "training.accumulate=2", "training.scheduler.warmup_pct=0.5"
    )
    state, epochs = run(config, data)
    # 5 batches are 3 updates an epoch; 3 of 6 updates warm up.
    assert {moments["step"].item() for moments in state.optimizer.state.values()} == {6}
    assert epochs[0].metrics["lr"] == pytest.approx(3e-3)
    assert 0 < epochs[1].metrics["lr"] < 3e-3


def test_the_moving_average_is_judged_and_differs_from_the_last_weights(data):
    state, _ = run(settings("training.ema_decay=0.9", "training.epochs=1"), data)
    last, average = state.classifier.state_dict(), state.validated.state_dict()
    assert last.keys() == average.keys()
    assert not torch.equal(last["head.layers.1.weight"], average["head.layers.1.weight"])


def test_the_moving_average_keeps_little_of_the_first_updates(data):
    """Update t keeps (1 + t) / (10 + t), which is below the decay for long."""
    config = settings("training.ema_decay=0.999", "training.epochs=1")
    state, device = start(config)
    weights = []
    original = state.ema.update_parameters

    def watched(classifier):
        weights.append(classifier.head.layers[1].weight.detach().clone())
        original(classifier)

    state.ema.update_parameters = watched
    list(fit(state, data, config, device))
    expected = weights[0]
    for update, weight in enumerate(weights[1:], 1):
        kept = (1 + update) / (10 + update)
        expected = kept * expected + (1 - kept) * weight
    torch.testing.assert_close(state.validated.head.layers[1].weight.detach(), expected)


def test_prediction_does_not_depend_on_the_batch_size(data):
    state, device = start(settings())
    three, eight = (
        torch.cat(
            list(val_logits(state.classifier, open_context(state.classifier, data, config, device)))
        )
        for config in (settings("training.batch_size=3"), settings())
    )
    assert three.shape == (8, 7)
    np.testing.assert_allclose(three, eight, atol=1e-5)  # float32, sums in another order


@pytest.mark.parametrize(
    ("use_amp", "has_bf16", "dtype"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_mixed_precision_is_used_where_the_cpu_has_it_and_learns_as_well(
    data, monkeypatch, use_amp, has_bf16, dtype
):
    monkeypatch.setattr("dermalyze.training.device._cpu_has_bf16", lambda: has_bf16)
    epochs = "training.epochs=6" if use_amp and has_bf16 else "training.epochs=1"
    same = "augmentation.level=none", "training.scheduler.type=constant"
    config = settings(f"training.use_amp={use_amp}", epochs, *same)
    state, device = start(config)
    seen = set()
    state.classifier.register_forward_hook(lambda _, images, logits: seen.add(logits.dtype))
    *_, last = fit(state, data, config, device)
    assert seen == {dtype}  # in training and in validation
    assert {p.dtype for p in state.classifier.parameters()} == {torch.float32}
    if dtype == torch.bfloat16:
        assert last.metrics["val/balanced_accuracy"] == 1.0


def test_a_device_that_is_not_here_is_refused_with_those_that_are():
    if torch.cuda.is_available():
        name, there = "mps", "cuda, cpu"
    else:
        name, there = "cuda", "cpu"
    with pytest.raises(ConfigError) as caught:
        choose_device(settings(f"training.device={name}").training)
    message = f"training.device {name} is not available here; available: {there}"
    assert str(caught.value) == message


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one_does(data, monkeypatch):
    # Compiled code draws dropout masks of its own, and Adam blows rounding up: neither is wanted.
    same = ("training.epochs=1", "model.dropout_rate=0.0", "training.lr=1.0e-9")
    same += ("training.scheduler.eta_min=0.0",)
    plain, _ = run(settings(*same), data)
    calls = []
    compile_network = torch.compile

    def counted(network, **named):
        compiled = compile_network(network, **named)
        return lambda *given: calls.append(given) or compiled(*given)

    monkeypatch.setattr(torch, "compile", counted)
    compiled, _ = run(settings(*same, "training.use_torch_compile=true"), data)
    assert len(calls) == 5  # steps; validation runs the plain one
    assert compiled.history[0]["train/loss"] == pytest.approx(
        plain.history[0]["train/loss"], rel=1e-4
    )
    # Adam's first moments are the mean gradients: equal ones move the weights alike at any rate.
    for one, other in zip(
        plain.optimizer.state.values(), compiled.optimizer.state.values(), strict=True
    ):
        np.testing.assert_allclose(one["exp_avg"], other["exp_avg"], rtol=1e-2, atol=1e-5)


def functions_behind(tensor):
    """Names of the functions that the gradient of a tensor runs through."""
    names, todo, seen = [], [tensor.grad_fn], set()
    while todo:
        function = todo.pop()
        if function is not None and function not in seen:
            seen.add(function)
            names.append(function.name())
            todo += [earlier for earlier, _ in function.next_functions]
    return names


@pytest.mark.parametrize("use_amp", [True, False])
def test_strided_depthwise_convolutions_get_the_fast_gradient_in_bf16_on_a_cpu(use_amp):
    config = settings(f"training.use_amp={use_amp}")
    state, device = start(config)
    if use_amp and not device.is_bf16_cpu:
        pytest.skip("this CPU does not work in bf16")
    with device.autocast():
        logits = training_network(state.classifier, config, device)(torch.rand(2, 3, 32, 32))
    used = any("_Depthwise" in name for name in functions_behind(logits))
    assert used == use_amp


def without_a_part(saved):
    return {name: value for name, value in saved.items() if name != "optimizer"}


def of_another_shape(saved):
    wide = {
        "exp_avg": torch.zeros(7, 7),
        "exp_avg_sq": torch.zeros(7, 7),
        "step": torch.tensor(1.0),
    }
    state = dict.fromkeys(saved["optimizer"]["state"], wide)
    return {**saved, "optimizer": {**saved["optimizer"], "state": state}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: {},
        without_a_part,
        of_another_shape,
        lambda saved: {**saved, "optimizer": "none"},
        lambda saved: {**saved, "epoch": "three"},
        lambda saved: {**saved, "history": None},
    ],
)
def test_a_checkpoint_without_its_training_part_or_of_other_shapes_is_one_sentence(data, damage):
    config = settings("training.epochs=1")
    state, _ = run(config, data)
    other, _ = start(config)
    with pytest.raises(TrainingError) as caught:
        other.load_state_dict(state.classifier.state_dict(), damage(state.state_dict()))
    assert str(caught.value) == (
        "the checkpoint does not fit this training; resume with the settings it began with"
    )


def test_the_first_epochs_see_smaller_images_of_the_same_lesions(data):
    config = settings("training.first_scale=0.5", "training.epochs=4", "augmentation.level=none")
    state, device = start(config)
    context = open_context(state.classifier, data, config, device)
    batch = np.array([1, 25, 7, 40])
    seen = []

    def network(images, metadata):
        seen.append(images)
        return state.classifier(images)

    for epoch in (1, 4):
        (part,) = parts_of([batch], context, epoch)
        (stored,) = context.feed.batches([batch])
        train_step(state, dataclasses.replace(context, network=network), stored, part)
    small, whole = seen
    assert small.shape == (4, 3, 16, 16)
    torch.testing.assert_close(whole, to_images(stored[0]))
    triangle = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8  # bilinear, over two pixels of the small one
    kernel = (triangle[:, None] * triangle).expand(3, 1, 4, 4)
    expected = F.conv2d(F.pad(whole, (1, 1, 1, 1)), kernel, stride=2, groups=3)
    torch.testing.assert_close(small[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
