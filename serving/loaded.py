"""The model that the service answers with; a new file in its place is loaded beside it."""

import logging
import time
from pathlib import Path

import numpy as np

from serving.errors import ArtifactError
from serving.predictor import Predictor
from serving.spec import ModelSpec

# Of a network on one core: more cores gain a faster one little, and double its p99.
_WORTH_SECONDS = 0.005

log = logging.getLogger("serving")


class LoadedModel:
    """A model file and what answers with it.  Requests keep the predictor they began with.

    There are two where it pays: of a slow network, one image alone is answered fastest with every
    core, several at a time with one core each.
    """

    def __init__(self, path: Path, *, num_threads: int) -> None:
        """Load the file.

        Args:
            path: an ONNX file of `dermalyze export-onnx`.
            num_threads: those that one image alone may have.

        Raises:
            ArtifactError: as `Predictor`.
        """
        self._path = path
        self._num_threads = num_threads
        self._seen = _state_of(path)
        self._alone, self._together = self._load()

    @property
    def spec(self) -> ModelSpec:
        """The contract of the present model."""
        return self._alone.spec

    def predictor(self, *, alone: bool) -> Predictor:
        """Return the predictor for one image at a time, or for several."""
        return self._alone if alone else self._together

    def _load(self) -> tuple[Predictor, Predictor]:
        together = Predictor(self._path, num_threads=1)
        if self._num_threads == 1 or _seconds(together) < _WORTH_SECONDS:
            return together, together
        return Predictor(self._path, num_threads=self._num_threads), together

    def changed(self) -> bool:
        """Say whether another file has taken the place of the one that was looked at last."""
        return _state_of(self._path) not in (self._seen, None)

    def reload(self) -> bool:
        """Load the file that lies there now; one that cannot be used leaves the old model.

        It is looked at once: a broken file is not tried again until yet another one lies there.
        """
        seen = _state_of(self._path)
        try:
            self._alone, self._together = self._load()
        except ArtifactError as error:
            log.error("the new model is not used: %s", error)
            return False
        finally:
            self._seen = seen
        log.info("a new model is loaded: run %s", self.spec.run_id or "unknown")
        return True


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Return what tells one file at a place from the next; None: nothing is there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _seconds(predictor: Predictor) -> float:
    """Time the network, and warm it up."""
    pixels = np.zeros((1, *predictor.spec.input_size, 3), np.uint8)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        predictor.logits(pixels)
        taken.append(time.perf_counter() - start)
    return min(taken)
