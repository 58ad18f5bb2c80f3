"""The predictor's answers through PyTorch, from a checkpoint or a network in memory.

All but the network itself is what `serving` does.  N images of H x W pixels, C classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dermalyze.models.checkpoint import load_member
from dermalyze.models.ensemble import ShippedNetwork
from dermalyze.models.plugins import load_plugins
from serving.base_predictor import AnyPredictor, Outputs
from serving.preprocess import Pixels
from serving.spec import ModelSpec


class SkinLesionPredictor(AnyPredictor):
    """A trained network on the CPU, in full precision.  Safe to share between threads."""

    def __init__(self, checkpoint: Path | str, *, plugins: Sequence[str] = ()) -> None:
        """Load a checkpoint of `dermalyze train`.

        Args:
            checkpoint: the file; code that it names is not run.
            plugins: modules and .py files to import first, because you trust them.

        Raises:
            ArtifactError: the file is missing, damaged, foreign or of another version, or it asks
                for a plug-in that was not named.
            ConfigError: a plug-in cannot be imported.
        """
        load_plugins(plugins)
        member, spec = load_member(Path(checkpoint))
        self._use(ShippedNetwork([member]), spec)

    @classmethod
    def of(cls, network: ShippedNetwork, spec: ModelSpec) -> "SkinLesionPredictor":
        """Answer with a network that is already there; it must be on the CPU and is not copied."""
        predictor = cls.__new__(cls)
        predictor._use(network, spec)
        return predictor

    def _use(self, network: ShippedNetwork, spec: ModelSpec) -> None:
        self._network = network.eval()
        self.spec = spec

    def run(
        self, pixels: Pixels, names: Sequence[str], metadata: NDArray[np.float32] | None = None
    ) -> Outputs:
        """Run the network; see `AnyPredictor.run`."""
        known = None if metadata is None else torch.tensor(metadata)
        with torch.inference_mode():
            outputs = self._network(torch.tensor(pixels), known, names)
        return {name: values.float().numpy() for name, values in outputs.items()}
