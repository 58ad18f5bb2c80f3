"""What `--search` may say, and the one sentence for what it may not."""

import pytest

from dermalyze.config.schema import Config
from dermalyze.config.search_space import Search, read_search
from serving.errors import ConfigError


def test_ranges_and_values_are_read_by_the_type_of_the_setting():
    texts = [
        "training.lr=1e-4..3e-3,log loss.type=cross_entropy,focal",
        "augmentation.rotation=0..1",
        "training.batch_size=8..64,log",
        "model.pretrained=false,../weights.safetensors",
        "training.weight_decay=0,1e-2",
        "training.use_weighted_sampling=true,false",
    ]
    assert read_search(texts, Config()) == (
        Search(key="training.lr", text="1e-4..3e-3,log", low=1e-4, high=3e-3, log=True),
        Search(key="loss.type", text="cross_entropy,focal", choices=("cross_entropy", "focal")),
        Search(key="augmentation.rotation", text="0..1", low=0.0, high=1.0),
        Search(
            key="training.batch_size", text="8..64,log", low=8, high=64, is_whole=True, log=True
        ),
        Search(
            key="model.pretrained",
            text="false,../weights.safetensors",
            choices=(False, "../weights.safetensors"),
        ),
        Search(key="training.weight_decay", text="0,1e-2", choices=(0.0, 0.01)),
        Search(key="training.use_weighted_sampling", text="true,false", choices=(True, False)),
    )


SYNTAX = "KEY=LOW..HIGH, KEY=LOW..HIGH,log or KEY=A,B,..."
NUMBERS = "takes LOW..HIGH or LOW..HIGH,log with two numbers, the lower one first"
WHOLE = NUMBERS.replace("numbers", "whole numbers")
SAME_IMAGES = "the trials would not be validated on the same images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"--search names no setting; it takes {SYNTAX}"),
        ("training.lr", f"--search takes {SYNTAX}, got 'training.lr'"),
        ("training.lr=", f"--search takes {SYNTAX}, got 'training.lr='"),
        ("training.lrr=1..2", "unknown setting training.lrr; did you mean training.lr?"),
        ("lr=1e-4..1e-3", "unknown setting lr; did you mean training.lr?"),
        ("training=1..2", "training must be a section of settings, got '1..2'"),
        ("training.lr=0..1", "training.lr must be greater than 0, got 0.0"),
        ("data.image_size=8..64", "data.image_size must be from 16 to 1024, got 8"),
        ("training.lr=1..0.1", f"--search training.lr {NUMBERS}, got '1..0.1'"),
        ("training.lr=a..b", f"--search training.lr {NUMBERS}, got 'a..b'"),
        ("training.lr=0.1..inf", f"--search training.lr {NUMBERS}, got '0.1..inf'"),
        ("training.lr=0.1..0.2..0.3", f"--search training.lr {NUMBERS}, got '0.1..0.2..0.3'"),
        ("training.lr=0.1..0.2,lin", f"--search training.lr {NUMBERS}, got '0.1..0.2,lin'"),
        ("training.epochs=1.5..3", f"--search training.epochs {WHOLE}, got '1.5..3'"),
        (
            "training.weight_decay=0..1,log",
            "--search training.weight_decay with log needs a range above 0, got '0..1,log'; leave "
            "out log, or begin above 0",
        ),
        ("loss.type=focal,focl", "loss.type must be one of cross_entropy, focal, got 'focl'"),
        ("training.epochs=3,x", "training.epochs must be a whole number, got 'x'"),
        (
            "loss.type=focal",
            "--search loss.type needs at least two values, each of them once, got 'focal'; for a "
            "single one use --set loss.type=VALUE",
        ),
        (
            "training.epochs=3..3",
            "--search training.epochs needs at least two values, each of them once, got '3..3'; "
            "for a single one use --set training.epochs=VALUE",
        ),
        (
            "training.lr=0.1..0.2 training.lr=0.3..0.4",
            "--search names training.lr twice; put all of its values into one",
        ),
        *(
            (f"{key}=1,2", f"--search cannot vary {key}: {why}; set it with --set {key}=VALUE")
            for key, why in {
                "training.seed": SAME_IMAGES,
                "data.val_size": SAME_IMAGES,
                "training.monitor": "it is what the trials are compared by",
                "tracking.register": "it does not change what a trial learns",
                "model.plugins": "it is code, not a value",
            }.items()
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_one_sentence(text, message):
    with pytest.raises(ConfigError) as caught:
        read_search([text], Config())
    assert str(caught.value) == message
