"""How arrays reach kernels: in one form, so that each kernel is compiled once per dtype.

Numba compiles anew for each layout, number of axes and even for read-only arrays. Wrappers therefore hand over
C-contiguous arrays of one or two axes that Numba takes for writable. Kernels never write into their operands, so an
alias of read-only memory that claims otherwise does no harm.

Kernels walk over *rows* (the last axis) or over a flat array, in chunks of about `GRAIN` elements. A chunk is what
one thread does at a time; its size depends on shapes only, and so does every rounding.
"""

from __future__ import annotations

import math
import threading

import numpy as np

__all__ = ["GRAIN", "flat", "operand", "rows", "rows_per_chunk", "span", "workspace"]

LINE = 64  # bytes that memory and the first-level cache exchange at a time
GRAIN = 8192  # elements: a few microseconds of work, against two for entering a parallel region


class _Alias:
    """An array's memory under NumPy's array interface, declared writable and C-contiguous, in another shape."""

    def __init__(self, array: np.ndarray, shape: tuple[int, ...]) -> None:
        self.array = array  # keeps the memory alive
        self.__array_interface__ = {"version": 3, "typestr": array.dtype.str, "shape": shape, "strides": None,
                                    "data": (array.ctypes.data, False)}


def operand(x: np.ndarray) -> np.ndarray:
    """`x` as a kernel may read it: C-contiguous, aligned, writable by type. Copies only what is not in order."""
    if x.flags.carray:  # all of that
        return x
    x = np.require(x, requirements=("C", "A"))
    return x if x.flags.writeable else np.asarray(_Alias(x, x.shape))


def flat(x: np.ndarray) -> np.ndarray:
    """`operand(x)` with one axis."""
    return operand(x).reshape(-1)


def rows(x: np.ndarray) -> np.ndarray:
    """`operand(x)` with two axes: everything × the last axis."""
    return operand(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def rows_per_chunk(width: int) -> int:
    """How many rows of that width make one chunk."""
    return max(1, GRAIN // max(1, width))


def span(x: np.ndarray) -> np.ndarray:
    """The memory from the first element of `x` to its last, with one axis, for kernels that go by strides.

    Raises ValueError where a stride is negative or no multiple of the element size.
    """
    if not x.size:
        return np.empty(0, x.dtype)
    if not x.flags.aligned or any(stride < 0 or stride % x.itemsize for stride in x.strides):
        raise ValueError(f"expected an aligned array with strides ≥ 0, got strides {x.strides} in bytes")
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.strides, strict=True))
    return np.asarray(_Alias(x, (last // x.itemsize + 1,)))


class _Held(threading.local):
    """The workspace of each thread: its calls follow each other."""

    memory = np.empty((0, 0), np.uint8)


_held = _Held()


def workspace(dtype: np.dtype, workers: int, elements: int) -> np.ndarray:
    """Memory (workers, at least `elements`) for a kernel's intermediate results: the same for the thread's next call.

    Fresh memory costs a page fault for every 4 KiB. Each worker's part begins with a cache line: a vector that lies
    across two of them takes twice as long to load.
    """
    held = _held.memory
    if held.dtype == dtype and held.shape[0] == workers and held.shape[1] >= elements:
        return held
    elements = -(-elements // 1024) * 1024
    needed, memory = workers * elements * dtype.itemsize, held.base
    if memory is None or memory.size < needed + LINE:
        memory = np.empty(needed + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    _held.memory = memory[start:start + needed].view(dtype).reshape(workers, elements)
    return _held.memory
