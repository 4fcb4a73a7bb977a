"""Memory that comes back warm.

A training step asks for the same arrays again and again. The C library of Linux gives large ones back to the system
when they are freed and fetches new pages the next time, each of which must be zeroed at its first touch: for a 24 MB
array that costs up to eight times as much as writing to memory that is already there. A program that is about to train
can ask for freed memory to be kept.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

__all__ = ["empty", "keep_freed_memory"]

LINE = 64  # bytes of a line of the cache
SMALL = 1 << 15  # bytes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's <malloc.h>


def keep_freed_memory() -> bool:
    """Let freed arrays stay in this process for the next ones; True where the C library can (glibc).

    For programs that train or measure, at their start. The process keeps its peak size until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # Large arrays from the heap instead of mappings of their own, and a heap that does not shrink.
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


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
    return memory[first : first + size].view(dtype).reshape(shape)
