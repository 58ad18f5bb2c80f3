"""The model that the service answers with; a new file in its place is loaded beside it."""

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from serving.base_predictor import map_names, output_names
from serving.errors import ArtifactError, DermalyzeError, OutOfMemoryError
from serving.isolation import isolated
from serving.predictor import Predictor
from serving.session import FAILURES
from serving.spec import ModelSpec

if sys.platform != "win32":
    import resource

# Of a network on one core: more cores gain a faster one little, and double its p99.
_WORTH_SECONDS = 0.005

_EXAMINED = "DERMALYZE_EXAMINED"  # in the environment: the state of the file that was
# Bytes that loading and running may take: weights are kept in up to six copies for a moment.
_MEMORY, _MEMORY_FACTOR = 4 * 2**30, 8

log = logging.getLogger("serving")


class LoadedModel:
    """A model file and what answers with it.  Requests keep the predictor they began with.

    There are two where it pays: of a slow network, one image alone is answered fastest with every
    core, several at a time with one core each.
    """

    def __init__(self, path: Path, *, num_threads: int, load_seconds: float = 120.0) -> None:
        """Load the file.

        Args:
            path: an ONNX file of `dermalyze export-onnx`.
            num_threads: those that one image alone may have.
            load_seconds: how long a new file may take, see `examine`.

        Raises:
            ArtifactError: as `Predictor`.
        """
        self._path = path
        self._load_seconds = load_seconds
        self._given_up = threading.Event()
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

    def give_up(self) -> None:
        """End a reload that is under way: the service ends."""
        self._given_up.set()

    def reload(self) -> bool:
        """Load the file that lies there now; one that cannot be used leaves the old model.

        It is looked at once: a broken file is not tried again until yet another one lies there.
        """
        seen = _state_of(self._path)
        try:
            examine(self._path, self._load_seconds, self._given_up)
            self._alone, self._together = self._load()
        except DermalyzeError as error:
            if self._given_up.is_set():
                return False
            log.error("the new model is not used: %s", error)
            return False
        finally:
            self._seen = seen
        log.info("a new model is loaded: run %s", self.spec.run_id or "unknown")
        return True


def examine(path: Path, seconds: float, given_up: threading.Event | None = None) -> ModelSpec:
    """Load a file and run it once in a process of its own, which has bounds and can be ended.

    onnxruntime can be kept from neither computing for ever nor taking all memory while it loads,
    and a small file can make it do so.

    Raises:
        ArtifactError: as `Predictor`; also, it cannot be run, or not within the time, or takes
            more memory than an export of its size.
    """
    state = _state_of(path)
    try:
        spec = isolated(_try_out, path, seconds=seconds, given_up=given_up)
    except TimeoutError as error:
        raise ArtifactError(
            f"{path} could not be loaded and run within {seconds:g} seconds; use a smaller model, "
            "or raise --load-seconds"
        ) from error
    except ChildProcessError as error:
        raise ArtifactError(
            f"{path} ends the process that loads it ({error}), perhaps for lack of memory; use a "
            "smaller model"
        ) from error
    os.environ[_EXAMINED] = str(state)  # for processes that begin after this
    return spec


def was_examined(path: Path) -> bool:
    """Say whether the file is the one that `examine` saw last, in this process or one above it."""
    return os.environ.get(_EXAMINED) == str(_state_of(path))


def _try_out(path: Path) -> ModelSpec:
    """Load and run a model once, with a bound on memory; this process is for nothing else."""
    most = _MEMORY + _MEMORY_FACTOR * (path.stat().st_size if path.is_file() else 0)
    if sys.platform == "linux":
        with suppress(OSError):  # if memory ends, this process is the one to end
            Path("/proc/self/oom_score_adj").write_text("1000")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        bound = pages * resource.getpagesize() + most
        resource.setrlimit(resource.RLIMIT_AS, (bound, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        predictor = Predictor(path, num_threads=1)
        spec = predictor.spec
        pixels = np.zeros((1, *spec.input_size, 3), np.uint8)
        predictor.run(pixels, [*output_names(spec), *map_names(spec)])
    except OutOfMemoryError as error:
        raise ArtifactError(
            f"{path} takes more memory to load and run than the {most:,} bytes that its size "
            "allows; use a smaller model"
        ) from error
    except FAILURES as error:
        raise ArtifactError(
            f"{path} cannot be run, although it can be loaded; export the model again"
        ) from error
    return spec


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
