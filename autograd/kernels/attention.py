"""Scaled dot-product attention, streaming: forward and backward without the T×T matrix.

    s_ij = scale · q_i·k_j,  −∞ where masked         p_ij = exp(s_ij − lse_i)         out_i = Σ_j p_ij·v_j
    lse_i = log Σ_j exp(s_ij)

    backward:   δ_i   = dout_i·out_i                 ds_ij = p_ij·(dout_i·v_j − δ_i)
                dq_i  = scale · Σ_j ds_ij·k_j        dk_j  = scale · Σ_i ds_ij·q_i    dv_j = Σ_i p_ij·dout_i

The scores are made block by block, `QUERIES` × `KEYS`, and used while they are in the first-level cache. Forward keeps for each
query the largest score m so far, the sum l of exp(s − m), and Σ exp(s − m)·v; a larger m scales both sums down (the
online softmax of Milakov and Gimelshein, arXiv:1805.02867, blocked as in FlashAttention, arXiv:2205.14135 and
2307.08691). Only lse = m + log l is saved; backward makes p again from it. With dropout, p̃ = p·keep/(1 − dropout_p) takes
the place of p in out and dv, and dout_i·v_j is dropped and scaled likewise.

All products go through three register tiles, C (+)= A·B with C of `ROWS` × 2 vectors. Operands are first copied into zero-padded
panels, so the tiles know no edges: a query row is read with one number in every lane, keys and values with neighbouring
numbers in neighbouring lanes (for q·k that takes kᵀ). What lies beyond the causal diagonal is skipped tile by tile.

Work: 4·Tq·Tk·D FLOPs a head forward, 10 backward, half of that if causal; bytes: the operands once and the results. One task is one
(batch, key/value head) in which all its query heads add up in order, so results do not depend on threads.

Left out: masks other than causal (an additive bias would go where `visible` is applied), head sizes that differ
between keys and values.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic

from .arrays import flat, give_back, span, workspace
from .elementary import constant, emit_exp
from .ir import INT, emitted, fetch_add, host, lanes, pointer, shift, transpose
from .jit import kernel, num_threads, prange
from .random import keep_threshold, keys, random_bits

__all__ = ["attention", "attention_backward"]

ROWS = 8 if host().vector_bytes == 64 else 4  # of a register tile; its columns are two vectors
UNROLL = 4
QUERIES = 64  # in a block; a multiple of ROWS
KEYS = 64  # in a block; a multiple of two vectors
FEW = 4  # with so few queries (a token being generated) packing does not pay


# --- what is emitted: the products and the exponentials ---


def _tile(name: str, along_rows: bool, accumulate: bool):
    """out (ROWS, 2 vectors) (+)= Σ_k a[row, k]·b[k, columns], for k < steps·UNROLL.

    `along_rows`: a is stored row by row, `a_stride` apart; else column by column. The rows of b are b_stride apart.
    """
    def body(e, a, a_stride, b, b_stride, steps, out, out_stride):
        times = e.builder.mul
        row = lambda base, stride, i: e.at(base, times(stride, INT(i)))
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
            e.store(e.add(total, e.load(cell)) if accumulate else total, cell)

    @intrinsic
    def tile(typingctx, a, a_stride, b, b_stride, steps, out, out_stride):
        i = types.intp
        return types.void(a, i, b, i, i, a, i), emitted(f"attention.{name}", body)

    return tile


product = _tile("product", along_rows=True, accumulate=False)
add_product = _tile("add_product", along_rows=True, accumulate=True)
add_transposed_product = _tile("add_transposed_product", along_rows=False, accumulate=True)


def _visible(e, first, visible):
    """For the vector of columns from `first` on: which of them are below `visible`."""
    kind = llvm.VectorType(INT, e.lanes)
    index = llvm.Constant(kind, [INT(i) for i in range(e.lanes)])
    return e.builder.icmp_signed("<", index, _splat(e, e.builder.sub(visible, first), kind))


def _splat(e, value, kind):
    first = e.builder.insert_element(llvm.Constant(kind, llvm.Undefined), value, llvm.IntType(32)(0))
    return e.shuffle(first, first, [0] * e.lanes)


@intrinsic
def softmax_step(typingctx, scores, vectors, visible, maximum, total, sums, width):
    """One query meets a block of keys: scores become exp(score − m), 0 from `visible` on; m, l and Σ p·v adapt.

    `maximum` points to m in every lane, `total` to a vector whose lanes add up to l, `sums` to `width` vectors Σ p·v.
    """
    def body(e, scores, vectors, visible, maximum, total, sums, width):
        builder = e.builder
        at = lambda base, i: e.at(base, builder.mul(i, INT(e.lanes)))
        largest = lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y)
        lowest = constant(e.vector, -np.inf)
        before = e.load(maximum)
        with e.loop(vectors, [INT(0), before]) as carried:
            i, m = carried
            x = e.load(at(scores, i))
            m = largest(builder.select(_visible(e, builder.mul(i, INT(e.lanes)), visible), x, lowest), m)
            carried[:] = [builder.add(i, INT(1)), m]
        m, half = carried[1], e.lanes // 2
        while half:
            m = largest(m, e.shuffle(m, m, [i ^ half for i in range(e.lanes)]))
            half //= 2
        e.store(m, maximum)
        shrink = emit_exp(builder, builder.fsub(before, m))
        with e.loop(vectors, [INT(0), builder.fmul(e.load(total), shrink)]) as carried:
            i, l = carried
            p = emit_exp(builder, builder.fsub(e.load(at(scores, i)), m))
            p = builder.select(_visible(e, builder.mul(i, INT(e.lanes)), visible), p, e.zero())
            e.store(p, at(scores, i))
            carried[:] = [builder.add(i, INT(1)), builder.fadd(l, p)]
        e.store(carried[1], total)
        with e.loop(width, [INT(0)]) as carried:
            i, = carried
            e.store(builder.fmul(e.load(at(sums, i)), shrink), at(sums, i))
            carried[:] = [builder.add(i, INT(1))]

    i = types.intp
    return types.void(scores, i, i, scores, scores, scores, i), emitted("attention.softmax_step", body)


@intrinsic
def weights_and_gradients(typingctx, p, ds, vectors, visible, lse, delta):
    """Scores p become exp(p − lse), 0 from `visible` on, and ds becomes p·(ds − delta)."""
    def body(e, p, ds, vectors, visible, lse, delta):
        builder = e.builder
        lse, delta = e.splat(lse), e.splat(delta)
        at = lambda base, i: e.at(base, builder.mul(i, INT(e.lanes)))
        with e.loop(vectors, [INT(0)]) as carried:
            i, = carried
            weight = emit_exp(builder, builder.fsub(e.load(at(p, i)), lse))
            seen = _visible(e, builder.mul(i, INT(e.lanes)), visible)
            gradient = builder.fmul(weight, builder.fsub(e.load(at(ds, i)), delta))
            e.store(builder.select(seen, weight, e.zero()), at(p, i))
            e.store(builder.select(seen, gradient, e.zero()), at(ds, i))
            carried[:] = [builder.add(i, INT(1))]

    i = types.intp
    return types.void(p, p, i, i, p, p), emitted("attention.weights_and_gradients", body)


# --- packing ---


@kernel
def _up(n, unit):
    return (n + unit - 1) // unit * unit


@kernel
def _pack(source, stride, rows, D, scale, target, padded_rows, width):
    """target (padded_rows, width) = scale · source (rows, D), and zeros around."""
    zero = scale - scale
    for i in range(rows):
        x, y = shift(source, i * stride), shift(target, i * width)
        for d in range(D):
            y[d] = x[d] * scale
        for d in range(D, width):
            y[d] = zero
    for i in range(rows * width, padded_rows * width):
        target[i] = zero


@kernel
def _transpose(source, rows, width, target):
    """Panels of two vectors of rows of `source` (rows, width): target (rows / panel, width, panel)."""
    L = lanes(source)
    panel = 2 * L
    for first in range(0, rows, panel):
        for d in range(0, width, L):
            for v in range(0, panel, L):
                transpose(shift(source, (first + v) * width + d), width, shift(target, first * width + d * panel + v), panel)


@kernel
def _unpack(source, width, rows, D, scale, target, stride):
    for i in range(rows):
        x, y = shift(source, i * width), shift(target, i * stride)
        for d in range(D):
            y[d] = x[d] * scale


@kernel
def _clear(target, count, value):
    for i in range(count):
        target[i] = value


@kernel
def _drop(p, visible, position, dropout):
    """Drop from p the weights at `position` and following."""
    key0, key1, threshold, keep_scale = dropout
    for j in range(visible):
        kept = p[j] * keep_scale
        p[j] = kept if random_bits(key0, key1, position + j) >= threshold else keep_scale - keep_scale


# --- products of blocks ---


@kernel
def _scores(a, transposed, rows, keys, visible, width, out):
    """out (rows, KEYS) = a (rows, width) · panels, but for tiles of which no number is visible.

    Row i sees `visible + i` of the block's `keys` (a multiple of the panel) columns.
    """
    panel = 2 * lanes(a)
    for j in range(0, keys, panel):
        for i in range(0, rows, ROWS):
            if visible + i + ROWS - 1 > j:
                product(shift(a, i * width), width, shift(transposed, j * width), panel, width // UNROLL,
                        shift(out, i * KEYS + j), KEYS)


@kernel
def _add_weighted(p, rows, keys, visible, b, width, out):
    """out (rows, width) += p (rows, KEYS) · b (keys, width), with row i of p zero from `visible + i` on."""
    for j in range(0, width, 2 * lanes(p)):
        for i in range(0, rows, ROWS):
            depth = min(keys, _up(visible + i + ROWS - 1, UNROLL))
            if depth > 0:
                add_product(shift(p, i * KEYS), KEYS, shift(b, j), width, depth // UNROLL, shift(out, i * width + j), width)


@kernel
def _add_transposed(p, rows, keys, visible, b, width, out):
    """out (keys, width) += pᵀ (keys, rows) · b (rows, width), with row i of p zero from `visible + i` on."""
    for j in range(0, width, 2 * lanes(p)):
        for i in range(0, keys, ROWS):
            first = max(0, i + 1 - visible) // ROWS * ROWS  # earlier queries do not see these keys
            if first < rows:
                add_transposed_product(shift(p, first * KEYS + i), KEYS, shift(b, first * width + j), width,
                                       (rows - first) // UNROLL, shift(out, i * width + j), width)


# --- one task ---


@kernel
def _at(array, strides, batch, head):
    """Where the rows of one head begin."""
    return shift(pointer(array), batch * strides[0] + head * strides[1])


@kernel
def _forward_task(q, k, v, out, lse, strides, batch, kv, shape, scale, offset, dropout, workspace):
    H, K, Tq, Tk, D = shape
    L = lanes(pointer(q))
    panel = 2 * L
    one, zero = scale / scale, scale - scale
    width, padded = _up(D, panel), _up(Tk, panel)
    transposed = pointer(workspace)
    values = shift(transposed, padded * width)
    queries = shift(values, padded * width)
    sums = shift(queries, QUERIES * width)
    scores = shift(sums, QUERIES * width)
    maxima = shift(scores, QUERIES * KEYS)
    totals = shift(maxima, QUERIES * L)
    _pack(_at(k, strides[1], batch, kv), strides[1, 2], Tk, D, one, values, padded, width)
    _transpose(values, padded, width, transposed)
    _pack(_at(v, strides[2], batch, kv), strides[2, 2], Tk, D, one, values, padded, width)
    for head in range(kv * (H // K), (kv + 1) * (H // K)):
        q_start, out_start = _at(q, strides[0], batch, head), _at(out, strides[3], batch, head)
        for first in range(0, Tq, QUERIES):
            rows = min(QUERIES, Tq - first)
            padded_rows = _up(rows, ROWS)
            _pack(shift(q_start, first * strides[0, 2]), strides[0, 2], rows, D, scale, queries, padded_rows, width)
            _clear(sums, padded_rows * width, zero)
            _clear(maxima, padded_rows * L, -one / zero)
            _clear(totals, padded_rows * L, zero)
            for j in range(0, min(Tk, first + rows - 1 + offset), KEYS):
                seen = first + offset - j  # by the first query of the block
                keys = _up(min(KEYS, Tk - j), panel)
                _scores(queries, shift(transposed, j * width), padded_rows, keys, seen, width, scores)
                for i in range(padded_rows):
                    columns = min(keys, _up(max(0, seen + i // ROWS * ROWS + ROWS - 1), panel))
                    softmax_step(shift(scores, i * KEYS), columns // L, min(seen + i, Tk - j),
                                 shift(maxima, i * L), shift(totals, i * L), shift(sums, i * width), width // L)
                    if dropout[2] and i < rows:
                        position = ((batch * H + head) * Tq + first + i) * Tk + j
                        _drop(shift(scores, i * KEYS), min(seen + i, KEYS, Tk - j), position, dropout)
                _add_weighted(scores, padded_rows, keys, seen, shift(values, j * width), width, sums)
            for i in range(rows):
                total = zero
                for lane in range(L):
                    total += totals[i * L + lane]
                lse[(batch * H + head) * Tq + first + i] = maxima[i * L] + np.log(total)
                _unpack(shift(sums, i * width), width, 1, D, one / total,
                        shift(out_start, (first + i) * strides[3, 2]), strides[3, 2])


@kernel
def _backward_task(dout, q, k, v, out, lse, dq, dk, dv, strides, batch, kv, shape, scale, offset, dropout, workspace):
    H, K, Tq, Tk, D = shape
    panel = 2 * lanes(pointer(q))
    one, zero = scale / scale, scale - scale
    width, padded = _up(D, panel), _up(Tk, panel)
    keys_transposed = pointer(workspace)
    values_transposed = shift(keys_transposed, padded * width)
    keys_packed = shift(values_transposed, padded * width)
    dkeys = shift(keys_packed, padded * width)
    dvalues = shift(dkeys, padded * width)
    queries = shift(dvalues, padded * width)
    douts = shift(queries, QUERIES * width)
    dqueries = shift(douts, QUERIES * width)
    p = shift(dqueries, QUERIES * width)
    ds = shift(p, QUERIES * KEYS)
    log_sums = shift(ds, QUERIES * KEYS)
    deltas = shift(log_sums, QUERIES)
    _pack(_at(v, strides[2], batch, kv), strides[2, 2], Tk, D, one, keys_packed, padded, width)
    _transpose(keys_packed, padded, width, values_transposed)
    _pack(_at(k, strides[1], batch, kv), strides[1, 2], Tk, D, one, keys_packed, padded, width)
    _transpose(keys_packed, padded, width, keys_transposed)
    _clear(dkeys, padded * width, zero)
    _clear(dvalues, padded * width, zero)
    for head in range(kv * (H // K), (kv + 1) * (H // K)):
        q_start, dq_start = _at(q, strides[0], batch, head), _at(dq, strides[5], batch, head)
        out_start, dout_start = _at(out, strides[3], batch, head), _at(dout, strides[4], batch, head)
        for first in range(0, Tq, QUERIES):
            rows = min(QUERIES, Tq - first)
            padded_rows = _up(rows, ROWS)
            _pack(shift(q_start, first * strides[0, 2]), strides[0, 2], rows, D, scale, queries, padded_rows, width)
            _pack(shift(dout_start, first * strides[4, 2]), strides[4, 2], rows, D, one, douts, padded_rows, width)
            _clear(dqueries, padded_rows * width, zero)
            for i in range(padded_rows):
                log_sums[i] = lse[(batch * H + head) * Tq + first + i] if i < rows else zero
                delta = zero
                if i < rows:
                    x, y = shift(out_start, (first + i) * strides[3, 2]), shift(douts, i * width)
                    for d in range(D):
                        delta += x[d] * y[d]
                deltas[i] = delta
            for j in range(0, min(Tk, first + rows - 1 + offset), KEYS):
                seen = first + offset - j
                keys = _up(min(KEYS, Tk - j), panel)
                _scores(queries, shift(keys_transposed, j * width), padded_rows, keys, seen, width, p)
                _scores(douts, shift(values_transposed, j * width), padded_rows, keys, seen, width, ds)
                for i in range(padded_rows):
                    columns = min(keys, _up(max(0, seen + i // ROWS * ROWS + ROWS - 1), panel))
                    dropped = min(seen + i, KEYS, Tk - j) if dropout[2] and i < rows else 0
                    position = ((batch * H + head) * Tq + first + i) * Tk + j
                    _drop(shift(ds, i * KEYS), dropped, position, dropout)
                    weights_and_gradients(shift(p, i * KEYS), shift(ds, i * KEYS), columns // lanes(p),
                                          min(seen + i, Tk - j), shift(log_sums, i), shift(deltas, i))
                    _drop(shift(p, i * KEYS), dropped, position, dropout)
                _add_transposed(p, padded_rows, keys, seen, douts, width, shift(dvalues, j * width))
                _add_transposed(ds, padded_rows, keys, seen, queries, width, shift(dkeys, j * width))
                _add_weighted(ds, padded_rows, keys, seen, shift(keys_packed, j * width), width, dqueries)
            _unpack(dqueries, width, rows, D, scale, shift(dq_start, first * strides[5, 2]), strides[5, 2])
    _unpack(dkeys, width, Tk, D, one, _at(dk, strides[6], batch, kv), strides[6, 2])
    _unpack(dvalues, width, Tk, D, one, _at(dv, strides[7], batch, kv), strides[7, 2])


@kernel
def _forward_worker(q, k, v, out, lse, strides, B, shape, scale, offset, dropout, counter, workspace):
    K = shape[1]
    task = fetch_add(pointer(counter))
    while task < B * K:
        _forward_task(q, k, v, out, lse, strides, task // K, task % K, shape, scale, offset, dropout, workspace)
        task = fetch_add(pointer(counter))


@kernel
def _backward_worker(dout, q, k, v, out, lse, dq, dk, dv, strides, B, shape, scale, offset, dropout, counter, workspace):
    K = shape[1]
    task = fetch_add(pointer(counter))
    while task < B * K:
        _backward_task(dout, q, k, v, out, lse, dq, dk, dv, strides, task // K, task % K, shape, scale, offset, dropout,
                       workspace)
        task = fetch_add(pointer(counter))


@kernel(parallel=True)
def _forward(q, k, v, out, lse, strides, B, shape, scale, offset, dropout, counter, workspace):
    for worker in prange(len(workspace)):
        _forward_worker(q, k, v, out, lse, strides, B, shape, scale, offset, dropout, counter, workspace[worker])


@kernel(parallel=True)
def _backward(dout, q, k, v, out, lse, dq, dk, dv, strides, B, shape, scale, offset, dropout, counter, workspace):
    for worker in prange(len(workspace)):
        _backward_worker(dout, q, k, v, out, lse, dq, dk, dv, strides, B, shape, scale, offset, dropout, counter,
                         workspace[worker])


# --- the public functions ---


def _readable(x: np.ndarray) -> np.ndarray:
    """`x`, or a copy of it where its numbers do not lie side by side along the last axis."""
    fits = x.flags.aligned and all(stride >= 0 and stride % x.itemsize == 0 for stride in x.strides)
    fits = fits and (x.shape[-1] <= 1 or x.strides[-1] == x.itemsize)
    return x if fits or not x.size else np.array(x, order="C")


def _target(x: np.ndarray | None, like: np.ndarray, name: str) -> np.ndarray:
    if x is None:
        return np.empty(like.shape, like.dtype)
    if x.shape != like.shape or x.dtype != like.dtype or not x.flags.writeable or _readable(x) is not x:
        raise ValueError(f"expected {name} to be writable, {like.dtype} {like.shape}, with unit stride on the last axis, "
                         f"got {x.dtype} {x.shape} with strides {x.strides} bytes")
    return x


def _shape(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> tuple[int, int, int, int, int]:
    """(H, K, Tq, Tk, D), after checking that the arrays fit together."""
    if not (q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
            and k.shape[1] and q.shape[1] % k.shape[1] == 0):
        raise ValueError(f"expected q (B, H, Tq, D) and k, v (B, K, Tk, D) with H a multiple of K, "
                         f"got {q.shape}, {k.shape}, {v.shape}")
    if causal and q.shape[2] > k.shape[2]:
        raise ValueError(f"expected at least as many keys as queries in causal attention, got {k.shape[2]} keys for "
                         f"{q.shape[2]} queries")
    return q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]


def _strides(*arrays: np.ndarray) -> np.ndarray:
    return np.array([array.strides[:3] for array in arrays], np.int64) // arrays[0].itemsize


def _offset(shape: tuple[int, int, int, int, int], causal: bool) -> int:
    """Query i sees the first i + offset keys."""
    _, _, Tq, Tk, _ = shape
    return Tk - Tq + 1 if causal else Tk


def _elements(shape: tuple[int, int, int, int, int], itemsize: int, of_keys: int, of_queries: int, of_scores: int) -> int:
    """The size of a workspace with so many blocks of all keys, of some queries, and of scores."""
    panel = 2 * host().vector_bytes // itemsize
    width, keys = -(-shape[4] // panel) * panel, -(-shape[3] // panel) * panel
    return of_keys * keys * width + QUERIES * (of_queries * width + of_scores * KEYS + panel)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, causal: bool, dropout_p: float = 0.0, seed: int = 0,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """softmax(scale · q kᵀ) v with q (B, H, Tq, D) and k, v (B, K, Tk, D) → (out (B, H, Tq, D), lse (B, H, Tq)).

    Query head h attends to key head h // (H // K). With `causal` the queries are the last Tq of Tk positions: query i
    sees keys 0 … i + Tk − Tq. The weight at (b, h, i, j) is dropped where `uniform((B, H, Tq, Tk), seed) < dropout_p`, and
    the others divided by 1 − dropout_p.

    Any strides do for the operands, though only those with unit stride on the last axis spare a copy; `out`, where
    given, must have it. Raises ValueError for shapes that do not fit.
    """
    shape = _shape(q, k, v, causal)
    q, k, v = _readable(q), _readable(k), _readable(v)
    out = _target(out, q, "out")
    lse = np.empty(q.shape[:3], q.dtype)
    number = q.dtype.type
    dropout = (*keys(seed), keep_threshold(dropout_p), number(1 / (1 - dropout_p)))
    memory = workspace(q.dtype, num_threads(), _elements(shape, q.itemsize, 2, 2, 1))
    _forward(span(q), span(k), span(v), span(out), lse.reshape(-1), _strides(q, k, v, out), q.shape[0], shape,
             number(scale), _offset(shape, causal), dropout, np.zeros(1, np.int64), memory)
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
    number = q.dtype.type
    dropout = (*keys(seed), keep_threshold(dropout_p), number(1 / (1 - dropout_p)))
    memory = workspace(q.dtype, num_threads(), _elements(shape, q.itemsize, 5, 3, 2))
    _backward(span(dout), span(q), span(k), span(v), span(out), flat(lse), span(dq), span(dk), span(dv),
              _strides(q, k, v, out, dout, dq, dk, dv), q.shape[0], shape, number(scale), _offset(shape, causal), dropout,
              np.zeros(1, np.int64), memory)
    give_back(memory)
    return dq, dk, dv
