"""Matrix multiplication, float32 and float64.
"""

from __future__ import annotations

import functools
import mmap
from collections import deque
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic

from .ir import emitted, fetch_add, host, lanes, move, mover, pointer, shift, transpose
from .jit import kernel, num_threads, prange

__all__ = ["matmul"]

VECTORS = 2
ROWS = 14 if host().registers == 32 else 6
UNROLL = 4
DEPTH = 384                # the sum over K goes in blocks of at most this many terms
ROW_STRIDE = DEPTH + 16
WIDTH = 32  # vectors of columns of b that are packed at a time (512 floats)
GROUP = 8 * ROWS


# --- the microkernel ---

def _tile(rows: int, vectors: int, row_stride: int, k_stride: int):
    def body(e, a, b, steps, start, start_stride, out, out_stride):
        cell = lambda base, stride, i, v: e.at(base, e.builder.add(e.builder.mul(stride, stride.type(i)), stride.type(v * e.lanes)))
        for i in range(rows):
            for v in range(vectors):
                e.prefetch(cell(start, start_stride, i, v))
        cells = [(i, v) for i in range(rows) for v in range(vectors)]
        with e.loop(steps, [a, b] + [e.zero() for _ in cells]) as carried:
            a, b, *sums = carried
            for k in range(UNROLL):
                columns = [e.load(e.at(b, (k * vectors + v) * e.lanes)) for v in range(vectors)]
                for i in range(rows):
                    x = e.splat(e.at(a, i * row_stride + k * k_stride))
                    for v in range(vectors):
                        sums[i * vectors + v] = e.fma(x, columns[v], sums[i * vectors + v])
            carried[:] = [e.at(a, UNROLL * k_stride), e.at(b, UNROLL * vectors * e.lanes), *sums]
        for (i, v), total in zip(cells, carried[2:], strict=True):
            e.store(e.add(total, e.load(cell(start, start_stride, i, v))), cell(out, out_stride, i, v))

    @intrinsic
    def tile(typingctx, a, b, steps, start, start_stride, out, out_stride):
        i = types.intp
        return types.void(a, b, i, a, i, a, i), emitted(f"tile.{rows}.{vectors}.{k_stride}", body)

    return tile


tile_of_rows = _tile(ROWS, VECTORS, ROW_STRIDE, 1)
tile_of_columns = _tile(ROWS, VECTORS, 1, ROWS)
narrow_tile_of_rows = _tile(ROWS, 1, ROW_STRIDE, 1)
narrow_tile_of_columns = _tile(ROWS, 1, 1, ROWS)


class Matrix(NamedTuple):
    """Where a matrix begins, and how many numbers further its next row and its next column do."""

    start: Any
    row: int
    column: int


@kernel
def _from(matrix, i, j):
    return Matrix(shift(matrix.start, i * matrix.row + j * matrix.column), matrix.row, matrix.column)


@kernel
def _matrix(array):
    return Matrix(pointer(array), array.strides[0] // array.itemsize, array.strides[1] // array.itemsize)


@kernel
def _fill_zeros(target, count):
    for i in range(count):
        target[i] = 0


@kernel
def _pack_any(source, width_stride, k_stride, width, depth, target, panel):
    for k in range(depth):
        for i in range(width):
            target[k * panel + i] = source[i * width_stride + k * k_stride]
        for i in range(width, panel):
            target[k * panel + i] = 0


@kernel
def _pack_columns(b, depth, N, steps, packed):
    L = lanes(packed)
    for j in range(0, N, VECTORS * L):
        panel = L if N - j <= L else VECTORS * L
        whole = N - j >= panel
        source, target = shift(b.start, j * b.column), shift(packed, j * steps)
        if whole and b.column == 1:
            for k in range(depth):
                for v in range(0, panel, L):
                    move(shift(source, k * b.row + v), shift(target, k * panel + v))
        elif whole and b.row == 1 and depth % L == 0:
            for k in range(0, depth, L):
                for v in range(0, panel, L):
                    transpose(shift(source, v * b.column + k), b.column, shift(target, k * panel + v), panel)
        else:
            _pack_any(source, b.column, b.row, min(panel, N - j), depth, target, panel)
        _fill_zeros(shift(target, depth * panel), (steps - depth) * panel)


move_rows = mover(ROWS)


@kernel
def _pack_rows(a, M, depth, steps, packed):
    if a.column == 1:
        for i in range(-(-M // ROWS) * ROWS):
            target = shift(packed, i * ROW_STRIDE)
            if i < M:
                source = shift(a.start, i * a.row)
                for k in range(depth):
                    target[k] = source[k]
                _fill_zeros(shift(target, depth), steps - depth)
            else:
                _fill_zeros(target, steps)
        return
    whole = M // ROWS * ROWS if a.row == 1 else 0
    for k in range(depth):
        for i in range(0, whole, ROWS):
            move_rows(shift(a.start, k * a.column + i), shift(packed, i * ROW_STRIDE + k * ROWS))
    for i in range(whole, M, ROWS):
        _pack_any(shift(a.start, i * a.row), a.row, a.column, min(ROWS, M - i), depth, shift(packed, i * ROW_STRIDE), ROWS)
    for i in range(0, M, ROWS):
        _fill_zeros(shift(packed, i * ROW_STRIDE + depth * ROWS), (steps - depth) * ROWS)


@kernel
def _multiply_panels(rows_packed_in_rows, packed_a, panel, steps, start, out, rows, columns, zeros, scratch):
    L = lanes(panel)
    whole = rows == ROWS and columns == VECTORS * L and out.column == 1 and start.column == 1
    first, last = (start, out) if whole else (Matrix(zeros, 0, 1), Matrix(scratch, VECTORS * L, 1))
    if rows_packed_in_rows:
        if columns <= L:
            narrow_tile_of_rows(packed_a, panel, steps // UNROLL, first.start, first.row, last.start, last.row)
        else:
            tile_of_rows(packed_a, panel, steps // UNROLL, first.start, first.row, last.start, last.row)
    else:
        if columns <= L:
            narrow_tile_of_columns(packed_a, panel, steps // UNROLL, first.start, first.row, last.start, last.row)
        else:
            tile_of_columns(packed_a, panel, steps // UNROLL, first.start, first.row, last.start, last.row)
    if not whole:
        for i in range(rows):
            for j in range(columns):
                out.start[i * out.row + j * out.column] = scratch[i * VECTORS * L + j] + start.start[i * start.row + j * start.column]


@kernel
def _block(a, b, start, out, M, N, K, packed):
    L = lanes(packed)
    zeros = packed
    scratch = shift(zeros, WIDTH * L)
    packed_a = shift(scratch, ROWS * VECTORS * L)
    packed_b = shift(packed_a, GROUP * ROW_STRIDE)
    block = -(-K // (-(-K // DEPTH) * UNROLL)) * UNROLL
    for k in range(0, K, block):
        depth = min(block, K - k)
        steps = -(-depth // UNROLL) * UNROLL
        _pack_columns(_from(b, k, 0), depth, N, steps, packed_b)
        for i0 in range(0, M, GROUP):
            group = min(GROUP, M - i0)
            _pack_rows(_from(a, i0, k), group, depth, steps, packed_a)
            for i in range(0, group, ROWS):
                for j in range(0, N, VECTORS * L):
                    _multiply_panels(a.column == 1, shift(packed_a, i * ROW_STRIDE), shift(packed_b, j * steps), steps,
                        _from(start, i0 + i, j), _from(out, i0 + i, j), min(ROWS, group - i), min(VECTORS * L, N - j), zeros, scratch)
        start = out


@kernel
def _work(a, b, bias, out, offsets, accumulate, counter, packed, down, across):
    M, K = a.shape
    N = b.shape[1]
    L = lanes(pointer(packed))
    A, B, C = _matrix(a), _matrix(b), _matrix(out)
    while True:
        task = fetch_add(pointer(counter))
        if task >= len(offsets) * down * across:
            break
        batch, task = divmod(task, down * across)
        i, rows = _share(M, ROWS, task % down, down)
        j, columns = _share(N, VECTORS * L, task // down, across)
        to_a, to_b, to_out = offsets[batch]
        block_a = Matrix(shift(A.start, to_a + i * A.row), A.row, A.column)
        block_out = _from(Matrix(shift(C.start, to_out), C.row, C.column), i, j)
        for j0 in range(0, columns, WIDTH * L):
            block_b = Matrix(shift(B.start, to_b + (j + j0) * B.column), B.row, B.column)
            o = _from(block_out, 0, j0)
            start = Matrix(pointer(packed), 0, 1)
            if accumulate:
                start = o
            elif bias.size:
                start = Matrix(shift(pointer(bias), j + j0), 0, 1)
            _block(block_a, block_b, start, o, rows, min(WIDTH * L, columns - j0), K, pointer(packed))


@kernel
def _share(size, unit, part, parts):
    units = -(-size // unit)
    begin, end = units * part // parts * unit, units * (part + 1) // parts * unit
    return begin, min(end, size) - begin


@kernel
def _plan(rows, columns, batches, workers):
    """How many parts to cut (down, across)."""
    best, best_cost = (1, 1), np.inf
    for per_worker in range(1, 5):
        tasks = -(-workers * per_worker // batches)
        for down in range(1, min(tasks, rows) + 1):
            across = min(-(-tasks // down), columns)
            tall, wide = -(-rows // down), -(-columns // across)
            rounds = -(-batches * down * across // workers)
            cost = rounds * (tall * wide * 14.0 + tall * 3.0 + wide * 6.0) * (1 + 0.06 / per_worker)
            if cost < best_cost:
                best, best_cost = (down, across), cost
    return best


def multiply(a, b, bias, out, offsets, accumulate, counter, workspace, workers):
    M, K = a.shape
    N = b.shape[1]
    L = lanes(pointer(a))
    counter[0] = 0
    if workers == 1 or len(offsets) * M * N * K < 2**18:
        _work(a, b, bias, out, offsets, accumulate, counter, workspace[0], 1, 1)
    else:
        down, across = _plan(-(-M // ROWS), -(-N // (VECTORS * L)), len(offsets), workers)
        for worker in prange(workers):
            _work(a, b, bias, out, offsets, accumulate, counter, workspace[worker], down, across)


@functools.cache
def _multiply(dtype: np.dtype) -> Any:
    number = numba.from_dtype(dtype)
    read = lambda ndim: types.Array(number, ndim, "A", readonly=True)
    write = types.Array(number, 2, "A")
    integers = lambda ndim: types.Array(types.int64, ndim, "C")
    signature = types.void(read(2), read(2), read(1), write, integers(2), types.boolean, integers(1), types.Array(number, 2, "C"), types.intp)
    return kernel(signature=signature, parallel=True)(multiply)


_workspaces: dict[np.dtype, deque] = {np.dtype(t): deque() for t in ("f", "d")}
ONE = np.zeros((1, 3), np.int64)

def _workspace(dtype):
    try:
        return _workspaces[dtype].pop()
    except IndexError:
        L = host().vector_bytes // dtype.itemsize
        elements = WIDTH * L + VECTORS * L * ROWS + GROUP * ROW_STRIDE + WIDTH * L * (DEPTH + UNROLL)
        elements = -(-elements // 1024) * 1024
        memory = mmap.mmap(-1, numba.config.NUMBA_NUM_THREADS * elements * dtype.itemsize)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(memory, dtype).reshape(-1, elements), np.zeros(1, np.int64)


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
    ws = _workspace(dtype)
    for index in np.ndindex(batch):
        _multiply(dtype)(a[index], b[index], bias, out[index], ONE, accumulate, ws[1], ws[0], num_threads())
    _workspaces[dtype].append(ws)
    return out
