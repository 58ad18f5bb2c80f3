"""One training in several processes, as torchrun starts them; without it there is one process.

The process of rank 0 writes the run.  Every batch is the same for any number of processes: each
works on its share of the images, and the gradients are those of the whole batch.
"""

import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from dermalyze.config.schema import TrainingConfig, require
from dermalyze.data.sampling import Rows
from serving.errors import ConfigError, TrainingError

ANSWER_SECONDS = 60.0  # in which every process must answer in the middle of an epoch
SAVING_SECONDS = 600.0  # likewise while the first one writes an epoch's files
PREPARING_SECONDS = 86_400.0  # likewise while images are prepared
_POLL_SECONDS = 0.02
_RUN_KEY = "dermalyze/run"

Value = TypeVar("Value")

_store: Any = None  # torch's, reached by all processes; torch gives it no type
_meetings = 0


def join() -> None:
    """Meet the other processes of this training.

    Raises:
        ConfigError: they were started with other arguments.
        TrainingError: they do not come.
    """
    global _store
    _store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=SAVING_SECONDS)))
    if size == 1:
        return
    _store = PrefixStore(_start_of(_store, rank, size), _store)
    arguments = json.dumps(sys.argv[1:])
    if rank == 0:
        _store.set("arguments", arguments)
    with others_needed():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=_store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=ANSWER_SECONDS),
        )
    if _store.get("arguments").decode() != arguments:
        raise ConfigError(
            f"process {rank} was started with other arguments than process 0; start all with the "
            "same command"
        )


def _start_of(store: Any, rank: int, size: int) -> str:
    """Return a name that these processes agree on; the store may have what earlier ones wrote.

    Process 0 invents it and answers everyone who asks, until all have it.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"asks/{rank}", own)
        _wait_until(lambda: store.check([f"answer/{own}"]), SAVING_SECONDS)
        start = str(store.get(f"answer/{own}").decode())
        store.set(f"{start}/{rank}", "has it")
        return start

    def all_have_it() -> bool:
        for other in range(1, size):
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", own)
        return bool(store.check([f"{own}/{other}" for other in range(1, size)]))

    _wait_until(all_have_it, SAVING_SECONDS)
    return own


def leave() -> None:
    """Go on alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def remember_run(run_id: str) -> None:
    """Keep the run for the processes that torchrun starts if one of these dies."""
    if _store is not None:
        _outlasting(_store).set(_RUN_KEY, run_id)


def remembered_run() -> str:
    """Return the run of the processes before a restart by torchrun; empty: there is none."""
    store = None if _store is None else _outlasting(_store)
    if store is None or not store.check([_RUN_KEY]):
        return ""
    return str(store.get(_RUN_KEY).decode())


def _outlasting(store: Any) -> Any:
    """Return the store of torchrun itself, without the prefix of this start."""
    return getattr(store, "underlying_store", store)


def meet(seconds: float = SAVING_SECONDS) -> None:
    """Wait for all processes; not by a barrier, in which no signal would be heard.

    Raises:
        TrainingError: they do not come within some seconds.
    """
    global _meetings
    if size() > 1:
        _meetings += 1
        key = f"meeting/{_meetings}"
        _store.add(key, 1)
        _wait_until(lambda: _store.add(key, 0) >= size(), seconds)


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    with others_needed():
        while not condition():
            if time.monotonic() > end:
                raise TrainingError(
                    f"another process of this training did not answer within {seconds:.0f} "
                    "seconds; look at its messages, then continue the run"
                )
            time.sleep(_POLL_SECONDS)


def from_first(value: Value) -> Value:
    """Return what process 0 passes here."""
    if size() == 1:
        return value
    values = [value]
    with others_needed():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def any_of(flag: bool) -> bool:
    """Say whether a flag is set in any process."""
    if size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def total(number: Tensor) -> Tensor:
    """Add up a number of each process."""
    if size() == 1:
        return number
    number = number.clone()
    dist.all_reduce(number)
    return number


def share_of(rows: Rows) -> Rows:
    """Return the part of a batch, (N,), that this process works on in validation; may be empty."""
    return np.array_split(rows, size())[rank()]


def training_share(num: int) -> tuple[Rows, bool]:
    """Return which of the images of a batch this process trains on, and whether they count.

    Batch norm needs two images: a batch with fewer per process is that of process 0, with which
    the others keep step.
    """
    if num < 2 * size():
        return np.arange(num), rank() == 0
    return share_of(np.arange(num)), True


def in_order(parts: list[Tensor]) -> list[Tensor]:
    """Return the parts of all processes, batch by batch, given those of this one; on the CPU."""
    if size() == 1:
        return parts
    everyone: list[list[Tensor]] = [[] for _ in range(size())]
    dist.all_gather_object(everyone, [part.cpu() for part in parts])
    return [part for batch in zip(*everyone, strict=True) for part in batch]


def share_buffers(network: nn.Module) -> None:
    """Give all processes the batch statistics of process 0, which are those that are saved."""
    if size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def sharing_gradients(network: nn.Module, config: TrainingConfig) -> nn.Module:
    """Return the network so that its gradients are the mean over all processes.

    Raises:
        ConfigError: the batches are too small, or too many processes are on this machine.
    """
    if size() == 1:
        return network
    require(
        config.batch_size >= 2 * size(),
        "training.batch_size",
        f"at least {2 * size()} with {size()} processes, two images each",
        config.batch_size,
    )
    return DistributedDataParallel(
        network,
        forward_sync_buffers=False,  # see `share_buffers`
        find_unused_parameters=config.head_warmup_epochs > 0,
    )


@contextlib.contextmanager
def others_needed() -> Iterator[None]:
    """Say what to do where the block finds that another process is gone.

    Raises:
        TrainingError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        raise TrainingError(
            "another process of this training has ended or does not answer; look at its messages, "
            "then continue the run"
        ) from error


def local_device(kind: str) -> torch.device:
    """Return the device of this process, given the kind: each process has a GPU of its own.

    Raises:
        ConfigError: there are more processes on this machine than GPUs, or the kind is mps.
    """
    if size() == 1 or kind == "cpu":
        return torch.device(kind)
    require(kind != "mps", "training.device", "cpu or cuda with several processes", kind)
    number, available = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if number > available:
        raise ConfigError(
            f"{number} processes need as many GPUs, and this machine has {available}; start fewer "
            "processes per machine, or pass --device cpu"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device
