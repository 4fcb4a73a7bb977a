"""Matrix multiplication, float32 and float64: out (M, N) = a (M, K) @ b (K, N).

Each of the M·N·K products is one multiply-add, and a processor core does 32 to 64 of them per clock, if only
the numbers are in registers when it wants them. Memory delivers one or two numbers per clock. So every number
that is fetched must be used some hundred times before it is forgotten. Three levels of blocks see to that
(Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008):

1.  **A tile of `out` lives in registers**: ROWS × 2 vectors (14 × 32 float32 with AVX-512, 6 × 16 with AVX2).
    For each k, two vectors of b are loaded and each of ROWS numbers of a is multiplied onto both. That is
    16 loads for 28 multiply-adds, which two load ports and two multipliers do in 14 clocks.
2.  **The sum over K goes in blocks of DEPTH terms.** A panel of b (DEPTH × 2 vectors, 48 KB) comes from the
    second-level cache while a panel of a (ROWS × DEPTH, 21 KB) stays in the first.
3.  **A block of `out` is one thread's task.** It copies ("packs") the DEPTH × WIDTH block of b that it needs, then
    GROUP rows of a at a time, into panels: contiguous, in the order in which the tile reads them, filled up with
    zeros to whole panels. The second-level cache holds both.

Packing is where the layouts meet: it reads through strides, so a transposed operand costs no copy of its own. If
neighbours in memory are neighbours in the panel, whole vectors are moved. If not, b is transposed in registers,
a square at a time, and a is packed row by row for a tile with other (constant) strides.

Work: 2·M·N·K FLOPs. Traffic: with M_task × N_task the size of a task, a is read N / N_task times, b M / M_task
times, `out` K / DEPTH times; `plan` picks the task size from an estimate of just this.

The bits of a result depend on K alone. Each number of `out` is summed by one thread, in order of k, with a break
at the DEPTH blocks; which tile or task it falls into changes nothing. So the plan may look at the number of
threads, and results are the same for any.

Where the processor has AMX, float32 goes there: see `split.py`, which is this file's plan with other tiles.

Products with a vector (M or N is 1, as in decoding) read each number of the matrix once and have nothing to
reuse. They run at the memory's speed, along the matrix as it lies.

An activation is applied to a group of rows while they are still in cache: see `epilogue.py`.

Left out: Strassen's algorithm (its gain starts at sizes that no model here has).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .epilogue import NOTHING, finish
from .ir import (
    emitted,
    host,
    lanes,
    move,
    move_first,
    mover,
    pointer,
    shift,
    transpose,
)
from .jit import callback, kernel
from .matrix import (
    Matrix,
    Work,
    at,
    between_numbers,
    count_batches,
    matrix,
    operands,
    plan,
    repeated,
    work_type,
)
from .memory import empty
from .tasks import declare, load, next_task, queues, run, save, share
from .together import leave, next_slot, settle

__all__ = ["allow_tiles", "matmul"]

VECTORS = 2  # in a row of the tile
ROWS = 14 if host().registers == 32 else 6  # so that the tile, a row of b and one number of a fill the registers
HEIGHTS = (4, 8, ROWS) if ROWS == 14 else (3, ROWS)  # of tiles for the last rows of a matrix, and for all others
DEPTH = 384
WIDTH = 16 * VECTORS  # vectors
GROUP = 8 * ROWS
PACKED_ROW = DEPTH + 16  # not a power of two: rows that fall into the same cache set would evict each other
CLOCKS_TILE, CLOCKS_PACK_A, CLOCKS_PACK_B = 14, 3, 6  # per k: 28 multiply-adds on two units; packing a panel of a, of b
SMALL = 2**18  # multiply-adds (about 3 µs) that aren't worth a second thread
DOTS = 8  # that are computed side by side: enough to hide that a sum waits for the one before
VECTOR_TASK = 2**15  # numbers of the matrix in one task of a product with a vector
TILED = 64  # rows and columns of `out` from which on float32 goes to tiles, where packing is dearer
VECTOR_UNIT = 64  # `out` is divided in multiples of this, of 8 times this where b's rows are contiguous


def _sum_products(e, height, vectors, a, row, column, b, depth):
    """The loop over k that all is about: `height` rows of `vectors` sums stay in registers."""
    with e.loop(depth, [a, b, *(e.zero() for _ in range(height * vectors))]) as carried:
        a, b, *sums = carried
        b_k = [e.load(e.at(b, v * e.lanes)) for v in range(vectors)]
        for i in range(height):
            a_ik = e.splat(e.at(a, i * row))
            for v in range(vectors):
                sums[i * vectors + v] = e.fma(a_ik, b_k[v], sums[i * vectors + v])
        carried[:] = e.at(a, column), e.at(b, vectors * e.lanes), *sums
    return [carried[2 + i * vectors : 2 + (i + 1) * vectors] for i in range(height)]


def _tile(row: int, column: int) -> Any:
    """The microkernel: out = start + a @ b, for a panel of a with the given (constant) strides and one of b.

    It comes in several sizes, for panels of b that are one vector wide and for the last rows of a matrix. The
    smallest that has `rows` rows is used; those beyond are computed but neither read from `start` nor written.
    """

    def body(e, a, b, depth, start, start_row, out, out_row, rows, columns):
        builder = e.builder

        def cells(base, stride, i, vectors):
            first = e.at(base, builder.mul(stride, stride.type(i)))
            return [e.at(first, v * e.lanes) for v in range(vectors)]

        def multiply(height, vectors):
            for i in range(height):
                for cell in cells(start, start_row, i, vectors):
                    e.prefetch(cell)
            for i, sums in enumerate(_sum_products(e, height, vectors, a, row, column, b, depth)):
                with builder.if_then(builder.icmp_signed(">", rows, rows.type(i)), likely=True):
                    places = zip(cells(start, start_row, i, vectors), cells(out, out_row, i, vectors), strict=True)
                    for total, (source, target) in zip(sums, places, strict=True):
                        e.store(e.add(total, e.load(source)), target)
            builder.ret_void()

        with builder.if_then(builder.icmp_signed("<=", columns, columns.type(e.lanes))):
            multiply(ROWS, 1)
        for height in HEIGHTS:
            with builder.if_then(builder.icmp_signed("<=", rows, rows.type(height))):
                multiply(height, VECTORS)

    @intrinsic
    def tile(typingctx, a, b, depth, start, start_row, out, out_row, rows, columns):
        i = types.intp
        return types.void(a, b, i, a, i, a, i, i, i), emitted(f"tile.{row}.{column}", body)

    return tile


_tile_by_rows, _tile_by_columns = _tile(PACKED_ROW, 1), _tile(1, ROWS)
_move_rows = mover(ROWS)


@kernel
def _pack_any(source, stride, step, size, depth, target, panel):
    """Pack a panel number by number: `depth` steps of `size` numbers, each filled up with zeros to `panel`."""
    for k in range(depth):
        for i in range(panel):
            target[k * panel + i] = source[i * stride + k * step] if i < size else 0


@kernel
def _pack_columns(b, depth, N, packed):
    """b (depth, N) → panels (depth, 2 vectors); the last has one vector if that is enough."""
    L = lanes(packed)
    for j in range(0, N, VECTORS * L):
        size = min(VECTORS * L, N - j)
        panel = L if size <= L else VECTORS * L
        source, target = shift(b.start, j * b.column), shift(packed, j * depth)
        if b.column == 1:
            for k in range(depth):
                for v in range(0, panel, L):
                    if size == panel:
                        move(shift(source, k * b.row + v), shift(target, k * panel + v))
                    else:
                        move_first(shift(source, k * b.row + v), shift(target, k * panel + v), size - v)
        elif b.row == 1 and depth >= L:
            for v in range(0, panel, L):
                for step in range(0, depth, L):
                    k = min(step, depth - L)  # the last square overlaps the one before
                    square = shift(source, v * b.column + k)
                    transpose(square, b.column, size - v, shift(target, k * panel + v), panel)
        else:
            _pack_any(source, b.column, b.row, size, depth, target, panel)


@kernel
def _pack_rows(a, M, depth, packed):
    """a (M, depth) → panels (ROWS, depth) where a's rows are contiguous, else panels (depth, ROWS)."""
    L = lanes(packed)
    if a.column == 1:
        for i in range(M):
            source, target = shift(a.start, i * a.row), shift(packed, i * PACKED_ROW)
            for k in range(0, depth - L + 1, L):
                move(shift(source, k), shift(target, k))
            k = depth // L * L
            if k < depth:
                move_first(shift(source, k), shift(target, k), depth - k)
        return
    whole = M // ROWS * ROWS if a.row == 1 else 0
    for k in range(depth):  # all panels at once, as their rows are neighbours in memory
        for i in range(0, whole, ROWS):
            _move_rows(shift(a.start, k * a.column + i), shift(packed, i * PACKED_ROW + k * ROWS))
    for i in range(whole, M, ROWS):
        size = min(ROWS, M - i)
        source, target = shift(a.start, i * a.row), shift(packed, i * PACKED_ROW)
        if a.row == 1:
            for k in range(depth):  # the zeros that stick out of a step are overwritten by the next
                for v in range(0, ROWS, L):
                    move_first(shift(source, k * a.column + v), shift(target, k * ROWS + v), size - v)
        else:
            _pack_any(source, a.row, a.column, size, depth, target, ROWS)


@kernel
def _multiply_panels(by_rows, a, b, depth, start, out, rows, columns, zeros, scratch):
    """One tile. At the right edge it goes to `scratch`, from where the part that exists is copied."""
    L = lanes(b)
    whole = columns == VECTORS * L and start.column == 1 and out.column == 1
    source, target = (start, out) if whole else (Matrix(zeros, 0, 1), Matrix(scratch, VECTORS * L, 1))
    if by_rows:
        _tile_by_rows(a, b, depth, source.start, source.row, target.start, target.row, rows, columns)
    else:
        _tile_by_columns(a, b, depth, source.start, source.row, target.start, target.row, rows, columns)
    if not whole:
        for i in range(rows):
            for j in range(columns):
                before = start.start[i * start.row + j * start.column]
                out.start[i * out.row + j * out.column] = scratch[i * VECTORS * L + j] + before


def _workspace_size(lanes: int) -> int:
    """Numbers that a thread needs besides its operands: the sum of what `_block` lays out."""
    return (WIDTH + ROWS * VECTORS) * lanes + GROUP * PACKED_ROW + WIDTH * lanes * DEPTH


@kernel
def _block(a, b, start, out, M, N, K, workspace, epilogue, u, side):
    """out (M, N) = start + a @ b by one thread, for N of at most WIDTH vectors; and what the epilogue makes of it."""
    L = lanes(workspace)
    zeros = workspace
    scratch = shift(zeros, WIDTH * L)
    packed_a = shift(scratch, ROWS * VECTORS * L)
    packed_b = shift(packed_a, GROUP * PACKED_ROW)
    blocks = -(-K // DEPTH)
    for block in range(blocks):
        k, depth = share(K, 1, block, blocks)
        _pack_columns(at(b, k, 0), depth, N, packed_b)
        for group in range(0, M, GROUP):
            group_rows = min(GROUP, M - group)
            _pack_rows(at(a, group, k), group_rows, depth, packed_a)
            for i in range(group, group + group_rows, ROWS):
                for j in range(0, N, VECTORS * L):
                    _multiply_panels(
                        a.column == 1, shift(packed_a, (i - group) * PACKED_ROW), shift(packed_b, j * depth), depth,
                        at(start, i, j), at(out, i, j), min(ROWS, M - i), min(VECTORS * L, N - j), zeros, scratch,
                    )  # fmt: skip
            if epilogue != NOTHING and block == blocks - 1:
                finish(epilogue, at(out, group, 0), at(u, group, 0), at(side, group, 0), group_rows, N)
        start = out


@intrinsic
def _dots(typingctx, x, columns, stride, whole, rest, results):
    """results (8) = x · each of eight columns, `stride` apart; K is `whole` vectors and `rest` numbers."""

    def body(e, x, columns, stride, whole, rest, results):
        starts = [e.at(columns, e.builder.mul(stride, stride.type(i))) for i in range(DOTS)]
        with e.loop(whole, [x, *starts, *(e.zero() for _ in starts)]) as carried:
            x_k = e.load(carried[0])
            columns_and_sums = zip(carried[1 : 1 + DOTS], carried[1 + DOTS :], strict=True)
            sums = [e.fma(x_k, e.load(column), total) for column, total in columns_and_sums]
            carried[:] = *(e.at(pointer, e.lanes) for pointer in carried[: 1 + DOTS]), *sums
        mask = e.first(rest)
        x_k = e.load_masked(carried[0], mask)
        for i in range(DOTS):
            total = e.fma(x_k, e.load_masked(carried[1 + i], mask), carried[1 + DOTS + i])
            e.builder.store(e.sum(total), e.at(results, i))

    i = types.intp
    return types.void(x, x, i, i, i, x), emitted("dots", body)


@kernel
def _vector_block(x, b, start, out, K, N, workspace):
    """out (N) = start (N) + x (K) @ b (K, N), where b's rows or its columns are contiguous."""
    if b.row == 1:
        whole, rest = divmod(K, lanes(x))
        dots = shift(workspace, WIDTH * lanes(x))  # behind the zeros, as `scratch` in `_block`
        for j in range(0, N, DOTS):
            columns = min(DOTS, N - j)
            for i in range(1 if columns == DOTS else columns):  # the last few each for all
                stride = b.column if columns == DOTS else 0
                _dots(x, shift(b.start, (j + i) * b.column), stride, whole, rest, shift(dots, i))
            for i in range(columns):
                out.start[(j + i) * out.column] = start.start[(j + i) * start.column] + dots[i]
        return
    y = out.start
    for j in range(N):
        y[j] = start.start[j * start.column]
    for k in range(0, K - 3, 4):
        b0, b1 = shift(b.start, k * b.row), shift(b.start, (k + 1) * b.row)
        b2, b3 = shift(b.start, (k + 2) * b.row), shift(b.start, (k + 3) * b.row)
        for j in range(N):
            y[j] += (x[k] * b0[j] + x[k + 1] * b1[j]) + (x[k + 2] * b2[j] + x[k + 3] * b3[j])
    for k in range(K // 4 * 4, K):
        row = shift(b.start, k * b.row)
        for j in range(N):
            y[j] += x[k] * row[j]


@kernel
def _as_row(a, b, out):
    """A product with a column turned into one with a row: (a @ b)ᵀ = bᵀ @ aᵀ."""
    A, B, C = matrix(a), matrix(b), matrix(out)
    if len(out) == 1:
        return A, B, C
    return Matrix(B.start, B.column, B.row), Matrix(A.start, A.column, A.row), Matrix(C.start, C.column, C.row)


@kernel
def _is_vector_product(a, b, out):
    """Whether `_vector_block` can do it. (Columns of b that are not contiguous are rare, and left to `_block`.)"""
    x, matrix, y = _as_row(a, b, out)
    return 1 in out.shape and x.column == 1 and (matrix.row == 1 or (matrix.column == 1 and y.column == 1))


@kernel
def _work(work, worker):
    """Take tasks until there are none. Any thread may do any task: its result doesn't depend on who did it."""
    workspace = pointer(work.workspace[worker])
    M_unit, N_unit, width = ROWS, VECTORS * lanes(workspace), WIDTH * lanes(workspace)
    if work.vector:
        N_unit, width = VECTOR_UNIT if work.b.row == 1 else 8 * VECTOR_UNIT, work.N
    while True:
        task = next_task(work.counters, worker, work.batches * work.M_parts * work.N_parts)
        if task < 0:
            break
        batch, part = divmod(task, work.M_parts * work.N_parts)
        i, rows = share(work.M, M_unit, part // work.N_parts, work.M_parts)
        j, columns = share(work.N, N_unit, part % work.N_parts, work.N_parts)
        for left in range(j, j + columns, width):
            a, b, start, out = operands(work, workspace, int(not work.vector), batch, i, left)
            columns_here = min(width, j + columns - left)
            u, side = at(work.u, i, left), at(work.side, i, left)
            if work.vector:
                _vector_block(a.start, b, start, out, work.K, columns_here, workspace)
                if work.epilogue != NOTHING:
                    finish(work.epilogue, out, u, side, 1, columns_here)
            else:
                _block(a, b, start, out, rows, columns_here, work.K, workspace, work.epilogue, u, side)


def program(shared_type: str) -> tuple[Callable, Callable]:
    """(multiply, work) for arrays of these types: see `Product`."""

    def work(arguments, worker):
        _work(load(arguments, shared_type), worker)

    def multiply(a, b, start, out, u, side, batch_axes, epilogue, work, counters, workspace, slot):
        if between_numbers(a) or between_numbers(b) or between_numbers(start) or between_numbers(out):
            return False
        (M, K), N = a.shape, b.shape[1]
        batches = count_batches(batch_axes)
        A, B, C, S = matrix(a), matrix(b), matrix(out), repeated(start)
        vector = batches == 1 and _is_vector_product(a, b, out) and (epilogue == NOTHING or M == 1)
        if vector:  # here the bits depend on the cut: it must not depend on the number of threads
            M_parts, N_parts = 1, max(1, min(M * N // VECTOR_UNIT, M * N * K // VECTOR_TASK))
            A, B, C = _as_row(a, b, out)
            if N == 1:
                M, N, S = 1, M, Matrix(S.start, S.column, S.row)
        else:
            down, across = -(-M // ROWS), -(-N // (VECTORS * lanes(pointer(a))))
            M_parts, N_parts = plan(down, across, batches, len(workspace), CLOCKS_TILE, CLOCKS_PACK_A, CLOCKS_PACK_B)
        small = M_parts * N_parts * batches == 1 or (batches * M * N * K < SMALL and not vector)
        shared = Work(
            A, B, S, C, matrix(u), matrix(side), M, K, N, batch_axes, batches, start.size > 0, epilogue, vector,
            counters, workspace, M_parts, N_parts,
        )  # fmt: skip
        run(work, save(shared, shared_type, slot), 1 if small else len(workspace), counters, slot)
        return True

    return multiply, work


class _Workspace(threading.local):
    """What a kind of product needs besides its operands, in each thread that calls for one."""

    def __init__(self, size: int, dtype: np.dtype) -> None:
        threads, page = numba.config.NUMBA_NUM_THREADS, 4096 // dtype.itemsize
        self.queues = queues(threads)
        self.memory = empty((threads, -(-size // page) * page), dtype)
        self.memory[...] = 0


_workspace = functools.cache(_Workspace)  # one for all kinds that lay it out alike: the last used is still in cache


class Product:
    """A compiled kind of product.

    a, b, out, side   dtypes of the operands, of the result, and of the arrays that epilogues read and write
    program           (multiply, work): `multiply` is called with the arrays and plans, `work` runs on each thread.
                      a, b and out are the first matrices of their batches; batch_axes as in `Work`. `multiply`
                      returns False, having done nothing, where strides are not multiples of a number's size
    """

    def __init__(self, program: Callable, workspace_size: int, a: Any, b: Any, out: Any, side: Any) -> None:
        self.a, self.b, self.dtype = np.dtype(a), np.dtype(b), np.dtype(out)
        names = [np.dtype(dtype).name for dtype in (a, b, out, side)]
        read = lambda kind, ndim: types.Array(kind, ndim, "A", readonly=True)
        write = lambda kind: types.Array(kind, 2, "A")
        A, B, C, S = (getattr(types, name) for name in names)
        arrays = (read(A, 2), read(B, 2), read(C, 2), write(C), write(S), write(S))
        counters, memory, axes = (types.Array(k, n, "C") for k, n in ((types.int64, 1), (C, 2), (types.int64, 2)))
        multiply, work = program(declare(f"a product: {' '.join(names)}", work_type(A, B, C, S)))
        signature = types.boolean(*arrays, axes, types.int64, types.int64, counters, memory, types.int64)
        self._multiply = kernel(multiply, signature=signature)
        self._work = callback(types.void(types.int64, types.int64))(work)
        self.no_start = np.empty((0, 0), out)
        self.no_sides = (np.empty((0, 0), side),) * 2
        self.workspace = _workspace(workspace_size, self.dtype)
        self._address = self._work.address

    def __call__(self, a, b, start, out, batch_axes, epilogue=NOTHING, sides=None) -> bool:
        """Multiply now, or when the calls that wait are made (see `together.py`)."""
        slot, own = next_slot(), self.workspace
        u, side = self.no_sides if sides is None else sides
        done = self._multiply(
            a, b, start, out, u, side, batch_axes, epilogue, self._address, own.queues, own.memory, slot
        )
        if slot and done:
            leave(out.nbytes, a, b, start, out, u, side, batch_axes)
        return done


@functools.cache
def product_of(dtype: np.dtype) -> Product:
    """The program on vectors."""
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"matmul multiplies float32 or float64 arrays, got {dtype}; convert with astype")
    size = _workspace_size(host().vector_bytes // dtype.itemsize)
    return Product(program, size, dtype, dtype, dtype, dtype)


@functools.cache
def _on_tiles() -> Product | None:
    """The program for float32 on AMX tiles, if there are any."""
    from .split import split_product  # which is built on this file

    return split_product()


_tiles_allowed = True


def allow_tiles(allowed: bool) -> None:
    """Let float32 be multiplied on AMX tiles (the default), or on vectors only: to measure and test these."""
    global _tiles_allowed
    _tiles_allowed = allowed


def tiles_allowed() -> bool:
    return _tiles_allowed


def product_for(a: np.ndarray, b: np.ndarray) -> Product:
    """The program that multiplies a by b: on tiles, where there are any and enough to do for them, else on vectors."""
    if _tiles_allowed and a.dtype == np.float32 and a.ndim > 1 and b.ndim > 1:
        K, N = b.shape[-2:]
        M = a.shape[-2] if b.ndim > 2 else a.size // max(K, 1)
        if min(M, N, 2 * K) >= TILED:
            return _on_tiles() or product_of(a.dtype)
    return product_of(a.dtype)


_for_float32: Callable | None = None


def use_for_float32(function: Callable | None) -> None:
    """Let `matmul` hand float32 arrays to `function` (None: multiply them itself). See `matmul_precision`."""
    global _for_float32
    _for_float32 = function


BETWEEN_NUMBERS = "matmul needs strides that are multiples of the item size; copy the arrays first"
_NO_AXES = np.empty((0, 5), np.int64)


def _batch_axes(batch: tuple[int, ...], *arrays: np.ndarray) -> np.ndarray:
    """(axes, 5), last axis first: its size and each array's stride in numbers, 0 where the array is broadcast."""

    def stride(array: np.ndarray, axis: int) -> int:
        there = array.ndim >= 2 + axis and array.shape[-2 - axis] > 1
        numbers, rest = divmod(array.strides[-2 - axis], array.itemsize) if there else (0, 0)
        if rest:
            raise ValueError(BETWEEN_NUMBERS)
        return numbers

    axes = range(1, len(batch) + 1)
    return np.array([[batch[-axis], *(stride(array, axis) for array in arrays)] for axis in axes])


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    out: np.ndarray | None = None,
    onto: np.ndarray | None = None,
) -> np.ndarray:
    """The matrix product a (..., M, K) @ b (..., K, N) → (..., M, N), float32 or float64.

    Leading (batch) axes broadcast. `bias` (N,) is added to every row, and `onto` (..., M, N) to the whole. The result
    goes to `out`, which must not overlap the operands, but may be `onto` itself. All arrays may have any strides: a
    transposed view costs nothing.

    Returns `out`, or a new C-contiguous array. Raises TypeError for other dtypes or two different ones,
    ValueError for shapes that do not fit.
    """
    if _for_float32 is not None and a.dtype == b.dtype == np.float32:
        return _for_float32(a, b, bias=bias, out=out, onto=onto)
    return multiply_with(product_for(a, b), a, b, bias, out, onto)


def multiply_with(
    product: Product, a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None, out: np.ndarray | None = None,
    onto: np.ndarray | None = None, epilogue: int = NOTHING, sides: tuple | None = None,
) -> np.ndarray:  # fmt: skip
    """`matmul` by the given program: checks the arguments and lays them out for it.

    An epilogue is the address of one of `epilogue.py`; its `sides` are C-contiguous and have the product's two axes.
    """
    dtype = product.dtype
    if a.dtype != product.a or b.dtype != product.b:
        raise TypeError(f"matmul multiplies arrays of one dtype, got {a.dtype} and {b.dtype}; convert with astype")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul multiplies (..., M, K) by (..., K, N), got {a.shape} and {b.shape}")
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous and (out is None or out.flags.c_contiguous) and a.size:
        shape = (*a.shape[:-1], b.shape[1])  # one tall matrix
        flat = lambda x, name: None if x is None else _checked(x, shape, dtype, name).reshape(-1, shape[-1])
        rows = a.reshape(-1, a.shape[-1])
        return multiply_with(product, rows, b, bias, flat(out, "out"), flat(onto, "onto")).reshape(shape)
    batch = () if a.ndim == b.ndim == 2 else _broadcast(a, b)
    shape = (*batch, a.shape[-2], b.shape[-1])
    out = empty(shape, dtype) if out is None else _checked(out, shape, dtype, "out")
    start = product.no_start if onto is None else _checked(onto, shape, dtype, "onto")
    if bias is not None and (bias.shape != shape[-1:] or bias.dtype != dtype):
        raise ValueError(f"a product {shape} takes a bias {shape[-1:]} of {dtype}, got {bias.shape} of {bias.dtype}")
    if bias is not None and onto is not None:
        settle()  # `onto` may be what a product makes
        start = np.add(onto, bias, out=out)
    elif bias is not None:
        start = bias[None]
    if out.size == 0:
        return out
    if a.shape[-1] == 0:  # a sum of nothing is zero, as is one of a single zero
        a, b = (np.zeros((*x.shape[:-2], *last), x.dtype) for x, last in ((a, (shape[-2], 1)), (b, (1, shape[-1]))))
    axes, first = _NO_AXES, out
    if batch:
        axes = _batch_axes(batch, a, b, out, start)
        a, b, first, start = (x[(0,) * (x.ndim - 2)] for x in (a, b, out, start))
    if not product(a, b, start, first, axes, epilogue, sides):
        raise ValueError(BETWEEN_NUMBERS)
    return out


def _broadcast(a: np.ndarray, b: np.ndarray) -> tuple[int, ...]:
    if a.shape[:-2] == b.shape[:-2]:
        return a.shape[:-2]
    try:
        return np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(f"matmul cannot broadcast the batch axes of {a.shape} and {b.shape}") from None


def _checked(x: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    if x.shape != shape or x.dtype != dtype:
        raise ValueError(f"the product is {shape} of {dtype}; {name} is {x.shape} of {x.dtype}")
    if name == "out" and not x.flags.writeable:
        raise ValueError("the product cannot be written to `out`, which is read-only")
    return x
