"""Attention in float32 and float64, on vectors: the formulas of `attention.py`.

The scores are made block by block, `QUERIES` × `KEYS`, and used while they are in the first-level cache. All products
go through two register tiles, C (+)= A·B and C (+)= Aᵀ·B with C of `ROWS` × 2 vectors. Operands are first copied into
zero-padded panels, so the tiles know no edges: a query row is read with one number in every lane, keys and values with
neighbouring numbers in neighbouring lanes (for q·k that takes kᵀ). What lies beyond the causal diagonal is skipped tile
by tile, and half a tile where the diagonal ends in its first vector.

Scores are made in base 2: the factor log₂ e is multiplied onto the queries with `scale`, and spares each exponential a
multiplication and the long reduction that goes with it.

A query or two, while text is generated, are a case of their own: every number of the keys and values is used once, so
nothing is packed, and memory sets the speed.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic

from .attention_parts import LOG2_E, at, heads, pack, round_up, row_products, unpack
from .elementary import constant, emit_exp2, exp, log, row_maximum, use_widest_vectors
from .ir import INT, emitted, host, lanes, pointer, shift, transpose
from .jit import kernel
from .random import random_bits
from .tasks import load, next_task

__all__ = ["backward", "backward_size", "forward", "forward_few", "forward_size"]

ROWS = 8 if host().vector_bytes == 64 else 4  # of a register tile; its columns are two vectors
UNROLL = 4
QUERIES = 64  # in a block; a multiple of ROWS
KEYS = 128  # in a block; a multiple of two vectors
ROW = KEYS + 16  # of scores in memory: rows a power of two apart would share a few sets of the first-level cache
GROUP = 4  # queries that pass through softmax together; divides ROWS


# --- what is emitted: products, exponentials, copies ---


def _tile(name: str, along_rows: bool, vectors: int = 2):
    """out (ROWS, vectors) = Σ_k a[row, k]·b[k, columns] for k < steps·UNROLL, plus what is in out with `accumulate`.

    `along_rows`: a is stored row by row, `a_stride` apart; else column by column. The rows of b are b_stride apart.
    """
    def body(e, a, a_stride, b, b_stride, steps, out, out_stride, accumulate):
        row = lambda base, stride, i: e.at(base, e.builder.mul(stride, INT(i)))
        cells = [(i, v) for i in range(ROWS) for v in range(vectors)]
        starts = [row(a, a_stride, i) for i in range(ROWS)] if along_rows else [a]
        with e.loop(steps, [*starts, b, *(e.zero() for _ in cells)]) as carried:
            starts, b, sums = carried[:len(starts)], carried[len(starts)], carried[len(starts) + 1:]
            for k in range(UNROLL):
                columns = [e.load(e.at(row(b, b_stride, k), v * e.lanes)) for v in range(vectors)]
                for i in range(ROWS):
                    x = e.splat(e.at(starts[i], k) if along_rows else e.at(row(starts[0], a_stride, k), i))
                    for v in range(vectors):
                        sums[vectors * i + v] = e.fma(x, columns[v], sums[vectors * i + v])
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
half_product = _tile("half_product", along_rows=True, vectors=1)
transposed_product = _tile("transposed_product", along_rows=False)


@intrinsic
def softmax_step(typingctx, scores, vectors, maximum, total, sums, width, first):
    """`GROUP` queries meet a block of keys: scores become 2^(score − m), and m, l and Σ p·v adapt.

    For each query `maximum` holds m in every lane, `total` a vector whose lanes add up to l, and `sums` `width` numbers
    Σ p·v; before the `first` block they hold nothing yet. Several queries at once, because each by itself is one
    long chain of dependent instructions.
    """
    def body(e, scores, vectors, maximum, total, sums, width, first):
        builder, group = e.builder, range(GROUP)
        score = lambda row, i: e.at(e.at(scores, row * ROW), i)
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
        # A larger m is rare after the first few keys.
        mask = llvm.IntType(e.lanes)
        differences = (builder.fcmp_unordered("!=", x, y) for x, y in zip(before, m, strict=True))
        changed = functools.reduce(builder.or_, differences)
        changed = builder.icmp_unsigned("!=", builder.bitcast(changed, mask), mask(0))
        with builder.if_then(builder.and_(changed, builder.not_(first))):
            shrink = [emit_exp2(builder, builder.fsub(before[row], m[row])) for row in group]
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
            p = [emit_exp2(builder, builder.fsub(e.load(score(row, i)), m[row])) for row in group]
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
    """Scores p become 2^(p − lse), and ds becomes p·(ds − delta)."""
    def body(e, p, ds, vectors, lse, delta):
        builder = e.builder
        lse, delta = e.splat(lse), e.splat(delta)
        with e.loop(vectors, [p, ds]) as carried:
            p, ds = carried
            weight = emit_exp2(builder, builder.fsub(e.load(p), lse))
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
            e.store(builder.select(e.first(builder.sub(first, i)), e.load(e.at(scores, i)), lowest), e.at(scores, i))
            carried[:] = [builder.add(i, INT(e.lanes))]

    return types.void(scores, types.intp, types.intp), emitted("attention.hide", body)


@intrinsic
def weighted_sum(typingctx, weights, rows, x, stride, out, width):
    """out (width,) = Σ_i weights[i]·x[i], where x has `rows` rows of `width` numbers."""
    def body(e, weights, rows, x, stride, out, width):
        builder = e.builder
        with e.loop(builder.sdiv(builder.add(width, INT(e.lanes - 1)), INT(e.lanes)), [INT(0)]) as outer:
            column, = outer
            inside = e.first(builder.sub(width, column))
            with e.loop(rows, [weights, e.at(x, column), e.zero()]) as inner:
                weight, row, total = inner
                total = e.fma(e.splat(weight), e.load_masked(row, inside), total)
                inner[:] = [e.at(weight, 1), e.at(row, stride), total]
            e.store_masked(inner[2], e.at(out, column), inside)
            outer[:] = [builder.add(column, INT(e.lanes))]

    i = types.intp
    return types.void(weights, i, x, i, out, i), emitted("attention.weighted_sum", body)


# --- blocks ---


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
def _computed(i, seen, keys, lanes):
    """The same, up to the end of the last tile or half tile. (Products with p read squares of ROWS × ROWS.)"""
    return round_up(_columns(i, seen, keys), max(lanes, ROWS))


@kernel
def _scores(a, transposed, rows, keys, seen, width, out):
    """out (rows, keys) = a (rows, width) · panels, but for tiles and halves of which no number is seen."""
    L = lanes(a)
    panel = 2 * L
    for j in range(0, keys, panel):
        for i in range(0, rows, ROWS):
            columns = _computed(i, seen, keys, L) - j
            queries, of_keys, target = shift(a, i * width), shift(transposed, j * width), shift(out, i * ROW + j)
            if columns > L:
                product(queries, width, of_keys, panel, width // UNROLL, target, ROW, False)
            elif columns > 0:
                half_product(queries, width, of_keys, panel, width // UNROLL, target, ROW, False)


@kernel
def _weighted(p, rows, keys, seen, b, width, out, accumulate):
    """out (rows, width) (+)= p (rows, keys) · b (keys, width), with p zero where nothing is seen."""
    for j in range(0, width, 2 * lanes(p)):
        for i in range(0, rows, ROWS):
            product(shift(p, i * ROW), ROW, shift(b, j), width, round_up(_columns(i, seen, keys), UNROLL) // UNROLL,
                    shift(out, i * width + j), width, accumulate)


@kernel
def _weighted_transposed(p, rows, keys, seen, b, width, out):
    """out (keys, width) += pᵀ (keys, rows) · b (rows, width), with p zero where nothing is seen."""
    for j in range(0, width, 2 * lanes(p)):
        for i in range(0, keys, ROWS):
            first = max(0, i + 1 - seen) // ROWS * ROWS  # earlier queries do not see these keys
            transposed_product(shift(p, first * ROW + i), ROW, shift(b, first * width + j), width,
                               (rows - first) // UNROLL, shift(out, i * width + j), width, True)


@kernel
def _hide_unseen(scores, rows, seen, keys):
    for i in range(rows):
        visible, computed = max(0, min(seen + i, keys)), _computed(i, seen, keys, lanes(scores))
        if visible < computed:
            hide(shift(scores, i * ROW), visible, computed)


@kernel
def _drop(p, rows, seen, keys, position, row_length, dropout):
    """Drop weights. That of row i and column j has the number `position + i·row_length + j`."""
    use_widest_vectors()
    key0, key1, threshold, keep_scale = dropout
    for i in range(rows if threshold else 0):
        row, start = shift(p, i * ROW), position + i * row_length
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
        p_row, ds_row, start = shift(p, i * ROW), shift(ds, i * ROW), position + i * row_length
        delta = deltas[i]
        for j in range(min(seen + i, keys)):
            keep = keep_scale if random_bits(key0, key1, start + j) >= threshold else keep_scale - keep_scale
            ds_row[j] = keep * ds_row[j] + (keep - one) * delta * p_row[j]
            p_row[j] *= keep


# --- one task: a key/value head with its query heads ---


@kernel
def _forward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, memory):
    """The tasks of one thread: out and lse of whole heads, or of parts of their queries."""
    B, H, K, Tq, Tk, D, parts = shape
    q, k, v, out = heads(places, 0, like), heads(places, 1, like), heads(places, 2, like), heads(places, 3, like)
    L = lanes(q.start)
    panel, log2_e = 2 * L, lse.dtype.type(LOG2_E)
    one, zero, scale2 = lse.dtype.type(1), lse.dtype.type(0), lse.dtype.type(scale * LOG2_E)
    width, padded, blocks = round_up(D, panel), round_up(Tk, panel), -(-Tq // QUERIES)
    transposed = pointer(memory)
    values = shift(transposed, padded * width)
    queries = shift(values, padded * width)
    sums = shift(queries, QUERIES * width)
    scores = shift(sums, QUERIES * width)
    maxima = shift(scores, QUERIES * ROW)
    totals = shift(maxima, QUERIES * L)
    log_sums = shift(totals, QUERIES * L)
    while True:
        task = next_task(counters, worker, B * K * parts)
        if task < 0:
            break
        batch, kv, part = task // parts // K, task // parts % K, task % parts
        _pack_transposed(at(k, batch, kv, 0), k.row, Tk, padded, D, width, one, values, 0, transposed)
        _pack_padded(at(v, batch, kv, 0), v.row, Tk, padded, D, width, one, values)
        for unit in range(part, H // K * blocks, parts):
            head, first = kv * (H // K) + unit // blocks, unit % blocks * QUERIES
            rows = min(QUERIES, Tq - first)
            padded_rows = round_up(rows, ROWS)
            row0 = (batch * H + head) * Tq + first  # rows are numbered for dropout and in lse
            _pack_padded(at(q, batch, head, first), q.row, rows, padded_rows, D, width, scale2, queries)
            for j in range(0, min(Tk, first + rows - 1 + offset), KEYS):
                seen = first + offset - j  # by the first query of the block
                keys = min(KEYS, Tk - j)
                _scores(queries, shift(transposed, j * width), padded_rows, keys, seen, width, scores)
                _hide_unseen(scores, padded_rows, seen, keys)
                for i in range(0, padded_rows, GROUP):
                    softmax_step(shift(scores, i * ROW), _computed(i, seen, keys, L) // L,
                                 shift(maxima, i * L), shift(totals, i * L), shift(sums, i * width), width, j == 0)
                _drop(scores, rows, seen, keys, row0 * Tk + j, Tk, dropout)
                _weighted(scores, padded_rows, keys, seen, shift(values, j * width), width, sums, j > 0)
            for i in range(rows):
                total = zero
                for lane in range(L):
                    total += totals[i * L + lane]
                log_sums[i] = total
                unpack(shift(sums, i * width), width, at(out, batch, head, first + i), 0, 1, D, width, one / total)
            for i in range(rows):
                lse[row0 + i] = maxima[i * L] + log(log_sums[i]) * log2_e


@kernel
def _backward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, memory):
    """The tasks of one thread: dq, and dk and dv of whole heads or what parts of their queries add to them."""
    B, H, K, Tq, Tk, D, parts = shape
    q, k, v, out = heads(places, 0, like), heads(places, 1, like), heads(places, 2, like), heads(places, 3, like)
    dout, dq, dk, dv = heads(places, 4, like), heads(places, 5, like), heads(places, 6, like), heads(places, 7, like)
    L = lanes(q.start)
    panel, log2_e = 2 * L, lse.dtype.type(LOG2_E)
    one, zero, scale2 = lse.dtype.type(1), lse.dtype.type(0), lse.dtype.type(scale * LOG2_E)
    width, padded, blocks = round_up(D, panel), round_up(Tk, panel), -(-Tq // QUERIES)
    keys_transposed = pointer(memory)
    values_transposed = shift(keys_transposed, padded * width)
    keys_packed = shift(values_transposed, padded * width)
    dkeys = shift(keys_packed, padded * width)
    dvalues = shift(dkeys, padded * width)
    queries = shift(dvalues, padded * width)
    douts = shift(queries, QUERIES * width)
    dqueries = shift(douts, QUERIES * width)
    p = shift(dqueries, QUERIES * width)
    ds = shift(p, QUERIES * ROW)
    deltas = shift(ds, QUERIES * ROW)
    log_sums = shift(deltas, QUERIES)
    while True:
        task = next_task(counters, worker, B * K * parts)
        if task < 0:
            break
        batch, kv, part = task // parts // K, task // parts % K, task % parts
        start = at(v, batch, kv, 0)
        _pack_transposed(start, v.row, Tk, padded, D, width, one, keys_packed, 0, values_transposed)
        start = at(k, batch, kv, 0)
        _pack_transposed(start, k.row, Tk, padded, D, width, one, keys_packed, width, keys_transposed)
        for i in range(2 * padded * width):
            dkeys[i] = 0  # and dvalues
        for unit in range(part, H // K * blocks, parts):
            head, first = kv * (H // K) + unit // blocks, unit % blocks * QUERIES
            rows = min(QUERIES, Tq - first)
            padded_rows = round_up(rows, ROWS)
            row0 = (batch * H + head) * Tq + first  # rows are numbered for dropout and in lse
            dout_start = at(dout, batch, head, first)
            _pack_padded(at(q, batch, head, first), q.row, rows, padded_rows, D, width, scale2, queries)
            _pack_padded(dout_start, dout.row, rows, padded_rows, D, width, one, douts)
            row_products(at(out, batch, head, first), out.row, dout_start, dout.row, rows, D, deltas)
            for i in range(padded_rows):
                log_sums[i] = lse[row0 + i] if i < rows else zero
                deltas[i] = deltas[i] if i < rows else zero
            for j in range(0, min(Tk, first + rows - 1 + offset), KEYS):
                seen = first + offset - j
                keys = min(KEYS, Tk - j)
                _scores(queries, shift(keys_transposed, j * width), padded_rows, keys, seen, width, p)
                _hide_unseen(p, padded_rows, seen, keys)
                _scores(douts, shift(values_transposed, j * width), padded_rows, keys, seen, width, ds)
                for i in range(padded_rows):
                    weights_and_gradients(shift(p, i * ROW), shift(ds, i * ROW),
                                          _computed(i, seen, keys, L) // L,
                                          shift(log_sums, i), shift(deltas, i))
                _drop_both(p, ds, deltas, rows, seen, keys, row0 * Tk + j, Tk, dropout)
                keys = round_up(keys, ROWS)
                _weighted_transposed(p, padded_rows, keys, seen, douts, width, shift(dvalues, j * width))
                _weighted_transposed(ds, padded_rows, keys, seen, queries, width, shift(dkeys, j * width))
                _weighted(ds, padded_rows, keys, seen, shift(keys_packed, j * width), width, dqueries, j > 0)
            unpack(dqueries, width, at(dq, batch, head, first), dq.row, rows, D, width, scale)
        unpack(dkeys, width, at(dk, part * B + batch, kv, 0), dk.row, Tk, D, width, one / log2_e)
        unpack(dvalues, width, at(dv, part * B + batch, kv, 0), dv.row, Tk, D, width, one)


@kernel
def _few_queries(places, like, shape, lse, scale, offset, dropout, counters, worker, memory):
    """Forward without blocks, for a query or two (text is being generated): keys and values are read where they lie."""
    B, H, K, Tq, Tk, D, _ = shape
    q, k, v, out = heads(places, 0, like), heads(places, 1, like), heads(places, 2, like), heads(places, 3, like)
    width, log2_e = round_up(D, lanes(q.start)), lse.dtype.type(LOG2_E)
    while True:
        task = next_task(counters, worker, B * H)
        if task < 0:
            break
        batch, head = task // H, task % H
        kv = head // (H // K)
        for i in range(Tq):
            query, weights = memory[:width], memory[width:width + min(Tk, i + offset)]
            pack(at(q, batch, head, i), 0, pointer(query), 0, 1, D, width, scale)
            row_products(at(k, batch, kv, 0), k.row, pointer(query), 0, weights.size, D, pointer(weights))
            maximum = row_maximum(weights)
            total = lse.dtype.type(0)
            for j in range(weights.size):
                weights[j] = exp(weights[j] - maximum)
                total += weights[j]
            factor = lse.dtype.type(1) / total
            for j in range(weights.size):
                weights[j] *= factor
            lse[(batch * H + head) * Tq + i] = (maximum + log(total)) * log2_e
            _drop(pointer(weights), 1, weights.size, weights.size, ((batch * H + head) * Tq + i) * Tk, 0, dropout)
            weighted_sum(pointer(weights), weights.size, at(v, batch, kv, 0), v.row, at(out, batch, head, i), D)


def _size(shape: tuple[int, ...], itemsize: int, of_keys: int, of_queries: int, of_scores: int) -> int:
    """The size of a workspace with so many blocks of all keys, of some queries, and of scores."""
    panel = 2 * host().vector_bytes // itemsize
    width, keys = -(-shape[5] // panel) * panel, -(-shape[4] // panel) * panel
    return of_keys * keys * width + QUERIES * (of_queries * width + of_scores * ROW + panel + 2)


def forward_size(shape: tuple[int, ...], itemsize: int) -> int:
    """Numbers in a workspace of `forward` and `forward_few`."""
    return _size(shape, itemsize, 2, 2, 1)


def backward_size(shape: tuple[int, ...], itemsize: int) -> int:
    """Numbers in a workspace of `backward`."""
    return _size(shape, itemsize, 5, 3, 2)


def forward_few(shared_type):
    """What each thread does in `attention.py`'s call."""

    def work(shared, worker):
        places, like, shape, lse, scale, offset, dropout, counters, memory = load(shared, shared_type)
        _few_queries(places, like, shape, lse, scale, offset, dropout, counters, worker, memory[worker])

    return work


def forward(shared_type):
    """What each thread does in `attention.py`'s call."""

    def work(shared, worker):
        places, like, shape, lse, scale, offset, dropout, counters, memory = load(shared, shared_type)
        _forward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, memory[worker])

    return work


def backward(shared_type):
    """What each thread does in `attention.py`'s call."""

    def work(shared, worker):
        places, like, shape, lse, scale, offset, dropout, counters, memory = load(shared, shared_type)
        _backward_tasks(places, like, shape, lse, scale, offset, dropout, counters, worker, memory[worker])

    return work


