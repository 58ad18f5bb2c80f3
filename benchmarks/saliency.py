"""Do a run's maps point at the lesion, do they depend on the weights, and what do they cost?

On all test images with a lesion mask, for the predicted and for the true class; then with weights
drawn anew from the head downwards (Adebayo et al., "Sanity checks for saliency maps", 2018); then
the time of one image in onnxruntime with and without the map.

    python -m benchmarks.saliency RUN_ID DATA_DIR
"""

import argparse
import copy
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.report import Figure, publish
from benchmarks.trained import parse, trained
from dermalyze.config.schema import ModelConfig
from dermalyze.data.lesion_masks import find_masks, read_mask
from dermalyze.data.readers.dataset import ImageReader
from dermalyze.evaluation.saliency_check import check_maps, measure_maps
from dermalyze.export.onnx import export_onnx
from dermalyze.models.classifier import build_classifier
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.workflows.finished_run import FinishedRun
from serving import Predictor
from serving.ham10000_taxonomy import HAM10000
from serving.spec import ModelSpec
from tests.support.tiny_network import spread

REPLICATES = 2000
NUM_RANDOMIZED = 200  # images
ROUNDS, RUNS = 40, 5


def on_masks(run: FinishedRun) -> dict[str, dict]:
    rows = run.splits.test
    network = ShippedNetwork([run.member])
    outputs = run.runner.outputs(network, run.spec, rows, ("logits", "saliency"), "maps")
    manifest = run.runner.manifest(rows)
    masks = find_masks(run.prepared.data_dir, manifest["image_id"].tolist())
    with ImageReader() as reader:
        drawn = [
            read_mask(reader.read(masks[name]), run.spec.input_size, mode=run.spec.resize_mode)
            for name in manifest["image_id"]
        ]
    targets = np.array([run.spec.class_names.index(label) for label in manifest["label"]])
    found = {}
    for what, classes in (("predicted", outputs["logits"].argmax(axis=1)), ("true", targets)):
        maps = outputs["saliency"][np.arange(len(rows)), classes]
        ids = manifest["image_id"].tolist(), manifest["lesion_id"].tolist()
        checked = check_maps(measure_maps(*ids, maps, drawn), run.predictions.scored, REPLICATES)
        found[what] = asdict(checked)
    return found


def randomized(run: FinishedRun) -> dict[str, float]:
    """Mean rank correlation of the predicted class's map with that of poorer and poorer weights."""
    rows = run.splits.test[:NUM_RANDOMIZED]
    member = copy.deepcopy(run.member)

    def maps():
        return run.runner.outputs(
            ShippedNetwork([member]), run.spec, rows, ("logits", "saliency"), "randomized"
        )

    before = maps()
    chosen = np.arange(len(rows)), before["logits"].argmax(axis=1)
    torch.manual_seed(0)
    found = {}
    parts = [("head", member.classifier.head)]
    network = member.classifier.backbone.network
    parts += [(name, part) for name, part in list(network.named_children())[::-1]]
    for name, part in parts:
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        after = maps()["saliency"][chosen]
        pairs = [
            spearmanr(one.ravel(), other.ravel()).statistic
            for one, other in zip(before["saliency"][chosen], after, strict=True)
            if one.max() > one.min() and other.max() > other.min()
        ]
        found[name] = float(np.mean(pairs)) if pairs else float("nan")
    return found


def times(network: ShippedNetwork, spec: ModelSpec) -> tuple[float, float]:
    """Median seconds of one image with the map and without it, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("map.onnx", "plain.onnx")]
        for file, kind in zip(files, ("grad_cam", ""), strict=True):
            export_onnx(network, replace(spec, saliency=kind, scope=None), file)
        predictors = [Predictor(file) for file in files]
    pixels = np.random.default_rng(0).integers(0, 256, (1, *spec.input_size, 3), np.uint8)
    names = (["logits", "saliency"], ["logits"])
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for predictor, outputs, taken in zip(predictors, names, seconds, strict=True):
            time.sleep(0.02)  # the threads of the other session wait busily for a while
            predictor.run(pixels, outputs)
            for _ in range(RUNS):
                start = time.perf_counter()
                predictor.run(pixels, outputs)
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_id")
    parser.add_argument("data_dir")
    arguments = parse(parser)
    with trained(arguments.run_id, arguments.data_dir) as run:
        masks = on_masks(run)
        sanity = randomized(run)
        networks = {run.member.classifier.backbone.network.__class__.__name__ + " of the run":
                    (ShippedNetwork([run.member]), run.spec)}  # fmt: skip
    torch.manual_seed(0)
    spec = ModelSpec(taxonomy=HAM10000, input_size=(224, 224))
    large, _ = build_classifier(
        ModelConfig(size="small", pretrained=False), 224, len(spec.taxonomy)
    )
    networks["EfficientNetV2-S, 224"] = ShippedNetwork([Member(spread(large, spec))]), spec
    figures = []
    for what, judged in masks.items():
        for measure in ("mass", "pointing"):
            part = judged[measure]
            for key in ("map", "center", "uniform", "over_center", "over_uniform"):
                value = part[key]
                print(f"{what:10}{measure:10}{key:14}{value['estimate']:.3f} "
                      f"({value['low']:.3f} to {value['high']:.3f})")  # fmt: skip
            figures.append(
                Figure(
                    what=f"{measure}, {what} class",
                    ours=part["map"]["estimate"],
                    baseline=part["center"]["estimate"],
                    unit="fraction",
                    against="a Gaussian around the center",
                    ratio=part["map"]["estimate"] / part["center"]["estimate"],
                    goal="",
                )
            )
    print("rank correlation with the map of randomized weights:", sanity)
    for name, (network, spec) in networks.items():
        with_map, plain = times(network, spec)
        figures.append(
            Figure(
                what=f"{name}, one image",
                ours=1000 * with_map,
                baseline=1000 * plain,
                unit="ms",
                against="the graph without the map",
                ratio=with_map / plain,
                goal="<= 1.10",
            )
        )
    publish("saliency", figures, masks=masks, sanity=sanity)


if __name__ == "__main__":
    main()
