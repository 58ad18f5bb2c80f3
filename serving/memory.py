"""What the C library does with memory that is no longer needed."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE = 4 * 2**20  # bytes; a photograph of 600 x 450 takes one
_KEPT = 32 * 2**20  # bytes that a thread may keep for its next image


def return_large_blocks() -> bool:
    """Let blocks of large images go back to the system as soon as they are freed.

    glibc maps a large block by itself, but keeps later ones of that size once one was freed: after
    some photographs of 39 megapixels a service of 80 MB kept 450 MB for good.  Told of one bound,
    it gives back small blocks at once as well, unless it is told of the other.

    Returns:
        Whether this C library could be told.
    """
    try:
        library = ctypes.CDLL(None)
        told = (
            library.mallopt(_M_MMAP_THRESHOLD, _LARGE),
            library.mallopt(_M_TRIM_THRESHOLD, _KEPT),
        )
        return all(told)
    except (AttributeError, OSError, TypeError):  # another C library
        return False
