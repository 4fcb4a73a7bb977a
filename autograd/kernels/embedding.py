"""Embedding: rows of a table, and the sum of gradients back into the table.

    out[n]      = weight[idx[n]]
    dweight[v]  = Σ_{n: idx[n] = v} dout[n]

The backward pass sorts the positions by row (a counting sort, which keeps their order), then each row of the table
adds up its own list: rows can go to any thread, no two threads write one row, and each sum has one order. N·C
additions; N·C reads and V·C writes, since the gradient is dense.

Left out: sparse gradients, renormalisation, padding rows.
"""

from __future__ import annotations

import numpy as np

from .arrays import flat, operand, rows, rows_per_chunk
from .jit import kernel, prange

__all__ = ["embedding", "embedding_backward"]


@kernel
def _gather_rows(weight, idx, out, first, last):
    for i in range(first, last):
        source, target = weight[idx[i]], out[i]
        for j in range(source.size):
            target[j] = source[j]


@kernel
def _sort_positions(idx, starts, order):
    """`order[starts[v]:starts[v + 1]]` become the positions n with idx[n] = v, rising. `starts` (V + 2,) is zeroed."""
    for v in idx:
        starts[v + 2] += 1
    for v in range(2, starts.size):
        starts[v] += starts[v - 1]
    for n in range(idx.size):  # starts[v + 1] is where the next position of v goes, and in the end where v + 1 starts
        order[starts[idx[n] + 1]] = n
        starts[idx[n] + 1] += 1


@kernel(fastmath={"contract"})  # in order: where arrays lie apart, LLVM may add up several positions side by side
def _sum_rows(dout, starts, order, dweight, first, last):
    for v in range(first, last):
        target = dweight[v]
        for j in range(target.size):
            target[j] = 0
        for n in range(starts[v], starts[v + 1]):
            source = dout[order[n]]
            for j in range(target.size):
                target[j] += source[j]


@kernel(parallel=True)
def _gather(weight, idx, out, step):
    for chunk in prange((len(out) + step - 1) // step):
        _gather_rows(weight, idx, out, chunk * step, min(len(out), (chunk + 1) * step))


@kernel(parallel=True)
def _scatter(dout, starts, order, dweight, step):
    for chunk in prange((len(dweight) + step - 1) // step):
        _sum_rows(dout, starts, order, dweight, chunk * step, min(len(dweight), (chunk + 1) * step))


def _checked(idx: np.ndarray, num_rows: int) -> np.ndarray:
    idx = flat(np.asarray(idx, np.int64))
    if idx.size and not (idx.min() >= 0 and idx.max() < num_rows):
        wrong = idx[(idx < 0) | (idx >= num_rows)][0]
        raise IndexError(f"index {wrong} is out of range for a table of {num_rows} rows: "
                         f"expected 0 ≤ index < {num_rows}")
    return idx


def embedding(weight: np.ndarray, idx: np.ndarray) -> np.ndarray:
    """weight (V, C), idx (...) integers → weight[idx] (..., C). Raises IndexError for idx < 0 or ≥ V."""
    num_rows, width = weight.shape
    out = np.empty((*idx.shape, width), weight.dtype)
    _gather(operand(weight), _checked(idx, num_rows), rows(out), rows_per_chunk(width))
    return out


def embedding_backward(dout: np.ndarray, idx: np.ndarray, num_rows: int) -> np.ndarray:
    """dweight (num_rows, C) from dout (..., C) and idx (...)."""
    width = dout.shape[-1]
    idx = _checked(idx, num_rows)
    starts, order = np.zeros(num_rows + 2, np.int64), np.empty(idx.size, np.int64)
    _sort_positions(idx, starts, order)
    dweight = np.empty((num_rows, width), dout.dtype)
    _scatter(rows(dout), starts, order, dweight, rows_per_chunk(width))
    return dweight
