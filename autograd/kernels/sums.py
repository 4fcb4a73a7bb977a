"""Sums of arrays: element by element, and over rows.

    add          out = a + b                 three memory accesses an element
    column_sums  out[j] = Σ_i x[i, j]        one

NumPy does both on one thread. In a training step they are the residual connections, the gradients that meet there, and
the gradients of biases; while one thread adds, the others wait. `column_sums` makes a partial sum per chunk of rows,
at most `PARTIALS` of them, and adds these in order.

Left out: other axes and broadcasting (NumPy does them), and small arrays, where NumPy's call is the cheaper one.
"""

from __future__ import annotations

import numpy as np

from .arrays import GRAIN, rows, rows_per_chunk
from .elementary import as_number
from .jit import kernel, prange
from .together import settle

__all__ = ["add", "column_sums"]

PARTIALS = 32
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@kernel
def _add_span(a, b, out):
    for i in range(out.size):
        out[i] = a[i] + b[i]


@kernel
def _increase_span(b, out):
    for i in range(out.size):
        out[i] += b[i]


@kernel(parallel=True)
def _add(a, b, out):
    for chunk in prange((out.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(out.size, (chunk + 1) * GRAIN))
        _add_span(a[span], b[span], out[span])


@kernel(parallel=True)
def _increase(b, out):
    for chunk in prange((out.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(out.size, (chunk + 1) * GRAIN))
        _increase_span(b[span], out[span])


@kernel
def _sum_rows(x, out, first, last):
    out[:] = out.dtype.type(0)
    for i in range(first, last):
        xi = x[i]
        for j in range(out.size):
            out[j] += as_number(xi[j])


@kernel(parallel=True)
def _column_sums(x, partial, step):
    for chunk in prange(len(partial)):
        _sum_rows(x, partial[chunk], chunk * step, min(len(x), (chunk + 1) * step))


def _suits(*arrays: np.ndarray) -> bool:
    """Whether the arrays, of one shape, are large, alike, and in C order."""
    first = arrays[0]
    return (
        first.size >= 2 * GRAIN
        and first.dtype in FLOATS
        and all(x.shape == first.shape and x.dtype == first.dtype and x.flags.carray for x in arrays)
    )


def add(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a + b as NumPy's `add`, broadcasting included; `out` may be `a` itself, and must not overlap them otherwise."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and _suits(a, b, *(() if out is None else (out,)))):
        return np.add(a, b, out=out)
    if out is a and a is not b:
        _increase(b.reshape(-1), out.reshape(-1))
        return out
    if out is not None:
        return np.add(a, b, out=out)
    out = np.empty(a.shape, a.dtype)
    _add(a.reshape(-1), b.reshape(-1), out.reshape(-1))
    return out


def column_sums(x: np.ndarray) -> np.ndarray:
    """x (N, C), float32, float64 or bfloat16 (as uint16) → Σ over rows (C,), a new array; float32 for bfloat16."""
    settle()
    count, width = x.shape
    dtype = np.dtype(np.float32) if x.dtype == np.uint16 else x.dtype
    step = max(rows_per_chunk(width), -(-count // PARTIALS))
    if count <= step and x.dtype == dtype:
        return x.sum(axis=0)
    partial = np.empty((-(-count // step), width), dtype)
    _column_sums(rows(x), partial, step)
    return partial.sum(axis=0)
