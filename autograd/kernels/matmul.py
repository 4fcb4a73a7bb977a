"""Matrix multiplication. (First, plain version: the packed kernel is being built.)"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from .jit import kernel, prange

__all__ = ["matmul"]


@functools.cache
def _multiply(dtype: np.dtype) -> Any:
    number = numba.from_dtype(dtype)
    read = lambda ndim: types.Array(number, ndim, "A", readonly=True)
    write = types.Array(number, 2, "A")

    @kernel(signature=types.void(read(2), read(2), read(1), write, types.boolean), parallel=True)
    def multiply(a, b, bias, out, accumulate):
        M, K = a.shape
        N = b.shape[1]
        for i in prange(M):
            if not accumulate:
                for j in range(N):
                    out[i, j] = bias[j] if bias.size else 0
            for k in range(K):
                for j in range(N):
                    out[i, j] += a[i, k] * b[k, j]

    return multiply


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    out: np.ndarray | None = None,
    accumulate: bool = False,
) -> np.ndarray:
    """The matrix product a (..., M, K) @ b (..., K, N) → (..., M, N), float32 or float64.

    Leading (batch) axes broadcast. `bias` (N,) is added to every row. The product goes to `out` (which must
    not overlap the operands), or is added to what is there with `accumulate`. Operands may have any strides;
    a transposed view costs nothing.

    Returns `out`, or a new C-contiguous array. Raises TypeError for other or differing dtypes, ValueError for
    shapes that do not fit.
    """
    dtype = a.dtype
    if dtype.char not in "fd" or b.dtype != dtype:
        raise TypeError(f"matmul takes two float32 or two float64 arrays, got {dtype} and {b.dtype}")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul takes (..., M, K) and (..., K, N), got {a.shape} and {b.shape}")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) if a.ndim > 2 or b.ndim > 2 else ()
    shape = (*batch, a.shape[-2], b.shape[-1])
    if out is None:
        if accumulate:
            raise ValueError("accumulate adds to what `out` holds: pass `out`")
        out = np.empty(shape, dtype)
    elif out.shape != shape or out.dtype != dtype:
        raise ValueError(f"the product is {dtype} {shape}, `out` is {out.dtype} {out.shape}")
    if bias is None:
        bias = np.empty(0, dtype)
    elif bias.shape != shape[-1:] or bias.dtype != dtype:
        raise ValueError(f"the bias of a product {dtype} {shape} is {dtype} {shape[-1:]}, got {bias.dtype} {bias.shape}")
    elif accumulate:
        out += bias
    a = np.broadcast_to(a, batch + a.shape[-2:])
    b = np.broadcast_to(b, batch + b.shape[-2:])
    for index in np.ndindex(batch):
        _multiply(dtype)(a[index], b[index], bias, out[index], accumulate)
    return out
