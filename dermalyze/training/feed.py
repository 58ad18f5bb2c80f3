"""How stored pixels get to the device that trains, so that it never waits for them.

On a GPU the whole store is copied once where it is small against the memory: HAM10000 at 224 px is
1.5 GB.  Otherwise batches are gathered, pinned and copied two ahead, beside the network's work.
n images per batch, H x W pixels.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from dermalyze.data.pixel_store.store import PixelStore
from dermalyze.data.sampling import Rows

Batch = tuple[Tensor, Tensor]  # pixels uint8 (n, H, W, 3), row numbers int64 (n,); on the device

_MAX_SHARE = 0.25  # of a GPU's free memory that stored pixels may take
_CHUNK = 256  # images of one copy
_AHEAD = 2  # batches under way while one is worked on


class Feed(Protocol):
    """A way from the store to the device."""

    def batches(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield the batch of each (n,) row numbers, in their order."""


def open_feed(store: PixelStore, device: torch.device, *, passes: int) -> Feed:
    """Choose the way that is fastest for going over the stored images `passes` times."""
    if device.type != "cuda":
        return DirectFeed(store, device)
    free, _ = torch.cuda.mem_get_info(device)
    if passes > 1 and store.pixels.nbytes <= _MAX_SHARE * free:
        return ResidentFeed.of(store, device)
    return StreamingFeed(store, device)


@dataclass(frozen=True)
class DirectFeed:
    """Each batch when it is asked for: on a CPU there is nobody else to do it meanwhile."""

    store: PixelStore
    device: torch.device

    def batches(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield the batch of each (n,) row numbers, in their order."""
        for rows in batches:
            pixels = torch.from_numpy(self.store.batch(rows))
            yield pixels.to(self.device), torch.from_numpy(rows).to(self.device)


@dataclass(frozen=True)
class ResidentFeed:
    """The whole store in the device's memory; a batch is a selection there."""

    pixels: Tensor  # uint8 (num_images, H, W, 3)

    @classmethod
    def of(cls, store: PixelStore, device: torch.device) -> "ResidentFeed":
        """Copy a store to the device, a few images at a time."""
        pixels = torch.empty(store.pixels.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(pixels), _CHUNK):
            part = torch.from_numpy(store.pixels[start : start + _CHUNK].copy())
            pixels[start : start + _CHUNK].copy_(part)
        return cls(pixels)

    def batches(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield the batch of each (n,) row numbers, in their order."""
        for rows in batches:
            index = torch.from_numpy(rows)
            if self.pixels.is_cuda:
                index = index.pin_memory()  # or the copy would wait for the network
            index = index.to(self.pixels.device, non_blocking=True)
            yield self.pixels.index_select(0, index), index


@dataclass(frozen=True)
class StreamingFeed:
    """Batches on their way through pinned memory while a CUDA device works on the one before."""

    store: PixelStore
    device: torch.device

    def batches(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield the batch of each (n,) row numbers, in their order."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

        def load(rows: Rows) -> tuple[Batch, torch.cuda.Event]:
            # The allocator of pinned memory does not reuse a block before its copy is done.
            pinned = torch.from_numpy(self.store.batch(rows)).pin_memory()
            index = torch.from_numpy(rows).pin_memory()
            with torch.cuda.stream(stream):
                batch = (
                    pinned.to(self.device, non_blocking=True),
                    index.to(self.device, non_blocking=True),
                )
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                arrived.record(stream)
            return batch, arrived

        waiting: deque[Future[tuple[Batch, torch.cuda.Event]]] = deque()
        rest = iter(batches)
        pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        try:
            for rows in islice(rest, _AHEAD):
                waiting.append(pool.submit(load, rows))
            while waiting:
                batch, arrived = waiting.popleft().result()
                for rows in islice(rest, 1):
                    waiting.append(pool.submit(load, rows))
                current = torch.cuda.current_stream(self.device)
                current.wait_event(arrived)
                for tensor in batch:
                    tensor.record_stream(current)
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
