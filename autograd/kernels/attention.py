"""Scaled dot-product attention, streaming: forward and backward without the T×T matrix.

    s_ij = scale · q_i·k_j,  −∞ where masked         p_ij = exp(s_ij − lse_i)         out_i = Σ_j p_ij·v_j
    lse_i = log Σ_j exp(s_ij)

    backward:   δ_i   = dout_i·out_i                 ds_ij = p_ij·(dout_i·v_j − δ_i)
                dq_i  = scale · Σ_j ds_ij·k_j        dk_j  = scale · Σ_i ds_ij·q_i    dv_j = Σ_i p_ij·dout_i

The scores are made block by block, `QUERIES` × `KEYS`, and used while they are in the first-level cache. Forward
keeps for each query the largest score m so far, the sum l of exp(s − m), and Σ exp(s − m)·v; a larger m scales both
sums down (the online softmax of Milakov and Gimelshein, arXiv:1805.02867, blocked as in FlashAttention,
arXiv:2205.14135 and 2307.08691). Only lse = m + log l is saved; backward makes p again from it. With dropout, p̃ =
p·keep/(1 − dropout_p) takes the place of p in out and dv, and dout_i·v_j is dropped and scaled likewise.

All products go through two register tiles, C (+)= A·B and C (+)= Aᵀ·B with C of `ROWS` × 2 vectors. Operands are
first copied into zero-padded panels, so the tiles know no edges: a query row is read with one number in every lane,
keys and values with neighbouring numbers in neighbouring lanes (for q·k that takes kᵀ). What lies beyond the causal
diagonal is skipped tile by tile.

Work: 4·Tq·Tk·D FLOPs a head forward, 10 backward, half of that if causal; bytes: the operands once and the results.
One task is one (batch, key/value head) in which all its query heads add up in order, so results do not depend on
threads.

Left out: masks other than causal (an additive bias would go where scores are hidden), head sizes that differ
between keys and values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir as llvm
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .arrays import flat, give_back, workspace
from .elementary import constant, emit_exp, exp, log, row_maximum, use_widest_vectors
from .ir import INT, Emitter, emitted, host, lanes, pointer, shift, stored_pointer, transpose
from .jit import kernel, num_threads, prange
from .random import keep_threshold, keys, random_bits
from .tasks import next_task, queues

__all__ = ["attention", "attention_backward"]

ROWS = 8 if host().vector_bytes == 64 else 4  # of a register tile; its columns are two vectors
UNROLL = 4
QUERIES = 64  # in a block; a multiple of ROWS
KEYS = 64  # in a block; a multiple of two vectors
FEW = 2  # queries: for so few, packing the keys does not pay
GROUP = 4  # queries that pass through softmax together; divides ROWS


# --- what is emitted: products, exponentials, copies ---


def _broadcast(e: Emitter, number: llvm.Value) -> llvm.Value:
    """The number in every lane."""
    kind = llvm.VectorType(number.type, e.lanes)
    first = e.builder.insert_element(llvm.Constant(kind, llvm.Undefined), number, llvm.IntType(32)(0))
    return e.shuffle(first, first, [0] * e.lanes)


def _below(e: Emitter, first: llvm.Value, count: llvm.Value) -> llvm.Value:
    """With the lanes numbered on from `first`: which of them have a number below `count`."""
    int32 = llvm.IntType(32)
    numbers = llvm.Constant(llvm.VectorType(int32, e.lanes), list(range(e.lanes)))
    return e.builder.icmp_signed("<", numbers, _broadcast(e, e.builder.trunc(e.builder.sub(count, first), int32)))


def _load_some(e: Emitter, address: llvm.Value, lanes: llvm.Value) -> llvm.Value:
    """The numbers at `address` in these lanes, 0 in the others, whose memory is not touched."""
    return _masked(e, "load", e.vector, [], address, [lanes, e.zero()])


def _store_some(e: Emitter, vector: llvm.Value, address: llvm.Value, lanes: llvm.Value) -> None:
    """Write these lanes to `address`."""
    _masked(e, "store", llvm.VoidType(), [vector], address, [lanes])


def _masked(e: Emitter, name: str, result: llvm.Type, before: list, address: llvm.Value, after: list) -> llvm.Value:
    arguments = [*before, e.builder.bitcast(address, e.vector.as_pointer()), llvm.IntType(32)(e.bytes), *after]
    function = cgutils.get_or_insert_function(
        e.builder.module, llvm.FunctionType(result, [argument.type for argument in arguments]),
        f"llvm.masked.{name}.v{e.lanes}f{8 * e.bytes}.p0",
    )
    return e.builder.call(function, arguments)


def _tile(name: str, along_rows: bool):
    """out (ROWS, 2 vectors) = Σ_k a[row, k]·b[k, columns] for k < steps·UNROLL, plus what is in out with `accumulate`.

    `along_rows`: a is stored row by row, `a_stride` apart; else column by column. The rows of b are b_stride apart.
    """
    def body(e, a, a_stride, b, b_stride, steps, out, out_stride, accumulate):
        row = lambda base, stride, i: e.at(base, e.builder.mul(stride, INT(i)))
        cells = [(i, v) for i in range(ROWS) for v in range(2)]
        starts = [row(a, a_stride, i) for i in range(ROWS)] if along_rows else [a]
        with e.loop(steps, [*starts, b, *(e.zero() for _ in cells)]) as carried:
            starts, b, sums = carried[:len(starts)], carried[len(starts)], carried[len(starts) + 1:]
            for k in range(UNROLL):
                columns = [e.load(e.at(row(b, b_stride, k), v * e.lanes)) for v in range(2)]
                for i in range(ROWS):
                    x = e.splat(e.at(starts[i], k) if along_rows else e.at(row(starts[0], a_stride, k), i))
                    for v in range(2):
                        sums[2 * i + v] = e.fma(x, columns[v], sums[2 * i + v])
            carried[:] = [*(e.at(start, UNROLL) if along_rows else row(start, a_stride, UNROLL) for start in starts),
                          row(b, b_stride, UNROLL), *sums]
        for (i, v), total in zip(cells, carried[-len(cells):], strict=True):
            cell = e.at(row(out, out_stride, i), v * e.lanes)
            e.store(e.add(total, e.builder.select(accumulate, e.load(cell), e.zero())), cell)

    @intrinsic
    def tile(typingctx, a, a_stride, b, b_stride, steps, out, out_stride, accumulate):
        i = types.intp
        return types.void(a, i, b, i, i, a, i, types.boolean), emitted(f"attention.{name}", body)

    return tile


product = _tile("product", along_rows=True)
transposed_product = _tile("transposed_product", along_rows=False)


@intrinsic
def softmax_step(typingctx, scores, vectors, maximum, total, sums, width, first):
    """`GROUP` queries meet a block of keys: scores become exp(score − m), and m, l and Σ p·v adapt.

    For each query `maximum` holds m in every lane, `total` a vector whose lanes add up to l, and `sums` `width` numbers
    Σ p·v; before the `first` block they hold nothing yet. Several queries at once, because each by itself is one
    long chain of dependent instructions.
    """
    def body(e, scores, vectors, maximum, total, sums, width, first):
        builder, group = e.builder, range(GROUP)
        score = lambda row, i: e.at(e.at(scores, row * KEYS), i)
        state = lambda base, row: e.at(base, row * e.lanes)
        larger = lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y)
        next_vector = lambda i: builder.add(i, INT(e.lanes))
        lowest = constant(e.vector, -np.inf)
        before = [builder.select(first, lowest, e.load(state(maximum, row))) for row in group]
        with e.loop(vectors, [INT(0), *before]) as carried:
            i, *m = carried
            carried[:] = [next_vector(i), *(larger(e.load(score(row, i)), m[row]) for row in group)]
        m, half = carried[1:], e.lanes // 2
        while half:
            order = [lane ^ half for lane in range(e.lanes)]
            m = [larger(x, e.shuffle(x, x, order)) for x in m]
            half //= 2
        with builder.if_then(builder.not_(first)):
            shrink = [emit_exp(builder, builder.fsub(before[row], m[row]), positive=False) for row in group]
            for row in group:
                e.store(builder.fmul(e.load(state(total, row)), shrink[row]), state(total, row))
            with e.loop(builder.sdiv(width, INT(e.lanes)), [sums]) as carried:
                for row in group:
                    place = e.at(carried[0], builder.mul(width, INT(row)))
                    e.store(builder.fmul(e.load(place), shrink[row]), place)
                carried[:] = [e.at(carried[0], e.lanes)]
        l = [builder.select(first, e.zero(), e.load(state(total, row))) for row in group]
        with e.loop(vectors, [INT(0), *l]) as carried:
            i, *l = carried
            p = [emit_exp(builder, builder.fsub(e.load(score(row, i)), m[row]), positive=False) for row in group]
            for row in group:
                e.store(p[row], score(row, i))
            carried[:] = [next_vector(i), *map(builder.fadd, l, p)]
        for row in group:
            e.store(m[row], state(maximum, row))
            e.store(carried[1 + row], state(total, row))

    i = types.intp
    return types.void(scores, i, scores, scores, scores, i, types.boolean), emitted("attention.softmax_step", body)


@intrinsic
def weights_and_gradients(typingctx, p, ds, vectors, lse, delta):
    """Scores p become exp(p − lse), and ds becomes p·(ds − delta)."""
    def body(e, p, ds, vectors, lse, delta):
        builder = e.builder
        lse, delta = e.splat(lse), e.splat(delta)
        with e.loop(vectors, [p, ds]) as carried:
            p, ds = carried
            weight = emit_exp(builder, builder.fsub(e.load(p), lse), positive=False)
            e.store(builder.fmul(weight, builder.fsub(e.load(ds), delta)), ds)
            e.store(weight, p)
            carried[:] = [e.at(p, e.lanes), e.at(ds, e.lanes)]

    i = types.intp
    return types.void(p, p, i, p, p), emitted("attention.weights_and_gradients", body)


@intrinsic
def hide(typingctx, scores, first, last):
    """The numbers from `first` to `last` (the end of a vector) become −∞."""
    def body(e, scores, first, last):
        builder = e.builder
        lowest = constant(e.vector, -np.inf)
        start = builder.and_(first, INT(-e.lanes))
        with e.loop(builder.sdiv(builder.sub(last, start), INT(e.lanes)), [start]) as carried:
            i, = carried
            e.store(builder.select(_below(e, i, first), e.load(e.at(scores, i)), lowest), e.at(scores, i))
            carried[:] = [builder.add(i, INT(e.lanes))]

    return types.void(scores, types.intp, types.intp), emitted("attention.hide", body)


def _copy(name: str, narrow_source: bool):
    """target = scale · source for matrices (rows, D), one of which is padded to a `width` of whole vectors."""
    def body(e, source, source_stride, target, target_stride, rows, D, width, scale):
        builder = e.builder
        scale = _broadcast(e, scale)
        whole = builder.and_(D, INT(-e.lanes))
        with e.loop(rows, [source, target]) as outer:
            x, y = outer
            with e.loop(builder.sdiv(whole, INT(e.lanes)), [INT(0)]) as inner:
                column, = inner
                e.store(builder.fmul(e.load(e.at(x, column)), scale), e.at(y, column))
                inner[:] = [builder.add(column, INT(e.lanes))]
            with e.loop(builder.sdiv(builder.sub(width, whole), INT(e.lanes)), [whole]) as inner:
                column, = inner
                inside = _below(e, column, D)
                if narrow_source:
                    e.store(builder.fmul(_load_some(e, e.at(x, column), inside), scale), e.at(y, column))
                else:
                    _store_some(e, builder.fmul(e.load(e.at(x, column)), scale), e.at(y, column), inside)
                inner[:] = [builder.add(column, INT(e.lanes))]
            outer[:] = [e.at(x, source_stride), e.at(y, target_stride)]

    @intrinsic
    def copy(typingctx, source, source_stride, target, target_stride, rows, D, width, scale):
        i = types.intp
        return types.void(source, i, target, i, i, i, i, scale), emitted(f"attention.{name}", body)

    return copy


pack = _copy("pack", narrow_source=True)
unpack = _copy("unpack", narrow_source=False)


@intrinsic
def row_products(typingctx, x, x_stride, y, y_stride, rows, D, result):
    """result[i] = Σ_d x[i, d]·y[i, d], where y (rows, ·) is padded with zeros to whole vectors."""
    def body(e, x, x_stride, y, y_stride, rows, D, result):
        builder = e.builder
        with e.loop(rows, [x, y, result]) as outer:
            x, y, result = outer
            with e.loop(builder.sdiv(builder.add(D, INT(e.lanes - 1)), INT(e.lanes)), [INT(0), e.zero()]) as inner:
                column, total = inner
                total = e.fma(_load_some(e, e.at(x, column), _below(e, column, D)), e.load(e.at(y, column)), total)
                inner[:] = [builder.add(column, INT(e.lanes)), total]
            total, half = inner[1], e.lanes // 2
            while half:
                total = e.add(total, e.shuffle(total, total, [lane ^ half for lane in range(e.lanes)]))
                half //= 2
            builder.store(builder.extract_element(total, llvm.IntType(32)(0)), result)
            outer[:] = [e.at(x, x_stride), e.at(y, y_stride), e.at(result, 1)]

    i = types.intp
    return types.void(x, i, y, i, i, i, y), emitted("attention.row_products", body)


@intrinsic
def weighted_sum(typingctx, weights, rows, x, stride, out, width):
    """out (width,) = Σ_i weights[i]·x[i], where x has `rows` rows of `width` numbers."""
    def body(e, weights, rows, x, stride, out, width):
        builder = e.builder
        with e.loop(builder.sdiv(builder.add(width, INT(e.lanes - 1)), INT(e.lanes)), [INT(0)]) as outer:
            column, = outer
            inside = _below(e, column, width)
            with e.loop(rows, [weights, e.at(x, column), e.zero()]) as inner:
                weight, row, total = inner
                total = e.fma(e.splat(weight), _load_some(e, row, inside), total)
                inner[:] = [e.at(weight, 1), e.at(row, stride), total]
            _store_some(e, inner[2], e.at(out, column), inside)
            outer[:] = [builder.add(column, INT(e.lanes))]

    i = types.intp
    return types.void(weights, i, x, i, out, i), emitted("attention.weighted_sum", body)


# --- blocks ---


@kernel
def _up(n, unit):
    return (n + unit - 1) // unit * unit


class Heads(NamedTuple):
    """A (B, H, T, D) array in memory: where it begins, and how many numbers on the next batch, head and row lie."""

    start: Any
    batch: int
    head: int
    row: int


@kernel
def _heads(places, number, like):
    """Operand `number` of `places` (see `_places`), whose numbers are those of the array `like`."""
    at = 4 * number
    return Heads(stored_pointer(places, at, like), places[at + 1], places[at + 2], places[at + 3])


@kernel
def _at(heads, batch, head, row):
    """Where one row begins."""
    return shift(heads.start, batch * heads.batch + head * heads.head + row * heads.row)


@kernel
def _pack_padded(source, stride, rows, padded_rows, D, width, scale, target):
    pack(source, stride, target, width, rows, D, width, scale)
    for i in range(rows * width, padded_rows * width):
        target[i] = 0


@kernel
def _pack_transposed(source, stride, rows, padded_rows, D, width, scale, packed, step, transposed):
    """Rows in panels of two vectors: `transposed` becomes (padded_rows / panel, width, panel).

    On the way they are packed as they are, `packed` row i at i·step: width apart if they are needed so, else
    (step 0) always into the same panel, which stays in the first-level cache.
    """
    L = lanes(source)
    panel = 2 * L
    for first in range(0, padded_rows, panel):
        straight, target = shift(packed, first * step), shift(transposed, first * width)
        _pack_padded(shift(source, first * stride), stride, min(panel, rows - first), panel, D, width, scale, straight)
        for d in range(0, width, L):
            for v in range(0, panel, L):
                transpose(shift(straight, v * width + d), width, L, shift(target, d * panel + v), panel)


@kernel
def _columns(i, seen, keys):
    """How many columns of a block are computed for row i: those that its register tile sees.

    Row i sees seen + i of the block's keys, and beyond the last key there is nothing to see.
    """
    return min(keys, max(0, seen + i // ROWS * ROWS + ROWS - 1))


@kernel
def _scores(a, transposed, rows, keys, seen, width, out):
    """out (rows, KEYS) = a (rows, width) · panels, but for tiles of which no number is seen."""
    panel = 2 * lanes(a)
    for j in range(0, keys, panel):
        for i in range(0, rows, ROWS):
            if _columns(i, seen, keys) > j:
                product(shift(a, i * width), width, shift(transposed, j * width), panel, width // UNROLL,
                        shift(out, i * KEYS + j), KEYS, False)


@kernel
def _weighted(p, rows, keys, seen, b, width, out, accumulate):
    """out (rows, width) (+)= p (rows, KEYS) · b (keys, width), with p zero where nothing is seen."""
    for j in range(0, width, 2 * lanes(p)):
        for i in range(0, rows, ROWS):
            product(shift(p, i * KEYS), KEYS, shift(b, j), width, _up(_columns(i, seen, keys), UNROLL) // UNROLL,
                    shift(out, i * width + j), width, accumulate)


@kernel
def _weighted_transposed(p, rows, keys, seen, b, width, out, accumulate):
    """out (keys, width) (+)= pᵀ (keys, rows) · b (rows, width), with p zero where nothing is seen."""
    for j in range(0, width, 2 * lanes(p)):
        for i in range(0, keys, ROWS):
            first = max(0, i + 1 - seen) // ROWS * ROWS  # earlier queries do not see these keys
            transposed_product(shift(p, first * KEYS + i), KEYS, shift(b, first * width + j), width,
                               (rows - first) // UNROLL, shift(out, i * width + j), width, accumulate)


@kernel
def _hide_unseen(scores, rows, seen, keys, panel):
    for i in range(rows):
        visible, computed = max(0, min(seen + i, keys)), _up(_columns(i, seen, keys), panel)
        if visible < computed:
            hide(shift(scores, i * KEYS), visible, computed)


@kernel
def _drop(p, rows, seen, keys, position, row_length, dropout):
    """Drop weights. That of row i and column j has the number `position + i·row_length + j`."""
    use_widest_vectors()
    key0, key1, threshold, keep_scale = dropout
    for i in range(rows if threshold else 0):
        row, start = shift(p, i * KEYS), position + i * row_length
        for j in range(min(seen + i, keys)):
            keep = keep_scale if random_bits(key0, key1, start + j) >= threshold else keep_scale - keep_scale
            row[j] *= keep


@kernel
def _drop_both(p, ds, deltas, rows, seen, keys, position, row_length, dropout):
    """Drop weights p and account for it in ds: p·(dp − δ) becomes p·(keep·dp − δ)."""
    use_widest_vectors()
    key0, key1, threshold, keep_scale = dropout
    one = keep_scale / keep_scale
    for i in range(rows if threshold else 0):
        p_row, ds_row, start = shift(p, i * KEYS), shift(ds, i * KEYS), position + i * row_length
        delta = deltas[i]
        for j in range(min(seen + i, keys)):
            keep = keep_scale if random_bits(key0, key1, start + j) >= threshold else keep_scale - keep_scale
            ds_row[j] = keep * ds_row[j] + (keep - one) * delta * p_row[j]
            p_row[j] *= keep


# --- one task: a key/value head with its query heads ---


@kernel
def _forward_tasks(places, shape, lse, scale, offset, dropout, counters, worker, memory):
    B, H, K, Tq, Tk, D = shape
    q, k, v, out = _heads(places, 0, lse), _heads(places, 1, lse), _heads(places, 2, lse), _heads(places, 3, lse)
    L = lanes(q.start)
    panel = 2 * L
    one, zero = scale / scale, scale - scale
    width, padded = _up(D, panel), _up(Tk, panel)
    transposed = pointer(memory)
    values = shift(transposed, padded * width)
    queries = shift(values, padded * width)
    sums = shift(queries, QUERIES * width)
    scores = shift(sums, QUERIES * width)
    maxima = shift(scores, QUERIES * KEYS)
    totals = shift(maxima, QUERIES * L)
    log_sums = shift(totals, QUERIES * L)
    while True:
        task = next_task(counters, worker, B * K)
        if task < 0:
            break
        batch, kv = task // K, task % K
        _pack_transposed(_at(k, batch, kv, 0), k.row, Tk, padded, D, width, one, values, 0, transposed)
        _pack_padded(_at(v, batch, kv, 0), v.row, Tk, padded, D, width, one, values)
        for head in range(kv * (H // K), (kv + 1) * (H // K)):
            row0 = (batch * H + head) * Tq  # rows are numbered for dropout
            for first in range(0, Tq, QUERIES):
                rows = min(QUERIES, Tq - first)
                padded_rows = _up(rows, ROWS)
                _pack_padded(_at(q, batch, head, first), q.row, rows, padded_rows, D, width, scale, queries)
                for j in range(0, min(Tk, first + rows - 1 + offset), KEYS):
                    seen = first + offset - j  # by the first query of the block
                    keys = min(KEYS, Tk - j)
                    _scores(queries, shift(transposed, j * width), padded_rows, keys, seen, width, scores)
                    _hide_unseen(scores, padded_rows, seen, keys, panel)
                    for i in range(0, padded_rows, GROUP):
                        softmax_step(shift(scores, i * KEYS), _up(_columns(i, seen, keys), panel) // L,
                                     shift(maxima, i * L), shift(totals, i * L), shift(sums, i * width), width, j == 0)
                    _drop(scores, rows, seen, keys, (row0 + first) * Tk + j, Tk, dropout)
                    _weighted(scores, padded_rows, keys, seen, shift(values, j * width), width, sums, j > 0)
                for i in range(rows):
                    total = zero
                    for lane in range(L):
                        total += totals[i * L + lane]
                    log_sums[i] = total
                    unpack(shift(sums, i * width), width, _at(out, batch, head, first + i), 0, 1, D, width, one / total)
                for i in range(rows):
                    lse[row0 + first + i] = maxima[i * L] + log(log_sums[i])


@kernel
def _backward_tasks(places, shape, lse, scale, offset, dropout, counters, worker, memory):
    B, H, K, Tq, Tk, D = shape
    q, k, v, out = _heads(places, 0, lse), _heads(places, 1, lse), _heads(places, 2, lse), _heads(places, 3, lse)
    dout, dq, dk, dv = _heads(places, 4, lse), _heads(places, 5, lse), _heads(places, 6, lse), _heads(places, 7, lse)
    panel = 2 * lanes(q.start)
    one, zero = scale / scale, scale - scale
    width, padded = _up(D, panel), _up(Tk, panel)
    keys_transposed = pointer(memory)
    values_transposed = shift(keys_transposed, padded * width)
    keys_packed = shift(values_transposed, padded * width)
    dkeys = shift(keys_packed, padded * width)
    dvalues = shift(dkeys, padded * width)
    queries = shift(dvalues, padded * width)
    douts = shift(queries, QUERIES * width)
    dqueries = shift(douts, QUERIES * width)
    p = shift(dqueries, QUERIES * width)
    ds = shift(p, QUERIES * KEYS)
    deltas = shift(ds, QUERIES * KEYS)
    log_sums = shift(deltas, QUERIES)
    while True:
        task = next_task(counters, worker, B * K)
        if task < 0:
            break
        batch, kv = task // K, task % K
        start = _at(v, batch, kv, 0)
        _pack_transposed(start, v.row, Tk, padded, D, width, one, keys_packed, 0, values_transposed)
        start = _at(k, batch, kv, 0)
        _pack_transposed(start, k.row, Tk, padded, D, width, one, keys_packed, width, keys_transposed)
        for head in range(kv * (H // K), (kv + 1) * (H // K)):
            row0 = (batch * H + head) * Tq  # rows are numbered for dropout
            for first in range(0, Tq, QUERIES):
                rows = min(QUERIES, Tq - first)
                padded_rows = _up(rows, ROWS)
                _pack_padded(_at(q, batch, head, first), q.row, rows, padded_rows, D, width, scale, queries)
                _pack_padded(_at(dout, batch, head, first), dout.row, rows, padded_rows, D, width, one, douts)
                row_products(_at(out, batch, head, first), out.row, douts, width, rows, D, deltas)
                for i in range(padded_rows):
                    log_sums[i] = lse[row0 + first + i] if i < rows else zero
                    deltas[i] = deltas[i] if i < rows else zero
                for j in range(0, min(Tk, first + rows - 1 + offset), KEYS):
                    seen = first + offset - j
                    keys = min(KEYS, Tk - j)
                    _scores(queries, shift(keys_transposed, j * width), padded_rows, keys, seen, width, p)
                    _hide_unseen(p, padded_rows, seen, keys, panel)
                    _scores(douts, shift(values_transposed, j * width), padded_rows, keys, seen, width, ds)
                    for i in range(padded_rows):
                        weights_and_gradients(shift(p, i * KEYS), shift(ds, i * KEYS),
                                              _up(_columns(i, seen, keys), panel) // (panel // 2),
                                              shift(log_sums, i), shift(deltas, i))
                    _drop_both(p, ds, deltas, rows, seen, keys, (row0 + first) * Tk + j, Tk, dropout)
                    keys = _up(keys, ROWS)
                    # Have these keys been seen before, so that their gradients have begun?
                    later = head > kv * (H // K) or (first > 0 and first - 1 + offset > j)
                    _weighted_transposed(p, padded_rows, keys, seen, douts, width, shift(dvalues, j * width), later)
                    _weighted_transposed(ds, padded_rows, keys, seen, queries, width, shift(dkeys, j * width), later)
                    _weighted(ds, padded_rows, keys, seen, shift(keys_packed, j * width), width, dqueries, j > 0)
                unpack(dqueries, width, _at(dq, batch, head, first), dq.row, rows, D, width, scale)
        unpack(dkeys, width, _at(dk, batch, kv, 0), dk.row, Tk, D, width, one)
        unpack(dvalues, width, _at(dv, batch, kv, 0), dv.row, Tk, D, width, one)


@kernel
def _few_queries(places, shape, lse, scale, offset, dropout, counters, worker, memory):
    """Forward without blocks, for a query or two (text is being generated): keys and values are read where they lie."""
    B, H, K, Tq, Tk, D = shape
    q, k, v, out = _heads(places, 0, lse), _heads(places, 1, lse), _heads(places, 2, lse), _heads(places, 3, lse)
    width = _up(D, lanes(q.start))
    while True:
        task = next_task(counters, worker, B * H)
        if task < 0:
            break
        batch, head = task // H, task % H
        kv = head // (H // K)
        for i in range(Tq):
            query, weights = memory[:width], memory[width:width + min(Tk, i + offset)]
            pack(_at(q, batch, head, i), 0, pointer(query), 0, 1, D, width, scale)
            row_products(_at(k, batch, kv, 0), k.row, pointer(query), 0, weights.size, D, pointer(weights))
            maximum = row_maximum(weights)
            total = scale - scale
            for j in range(weights.size):
                weights[j] = exp(weights[j] - maximum)
                total += weights[j]
            factor = scale / scale / total
            for j in range(weights.size):
                weights[j] *= factor
            lse[(batch * H + head) * Tq + i] = maximum + log(total)
            _drop(pointer(weights), 1, weights.size, weights.size, ((batch * H + head) * Tq + i) * Tk, 0, dropout)
            weighted_sum(pointer(weights), weights.size, _at(v, batch, kv, 0), v.row, _at(out, batch, head, i), D)


def forward_few(places, shape, lse, scale, offset, dropout, counters, memory):
    for worker in prange(len(memory)):
        _few_queries(places, shape, lse, scale, offset, dropout, counters, np.int64(worker), memory[worker])


def forward(places, shape, lse, scale, offset, dropout, counters, memory):
    for worker in prange(len(memory)):
        _forward_tasks(places, shape, lse, scale, offset, dropout, counters, np.int64(worker), memory[worker])


def backward(places, shape, lse, scale, offset, dropout, counters, memory):
    for worker in prange(len(memory)):
        _backward_tasks(places, shape, lse, scale, offset, dropout, counters, np.int64(worker), memory[worker])


@functools.cache
def _compiled(function: Callable, dtype: np.dtype) -> Callable:
    """One compilation per dtype serves operands of all strides: they come as a table of where they lie.

    As arrays of four axes each would take a dozen arguments, through every layer that a parallel loop is made of.
    """
    number, word, integers = numba.from_dtype(dtype), types.uint32, types.Array(types.int64, 1, "C")
    signature = types.void(integers, types.UniTuple(types.int64, 6), types.Array(number, 1, "C"), number, types.intp,
                           types.Tuple([word, word, word, number]), integers, types.Array(number, 2, "C"))
    return kernel(signature=signature, parallel=True)(function)


def _places(*operands: np.ndarray) -> np.ndarray:
    """For each (B, H, T, D) array its address and three strides, in numbers."""
    table: list[int] = []
    for x in operands:
        size = x.itemsize
        if x.dtype != operands[0].dtype:
            raise TypeError(f"attention takes arrays of one dtype, got {operands[0].dtype} and {x.dtype}")
        batch, head, row, _ = x.strides
        table += x.ctypes.data, batch // size, head // size, row // size
    return np.array(table)


@functools.cache
def _no_dropout(dtype: np.dtype) -> tuple:
    return *keys(0), keep_threshold(0), dtype.type(1)


def _dropout(dtype: np.dtype, p: float, seed: int) -> tuple:
    """What the kernels need to know of it."""
    return (*keys(seed), keep_threshold(p), dtype.type(1 / (1 - p))) if p else _no_dropout(dtype)


# --- the public functions ---


def _readable(x: np.ndarray) -> np.ndarray:
    """`x`, or a copy of it where its numbers do not lie side by side along the last axis."""
    return x if x.strides[3] == x.itemsize or x.shape[3] <= 1 or not x.size else np.array(x, order="C")


def _target(x: np.ndarray | None, like: np.ndarray, name: str) -> np.ndarray:
    if x is None:
        return np.empty(like.shape, like.dtype)
    if x.shape != like.shape or x.dtype != like.dtype or not x.flags.writeable or _readable(x) is not x:
        raise ValueError(f"expected {name} to be writable, {like.dtype} {like.shape}, with unit stride on the last "
                         f"axis, got {x.dtype} {x.shape} with strides {x.strides} bytes")
    return x


def _shape(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> tuple[int, ...]:
    """(B, H, K, Tq, Tk, D), after checking that the arrays fit together."""
    if not (q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
            and k.shape[1] and q.shape[1] % k.shape[1] == 0):
        raise ValueError(f"expected q (B, H, Tq, D) and k, v (B, K, Tk, D) with H a multiple of K, "
                         f"got {q.shape}, {k.shape}, {v.shape}")
    if not k.shape[2]:
        raise ValueError("expected at least one key")
    if causal and q.shape[2] > k.shape[2]:
        raise ValueError(f"expected at least as many keys as queries in causal attention, got {k.shape[2]} keys for "
                         f"{q.shape[2]} queries")
    return *q.shape[:2], *k.shape[1:2], q.shape[2], *k.shape[2:]


def _offset(shape: tuple[int, ...], causal: bool) -> int:
    """Query i sees the first i + offset keys."""
    *_, Tq, Tk, _ = shape
    return Tk - Tq + 1 if causal else Tk


def _elements(shape: tuple[int, ...], itemsize: int, of_keys: int, of_queries: int, of_scores: int) -> int:
    """The size of a workspace with so many blocks of all keys, of some queries, and of scores."""
    panel = 2 * host().vector_bytes // itemsize
    width, keys = -(-shape[5] // panel) * panel, -(-shape[4] // panel) * panel
    return of_keys * keys * width + QUERIES * (of_queries * width + of_scores * KEYS + panel + 2)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, causal: bool, dropout_p: float = 0.0, seed: int = 0,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """softmax(scale · q kᵀ) v with q (B, H, Tq, D) and k, v (B, K, Tk, D) → (out (B, H, Tq, D), lse (B, H, Tq)).

    Query head h attends to key head h // (H // K). With `causal` the queries are the last Tq of Tk positions: query i
    sees keys 0 … i + Tk − Tq. The weight at (b, h, i, j) is dropped where `uniform((B, H, Tq, Tk), seed)` is below
    dropout_p, and the others are divided by 1 − dropout_p.

    Any strides do for the operands, though only those with unit stride on the last axis spare a copy; `out`, where
    given, must have it. Raises ValueError for shapes that do not fit.
    """
    shape = _shape(q, k, v, causal)
    q, k, v = _readable(q), _readable(k), _readable(v)
    out = _target(out, q, "out")
    lse = np.empty(q.shape[:3], q.dtype)
    number = q.dtype.type
    dropout = _dropout(q.dtype, dropout_p, seed)
    memory = workspace(q.dtype, num_threads(), _elements(shape, q.itemsize, 2, 2, 1))
    function = forward_few if q.shape[2] <= FEW else forward
    _compiled(function, q.dtype)(_places(q, k, v, out), shape, lse.reshape(-1), number(scale), _offset(shape, causal),
                                 dropout, queues(len(memory)), memory)
    give_back(memory)
    return out, lse


def attention_backward(
    dout: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, lse: np.ndarray, *, scale: float,
    causal: bool, dropout_p: float = 0.0, seed: int = 0, dq: np.ndarray | None = None, dk: np.ndarray | None = None,
    dv: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dq (B, H, Tq, D), dk (B, K, Tk, D), dv (B, K, Tk, D)) of `attention` called with the same arguments.

    dq, dk and dv are written where given (unit stride on the last axis), else new.
    """
    shape = _shape(q, k, v, causal)
    dout, q, k, v, out = map(_readable, (dout, q, k, v, out))
    dq, dk, dv = _target(dq, q, "dq"), _target(dk, k, "dk"), _target(dv, v, "dv")
    if not q.size:
        dk[...], dv[...] = 0, 0
        return dq, dk, dv
    number = q.dtype.type
    dropout = _dropout(q.dtype, dropout_p, seed)
    memory = workspace(q.dtype, num_threads(), _elements(shape, q.itemsize, 5, 3, 2))
    _compiled(backward, q.dtype)(_places(q, k, v, out, dout, dq, dk, dv), shape, flat(lse), number(scale),
                                 _offset(shape, causal), dropout, queues(len(memory)), memory)
    give_back(memory)
    return dq, dk, dv
