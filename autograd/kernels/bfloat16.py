"""Matrix multiplication in bfloat16 on AMX tiles: float32 in and out, operands rounded on the way.

A bfloat16 is the upper half of a float32: the same range, 8 bits of precision instead of 24. The products of two
are exact in float32, and are summed in float32. So an operand is wrong by at most 2⁻⁸ of its value, and the result
by about 2⁻⁷ of Σ|a·b|, whatever K is. Training bears this well, as long as the weights themselves stay in float32.
(The tiles also take numbers below 2⁻¹²⁶ for zero.)

The processor holds eight tile registers of 1 KB. One instruction multiplies 16 × 32 by 32 × 16 bfloat16 onto 16 × 16
sums, in 16 clocks: 16 times the multiply-adds of a float32 unit. A block of 2 × 2 tiles needs 4 loads for 4 such
instructions. The rest is as in `matmul.py`, with one difference: multiplying has become so cheap that *packing* is
the larger part of the work. It costs one pass over each operand, in which numbers are rounded in pairs

    along k     of a row of a or a column of b: a vector of 16 pairs is one line of 32 numbers
    across k    of two rows of aᵀ or of b:      a vector of 16 pairs has one pair from each of 16 lines

and a register tile of a wants vectors along k, one of b across k. Where memory has the other kind, 16 vectors are
transposed in registers (a pair is moved as one number). Only rows of a that are bfloat16 already, and begin with lines
of the cache, are tiles as they lie.

Where the processor has no AMX, or the system does not let us use it, `matmul_bf16` rounds copies of the operands and
multiplies those in float32: slower than not rounding, but the same numbers up to the order of summation.
"""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .elementary import as_number, as_stored, is_narrow
from .epilogue import NOTHING, finish
from .ir import INT, TileEmitter, emitted, has, pointer, shift
from .jit import kernel
from .matmul import Product, multiply_with, product_of, use_for_float32
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
)
from .memory import empty
from .tasks import load, next_task, run, save, share
from .together import settle

__all__ = [
    "amx_available", "matmul_bf16", "matmul_narrow", "matmul_precision", "narrow_products", "round_to_bfloat16",
    "rounded_product",
]  # fmt: skip

LINES, PAIRS = 16, 16  # of a tile: rows of a or columns of b; pairs of bfloat16 in the sum
TILE = LINES * PAIRS  # numbers of 32 bits
PARTS, PRODUCTS = 3, ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0))  # of parts: see split.py
SQUARE = 2 * LINES  # rows and columns of `out` in a block of 2 × 2 tiles
DEPTH = 512
WIDTH = 512
WIDEST = 4 * WIDTH
B_NUMBERS = WIDTH * (2 * DEPTH + 128)  # of b that are packed at a time: 1.2 MB
ROUNDED = -1  # no epilogue's address: the result is rounded where it is written
KEPT = 5 * 2**16  # numbers of `out` that stay in the second-level cache beside a block of b: 1.3 MB
LONGEST = B_NUMBERS // SQUARE  # sum that can be followed by an epilogue
GROUP = 4 * SQUARE
CLOCKS_TILE, CLOCKS_PACK = 2, 6  # per k: four multiplications of tiles are 64 for 32; packing 32 numbers
SMALL = 2**20  # multiply-adds that aren't worth a second thread


@functools.cache
def amx_available() -> bool:
    """Whether this process may use AMX with bfloat16. Linux hands the tile registers out on request only."""
    if not has("amx-tile", "amx-bf16", "avx512bf16", "avx512bw") or not sys.platform.startswith("linux"):
        return False
    if platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0
    except (OSError, AttributeError):
        return False


def in_parts(tiles: types.Type) -> bool:
    """Whether a pointer is one to operands in three parts, three tiles for one: see split.py. Its type tells."""
    return tiles.dtype == types.int32


def products_of(tiles: types.Type) -> tuple[tuple[int, int], ...]:
    """Which part of a left operand is multiplied with which of a right one; the whole of both, if they have none."""
    return PRODUCTS if in_parts(tiles) else ((0, 0),)


def multiply_step(
    e: TileEmitter, products: tuple, sums: tuple, a: list[ir.Value], a_row: ir.Value, b: list[ir.Value]
) -> None:
    """2 × 2 registers `sums` += two tiles at `a`, whose rows are `a_row` apart, times two packed ones at `b`."""
    a_tiles, b_tiles, held = (4, 5), (6, 7), (None, None)
    for part_a, part_b in products:
        for j in range(2):
            if held[1] != part_b:
                e.load_tile(b_tiles[j], e.at(b[j], part_b * TILE), INT(PAIRS))
            for i in range(2):
                if held[0] != part_a and j == 0:
                    e.load_tile(a_tiles[i], e.at(a[i], part_a * TILE), a_row)
                e.multiply_tiles(sums[i][j], a_tiles[i], b_tiles[j])
        held = part_a, part_b


def _tile_packer(along: bool, transposed: bool) -> Any:
    """A function that packs a 16 × 32 part of an operand to a tile: rounded, if it is not bfloat16 yet, or in parts.

    `along`: 16 lines of 32 numbers, else 32 lines of 16. Only `lines` lines and `count` numbers of each exist; the
    rest of the tile is zero.
    """

    def reader(e, source, stride, lines, count, whole):
        masks = [e.first(count), e.first(e.builder.sub(count, count.type(e.lanes)))]

        def line(i, part):
            address = e.at(e.at(source, e.builder.mul(stride, stride.type(i))), part * e.lanes)
            if whole:
                return e.load(address)
            exists = e.builder.icmp_signed(">", lines, lines.type(i))
            return e.load_masked(address, e.builder.select(exists, masks[part], e.first(count.type(0))))

        return line

    def turned(e, vectors):
        return e.transpose(vectors) if transposed else vectors

    def wide(e, *operand):
        line = reader(e, *operand)
        if along:
            rounded = [e.round_pair(line(i, 0), line(i, 1)) for i in range(16)]
        else:
            rounded = [e.interleave(e.round_pair(line(i, 0), line(i + 1, 0))) for i in range(0, 32, 2)]
        yield from ((vector,) for vector in turned(e, rounded))

    def parts(e, *operand):
        """A number is paired with the one 16 terms on: the same in both operands, and that takes no shuffle."""
        line = reader(e, *operand)
        low = turned(e, [line(i, 0) for i in range(16)])
        high = turned(e, [line(i, 1) if along else line(16 + i, 0) for i in range(16)])
        yield from (e.split_pair(x, y) for x, y in zip(low, high, strict=True))

    def narrow(e, source, stride, lines, count, whole):
        def line(i, size):
            exists = None if whole else e.builder.icmp_signed(">", lines, lines.type(i))
            return e.load_halves(source, e.builder.mul(stride, stride.type(i)), exists, count, size)

        if along:
            halves = [e.builder.bitcast(line(i, 32), e.vector) for i in range(16)]
        else:
            halves = [e.interleave(e.side_by_side(line(i, 16), line(i + 1, 16))) for i in range(0, 32, 2)]
        yield from ((vector,) for vector in turned(e, halves))

    def body_for(rows_of_tiles):
        def body(e, target, source, stride, lines, count):
            def write(whole):
                for i, row in enumerate(rows_of_tiles(e, source, stride, lines, count, whole)):
                    for part, vector in enumerate(row):
                        e.store(vector, e.at(target, part * TILE + i * PAIRS))

            full_lines, full_count = (16, 32) if along else (32, 16)
            whole = e.builder.and_(
                e.builder.icmp_signed(">=", lines, lines.type(full_lines)),
                e.builder.icmp_signed(">=", count, count.type(full_count)),
            )
            with e.builder.if_else(whole) as (then, otherwise):
                with then:
                    write(whole=True)
                with otherwise:
                    write(whole=False)

        return body

    @intrinsic
    def pack_tile(typingctx, target, source, stride, lines, count):
        i = types.intp
        rows_of_tiles = parts if in_parts(target) else narrow if source.dtype == types.uint16 else wide
        name = f"pack.{'along' if along else 'across'}.{transposed}.{source.dtype}.{rows_of_tiles.__name__}"
        emit = emitted(name, body_for(rows_of_tiles), emitter=TileEmitter, like=1 if rows_of_tiles is parts else 0)
        return types.void(target, source, i, i, i), emit

    return pack_tile


_pack_along, _pack_along_transposed = _tile_packer(True, False), _tile_packer(True, True)
_pack_across, _pack_across_transposed = _tile_packer(False, False), _tile_packer(False, True)


@intrinsic
def configure_tiles(typingctx, anything):
    body = lambda e, _: e.configure_tiles()
    return types.void(anything), emitted("configure", body, emitter=TileEmitter)


@intrinsic
def release_tiles(typingctx, anything):
    body = lambda e, _: e.release_tiles()
    return types.void(anything), emitted("release", body, emitter=TileEmitter)


class Tiles(NamedTuple):
    """A left operand as tiles, packed or in place; distances count numbers of 32 bits."""

    start: Any
    lines: int  # from one tile to that of the next 16 lines
    step: int  # to that of the next 32 terms
    row: int  # from one row of a tile to the next


@intrinsic
def _pairs(typingctx, numbers):
    """The same pointer, to numbers of 32 bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(numbers), codegen


@intrinsic
def _address(typingctx, numbers):
    codegen = lambda context, builder, signature, args: builder.ptrtoint(args[0], INT)
    return types.int64(numbers), codegen


@intrinsic
def tile_numbers(typingctx, tiles):
    """How many numbers of 32 bits one tile takes, all parts of it."""
    numbers = PARTS * TILE if in_parts(tiles) else TILE
    return types.int64(tiles), lambda *_: INT(numbers)


@intrinsic
def is_in_parts(typingctx, tiles):
    """The same as `in_parts`, for kernels."""
    return types.boolean(tiles), lambda *_: ir.IntType(1)(in_parts(tiles))


@intrinsic
def as_parts(typingctx, numbers):
    """The same pointer, to tiles in three parts."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(numbers), codegen


def _add_rows(e, rows, start, start_row, sums, out, out_row, kind):
    """out = start + sums for so many rows of a square; returns where the next ones begin."""
    with e.loop(rows, [start, sums, out]) as carried:
        start, sums, out = carried
        row = [e.add(e.load(e.at(sums, j)), e.load(e.at(start, j))) for j in range(0, SQUARE, e.lanes)]
        if kind == ir.IntType(16):
            e.store(e.round_pair(*row), out)
        else:
            for j, vector in enumerate(row):
                e.store(vector, e.at(out, j * e.lanes))
        carried[:] = e.at(start, start_row), e.at(sums, SQUARE), e.at(out, out_row, kind)
    return carried


def _kind(numbers):
    """LLVM's type of what `out` holds."""
    return ir.IntType(16) if numbers.dtype == types.uint16 else ir.FloatType()


@intrinsic
def multiply_square(
    typingctx, a, a_lines, a_step, a_row, b, steps, sums, total, start, start_row, earlier, out, out_row, rows
):
    """sums (32, 32) = a @ b; meanwhile out = start + earlier, the sums of another square, `rows` rows in each step.

    a and b: two rows of `steps` tiles each. a lies as `Tiles` says, b is packed. Of operands in parts, `total` gets the
    sum of all sums.
    """
    kind, parted, products = _kind(out), in_parts(b), products_of(b)
    size = PARTS * TILE if parted else TILE

    def body(e, a, a_lines, a_step, a_row, b, steps, sums, total, start, start_row, earlier, out, out_row, rows):
        registers, second = ((0, 1), (2, 3)), e.builder.mul(steps, INT(size))
        for i in range(SQUARE):
            for j in (0, SQUARE - 1):
                e.prefetch(e.at(out, e.builder.add(e.builder.mul(out_row, INT(i)), INT(j)), kind), write=True)
        for tile in registers[0] + registers[1]:
            e.zero_tile(tile)
        with e.loop(steps, [a, b, INT(SQUARE), start, earlier, out]) as carried:
            a, b, left, *square = carried
            multiply_step(e, products, registers, [a, e.at(a, a_lines)], a_row, [b, e.at(b, second)])
            start, earlier, out = square
            now = e.builder.select(e.builder.icmp_signed("<", rows, left), rows, left)
            square = _add_rows(e, now, start, start_row, earlier, out, out_row, kind)
            carried[:] = e.at(a, a_step), e.at(b, size), e.builder.sub(left, now), *square
        for i in range(2):
            for j in range(2):
                e.store_tile(registers[i][j], e.at(sums, i * LINES * SQUARE + j * LINES), INT(SQUARE))
        if parted:
            with e.loop(INT(SQUARE), [sums, e.zero(), e.zero()]) as carried:
                row, x, y = carried
                carried[:] = e.at(row, SQUARE), e.add(x, e.load(row)), e.add(y, e.load(e.at(row, e.lanes)))
            e.builder.store(e.sum(e.add(*carried[1:])), total)

    i = types.intp
    signature = types.void(a, i, i, i, b, i, sums, total, start, i, earlier, out, i, i)
    return signature, emitted(f"square.{kind}.{len(products)}", body, emitter=TileEmitter, like=6)


@intrinsic
def add_square(typingctx, start, start_row, sums, out, out_row):
    """out (32, 32) = start + sums, rounded where `out` is bfloat16."""
    kind = _kind(out)
    body = lambda e, start, start_row, sums, out, out_row: _add_rows(
        e, INT(SQUARE), start, start_row, sums, out, out_row, kind
    )
    return types.void(start, types.intp, sums, out, types.intp), emitted(f"add.{kind}", body, emitter=TileEmitter)


@kernel
def _pack_lines(source, line_stride, step, lines, depth, as_columns, target):
    """The first 16 lines × 32 steps, or what there is of them, as one tile; lines or steps are contiguous."""
    if step == 1:
        if as_columns:
            _pack_along_transposed(target, source, line_stride, lines, depth)
        else:
            _pack_along(target, source, line_stride, lines, depth)
    elif as_columns:
        _pack_across(target, source, step, depth, lines)
    else:
        _pack_across_transposed(target, source, step, depth, lines)


@kernel
def _pack_one(source, line_stride, step, lines, depth, as_columns, target, square):
    """The same for any strides: numbers that have no neighbours are brought together in `square` first."""
    if step == 1 or line_stride == 1:
        _pack_lines(source, line_stride, step, lines, depth, as_columns, target)
    else:
        for i in range(min(16, lines)):
            for k in range(min(32, depth)):
                square[i * 32 + k] = as_number(source[i * line_stride + k * step])
        _pack_lines(square, 32, 1, lines, depth, as_columns, target)


@kernel
def pack_tiles(source, line_stride, step, lines, depth, as_columns, packed, square):
    """Lines (rows of a or columns of b) × depth → [pair of line tiles][line tile][step tile][tile]."""
    steps = -(-depth // 32)
    tiles = -(-lines // SQUARE) * 2
    if step == 1:
        for line in range(tiles):
            for k in range(steps):
                corner = shift(source, line * LINES * line_stride + k * 32)
                target = shift(packed, (line * steps + k) * tile_numbers(packed))
                _pack_one(corner, line_stride, 1, lines - line * LINES, depth - k * 32, as_columns, target, square)
    else:
        for k in range(steps):  # neighbours in memory are lines here
            for line in range(tiles):
                corner = shift(source, line * LINES * line_stride + k * 32 * step)
                target = shift(packed, (line * steps + k) * tile_numbers(packed))
                _pack_one(corner, line_stride, step, lines - line * LINES, depth - k * 32, as_columns, target, square)


@kernel
def _lies_in_tiles(a, K):
    """Whether tiles of a (…, K) can be loaded from where it lies: bfloat16, its rows beginning with lines of the cache.

    Rows that are a multiple of 2 KB apart are packed all the same, as they would evict each other.
    """
    rows = a.column == 1 and a.row % 32 == 0 and a.row % 1024 != 0
    return is_narrow(a.start) and rows and K % 32 == 0 and _address(a.start) % 64 == 0


@kernel
def _as_tiles(a, M, K, in_place, packed, scratch):
    """a (M, K) as `Tiles`: where it lies, if whole tiles do, else packed."""
    if in_place and M % SQUARE == 0:
        return Tiles(_pairs(a.start), LINES * a.row // 2, PAIRS, a.row // 2)
    pack_tiles(a.start, a.row, a.column, M, K, False, packed, scratch)
    return Tiles(packed, count_steps(K) * TILE, TILE, PAIRS)


@kernel
def count_steps(K):
    """How many tiles a sum of K terms takes."""
    return -(-K // 32)


@kernel
def widest(K, epilogue):
    """How many columns of b are worked on at a time.

    Where a sum has one block, a is packed once for all of them, and there may be as many as can be packed. An epilogue
    needs the whole sum, so all of their b must be packed together.
    """
    fitting = min(WIDEST, B_NUMBERS // (32 * count_steps(K)) // SQUARE * SQUARE)
    if K <= DEPTH:
        return fitting
    return WIDTH if epilogue == NOTHING else min(WIDTH, fitting)


WORKSPACE = WIDEST + 2 * SQUARE * SQUARE + GROUP * WIDTH + (GROUP * DEPTH + B_NUMBERS) // 2


@kernel
def blocks_packed(K, M, wide):
    """How many blocks of DEPTH terms of b (K, wide) are packed at a time for a product of M rows.

    As many as fit: `out` is read and written once for each lot, and would come from memory at more than the price of
    the products. One, where all rows of `out` fit into the cache beside it.
    """
    blocks = -(-K // DEPTH)
    if 32 * count_steps(K) * wide <= B_NUMBERS:
        return blocks
    return 1 if M * wide <= KEPT else B_NUMBERS // (DEPTH * wide)


@kernel
def add(a, b, out, M, N):
    """out = a + b, number by number, rounded where `out` is bfloat16."""
    for i in range(M):
        for j in range(N):
            total = a.start[i * a.row + j * a.column] + b.start[i * b.row + j * b.column]
            out.start[i * out.row + j * out.column] = as_stored(total, out.start)


@kernel
def _block(a, b, start, out, M, N, K, workspace, epilogue, u, side):
    """out (M, N) = start + a @ b by one thread, for N of at most `widest`; or only what the epilogue makes of it.

    What `blocks_packed` says of b is packed first, and then for each group of rows so much of a. Blocks depend on K
    alone, and with them the order of sums.
    """
    scratch = shift(workspace, WIDEST)
    sums = Matrix(shift(scratch, 2 * SQUARE * SQUARE), WIDTH, 1)
    packed_a = shift(sums.start, GROUP * WIDTH)
    packed_b = shift(packed_a, GROUP * DEPTH // 2)
    wide = -(-N // SQUARE) * SQUARE
    blocks = -(-K // DEPTH)
    slab, in_place = blocks_packed(K, M, wide), _lies_in_tiles(a, K)
    for first in range(0, blocks, slab):
        last = min(first + slab, blocks)
        begin, _ = share(K, 32, first, blocks)
        for block in range(first, last):
            k, depth = share(K, 32, block, blocks)
            panels = shift(packed_b, (k - begin) * wide // 2)
            pack_tiles(at(b, k, 0).start, b.column, b.row, N, depth, True, panels, scratch)
        for group in range(0, M, GROUP):
            rows = min(GROUP, M - group)
            base, target = at(start, group, 0), at(out, group, 0)
            for block in range(first, last):
                k, depth = share(K, 32, block, blocks)
                steps, final = count_steps(depth), block == blocks - 1
                tiles = _as_tiles(at(a, group, k), rows, depth, in_place, packed_a, scratch)
                for j in range(0, N, WIDTH):
                    columns = min(WIDTH, N - j)
                    source, goal, result = at(base, 0, j), at(target, 0, j), at(u, group, j)
                    if epilogue != NOTHING:
                        goal = sums
                        source = at(start, group, j) if block == 0 else sums
                    panels = shift(packed_b, (k - begin) * wide // 2 + j * steps * PAIRS)
                    if epilogue == ROUNDED and final:
                        multiply_group(tiles, panels, steps, source, result, rows, columns, scratch)
                    else:
                        multiply_group(tiles, panels, steps, source, goal, rows, columns, scratch)
                        if epilogue != NOTHING and final:
                            finish(epilogue, sums, result, at(side, group, j), rows, columns)
                base = target
        start = out


@kernel
def multiply_group(a, b, steps, start, out, M, N, sums):
    """out (M, N) = start + a @ b, for a as `Tiles` and b packed.

    The sums of a square leave the tiles for one of two scratches, and are added to `start` while the next square is
    multiplied: `out` comes from far away, and waiting for it takes as long as multiplying. (They could not be stored
    directly, as nobody aligns `out`, and a tile that lies across cache lines takes five times as long.)

    Of operands in parts, totals are left behind the two scratches, one for each square, and where one is NaN, nothing
    is written to `out`.
    """
    other, total = shift(sums, SQUARE * SQUARE), shift(sums, 2 * SQUARE * SQUARE)
    source, target, rows = start, out, 0
    for i in range(0, M, SQUARE):
        for j in range(0, N, SQUARE):
            panel_a, panel_b = shift(a.start, i // LINES * a.lines), shift(b, j * steps * tile_numbers(b) // LINES)
            multiply_square(panel_a, a.lines, a.step, a.row, panel_b, steps, sums, total, source.start, source.row,
                            other, target.start, target.row, rows)  # fmt: skip
            source, target = at(start, i, j), at(out, i, j)
            whole = min(M - i, N - j) >= SQUARE and source.column == target.column == 1
            fit = not is_in_parts(b) or total[0] == total[0]
            if fit and not whole:
                add(source, Matrix(sums, SQUARE, 1), target, min(SQUARE, M - i), min(SQUARE, N - j))
            rows = -(-SQUARE // steps) if fit and whole else 0
            sums, other, total = other, sums, shift(total, 1)
    if rows:
        add_square(source.start, source.row, other, target.start, target.row)


@kernel
def _work(work, worker):
    """Take tasks until there are none (see matmul.py)."""
    workspace = pointer(work.workspace[worker])
    width = widest(work.K, work.epilogue)
    configure_tiles(workspace)
    while True:
        task = next_task(work.counters, worker, work.batches * work.M_parts * work.N_parts)
        if task < 0:
            break
        batch, part = divmod(task, work.M_parts * work.N_parts)
        i, rows = share(work.M, SQUARE, part // work.N_parts, work.M_parts)
        j, columns = share(work.N, SQUARE, part % work.N_parts, work.N_parts)
        for left in range(j, j + columns, width):
            a, b, start, out = operands(work, workspace, 1, batch, i, left)
            u, side = at(work.u, i, left), at(work.side, i, left)
            columns_here = min(width, j + columns - left)
            _block(a, b, start, out, rows, columns_here, work.K, workspace, work.epilogue, u, side)
    release_tiles(workspace)


@kernel
def in_squares(a, b, start, out, u, side, batch_axes, epilogue, counters, workspace, clocks_tile, clocks_pack):
    """The product as `Work` whose tasks consist of squares of `out`, planned by what these and their packing take."""
    (M, K), N = a.shape, b.shape[1]
    batches = count_batches(batch_axes)
    down, across = -(-M // SQUARE), -(-N // SQUARE)
    M_parts, N_parts = plan(down, across, batches, len(workspace), clocks_tile, clocks_pack, clocks_pack)
    return Work(
        matrix(a), matrix(b), repeated(start), matrix(out), matrix(u), matrix(side), M, K, N, batch_axes, batches,
        start.size > 0, epilogue, False, counters, workspace, M_parts, N_parts,
    )  # fmt: skip


def program(shared_type: str) -> tuple[Callable, Callable]:
    """(multiply, work) for `Product`; where there is an epilogue `out` is not written."""

    def work(arguments, worker):
        _work(load(arguments, shared_type), worker)

    def multiply(a, b, start, out, u, side, batch_axes, epilogue, work, counters, workspace, slot):
        if between_numbers(a) or between_numbers(b) or between_numbers(start) or between_numbers(out):
            return False
        shared = in_squares(a, b, start, out, u, side, batch_axes, epilogue, counters, workspace, CLOCKS_TILE,
                            CLOCKS_PACK)  # fmt: skip
        small = shared.batches * shared.M * shared.N * shared.K < SMALL
        run(work, save(shared, shared_type, slot), 1 if small else len(workspace), counters, slot)
        return True

    return multiply, work


@functools.cache
def _product(a: type, b: type) -> Product:
    """The program for operands of these types: np.float32, or np.uint16 for the bits of bfloat16."""
    if not amx_available():  # which also asks the system for permission
        raise RuntimeError("products of bfloat16 arrays need a processor with AMX; use float32 arrays here")
    return Product(program, WORKSPACE, a, b, np.float32, np.uint16)


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 → the nearest numbers that bfloat16 has, ties to even, as float32. NaN stays NaN."""
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


def matmul_bf16(
    a: np.ndarray,
    b: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    out: np.ndarray | None = None,
    onto: np.ndarray | None = None,
) -> np.ndarray:
    """`matmul` of float32 arrays that are rounded to bfloat16 first; sums, bias, `onto` and result are float32.

    Arguments, result and errors are those of `matmul`. Products with a vector are bound by memory, gain nothing
    from rounding, and are done in float32. Bits are the same for any number of threads.
    """
    if a.dtype != np.float32 or b.dtype != np.float32:
        raise TypeError(f"matmul_bf16 rounds float32 arrays, got {a.dtype} and {b.dtype}; convert with astype")
    rows = math.prod(a.shape[:-1]) if b.ndim == 2 else a.shape[-2:][0]
    if rows == 1 or b.shape[-1:] == (1,):
        return multiply_with(product_of(a.dtype), a, b, bias, out, onto)
    if not amx_available():
        settle()
        return multiply_with(product_of(a.dtype), round_to_bfloat16(a), round_to_bfloat16(b), bias, out, onto)
    return multiply_with(_product(np.float32, np.float32), a, b, bias, out, onto)


def narrow_products(a: np.ndarray, weight: np.ndarray) -> bool:
    """Whether `matmul` would round a (N, K) and weight (M, K) for their product, and an epilogue can follow it."""
    rounds = matmul_precision.current == "bfloat16" and amx_available()
    return rounds and a.dtype == weight.dtype == np.float32 and len(a) > 1 and len(weight) > 1 and a.shape[1] <= LONGEST


def matmul_narrow(
    a: np.ndarray, b: np.ndarray, *, bias: np.ndarray | None = None, onto: np.ndarray | None = None,
    epilogue: int = NOTHING, sides: tuple | None = None,
) -> np.ndarray:  # fmt: skip
    """`matmul` of a (M, K) and b (K, N) on AMX tiles, each of them float32, or bfloat16 already (its bits, uint16).

    Returns float32 (M, N); with an epilogue (see epilogue.py) nothing is written but its `sides`.
    """
    out = None
    if epilogue != NOTHING:  # one number stands for the whole of a result that is nowhere written
        out = np.ndarray((len(a), b.shape[1]), np.float32, bytearray(4), strides=(0, 0))
    return multiply_with(_product(a.dtype.type, b.dtype.type), a, b, bias, out, onto, epilogue, sides)


def rounded_product(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """`matmul_narrow` with its result rounded to bfloat16, too: (M, N), uint16."""
    out = empty((len(a), b.shape[1]), np.uint16)
    matmul_narrow(a, b, bias=bias, epilogue=ROUNDED, sides=(out, out))
    return out


class matmul_precision:
    """Set what `matmul` does with float32 arrays: multiply them in "float32" (the default) or in "bfloat16".

    It holds from the call on, in all threads; as a context manager, until the end of the block:

    >>> with matmul_precision("bfloat16"):
    ...     train()

    Where the processor has no AMX, "bfloat16" warns once and changes nothing. Raises ValueError for other names.
    """

    current = "float32"

    def __init__(self, precision: str) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f'the precision of a matmul is "float32" or "bfloat16", got {precision!r}')
        self._before = matmul_precision.current
        self._set(precision)

    @staticmethod
    def _set(precision: str) -> None:
        matmul_precision.current = precision
        if precision == "bfloat16" and not amx_available():
            warnings.warn("no AMX here: matrix products stay in float32", RuntimeWarning, stacklevel=3)
        use_for_float32(matmul_bf16 if precision == "bfloat16" and amx_available() else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._set(self._before)
