"""The two networks that training is timed with, and the options that choose the data."""

import argparse
from pathlib import Path

from dermalyze.config.loading import load_config
from dermalyze.config.schema import Config

LARGE, SMALL = "EfficientNetV2-S, 224 px", "MobileNetV2, 128 px"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options that every training benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--data-dir", default="auto", help="a folder, demo or auto")
    options.add_argument(
        "--plugin", type=Path, help="a module with gluon_mobilenetv2, instead of timm's MobileNetV2"
    )
    return options


def config_of(network: str, plugin: Path | None, *overrides: str) -> Config:
    """Return the settings of `LARGE` or `SMALL`; without `plugin` the weights are random."""
    if network == LARGE:
        settings = ["data.image_size=224", "data.resize_filter=bicubic", "training.batch_size=16"]
        settings += ["model.pretrained=false"]
    else:
        settings = ["data.image_size=128", "data.resize_filter=bilinear", "training.batch_size=32"]
        if plugin:
            settings += [f"model.plugins=[{plugin}]", "model.name=gluon_mobilenetv2"]
        else:
            settings += ["model.name=mobilenetv2_100", "model.pretrained=false"]
    return load_config(Path("configs/default.yaml"), [*settings, *overrides], {})
