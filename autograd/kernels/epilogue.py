"""What is done to a part of a matrix product while it is still in cache: GELU, or its derivative.

An activation costs little to compute, and much to fetch: its operand has just been written by one product and its
result is about to be read by the next, both too large for the caches. So the product itself applies it, to each group
of rows as soon as their sums are complete. The product is told the address of a function:

    gelu              u = sums,  h = gelu(u)                      the forward pass keeps both
    gelu_backward     du = sums · gelu′(u)                        sums are dh = dout @ W

each in both forms of GELU. In float32 and float64 `sums` is part of the product, and is u already, or becomes
du. Where products are rounded to bfloat16, `sums` is a scratch in cache, and u, h and du are arrays of bfloat16 (their
bits, as uint16): what is rounded anyway, when the next product packs it, takes half the memory on its way.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from .activation import gelu_at, gelu_slope_at
from .elementary import narrow, use_widest_vectors, widen
from .ir import call, fetch_soon, shift
from .jit import callback, kernel

__all__ = ["NOTHING", "finish", "gelu", "gelu_backward"]

NOTHING = 0  # the address of no epilogue


@kernel
def finish(epilogue, sums, u, side, M, N):
    """Let the epilogue at that address do its work on `sums` (M, N). The rows of all three matrices are contiguous."""
    call(epilogue, (sums.start, sums.row, u.start, u.row, side.start, side.row, M, N))


def _signature(dtype: np.dtype) -> Any:
    side = types.CPointer(numba.from_dtype(dtype))
    sums = types.CPointer(types.float32) if dtype == np.uint16 else side
    size = types.intp
    return types.void(sums, size, side, size, side, size, size, size)


@kernel
def _gelu_row(u, h, size, tanh):
    use_widest_vectors()
    for j in range(size):
        h[j] = gelu_at(u[j], tanh)


@kernel
def _gelu_backward_row(sums, u, size, tanh):
    use_widest_vectors()
    for j in range(size):
        sums[j] *= gelu_slope_at(u[j], tanh)


@kernel
def _gelu_row_narrow(sums, u, h, size, tanh):
    use_widest_vectors()
    for j in range(size):
        u[j] = narrow(sums[j])
        h[j] = narrow(gelu_at(sums[j], tanh))


@kernel
def _gelu_backward_row_narrow(sums, u, du, size, tanh):
    use_widest_vectors()
    for j in range(size):
        du[j] = narrow(sums[j] * gelu_slope_at(widen(u[j]), tanh))


@functools.cache
def gelu(dtype: np.dtype, tanh: bool) -> Any:
    """The epilogue (its `address` is what products take) for arrays of this dtype; uint16 stands for bfloat16."""
    if dtype == np.uint16:

        @callback(_signature(dtype))
        def gelu_narrow(sums, sums_row, u, u_row, h, h_row, M, N):
            for i in range(M):
                _gelu_row_narrow(shift(sums, i * sums_row), shift(u, i * u_row), shift(h, i * h_row), N, tanh)

        return gelu_narrow

    @callback(_signature(dtype))
    def gelu(sums, sums_row, u, u_row, h, h_row, M, N):
        for i in range(M):
            _gelu_row(shift(u, i * u_row), shift(h, i * h_row), N, tanh)

    return gelu


@functools.cache
def gelu_backward(dtype: np.dtype, tanh: bool) -> Any:
    """The epilogue that turns dh into du; dtypes as in `gelu`."""
    if dtype == np.uint16:

        @callback(_signature(dtype))
        def gelu_backward_narrow(sums, sums_row, u, u_row, du, du_row, M, N):
            for i in range(M):
                fetch_soon(shift(u, (i + 1) * u_row), N)
                row, target = shift(sums, i * sums_row), shift(du, i * du_row)
                _gelu_backward_row_narrow(row, shift(u, i * u_row), target, N, tanh)

        return gelu_backward_narrow

    @callback(_signature(dtype))
    def gelu_backward(sums, sums_row, u, u_row, du, du_row, M, N):
        for i in range(M):
            fetch_soon(shift(u, (i + 1) * u_row), N)
            _gelu_backward_row(shift(sums, i * sums_row), shift(u, i * u_row), N, tanh)

    return gelu_backward
