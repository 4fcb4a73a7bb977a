"""What is done to a part of a matrix product while it is still in cache: GELU, or its derivative.

An activation costs little to compute, and much to fetch: its operand has just been written by one product and its
result is about to be read by the next, both too large for the caches. So the product itself applies it, to each group
of rows as soon as their sums are complete. The product is told the address of a function:

    gelu       h = gelu(u),  slope = gelu′(u)       sums are u; they share the exponential, so slope is kept, not u
    times      du = sums · slope                    sums are dh = dout @ W

In float32 and float64 `sums` is part of the product, and becomes slope, or du. Where products are rounded to bfloat16,
`sums` is a scratch in cache, and slope, h and du are arrays of bfloat16 (their bits, as uint16): what is rounded
anyway, when the next product packs it, takes half the memory on its way.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from .activation import gelu_and_slope
from .elementary import as_number, as_stored, use_widest_vectors
from .ir import call, fetch_soon, shift
from .jit import callback, kernel

__all__ = ["NOTHING", "finish", "gelu", "times"]

NOTHING = 0  # the address of no epilogue


@kernel
def finish(epilogue, sums, first, second, M, N):
    """Let the epilogue at that address do its work on `sums` (M, N). The rows of all three matrices are contiguous."""
    call(epilogue, (sums.start, sums.row, first.start, first.row, second.start, second.row, M, N))


def _signature(dtype: np.dtype) -> Any:
    side = types.CPointer(numba.from_dtype(dtype))
    sums = types.CPointer(types.float32) if dtype == np.uint16 else side
    size = types.intp
    return types.void(sums, size, side, size, side, size, size, size)


@kernel
def _gelu_row(u, slope, h, size, tanh):
    use_widest_vectors()
    for j in range(size):
        result = gelu_and_slope(u[j], tanh)
        h[j], slope[j] = as_stored(result[0], h), as_stored(result[1], slope)


@kernel
def _times_row(sums, slope, du, size):
    use_widest_vectors()
    for j in range(size):
        du[j] = as_stored(sums[j] * as_number(slope[j]), du)


@functools.cache
def gelu(dtype: np.dtype, tanh: bool) -> Any:
    """The epilogue with sides slope and h of this dtype (its `address` is what products take).

    uint16 stands for bfloat16. Otherwise `slope` may be `sums`.
    """

    @callback(_signature(dtype))
    def gelu(sums, sums_row, slope, slope_row, h, h_row, M, N):
        for i in range(M):
            _gelu_row(shift(sums, i * sums_row), shift(slope, i * slope_row), shift(h, i * h_row), N, tanh)

    return gelu


@functools.cache
def times(dtype: np.dtype) -> Any:
    """The epilogue with sides slope and du; dtypes as in `gelu`, and du may be `sums`."""

    @callback(_signature(dtype))
    def times(sums, sums_row, slope, slope_row, du, du_row, M, N):
        for i in range(M):
            fetch_soon(shift(slope, (i + 1) * slope_row), N)
            _times_row(shift(sums, i * sums_row), shift(slope, i * slope_row), shift(du, i * du_row), N)

    return times
