"""What a training step asks of a GPU, counted without one, and what that costs on an H200.

Operations, arithmetic and memory traffic of forward and backward pass are counted on torch's
`meta` device, which computes shapes alone.  Traffic is every operation's inputs and outputs: what
an eager step moves; a compiled one leaves out what it fuses.  The hardware's numbers are the
vendor's: 4.8 TB/s, 989 TFLOP/s of dense bf16; a launch costs about 5 microseconds of the host.

    python -m benchmarks.step_cost [--batch-size 32] [--network tf_efficientnetv2_s]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import RESULTS
from dermalyze.config.schema import ModelConfig
from dermalyze.models.classifier import build_classifier
from serving.ham10000_taxonomy import HAM10000

BANDWIDTH, ARITHMETIC, LAUNCH = 4.8e12, 989e12, 5e-6  # bytes/s, FLOP/s, s
IMAGES, EPOCHS = 7000, 40


class Traffic(TorchDispatchMode):
    """Count the operations within the block that compute something, and the bytes they move."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.num_bytes = 0, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__:
            self.operations += 1
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count(forward: Callable[[], Tensor]) -> tuple[int, int, int]:
    """Return operations, bytes and floating-point operations of a training step.

    The backward pass of a convolution or product costs twice the forward pass; torch's counter
    takes grouped ones for full ones there.
    """
    with FlopCounterMode(display=False) as flops:
        forward()
    with Traffic() as traffic:
        forward().backward()
    return traffic.operations, traffic.num_bytes, 3 * flops.get_total_flops()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--network", default="tf_efficientnetv2_s.in21k_ft_in1k")
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--image-size", type=int, default=224)
    chosen = options.parse_args()
    config = ModelConfig(name=chosen.network, pretrained=False)
    network = build_classifier(config, chosen.image_size, len(HAM10000))[0].to(
        "meta", torch.bfloat16
    )
    side = chosen.image_size
    images = torch.empty(chosen.batch_size, 3, side, side, device="meta", dtype=torch.bfloat16)
    targets = torch.empty(chosen.batch_size, device="meta", dtype=torch.int64)

    def forward() -> Tensor:
        return F.cross_entropy(network(images).float(), targets)

    operations, num_bytes, flops = count(forward)
    parameters = sum(p.numel() for p in network.parameters())
    num_bytes += parameters * 7 * 4  # AdamW: weight, gradient and two moments read, three written
    steps = EPOCHS * (IMAGES // chosen.batch_size)
    bounds = {
        "arithmetic": flops / ARITHMETIC,
        "memory, nothing fused": num_bytes / BANDWIDTH,
        "launches, no CUDA graph": operations * LAUNCH,
    }
    print(f"{chosen.network}, {side} px, batches of {chosen.batch_size}, one training step:")
    print(f"  {operations} operations, {flops / 1e9:.0f} GFLOP, {num_bytes / 1e9:.2f} GB moved")
    print(f"  {'at least, by':<26}{'a step':>10}{f'{EPOCHS} epochs of {IMAGES:,}':>22}")
    for name, seconds in bounds.items():
        print(f"  {name:<26}{1000 * seconds:>7.2f} ms{steps * seconds:>20.1f} s")
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {"operations": operations, "bytes": num_bytes, "flop": flops, "bounds": bounds}
    (RESULTS / "step_cost.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
