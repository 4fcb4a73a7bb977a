"""Matrices in memory, as the matrix products see them: a pointer and two strides.

An array type of Numba carries its layout, and each layout would be compiled anew. A `Matrix` is the same type for
all of them, and taking a part of one is a sum of two products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .ir import pointer, shift
from .jit import kernel

__all__ = ["Matrix", "at", "between_numbers", "count_batches", "matrix", "operands", "plan"]


class Matrix(NamedTuple):
    """Where a matrix begins, and how many numbers further the next row and the next column lie."""

    start: Any
    row: int
    column: int


@kernel
def matrix(array):
    """The array (2-D, strides whole numbers of elements) as a `Matrix`."""
    return Matrix(pointer(array), array.strides[0] // array.itemsize, array.strides[1] // array.itemsize)


@kernel
def at(matrix, i, j):
    """The part of the matrix from row i and column j on."""
    return Matrix(shift(matrix.start, i * matrix.row + j * matrix.column), matrix.row, matrix.column)


@kernel
def between_numbers(array):
    """Whether rows or columns begin inside a number, as fields of a packed structured array may."""
    return array.strides[0] % array.itemsize != 0 or array.strides[-1] % array.itemsize != 0


@kernel
def count_batches(batch_axes):
    """How many products a batch holds: the sizes of its axes (first column) multiplied."""
    count = 1
    for axis in range(len(batch_axes)):
        count *= batch_axes[axis, 0]
    return count


@kernel
def plan(M_panels, N_panels, batches, workers, tile, pack_a, pack_b):
    """Into how many parts to cut M and N, so that all workers finish early.

    A part of m × n panels costs m·n tiles and the packing of m panels of a and n of b. More tasks than workers even
    out what else the machine does: they get a bonus of a few percent.
    """
    best, best_cost = (1, 1), np.inf
    for tasks_per_worker in range(1, 5):
        tasks = -(-workers * tasks_per_worker // batches)
        for M_parts in range(1, min(tasks, M_panels) + 1):
            N_parts = min(-(-tasks // M_parts), N_panels)
            m, n = -(-M_panels // M_parts), -(-N_panels // N_parts)
            rounds = -(-batches * M_parts * N_parts // workers)
            cost = rounds * (tile * m * n + pack_a * m + pack_b * n) * (1 + 0.06 / tasks_per_worker)
            if cost < best_cost:
                best, best_cost = (M_parts, N_parts), cost
    return best


@kernel
def operands(a, b, out, bias, bias_step, zeros, zeros_step, accumulate, batch_axes, batch, i, j):
    """What the part of `out` from row i and column j on, in batch number `batch`, is made of: a, b, start, out.

    `start` is what the sums begin with: what `out` holds, or the bias in every row, or zeros.
    """
    a, b, out = at(a, i, 0), at(b, 0, j), at(out, i, j)
    for axis in range(len(batch_axes)):
        batch, index = divmod(batch, batch_axes[axis, 0])
        a = Matrix(shift(a.start, index * batch_axes[axis, 1]), a.row, a.column)
        b = Matrix(shift(b.start, index * batch_axes[axis, 2]), b.row, b.column)
        out = Matrix(shift(out.start, index * batch_axes[axis, 3]), out.row, out.column)
    start = Matrix(zeros, 0, zeros_step)
    if accumulate:
        start = out
    elif bias.size:
        start = Matrix(shift(pointer(bias), j * bias_step), 0, bias_step)
    return a, b, start, out
