"""EfficientNetV2-S at 224 px in int8 against float32: speed, size, and what the change costs.

python -m benchmarks.int8 [--run-id RUN]

Without a run the weights are random; speed and size do not depend on them.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from benchmarks.report import Figure, publish
from dermalyze.config.schema import ModelConfig
from dermalyze.export.int8 import IMAGES_A_CLASS
from dermalyze.export.int8_graph import WEIGHT_BITS, calibrate, quantize
from dermalyze.export.onnx import export_onnx, write_model
from dermalyze.export.parity_images import parity_images
from dermalyze.models.classifier import build_classifier
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.workflows.finished_run import open_finished
from serving import Predictor
from serving.ham10000_taxonomy import HAM10000
from serving.prediction import open_image
from serving.preprocess import to_pixels
from serving.spec import ModelSpec
from tests.support.tiny_network import spread

SIZE = 224  # pixels
THREADS = 2
ROUNDS = {1: 15, 8: 5}  # batch size -> rounds
RUNS = 8  # of each network in a round, after one that is not timed
PAUSE = 0.02  # seconds; the threads of the other session wait busily for a while


def network_of(run_id):
    if run_id:
        with open_finished(run_id) as run:
            return run.member.classifier, run.spec
    torch.manual_seed(0)
    spec = ModelSpec(taxonomy=HAM10000, input_size=(SIZE, SIZE))
    config = ModelConfig(size="small", pretrained=False)
    return spread(build_classifier(config, SIZE, len(spec.taxonomy))[0], spec), spec


def drawn_pixels(spec, num_images):
    pixels = np.stack([to_pixels(open_image(data), spec) for _, data in parity_images()])
    return np.resize(pixels, (num_images, *pixels.shape[1:]))


def seconds_of(predictors, pixels, rounds):
    """Medians, by predictor; they take turns."""
    seconds = {name: [] for name in predictors}
    for _ in range(rounds):
        for name, predictor in predictors.items():
            time.sleep(PAUSE)
            predictor.logits(pixels)
            for _ in range(RUNS):
                start = time.perf_counter()
                predictor.logits(pixels)
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-id", default="", help="whose weights to take; else random ones")
    run_id = parser.parse_args().run_id
    network, spec = network_of(run_id)
    pixels = drawn_pixels(spec, IMAGES_A_CLASS * len(spec.class_names))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("float32", "int8")}
        start = time.perf_counter()
        export_onnx(ShippedNetwork([Member(network)]), spec, files["float32"])
        export_seconds = time.perf_counter() - start
        start = time.perf_counter()
        calibrated = calibrate(onnx.load(files["float32"]), {"image": pixels})
        calibration_seconds = time.perf_counter() - start
        start = time.perf_counter()
        quantized = quantize(calibrated, calibrated.layers[1:])
        write_model(
            files["int8"], quantized, replace(spec, precision="int8", int8_weight_bits=WEIGHT_BITS)
        )
        quantization_seconds = time.perf_counter() - start
        sizes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
        predictors = {name: Predictor(path, num_threads=THREADS) for name, path in files.items()}
    figures = []
    for batch_size, rounds in ROUNDS.items():
        seconds = seconds_of(predictors, pixels[:batch_size], rounds)
        figures.append(
            Figure(
                what=f"network, batch of {batch_size}",
                ours=1e3 * seconds["int8"],
                baseline=1e3 * seconds["float32"],
                unit="ms",
                against="the float32 file, both in onnxruntime",
                ratio=seconds["float32"] / seconds["int8"],
                goal=">= 2.0",
            )
        )
    figures.append(
        Figure(
            what="file",
            ours=sizes["int8"],
            baseline=sizes["float32"],
            unit="MB",
            against="the float32 file",
            ratio=sizes["int8"] / sizes["float32"],
            goal="<= 0.333",
        )
    )
    publish(
        "int8",
        figures,
        run_id=run_id,
        num_threads=THREADS,
        calibration_images=len(pixels),
        calibration_seconds=calibration_seconds,
        quantization_seconds=quantization_seconds,
        float32_export_seconds=export_seconds,
        num_layers=len(calibrated.layers),
    )
    print(
        f"calibration on {len(pixels)} images {calibration_seconds:.1f} s, "
        f"quantization {quantization_seconds:.1f} s, float32 export {export_seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
