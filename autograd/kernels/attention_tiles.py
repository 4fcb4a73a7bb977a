"""Attention with its products on AMX tiles, which multiply bfloat16: softmax and all sums stay in float32.

What is multiplied is rounded to bfloat16 (see `bfloat16.py`), or goes in as three parts that hold all of a float32's
digits (`split.py`): q, k, v and dout, and of what is made on the way the weights p and the gradients ds of the scores.
The formulas are those of `attention.py`; what is different is what counts. Tiles multiply 16 times faster than vectors
(in parts 2.7 times), so the products take a third of the time, and the exponential, the rounding and the packing the
rest. Three ideas keep it short:

1.  **Scores are made transposed**, Sᵀ = K Qᵀ: keys are rows, queries lie in the lanes of vectors. Largest scores,
    sums, log-sum-exps and δ are then vectors with a lane per query, and nothing is ever reduced across lanes.
2.  **A block of 32 × 32 scores becomes tiles where it is made.** Two vectors, 32 queries of one key, round to one row
    of a tile of Pᵀ, the left operand of dV = Pᵀ dO (and dK = dSᵀ Q). Two such rows, their numbers in turn, are one row
    of a right operand, which wants pairs along the sum: outᵀ = Vᵀ Pᵀ (and dQᵀ = Kᵀ dSᵀ).
3.  **Blocks are gathered to chunks** of `CHUNK` keys (backward, by as many queries), so that sums go over up to eight
    tiles before they leave the tile registers. A chunk of a model with T ≤ 256 is the whole head.

                          left operand, tiles of 16 rows × 32            right operand, tiles of 32 × 16 columns
    forward     Sᵀ        K    keys × D        packed once a head        Qᵀ   D × queries        packed once a block
                outᵀ      Vᵀ   D × keys        packed once a head        Pᵀ   keys × queries     made
    backward    Sᵀ, dPᵀ   K, V keys × D        once a head               Qᵀ, dOᵀ                 once a chunk
                dV, dK    Pᵀ, dSᵀ              made                      dO, Q   queries × D     once a chunk
                dQᵀ       Kᵀ   D × keys        once a head               dSᵀ  keys × queries     made

Accuracy: each factor is wrong by at most 2⁻⁸ of its value. A score is then wrong by 2⁻⁷·scale·Σ|q·k|, its weight
relatively by as much, and the result by that and by 2⁻⁷ of Σ p·|v|. Decoding (a query or two) has no use for tiles and
stays in float32.

In parts all that is as accurate as on vectors. Queries are scaled before they are split, so that the largest score less
itself is zero. A pair is two numbers 16 places apart instead of neighbours, as for any product in parts, so nothing is
`unpack`ed. Numbers below 2⁻¹¹⁰ lose digits. Infinite ones have no parts: `_take_note` finds NaN, vectors do it again.

Left out: float64, and the AVX-512 instruction for bfloat16 on processors that have no tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic

from .attention_parts import LOG2_E, at, heads, pack, round_up, row_products, unpack
from .bfloat16 import (
    LINES,
    PARTS,
    SQUARE,
    TILE,
    _pack_across,
    _pack_across_transposed,
    _pack_along,
    _pack_along_transposed,
    as_parts,
    configure_tiles,
    in_parts,
    is_in_parts,
    multiply_step,
    products_of,
    release_tiles,
    tile_numbers,
)
from .elementary import constant, emit_exp2, log, use_widest_vectors
from .ir import INT, TileEmitter, emitted, pointer, shift
from .jit import kernel
from .random import random_bits
from .tasks import load, next_task

__all__ = ["rounded", "split"]

CHUNK = 256  # keys, and in the backward pass queries, whose weights are kept as tiles before they are multiplied
CHUNK_IN_PARTS = 64  # as tiles in parts take three times the room, and are to be loaded from the first-level cache
BLOCK = SQUARE * SQUARE  # scores that are made at a time


# --- what is emitted ---


@intrinsic
def _multiply(typingctx, a, a_next, b, b_next, steps, out, out_row, accumulate):
    """out (32, 32) = a @ b, plus what is in out with `accumulate`.

    a and b are two rows of `steps` tiles, the second begins `a_next` or `b_next` further on. Everything begins with a
    cache line.
    """
    products, size = products_of(a), PARTS * TILE if in_parts(a) else TILE

    def body(e, a, a_next, b, b_next, steps, out, out_row, accumulate):
        sums = ((0, 1), (2, 3))
        corners = [(sums[i][j], e.at(e.at(out, e.builder.mul(out_row, INT(i * LINES))), j * LINES))
                   for i in range(2) for j in range(2)]  # fmt: skip
        with e.builder.if_else(accumulate) as (then, otherwise):
            with then:
                for tile, corner in corners:
                    e.load_tile(tile, corner, out_row)
            with otherwise:
                for tile, _ in corners:
                    e.zero_tile(tile)
        with e.loop(steps, [a, b]) as carried:
            a, b = carried
            multiply_step(e, products, sums, [a, e.at(a, a_next)], INT(LINES), [b, e.at(b, b_next)])
            carried[:] = e.at(a, size), e.at(b, size)
        for tile, corner in corners:
            e.store_tile(tile, corner, out_row)

    i = types.intp
    signature = types.void(a, i, b, i, i, out, i, types.boolean)
    return signature, emitted(f"attention.multiply.{len(products)}", body, emitter=TileEmitter, like=5)


def _two(e, start):
    """The two vectors of 32 queries."""
    return [e.load(e.at(start, v * e.lanes)) for v in range(2)]


def _queries(e, part, parted):
    """Which of 32 queries are the columns of the first or the second tile of a right operand."""
    return list(range(part * e.lanes, (part + 1) * e.lanes)) if parted else e.unpacked(part)


def _in_columns(e, vectors, parted):
    """Two vectors of queries in the order of these columns."""
    return vectors if parted else [e.shuffle(*vectors, e.unpacked(part)) for part in range(2)]


def _parts(e, vectors, parted):
    """Vectors as they are paired: split, or still whole."""
    return [e.split(x) if parted else x for x in vectors]


def _row_of_left(e, numbers, parted):
    """The row, of each part, that 32 queries of one key make of a left operand: pairs along them."""
    return list(map(e.pair, *numbers)) if parted else [e.round_pair(*numbers)]


def _rows_of_right(e, first, second, parted):
    """The row, of each part, that 32 queries of two keys make of each tile of a right operand: pairs of the keys."""
    if parted:
        return [list(map(e.pair, x, y)) for x, y in zip(first, second, strict=True)]
    return [[row] for row in e.unpack(e.round_pair(*first), e.round_pair(*second))]


def _pairing(tiles):
    """How far apart the two keys of a pair are, how many keys the next pair is further on, and the size of a tile."""
    return (LINES, 1, PARTS * TILE) if in_parts(tiles) else (1, 2, TILE)


def _store_parts(e, vectors, target):
    for part, vector in enumerate(vectors):
        e.store(vector, e.at(target, part * TILE))


@intrinsic
def _hide(typingctx, scores, seen, keys):
    """Of a block (32 keys, 32 queries), what is not seen becomes −∞: query i sees the first min(keys, seen + i)."""

    def body(e, scores, seen, keys):
        builder, int32 = e.builder, llvm.IntType(32)
        numbers = llvm.VectorType(int32, e.lanes)

        def everywhere(number):
            first = builder.insert_element(llvm.Constant(numbers, llvm.Undefined), number, int32(0))
            return e.shuffle(first, first, [0] * e.lanes)

        lowest, keys = constant(e.vector, -np.inf), everywhere(builder.trunc(keys, int32))
        visible = []
        for v in range(2):
            lanes = llvm.Constant(numbers, list(range(v * e.lanes, (v + 1) * e.lanes)))
            seen_here = builder.add(everywhere(builder.trunc(seen, int32)), lanes)
            visible.append(builder.select(builder.icmp_signed("<", keys, seen_here), keys, seen_here))
        with e.loop(INT(SQUARE), [scores, int32(0)]) as carried:
            scores, key = carried
            for v in range(2):
                place = e.at(scores, v * e.lanes)
                shown = builder.icmp_signed("<", everywhere(key), visible[v])
                e.store(builder.select(shown, e.load(place), lowest), place)
            carried[:] = e.at(scores, SQUARE), builder.add(key, int32(1))

    i = types.intp
    return types.void(scores, i, i), emitted("attention.hide_block", body, emitter=TileEmitter)


@intrinsic
def _new_maxima(typingctx, scores, blocks, state, scale, sums, width, first, tiles):
    """32 queries meet `blocks` blocks of scores: m becomes the largest so far; l and sums shrink by 2^(m before − m).

    `state` holds m and l, two vectors each; `sums` (width, 32) has its queries in the order of columns of such `tiles`.
    Before the `first` block there is nothing yet.
    """
    unroll, parted = 4, in_parts(tiles)

    def body(e, scores, blocks, state, scale, sums, width, first, _):
        builder = e.builder
        larger = lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y)
        before = [builder.select(first, constant(e.vector, -np.inf), m) for m in _two(e, state)]
        with e.loop(builder.mul(blocks, INT(SQUARE // unroll)), [scores, *before * unroll]) as carried:
            start, *m = carried
            m = [larger(score, largest) for row in range(unroll)
                 for score, largest in zip(_two(e, e.at(start, row * SQUARE)), m[2 * row:2 * row + 2], strict=True)]
            carried[:] = [e.at(start, unroll * SQUARE), *m]
        m = carried[1:]
        while len(m) > 2:
            m = [larger(x, y) for x, y in zip(m[:len(m) // 2], m[len(m) // 2:], strict=True)]
        total = e.at(state, SQUARE)
        scale = e.broadcast(scale)
        for v in range(2):
            e.store(m[v], e.at(state, v * e.lanes))
        with builder.if_else(first) as (then, otherwise):
            with then:
                for v in range(2):
                    e.store(e.zero(), e.at(total, v * e.lanes))
            with otherwise:
                shrink = [emit_exp2(builder, builder.fmul(builder.fsub(x, y), scale))
                          for x, y in zip(before, m, strict=True)]
                for v, (l, factor) in enumerate(zip(_two(e, total), shrink, strict=True)):
                    e.store(builder.fmul(l, factor), e.at(total, v * e.lanes))
                shrink = _in_columns(e, shrink, parted)
                with e.loop(width, [sums]) as carried:
                    for v, (x, factor) in enumerate(zip(_two(e, carried[0]), shrink, strict=True)):
                        e.store(builder.fmul(x, factor), e.at(carried[0], v * e.lanes))
                    carried[:] = [e.at(carried[0], SQUARE)]

    i = types.intp
    signature = types.void(scores, i, state, scale, sums, i, types.boolean, tiles)
    return signature, emitted(f"attention.new_maxima.{parted}", body, emitter=TileEmitter)


@intrinsic
def _weigh(typingctx, scores, blocks, scale, keep, keep_row, state, packed, packed_next):
    """Scores become weights p = 2^(scale·(score − m)), which are added to l, multiplied by `keep`, rounded and packed.

    `packed` is a right operand: two rows of tiles, for two times 16 queries.
    """
    parted, (apart, step, size) = in_parts(packed), _pairing(packed)

    def body(e, scores, blocks, scale, keep, keep_row, state, packed, packed_next):
        builder = e.builder
        scale, total = e.broadcast(scale), e.at(state, SQUARE)
        bias = [builder.fneg(builder.fmul(m, scale)) for m in _two(e, state)]
        start = [*_two(e, total), e.zero(), e.zero()]
        with e.loop(blocks, [scores, keep, packed, *start]) as outer:
            block, block_kept, tile, *l = outer
            with e.loop(INT(LINES), [block, block_kept, tile, *l]) as inner:
                score, kept, target, *l = inner
                rows = []
                for row in range(2):
                    numbers = _two(e, e.at(score, row * apart * SQUARE))
                    keeps = _two(e, e.at(kept, builder.mul(keep_row, INT(row * apart))))
                    p = [emit_exp2(builder, e.fma(s, scale, b)) for s, b in zip(numbers, bias, strict=True)]
                    l[2 * row:2 * row + 2] = map(e.add, l[2 * row:2 * row + 2], p)
                    rows.append(_parts(e, map(builder.fmul, p, keeps), parted))
                first, second = _rows_of_right(e, *rows, parted)
                _store_parts(e, first, target)
                _store_parts(e, second, e.at(target, packed_next))
                inner[:] = [e.at(score, step * SQUARE), e.at(kept, builder.mul(keep_row, INT(step))),
                            e.at(target, LINES), *l]  # fmt: skip
            kept = e.at(block_kept, builder.mul(keep_row, INT(SQUARE)))
            outer[:] = [e.at(block, BLOCK), kept, e.at(tile, size), *inner[3:]]
        l = outer[3:]
        for v in range(2):
            e.store(e.add(l[v], l[v + 2]), e.at(total, v * e.lanes))

    i = types.intp
    signature = types.void(scores, i, scale, keep, i, state, packed, i)
    return signature, emitted(f"attention.weigh.{parted}", body, emitter=TileEmitter)


@intrinsic
def _weigh_gradients(typingctx, scores, dp, scale, keep, keep_row, lse, delta, p_left, ds_left, left_next, ds_right,
                     right_next):
    """A block of scores and of dp = dout·v becomes p = 2^(scale·score − lse) and ds = p·(keep·dp − delta) as tiles.

    `p_left` (keep·p) and `ds_left` are left operands (one tile for 16 keys, the next `left_next` further on),
    `ds_right` a right one (one tile for 16 queries). `lse` counts in units of log 2.
    """
    parted, (apart, step, _) = in_parts(ds_right), _pairing(ds_right)
    pairs = LINES // step  # in the left operand's tile of 16 keys

    def body(e, scores, dp, scale, keep, keep_row, lse, delta, p_left, ds_left, left_next, ds_right, right_next):
        builder = e.builder
        scale, delta = e.broadcast(scale), _two(e, delta)
        bias = [builder.fneg(x) for x in _two(e, lse)]
        with e.loop(INT(step), [scores, dp, keep, p_left, ds_left, ds_right]) as outer:
            _, _, _, p_tile, ds_tile, _ = outer
            with e.loop(INT(pairs), list(outer)) as inner:
                score, dweight, kept, p_row, ds_row, target = inner
                other = left_next if parted else INT(LINES)  # where the left operand has the second key
                rows = []
                for row in range(2):
                    at = lambda start, row=row: e.at(start, row * apart * SQUARE)
                    keeps = _two(e, e.at(kept, builder.mul(keep_row, INT(row * apart))))
                    p = [emit_exp2(builder, e.fma(s, scale, b)) for s, b in zip(_two(e, at(score)), bias, strict=True)]
                    dropped = map(builder.fmul, _two(e, at(dweight)), keeps)
                    ds = _parts(e, map(builder.fmul, p, map(builder.fsub, dropped, delta)), parted)
                    rows.append(ds)
                    for numbers, start in ((_parts(e, map(builder.fmul, p, keeps), parted), p_row), (ds, ds_row)):
                        _store_parts(e, _row_of_left(e, numbers, parted), e.at(start, other) if row else start)
                first, second = _rows_of_right(e, *rows, parted)
                _store_parts(e, first, target)
                _store_parts(e, second, e.at(target, right_next))
                inner[:] = [e.at(score, step * SQUARE), e.at(dweight, step * SQUARE),
                            e.at(kept, builder.mul(keep_row, INT(step))), e.at(p_row, step * LINES),
                            e.at(ds_row, step * LINES), e.at(target, LINES)]  # fmt: skip
            score, dweight, kept, _, _, target = inner
            outer[:] = [score, dweight, kept, e.at(p_tile, left_next), e.at(ds_tile, left_next), target]

    i = types.intp
    signature = types.void(scores, dp, scale, keep, i, lse, delta, p_left, ds_left, i, ds_right, i)
    return signature, emitted(f"attention.weigh_gradients.{parted}", body, emitter=TileEmitter)


@intrinsic
def _write_transposed(typingctx, sums, factors, out, out_row, rows, D, tiles):
    """out (rows of 32, D) = factors · sumsᵀ; sums (D padded, 32), factors (32) have queries in the order of columns."""
    kind, parted = llvm.IntType(16) if out.dtype == types.uint16 else llvm.FloatType(), in_parts(tiles)

    def body(e, sums, factors, out, out_row, rows, D, _):
        builder = e.builder
        tiles = builder.sdiv(builder.add(D, INT(e.lanes - 1)), INT(e.lanes))
        factors = _two(e, factors)
        with e.loop(tiles, [sums, out, D]) as carried:
            sums, target, columns = carried
            mask = e.first(columns)
            for part in range(2):
                place = lambda d, part=part: e.at(sums, d * SQUARE + part * e.lanes)
                vectors = [builder.fmul(e.load(place(d)), factors[part]) for d in range(e.lanes)]
                for row, vector in zip(_queries(e, part, parted), e.transpose(vectors), strict=True):
                    with builder.if_then(builder.icmp_signed(">", rows, INT(row)), likely=True):
                        e.store_stored(vector, e.at(target, builder.mul(out_row, INT(row)), kind), mask, kind)
            carried[:] = [e.at(sums, e.lanes * SQUARE), e.at(target, e.lanes, kind), builder.sub(columns, INT(e.lanes))]

    i = types.intp
    signature = types.void(sums, factors, out, i, i, i, tiles)
    return signature, emitted(f"attention.write_transposed.{kind}.{parted}", body, emitter=TileEmitter)


@intrinsic
def _reciprocals(typingctx, state, target, tiles):
    """target (32) = 1 / l, queries in the order of columns."""
    parted = in_parts(tiles)

    def body(e, state, target, _):
        one = constant(e.vector, 1)
        for v, l in enumerate(_in_columns(e, _two(e, e.at(state, SQUARE)), parted)):
            e.store(e.builder.fdiv(one, l), e.at(target, v * e.lanes))

    return types.void(state, target, tiles), emitted(f"attention.reciprocals.{parted}", body, emitter=TileEmitter)


@intrinsic
def _take_note(typingctx, sums, blocks, note, tiles):
    """Of sums of parts: NaN among these blocks makes the number `note` NaN."""

    def body(e, sums, blocks, note, _):
        if not in_parts(tiles):
            return
        with e.loop(e.builder.mul(blocks, INT(SQUARE)), [sums, e.zero(), e.zero()]) as carried:
            row, x, y = carried
            carried[:] = e.at(row, SQUARE), e.add(x, e.load(row)), e.add(y, e.load(e.at(row, e.lanes)))
        total = e.builder.load(note, typ=e.number)
        e.builder.store(e.builder.fadd(total, e.sum(e.add(*carried[1:]))), note)

    emit = emitted(f"attention.take_note.{in_parts(tiles)}", body, emitter=TileEmitter)
    return types.void(sums, types.intp, note, tiles), emit


# --- packing ---


@kernel
def _tile(packed, number):
    """Where a tile begins, of those that lie one after the other."""
    return shift(packed, number * tile_numbers(packed))


@kernel
def _pack_rows(source, stride, rows, D, depth, packed):
    """(rows, D) → a left operand, [rows by 16][D by 32]; rows are padded to pairs of tiles."""
    for i in range(0, round_up(rows, SQUARE), LINES):
        for k in range(depth):
            corner = shift(source, i * stride + k * SQUARE)
            _pack_along(_tile(packed, i // LINES * depth + k), corner, stride, rows - i, D - k * SQUARE)


@kernel
def _pack_rows_transposed(source, stride, rows, D, depth, packed):
    """(rows, D) → its transpose as a right operand, [rows by 16][D by 32]; rows are padded to pairs of tiles."""
    for i in range(0, round_up(rows, SQUARE), LINES):
        for k in range(depth):
            corner, target = shift(source, i * stride + k * SQUARE), _tile(packed, i // LINES * depth + k)
            _pack_along_transposed(target, corner, stride, rows - i, D - k * SQUARE)


@kernel
def _pack_columns(source, stride, rows, D, steps, packed):
    """(rows, D) → a right operand, [D by 16, padded to pairs][rows by 32, of `steps`]."""
    for k in range(-(-rows // SQUARE)):
        for d in range(0, round_up(D, SQUARE), LINES):
            corner, target = shift(source, k * SQUARE * stride + d), _tile(packed, d // LINES * steps + k)
            _pack_across(target, corner, stride, rows - k * SQUARE, D - d)


@kernel
def _pack_columns_transposed(source, stride, rows, D, steps, packed):
    """(rows, D) → its transpose as a left operand, [D by 16, padded to pairs][rows by 32, of `steps`]."""
    for k in range(-(-rows // SQUARE)):
        for d in range(0, round_up(D, SQUARE), LINES):
            corner, target = shift(source, k * SQUARE * stride + d), _tile(packed, d // LINES * steps + k)
            _pack_across_transposed(target, corner, stride, rows - k * SQUARE, D - d)


@kernel
def _pack_queries(q, stride, rows, D, depth, scale, space, packed):
    """Queries, in parts multiplied by `scale` (in `space`), → qᵀ as a right operand."""
    if is_in_parts(packed):
        width = depth * SQUARE
        for i in range(0, rows, SQUARE):
            here, target = min(SQUARE, rows - i), _tile(packed, i // LINES * depth)
            pack(shift(q, i * stride), stride, space, width, here, D, width, scale)
            _pack_rows_transposed(space, width, here, D, depth, target)
    else:
        _pack_rows_transposed(q, stride, rows, D, depth, packed)


@kernel
def _keep(position, row_length, dropout, keep):
    """keep (32 keys, 32 queries): what a weight is multiplied by; that of query i, key j has the number
    `position + i·row_length + j`.
    """
    use_widest_vectors()
    key0, key1, threshold, keep_scale = dropout
    for j in range(SQUARE):
        for i in range(SQUARE):
            kept = random_bits(key0, key1, position + i * row_length + j) >= threshold
            keep[j * SQUARE + i] = keep_scale if kept else keep_scale - keep_scale


# --- one task: a key/value head with its query heads ---


def _forward_size(shape: tuple[int, ...], tile: int, chunk: int) -> int:
    """Numbers in a workspace of `forward`: the sum of what it lays out."""
    depth, key_steps = -(-shape[5] // SQUARE), -(-shape[4] // SQUARE)
    steps = chunk // SQUARE
    tiles = (4 * key_steps + 2) * depth + 2 * steps
    return LINES + (2 * steps + 2 * depth) * BLOCK + 3 * SQUARE + tiles * tile


def _backward_size(shape: tuple[int, ...], tile: int, chunk: int) -> int:
    """Numbers in a workspace of `backward`."""
    depth, key_steps = -(-shape[5] // SQUARE), -(-shape[4] // SQUARE)
    steps = chunk // SQUARE
    tiles = 6 * key_steps * depth + 8 * steps * depth + 4 * steps + 2 * steps * steps
    blocks = (2 * key_steps + steps + 1) * depth + 3
    return LINES + blocks * BLOCK + 2 * chunk + SQUARE + tiles * tile


@kernel
def _forward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, memory, tiles):
    """The tasks of one thread: out and lse of whole heads, or of parts of their queries."""
    B, H, K, Tq, Tk, D, parts = shape
    length = CHUNK_IN_PARTS if is_in_parts(tiles) else CHUNK
    steps = length // SQUARE  # of a chunk
    q, k, v, out = heads(places, 0, like), heads(places, 1, like), heads(places, 2, like), heads(places, 3, like)
    scale2, dropping = np.float32(scale * LOG2_E), dropout[2] > 0
    depth, key_steps, units = -(-D // SQUARE), -(-Tk // SQUARE), -(-Tq // SQUARE)
    scores = shift(memory, LINES)  # the first number is for notes
    keep = shift(scores, steps * BLOCK)
    sums = shift(keep, steps * BLOCK)
    space = shift(sums, depth * BLOCK)
    state = shift(space, depth * BLOCK)  # m, l
    factors = shift(state, 2 * SQUARE)
    tile = tile_numbers(tiles)
    keys = shift(tiles, LINES + (2 * steps + 2 * depth) * BLOCK + 3 * SQUARE)
    values = shift(keys, 2 * key_steps * depth * tile)
    queries = shift(values, 2 * key_steps * depth * tile)
    weights = shift(queries, 2 * depth * tile)
    scale_p = np.float32(1) if is_in_parts(tiles) else scale2  # queries in parts are scaled
    memory[0] = 0  # NaN if a sum is
    for i in range(SQUARE):
        keep[i] = 1  # one row for all keys, where nothing is dropped
    keep_row = SQUARE if dropping else 0
    configure_tiles(keys)
    while True:
        task = next_task(counters, worker, B * K * parts)
        if task < 0:
            break
        batch, kv, part = task // parts // K, task // parts % K, task % parts
        _pack_rows(at(k, batch, kv, 0), k.row, Tk, D, depth, keys)
        _pack_columns_transposed(at(v, batch, kv, 0), v.row, Tk, D, key_steps, values)
        for unit in range(part, H // K * units, parts):
            head, first = kv * (H // K) + unit // units, unit % units * SQUARE
            rows = min(SQUARE, Tq - first)
            row0 = (batch * H + head) * Tq + first  # rows are numbered for dropout and in lse
            _pack_queries(at(q, batch, head, first), q.row, rows, D, depth, scale2, space, queries)
            for chunk in range(0, min(Tk, first + rows - 1 + offset), length):
                blocks = -(-min(length, Tk - chunk, first + rows - 1 + offset - chunk) // SQUARE)
                for block in range(blocks):
                    j, target = chunk + block * SQUARE, shift(scores, block * BLOCK)
                    _multiply(shift(keys, j // LINES * depth * tile), depth * tile, queries, depth * tile, depth,
                              target, SQUARE, False)  # fmt: skip
                    if first + offset < j + SQUARE or Tk < j + SQUARE:
                        _hide(target, first + offset - j, Tk - j)
                    if dropping:
                        _keep(row0 * Tk + j, Tk, dropout, shift(keep, block * BLOCK))
                _new_maxima(scores, blocks, state, scale_p, sums, depth * SQUARE, chunk == 0, tiles)
                _weigh(scores, blocks, scale_p, keep, keep_row, state, weights, steps * tile)
                for d in range(depth):
                    _multiply(shift(values, (2 * d * key_steps + chunk // SQUARE) * tile), key_steps * tile,
                              weights, steps * tile, blocks, shift(sums, d * BLOCK), SQUARE, chunk > 0)  # fmt: skip
            _take_note(sums, depth, memory, tiles)
            _reciprocals(state, factors, tiles)
            _write_transposed(sums, factors, at(out, batch, head, first), out.row, rows, D, tiles)
            for i in range(rows):
                lse[row0 + i] = state[i] * scale_p + log(state[SQUARE + i]) * np.float32(LOG2_E)
    release_tiles(keys)


@kernel
def _backward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, memory, tiles):
    """The tasks of one thread: dq, and dk and dv of whole heads or what parts of their queries add to them."""
    B, H, K, Tq, Tk, D, parts = shape
    length = CHUNK_IN_PARTS if is_in_parts(tiles) else CHUNK
    steps = length // SQUARE  # of a chunk
    q, k, v, out = heads(places, 0, like), heads(places, 1, like), heads(places, 2, like), heads(places, 3, like)
    dout, dq, dk, dv = heads(places, 4, like), heads(places, 5, like), heads(places, 6, like), heads(places, 7, like)
    scale2, dropping = np.float32(scale * LOG2_E), dropout[2] > 0
    depth, key_steps = -(-D // SQUARE), -(-Tk // SQUARE)
    width = depth * SQUARE
    span = length if parts == 1 else 2 * SQUARE  # queries in one unit of work
    units = -(-Tq // span)
    dkeys = shift(memory, LINES)  # the first number is for notes
    dvalues = shift(dkeys, key_steps * depth * BLOCK)
    dqueries = shift(dvalues, key_steps * depth * BLOCK)
    space = shift(dqueries, steps * depth * BLOCK)
    scores = shift(space, depth * BLOCK)
    dweights = shift(scores, BLOCK)
    keep = shift(dweights, BLOCK)
    log_sums = shift(keep, BLOCK)
    deltas = shift(log_sums, length)
    factors = shift(deltas, length)
    tile = tile_numbers(tiles)
    keys = shift(tiles, LINES + ((2 * key_steps + steps + 1) * depth + 3) * BLOCK + 2 * length + SQUARE)
    values = shift(keys, 2 * key_steps * depth * tile)
    queries = shift(values, 2 * key_steps * depth * tile)
    queries_transposed = shift(queries, 2 * steps * depth * tile)
    douts = shift(queries_transposed, 2 * steps * depth * tile)
    douts_transposed = shift(douts, 2 * steps * depth * tile)
    p_left = shift(douts_transposed, 2 * steps * depth * tile)
    ds_left = shift(p_left, 2 * steps * tile)
    ds_right = shift(ds_left, 2 * steps * tile)
    keys_transposed = shift(ds_right, 2 * steps * steps * tile)
    scale_p = np.float32(1) if is_in_parts(tiles) else scale2  # queries in parts are scaled
    memory[0] = 0  # NaN if a sum is
    for i in range(SQUARE):
        keep[i], factors[i] = 1, scale
    keep_row = SQUARE if dropping else 0
    configure_tiles(keys)
    while True:
        task = next_task(counters, worker, B * K * parts)
        if task < 0:
            break
        batch, kv, part = task // parts // K, task // parts % K, task % parts
        _pack_rows(at(k, batch, kv, 0), k.row, Tk, D, depth, keys)
        _pack_rows(at(v, batch, kv, 0), v.row, Tk, D, depth, values)
        _pack_columns_transposed(at(k, batch, kv, 0), k.row, Tk, D, key_steps, keys_transposed)
        for i in range(2 * key_steps * depth * BLOCK):
            dkeys[i] = 0  # and dvalues
        for unit in range(part, H // K * units, parts):
            head, first = kv * (H // K) + unit // units, unit % units * span
            rows = min(span, Tq - first)
            row0 = (batch * H + head) * Tq + first  # rows are numbered for dropout and in lse
            q_start, dout_start = at(q, batch, head, first), at(dout, batch, head, first)
            _pack_queries(q_start, q.row, rows, D, depth, scale2, space, queries_transposed)
            _pack_columns(q_start, q.row, rows, D, steps, queries)
            _pack_rows_transposed(dout_start, dout.row, rows, D, depth, douts_transposed)
            _pack_columns(dout_start, dout.row, rows, D, steps, douts)
            row_products(at(out, batch, head, first), out.row, dout_start, dout.row, rows, D, deltas)
            query_blocks = -(-rows // SQUARE)
            for i in range(query_blocks * SQUARE):
                log_sums[i] = lse[row0 + i] if i < rows else 0
                deltas[i] = deltas[i] if i < rows else 0
            for chunk in range(0, min(Tk, first + rows - 1 + offset), length):
                key_blocks = -(-min(length, Tk - chunk, first + rows - 1 + offset - chunk) // SQUARE)
                for block in range(key_blocks):
                    j = chunk + block * SQUARE
                    begin = max(0, j - offset + 1 - first) // SQUARE  # the first block of queries that sees these keys
                    panel = j // LINES * depth * tile
                    for i in range(begin, query_blocks):
                        seen, panel_q = first + i * SQUARE + offset - j, 2 * i * depth * tile
                        _multiply(shift(keys, panel), depth * tile, shift(queries_transposed, panel_q), depth * tile,
                                  depth, scores, SQUARE, False)  # fmt: skip
                        if seen < SQUARE or Tk - j < SQUARE:
                            _hide(scores, seen, Tk - j)
                        _multiply(shift(values, panel), depth * tile, shift(douts_transposed, panel_q), depth * tile,
                                  depth, dweights, SQUARE, False)  # fmt: skip
                        if dropping:
                            _keep((row0 + i * SQUARE) * Tk + j, Tk, dropout, keep)
                        _weigh_gradients(
                            scores, dweights, scale_p, keep, keep_row, shift(log_sums, i * SQUARE),
                            shift(deltas, i * SQUARE), shift(p_left, i * tile), shift(ds_left, i * tile),
                            steps * tile, shift(ds_right, (2 * i * steps + block) * tile), steps * tile,
                        )  # fmt: skip
                    for d in range(depth):
                        part_q, target = (2 * d * steps + begin) * tile, j * width + d * SQUARE
                        _multiply(shift(p_left, begin * tile), steps * tile, shift(douts, part_q), steps * tile,
                                  query_blocks - begin, shift(dvalues, target), width, True)  # fmt: skip
                        _multiply(shift(ds_left, begin * tile), steps * tile, shift(queries, part_q), steps * tile,
                                  query_blocks - begin, shift(dkeys, target), width, True)  # fmt: skip
                for i in range(query_blocks):
                    seen = first + i * SQUARE + SQUARE - 1 + offset - chunk  # by the last query of the block
                    blocks = max(0, min(key_blocks, -(-seen // SQUARE)))
                    for d in range(depth):
                        _multiply(shift(keys_transposed, (2 * d * key_steps + chunk // SQUARE) * tile),
                                  key_steps * tile, shift(ds_right, 2 * i * steps * tile), steps * tile, blocks,
                                  shift(dqueries, (i * depth + d) * BLOCK), SQUARE, chunk > 0)  # fmt: skip
            for i in range(query_blocks):
                target = at(dq, batch, head, first + i * SQUARE)
                _write_transposed(shift(dqueries, i * depth * BLOCK), factors, target, dq.row, rows - i * SQUARE, D,
                                  tiles)  # fmt: skip
            _take_note(dqueries, query_blocks * depth, memory, tiles)
        _take_note(dkeys, 2 * key_steps * depth, memory, tiles)  # and dvalues
        unpack(dkeys, width, at(dk, part * B + batch, kv, 0), dk.row, Tk, D, width, scale)
        unpack(dvalues, width, at(dv, part * B + batch, kv, 0), dv.row, Tk, D, width, np.float32(1))
    release_tiles(keys)


def _forward(shared_type):
    """What each thread does in `attention.py`'s call."""

    def work(shared, worker):
        places, like, shape, lse, scale, offset, dropout, counters, memory = load(shared, shared_type)
        start = pointer(memory[worker])
        _forward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, start, start)

    return work


def _backward(shared_type):
    """What each thread does in `attention.py`'s call."""

    def work(shared, worker):
        places, like, shape, lse, scale, offset, dropout, counters, memory = load(shared, shared_type)
        start = pointer(memory[worker])
        _backward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, start, start)

    return work


def _forward_in_parts(shared_type):
    """What each thread does in `attention.py`'s call."""

    def work(shared, worker):
        places, like, shape, lse, scale, offset, dropout, counters, memory = load(shared, shared_type)
        start = pointer(memory[worker])
        _forward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, start, as_parts(start))

    return work


def _backward_in_parts(shared_type):
    """What each thread does in `attention.py`'s call."""

    def work(shared, worker):
        places, like, shape, lse, scale, offset, dropout, counters, memory = load(shared, shared_type)
        start = pointer(memory[worker])
        _backward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, start, as_parts(start))

    return work


class Room(NamedTuple):
    """What each thread does, and the numbers its workspace needs: of (shape, the size of a number in bytes)."""

    forward: Callable
    backward: Callable
    forward_size: Callable
    backward_size: Callable


rounded = Room(
    _forward, _backward,
    lambda shape, _: _forward_size(shape, TILE, CHUNK), lambda shape, _: _backward_size(shape, TILE, CHUNK),
)  # fmt: skip
split = Room(
    _forward_in_parts, _backward_in_parts,
    lambda shape, _: _forward_size(shape, PARTS * TILE, CHUNK_IN_PARTS),
    lambda shape, _: _backward_size(shape, PARTS * TILE, CHUNK_IN_PARTS),
)  # fmt: skip
