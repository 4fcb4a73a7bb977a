"""Memory that comes back warm, in large pages.

A training step asks for the same arrays again and again. The C library of Linux gives large ones back to the system
when they are freed and fetches new pages the next time, each of which must be zeroed at its first touch: for a 24 MB
array that costs up to eight times as much as writing to memory that is already there. And the processor remembers
where some 2000 pages lie: at 4 KiB each, a step touches more, and looks them up again and again. A program that is
about to train can ask for freed memory to be kept, and for pages of 2 MiB.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import Any

import numpy as np

__all__ = ["empty", "keep_freed_memory"]

LINE = 64  # bytes of a line of the cache
SMALL = 1 << 15  # bytes

RESERVED = 4 << 30  # bytes

M_TRIM_THRESHOLD, M_MMAP_MAX, NEVER = -1, -4, -1  # glibc's <malloc.h>


def keep_freed_memory() -> bool:
    """Let freed arrays stay in this process for the next ones; True where the C library can (glibc).

    For programs that train or measure, at their start. The process keeps its peak size until it ends.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # Large arrays from the heap instead of mappings of their own, and a heap that does not shrink.
    if not (mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER)):
        return False
    _ask_for_large_pages(library)
    return True


def _ask_for_large_pages(library: ctypes.CDLL) -> None:
    """Let the heap grow by RESERVED addresses at once, and be of large pages there as soon as it is written to.

    NumPy asks for large pages for each array of 4 MiB or more. Those of a small model are smaller.
    """
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = library.malloc(RESERVED)
    if start is None:  # this process may not have so many
        return
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    library.madvise(first, RESERVED - mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
    library.free(start)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`np.empty`, beginning at a line of the cache unless it is small.

    NumPy aligns to 16 bytes. So every vector of 64 that a kernel stores touches two lines.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    memory = np.empty(size + LINE, np.uint8)
    first = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % LINE
    return np.ndarray(shape, dtype, memory, first)
