"""What it costs a training step to share its gradients among processes.

Each process first trains by itself, all at the same time, then all together, on batches of the
same number of images per process; the difference is what sharing costs on this machine.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 \\
        -m benchmarks.distributed [--network tf_efficientnet_lite0] [--batch-size 16]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from dermalyze.config.schema import ModelConfig, TrainingConfig
from dermalyze.models.classifier import build_classifier
from dermalyze.training import distributed
from dermalyze.training.device import choose_device


def main() -> None:
    """Print the milliseconds of a step with and without the others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--batch-size", type=int, default=16, help="images per process")
    parser.add_argument("--side", type=int, default=96, help="of an image, pixels")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    distributed.join()
    training = TrainingConfig(batch_size=options.batch_size * distributed.size())
    device = choose_device(training).torch_device
    model = ModelConfig(name=options.network, pretrained=False)
    network = build_classifier(model, options.side, 7)[0].to(device)
    images = torch.rand(options.batch_size, 3, options.side, options.side, device=device)
    targets = torch.randint(7, (options.batch_size,), device=device)
    shared = distributed.sharing_gradients(network, training)

    def measured(called: nn.Module, stops: Callable[[bool], bool]) -> float:
        """Return the median of a step's milliseconds."""
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        times = []
        for _ in range(options.steps + 3):
            start = time.perf_counter()
            stops(False)
            F.cross_entropy(called(images), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times[3:])

    distributed.meet()
    alone = measured(network, lambda flag: flag)
    distributed.meet()
    together = measured(shared, distributed.any_of)
    if distributed.rank() == 0:
        megabytes = sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6
        print(
            f"{distributed.size()} processes, {options.network}, {options.batch_size} images of "
            f"{options.side} px each: {alone:.1f} ms per step alone, {together:.1f} ms with shared "
            f"gradients ({megabytes:.1f} MB): {together - alone:+.1f} ms, "
            f"{together / alone - 1:+.1%}"
        )
    distributed.leave()


if __name__ == "__main__":
    main()
