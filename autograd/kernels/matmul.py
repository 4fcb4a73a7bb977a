"""Matrix multiplication, float32 and float64.
"""

from __future__ import annotations

import functools
import mmap
from collections import deque
from typing import Any

import numba
import numpy as np
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic

from .ir import emitted, fetch_add, host, lanes, move, pointer, shift, transpose
from .jit import kernel, prange

__all__ = ["matmul"]

VECTORS = 2
ROWS = 14 if host().registers == 32 else 6
UNROLL = 4
DEPTH = 384                # the sum over K goes in blocks of at most this many terms
ROW_STRIDE = DEPTH + 16
WIDTH = 32  # vectors of columns of b that are packed at a time (512 floats)
HEIGHT = 1024


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


@kernel
def _pack_panel(source, width_stride, k_stride, width, depth, steps, target, panel):
    for k in range(depth):
        for j in range(width):
            target[k * panel + j] = source[j * width_stride + k * k_stride]
        for j in range(width, panel):
            target[k * panel + j] = 0
    for k in range(depth * panel, steps * panel):
        target[k] = 0


@kernel
def _pack_columns(b, k_stride, j_stride, N, depth, steps, packed):
    L = lanes(packed)
    for j in range(0, N, VECTORS * L):
        panel = L if N - j <= L else VECTORS * L
        source, target = shift(b, j * j_stride), shift(packed, j * steps)
        whole = min(panel, N - j) // L * L
        if whole == panel and j_stride == 1:
            for k in range(depth):
                for v in range(0, panel, L):
                    move(shift(source, k * k_stride + v), shift(target, k * panel + v))
            for k in range(depth * panel, steps * panel):
                target[k] = 0
        elif whole == panel and k_stride == 1 and depth % L == 0:
            for k in range(0, depth, L):
                for v in range(0, panel, L):
                    transpose(shift(source, v * j_stride + k), j_stride, shift(target, k * panel + v), panel)
            for k in range(depth * panel, steps * panel):
                target[k] = 0
        else:
            _pack_panel(source, j_stride, k_stride, min(panel, N - j), depth, steps, target, panel)


@kernel
def _pack_rows(a, i_stride, k_stride, M, depth, steps, packed):
    if k_stride == 1:
        for i in range(ROWS):
            target = shift(packed, i * ROW_STRIDE)
            if i < M:
                source = shift(a, i * i_stride)
                for k in range(depth):
                    target[k] = source[k]
                for k in range(depth, steps):
                    target[k] = 0
            else:
                for k in range(steps):
                    target[k] = 0
    elif i_stride == 1 and M == ROWS:
        for k in range(depth):
            for i in range(ROWS):
                packed[k * ROWS + i] = a[k * k_stride + i]
        for k in range(depth * ROWS, steps * ROWS):
            packed[k] = 0
    else:
        _pack_panel(a, i_stride, k_stride, M, depth, steps, packed, ROWS)


@kernel
def _block(a, a_i, a_k, b, b_k, b_j, start, start_i, start_j, out, out_i, out_j, M, N, K, packed):
    L = lanes(packed)
    zeros = packed
    scratch = shift(zeros, WIDTH * L)
    packed_a = shift(scratch, ROWS * VECTORS * L)
    packed_b = shift(packed_a, ROWS * ROW_STRIDE)
    blocks = -(-K // DEPTH)
    block = -(-K // blocks // UNROLL) * UNROLL
    for k0 in range(0, K, block):
        depth = min(block, K - k0)
        steps = -(-depth // UNROLL) * UNROLL
        _pack_columns(shift(b, k0 * b_k), b_k, b_j, N, depth, steps, packed_b)
        for i in range(0, M, ROWS):
            rows = min(ROWS, M - i)
            _pack_rows(shift(a, i * a_i + k0 * a_k), a_i, a_k, rows, depth, steps, packed_a)
            for j in range(0, N, VECTORS * L):
                columns = min(VECTORS * L, N - j)
                panel = shift(packed_b, j * steps)
                begin, end = shift(start, i * start_i + j * start_j), shift(out, i * out_i + j * out_j)
                whole = rows == ROWS and columns == VECTORS * L and out_j == 1 and start_j == 1
                init, init_i, target, target_i = zeros, 0, scratch, VECTORS * L
                if whole:
                    init, init_i, target, target_i = begin, start_i, end, out_i
                if a_k == 1:
                    if columns <= L:
                        narrow_tile_of_rows(packed_a, panel, steps // UNROLL, init, init_i, target, target_i)
                    else:
                        tile_of_rows(packed_a, panel, steps // UNROLL, init, init_i, target, target_i)
                else:
                    if columns <= L:
                        narrow_tile_of_columns(packed_a, panel, steps // UNROLL, init, init_i, target, target_i)
                    else:
                        tile_of_columns(packed_a, panel, steps // UNROLL, init, init_i, target, target_i)
                if not whole:
                    for ii in range(rows):
                        for jj in range(columns):
                            end[ii * out_i + jj * out_j] = scratch[ii * VECTORS * L + jj] + begin[ii * start_i + jj * start_j]
        start, start_i, start_j = out, out_i, out_j


@kernel
def _work(a, b, bias, out, offsets, accumulate, counter, packed, height, width):
    M, K = a.shape
    N = b.shape[1]
    size = a.itemsize
    a_i, a_k = a.strides[0] // size, a.strides[1] // size
    b_k, b_j = b.strides[0] // size, b.strides[1] // size
    out_i, out_j = out.strides[0] // size, out.strides[1] // size
    across, down = -(-N // width), -(-M // height)
    tasks = len(offsets) * across * down
    while True:
        task = fetch_add(pointer(counter))
        if task >= tasks:
            break
        batch, task = divmod(task, across * down)
        i, j = task % down * height, task // down * width
        rows, columns = min(height, M - i), min(width, N - j)
        pa = shift(pointer(a), offsets[batch, 0] + i * a_i)
        pb = shift(pointer(b), offsets[batch, 1] + j * b_j)
        po = shift(pointer(out), offsets[batch, 2] + i * out_i + j * out_j)
        start, start_i, start_j = pointer(packed), 0, 0
        if accumulate:
            start, start_i, start_j = po, out_i, out_j
        elif bias.size:
            start, start_i, start_j = shift(pointer(bias), j), 0, 1
        else:
            start_j = 1
        _block(pa, a_i, a_k, pb, b_k, b_j, start, start_i, start_j, po, out_i, out_j, rows, columns, K, pointer(packed))


def _split(M, N, K, batches, row_unit, column_unit, max_width):
    across, down = -(-N // max_width), -(-M // HEIGHT)
    while batches * across * down < 8 and M // down * (N // across) * K > 2**20:
        if M // down >= N // across:
            down += 1
        else:
            across += 1
    height = -(-M // (down * row_unit)) * row_unit
    width = -(-N // (across * column_unit)) * column_unit
    return height, width

split = kernel(_split)


def multiply(a, b, bias, out, offsets, accumulate, counter, workspace):
    M, K = a.shape
    N = b.shape[1]
    L = lanes(pointer(a))
    height, width = split(M, N, K, len(offsets), ROWS, VECTORS * L, WIDTH * L)
    tasks = len(offsets) * -(-M // height) * -(-N // width)
    counter[0] = 0
    if tasks == 1 or len(offsets) * M * N * K < 2**19:
        _work(a, b, bias, out, offsets, accumulate, counter, workspace[0], height, width)
    else:
        for worker in prange(min(len(workspace), tasks)):
            _work(a, b, bias, out, offsets, accumulate, counter, workspace[worker], height, width)


@functools.cache
def _multiply(dtype: np.dtype) -> Any:
    number = numba.from_dtype(dtype)
    read = lambda ndim: types.Array(number, ndim, "A", readonly=True)
    write = types.Array(number, 2, "A")
    integers = lambda ndim: types.Array(types.int64, ndim, "C")
    signature = types.void(read(2), read(2), read(1), write, integers(2), types.boolean, integers(1), types.Array(number, 2, "C"))
    return kernel(signature=signature, parallel=True)(multiply)


_workspaces: dict[np.dtype, deque] = {np.dtype(t): deque() for t in ("f", "d")}
ONE = np.zeros((1, 3), np.int64)

def _workspace(dtype):
    try:
        return _workspaces[dtype].pop()
    except IndexError:
        L = host().vector_bytes // dtype.itemsize
        elements = WIDTH * L + VECTORS * L * ROWS + ROWS * ROW_STRIDE + WIDTH * L * (DEPTH + UNROLL)
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
        _multiply(dtype)(a[index], b[index], bias, out[index], ONE, accumulate, ws[1], ws[0])
    _workspaces[dtype].append(ws)
    return out
