"""Products of float32 matrices on AMX tiles, which multiply bfloat16: numbers go in as three.

A float32 has 24 bits and a bfloat16 has 8 of the same range. So a number is the sum of three, each the next 8 bits of
it, and a product is the sum of nine products of parts, which are exact:

    x = h + m + l          |m| ≤ 2⁻⁸·|x|,  |l| ≤ 2⁻¹⁷·|x|  (h and m are rounded to the nearest)
    x·y ≈ h·l′ + h·m′ + m·m′ + m·h′ + l·h′ + h·h′      in this order: neighbours share a part, the largest comes last

The three that are left out (m·l', l·m', l·l') are hardly more than 2⁻²⁴·|x·y| together, what rounding one product to
float32 may cost. Sums are float32, as on vectors, but shorter: 16 terms at a time, which are then added. The result is
closer to the true one than that of `matmul.py`. Six products of tiles take 384 clocks for 32 × 32 × 32, vectors 1024.

Packing costs three times as much as for vectors, so small products stay there: `product_for` in `matmul.py` decides.

What tiles cannot do: they take parts below 2⁻¹²⁶ for zero, so numbers below 2⁻¹¹⁰ lose digits, and they give NaN for
infinite numbers, whose parts there are none of. Squares of `out` where that shows are computed number by number.

Packing and the tiles are those of `bfloat16.py`; a pointer to int32 says that each tile is three there. Source of the
idea: Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
Computations", 2019.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from .bfloat16 import (
    PAIRS,
    PARTS,
    SQUARE,
    TILE,
    Tiles,
    amx_available,
    as_parts,
    configure_tiles,
    count_steps,
    in_squares,
    multiply_group,
    pack_tiles,
    release_tiles,
)
from .epilogue import NOTHING, finish
from .ir import pointer, shift
from .jit import kernel
from .matmul import Product
from .matrix import at, between_numbers, operands
from .tasks import load, next_task, run, save, share

__all__ = ["split_product"]

DEPTH = 256
WIDTH = 512
GROUP = 4 * SQUARE
STEP = PARTS * TILE  # numbers of 32 bits in 16 lines × 32 terms, packed
CLOCKS_TILE, CLOCKS_PACK = 12, 24  # per k: 24 multiplications of tiles are 384 for 32; packing 32 numbers
SMALL = 2**19  # multiply-adds that aren't worth a second thread
SQUARES = GROUP * WIDTH // SQUARE**2  # in a group
WORKSPACE = WIDTH + 2 * SQUARE * SQUARE + SQUARES + PARTS * (GROUP + WIDTH) * DEPTH // 2


@kernel
def _multiply_numbers(a, b, start, out, M, N, K):
    """out = start + a @ b, one number after the other."""
    for i in range(M):
        for j in range(N):
            total = start.start[i * start.row + j * start.column]
            for k in range(K):
                total += a.start[i * a.row + k * a.column] * b.start[k * b.row + j * b.column]
            out.start[i * out.row + j * out.column] = total


@kernel
def _block(a, b, start, out, M, N, K, workspace, epilogue, u, side):
    """out (M, N) = start + a @ b by one thread, for N of at most WIDTH; and what the epilogue makes of it."""
    sums = shift(workspace, WIDTH)
    totals = shift(sums, 2 * SQUARE * SQUARE)
    packed_a = as_parts(shift(totals, SQUARES))
    packed_b = shift(packed_a, PARTS * GROUP * DEPTH // 2)
    blocks = -(-K // DEPTH)
    for block in range(blocks):
        k, depth = share(K, 32, block, blocks)
        steps = count_steps(depth)
        pack_tiles(at(b, k, 0).start, b.column, b.row, N, depth, True, packed_b, sums)
        for group in range(0, M, GROUP):
            rows = min(GROUP, M - group)
            pack_tiles(at(a, group, k).start, a.row, a.column, rows, depth, False, packed_a, sums)
            source, target = at(start, group, 0), at(out, group, 0)
            tiles = Tiles(packed_a, steps * STEP, STEP, PAIRS)
            multiply_group(tiles, packed_b, steps, source, target, rows, N, sums)
            across = -(-N // SQUARE)
            for square in range(-(-rows // SQUARE) * across):
                if totals[square] != totals[square]:
                    i, j = square // across * SQUARE, square % across * SQUARE
                    _multiply_numbers(at(a, group + i, k), at(b, k, j), at(source, i, j), at(target, i, j),
                                      min(SQUARE, rows - i), min(SQUARE, N - j), depth)  # fmt: skip
            if epilogue != NOTHING and block == blocks - 1:
                finish(epilogue, at(out, group, 0), at(u, group, 0), at(side, group, 0), rows, N)
        start = out


@kernel
def _work(work, worker):
    """Take tasks until there are none (see matmul.py)."""
    workspace = pointer(work.workspace[worker])
    configure_tiles(workspace)
    while True:
        task = next_task(work.counters, worker, work.batches * work.M_parts * work.N_parts)
        if task < 0:
            break
        batch, part = divmod(task, work.M_parts * work.N_parts)
        i, rows = share(work.M, SQUARE, part // work.N_parts, work.M_parts)
        j, columns = share(work.N, SQUARE, part % work.N_parts, work.N_parts)
        for left in range(j, j + columns, WIDTH):
            a, b, start, out = operands(work, workspace, 1, batch, i, left)
            u, side = at(work.u, i, left), at(work.side, i, left)
            _block(a, b, start, out, rows, min(WIDTH, j + columns - left), work.K, workspace, work.epilogue, u, side)
    release_tiles(workspace)


def program(shared_type: str) -> tuple[Callable, Callable]:
    """(multiply, work) for `Product`."""

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
def split_product() -> Product | None:
    """The program; None where the processor has no AMX."""
    if not amx_available():
        return None
    number = np.float32
    return Product(program, WORKSPACE, number, number, number, number)
