"""Matrices in memory, as the matrix products see them: a pointer and two strides; and what one product is about.

An array type of Numba carries its layout, and each layout would be compiled anew. A `Matrix` is the same type for
all of them, and taking a part of one is a sum of two products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from .ir import pointer, shift
from .jit import kernel

__all__ = [
    "Matrix", "Work", "at", "between_numbers", "count_batches", "matrix", "operands", "plan", "repeated", "work_type",
]  # fmt: skip


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
def repeated(array):
    """The same, where one row stands for as many as are asked for."""
    first = matrix(array)
    return Matrix(first.start, first.row if len(array) > 1 else 0, first.column)


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


class Work(NamedTuple):
    """A product (or a batch of them) and how it is cut into tasks: what its threads share."""

    a: Matrix  # (M, K), the first of the batch, as are the following
    b: Matrix  # (K, N)
    start: Matrix  # (M, N), what is added; none where `has_start` is false
    out: Matrix  # (M, N)
    u: Matrix  # two arrays for an epilogue, (M, N)
    side: Matrix
    M: int
    K: int
    N: int
    batch_axes: Any  # (axes, 5), last axis first: its size, and how much further the next a, b, out and start lie
    batches: int
    has_start: bool
    epilogue: int  # the address of a function, or NOTHING
    vector: bool  # M or N is 1, and strides are such that `_vector_block` can do it
    counters: Any  # see tasks.py
    workspace: Any  # (workers, numbers)
    M_parts: int
    N_parts: int


def work_type(a: types.Type, b: types.Type, out: types.Type, side: types.Type) -> types.NamedTuple:
    """Numba's type of a `Work` on matrices of these numbers."""
    numbers = (a, b, out, out, side, side)
    matrices = [types.NamedTuple([types.CPointer(n), types.int64, types.int64], Matrix) for n in numbers]
    sizes = [types.int64] * 3
    axes, counters, workspace = (types.Array(k, n, "C") for k, n in ((types.int64, 2), (types.int64, 1), (out, 2)))
    flags = [types.int64, types.boolean, types.int64, types.boolean]
    return types.NamedTuple([*matrices, *sizes, axes, *flags, counters, workspace, types.int64, types.int64], Work)


@kernel
def operands(work, zeros, zeros_step, batch, i, j):
    """What the part of `out` from row i and column j on, in batch number `batch`, is made of: a, b, start, out.

    `start` is what the product is added to, or zeros.
    """
    a, b, out, start = at(work.a, i, 0), at(work.b, 0, j), at(work.out, i, j), at(work.start, i, j)
    axes = work.batch_axes
    for axis in range(len(axes)):
        batch, index = divmod(batch, axes[axis, 0])
        a = Matrix(shift(a.start, index * axes[axis, 1]), a.row, a.column)
        b = Matrix(shift(b.start, index * axes[axis, 2]), b.row, b.column)
        out = Matrix(shift(out.start, index * axes[axis, 3]), out.row, out.column)
        start = Matrix(shift(start.start, index * axes[axis, 4]), start.row, start.column)
    return a, b, start if work.has_start else Matrix(zeros, 0, zeros_step), out
