"""What this machine has: cores, and a C library that keeps freed memory or gives it back."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE = 4 * 2**20  # bytes; a photograph of 600 x 450 takes one
_MOST_MAPPED = 32 * 2**20  # bytes; the largest bound that glibc accepts
_KEPT = 32 * 2**20  # bytes that a thread may keep for its next image


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def return_large_blocks() -> bool:
    """Let blocks of large images go back to the system as soon as they are freed.

    glibc maps a large block by itself, but keeps later ones of that size once one was freed: after
    some photographs of 39 megapixels a service of 80 MB kept 450 MB for good.  Told of one bound,
    it gives back small blocks at once as well, unless it is told of the other.

    Returns:
        Whether this C library could be told.
    """
    return _set_bounds(mapped=_LARGE, kept=_KEPT)


def keep_freed_memory() -> bool:
    """Let the C library keep what a training step frees for the next one, from now on.

    By default glibc returns large blocks to the system, which hands them out again page by page,
    each zeroed: thousands of page faults in every step.

    Returns:
        Whether this C library could be told.
    """
    return _set_bounds(mapped=_MOST_MAPPED, kept=2**31 - 1)


def _set_bounds(*, mapped: int, kept: int) -> bool:
    """Tell glibc from how many bytes on a block is mapped by itself, and how many may be kept."""
    try:
        library = ctypes.CDLL(None)
        told = (
            library.mallopt(_M_MMAP_THRESHOLD, mapped),
            library.mallopt(_M_TRIM_THRESHOLD, kept),
        )
        return all(told)
    except (AttributeError, OSError, TypeError):  # another C library
        return False
