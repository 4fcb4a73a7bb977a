"""Scaled dot-product attention, streaming: forward and backward without the T×T matrix.

    s_ij = log₂e · scale · q_i·k_j,  −∞ where masked     p_ij = 2^(s_ij − lse_i)     out_i = Σ_j p_ij·v_j
    lse_i = log₂ Σ_j 2^(s_ij)

    backward:   δ_i   = dout_i·out_i                 ds_ij = p_ij·(dout_i·v_j − δ_i)
                dq_i  = scale · Σ_j ds_ij·k_j        dk_j  = scale · Σ_i ds_ij·q_i    dv_j = Σ_i p_ij·dout_i

which is softmax(scale · q kᵀ) v, as e^x = 2^(log₂e · x). Forward keeps for each query the largest score m so far, the
sum l of 2^(s − m), and Σ 2^(s − m)·v; a larger m scales both sums down (the online softmax of Milakov and Gimelshein,
arXiv:1805.02867, blocked as in FlashAttention, arXiv:2205.14135 and 2307.08691). Only lse = m + log₂ l is saved;
backward makes p again from it. With dropout, p̃ = p·keep/(1 − dropout_p) takes the place of p in out and dv, and
dout_i·v_j is dropped and scaled likewise.

The work is done on vectors (`attention_vectors`) or, in float32, on AMX tiles (`attention_tiles`), where the processor
has them: each number in three parts, or with `matmul_precision("bfloat16")` rounded to one. For the latter, all
operands may come as bfloat16 already (their bits, as uint16), and all results are then rounded to it: half the traffic.
Infinite numbers have no parts: where a result in parts has NaN, vectors tell whether it must.

Work: 4·Tq·Tk·D FLOPs a head forward, 10 backward, half of that if causal; bytes: the operands once and the results.
One task is one (batch, key/value head), in which all its query heads add up in order. Where there are fewer of them
than `TASKS`, each is cut along its queries, and dk and dv of the parts are added in order. Either way results do not
depend on the number of threads.

Left out: masks other than causal (an additive bias would go where scores are hidden), head sizes that differ
between keys and values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from . import attention_tiles, attention_vectors
from .arrays import workspace
from .attention_parts import OPERANDS, places
from .bfloat16 import amx_available, matmul_precision
from .jit import callback, kernel
from .matmul import tiles_allowed
from .random import keep_threshold, keys
from .tasks import APART, declare, run, save
from .together import leave, next_slot, settle

__all__ = ["attention", "attention_backward"]

TASKS = 2  # at least, if there are queries enough; each part packs all keys
ROWS_OF_PART = 64  # queries that a part has at least
NARROW = np.dtype(np.uint16)  # the bits of bfloat16
TILED = 512, 16  # queries and keys, and numbers in a head, from which on float32 goes to tiles
FEW = 2  # queries: for so few, packing the keys does not pay


def _room(dtype: np.dtype, scale: float, shape: tuple[int, ...]) -> Any:
    """Where the kernels are for this dtype and (B, H, K, Tq, Tk, D, …) in the precision that is set.

    In bfloat16 products are hidden, and the largest found, before they are scaled: by a positive number only.
    """
    if dtype == NARROW and not scale > 0:
        raise ValueError(f"attention in bfloat16: expected a positive scale, got {scale}; use float32 operands")
    tiles, (*_, Tq, Tk, D, _) = dtype == np.float32 and amx_available(), shape
    if dtype == NARROW or (tiles and scale > 0 and matmul_precision.current == "bfloat16"):
        return attention_tiles.rounded
    if tiles and tiles_allowed() and min(Tq, Tk) >= TILED[0] and TILED[1] <= D:
        return attention_tiles.split
    return attention_vectors


def _number(dtype: np.dtype) -> np.dtype:
    """The type that an operand's numbers are computed with."""
    return np.dtype(np.float32) if dtype == NARROW else dtype


@functools.cache
def _compiled(tasks: Callable, dtype: np.dtype) -> Callable:
    """A function that runs `tasks` on all threads, compiled for this dtype.

    Returns whether it could: strides must not end inside a number.
    """
    operand, number = numba.from_dtype(dtype), numba.from_dtype(_number(dtype))
    word, integers = types.uint32, types.Array(types.int64, 1, "C")
    dropout = types.Tuple([word, word, word, number])
    operands = types.UniTuple(types.Array(operand, 4, "A", readonly=True), OPERANDS)
    kinds = [types.Array(operand, 1, "C"), types.UniTuple(types.int64, 7), types.Array(number, 1, "C"),
             number, types.intp, dropout, integers, types.Array(number, 2, "C")]  # fmt: skip
    shared_type = declare(f"attention: {dtype}", types.Tuple([integers, *kinds]))

    work = callback(types.void(types.int64, types.int64))(tasks(shared_type))

    @kernel(signature=types.boolean(types.int64, operands, *kinds, types.int64))
    def attend(work, operands, like, shape, lse, scale, offset, dropout, integers, memory, slot):
        counters, table = integers[: APART * len(memory)], integers[APART * len(memory) :]
        if not places(operands, table):
            return False
        shared = table, like, shape, lse, scale, offset, dropout, counters, memory
        run(work, save(shared, shared_type, slot), len(memory), counters, slot)
        return True

    like = np.empty(0, dtype)
    return lambda operands, *others: attend(work.address, operands, like, *others)


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
    """(B, H, K, Tq, Tk, D) and into how many parts the queries of a key/value head are cut.

    Checks that the arrays fit together. Heads are cut where there are too few of them to keep processors busy, and by
    shape alone: results must not depend on how many processors there are.
    """
    if not (q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
            and k.shape[1] and q.shape[1] % k.shape[1] == 0):
        raise ValueError(f"expected q (B, H, Tq, D) and k, v (B, K, Tk, D) with H a multiple of K, "
                         f"got {q.shape}, {k.shape}, {v.shape}")
    if not k.shape[2]:
        raise ValueError("expected at least one key")
    if causal and q.shape[2] > k.shape[2]:
        raise ValueError(f"expected at least as many keys as queries in causal attention, got {k.shape[2]} keys for "
                         f"{q.shape[2]} queries")
    (B, H, Tq, D), (K, Tk) = q.shape, k.shape[1:3]
    heads = B * K
    parts = min(-(-TASKS // heads), H // K * -(-Tq // ROWS_OF_PART)) if 0 < heads < TASKS and Tq else 1
    return B, H, K, Tq, Tk, D, parts


def _offset(shape: tuple[int, ...], causal: bool) -> int:
    """Query i sees the first i + offset keys."""
    *_, Tq, Tk, _, _ = shape
    return Tk - Tq + 1 if causal else Tk


def _run(
    tasks: Callable, size: int, shape: tuple[int, ...], arrays: tuple[np.ndarray, ...], lse: np.ndarray, scale: float,
    causal: bool, dropout_p: float, seed: int,
) -> np.ndarray:  # fmt: skip
    """Let all threads do `tasks`, each in a workspace of `size` numbers, which are returned; or leave it in a slot."""
    number, dtype = lse.dtype, arrays[0].dtype
    for x in arrays:
        if x.dtype != dtype:
            raise TypeError(f"attention takes arrays of one dtype, got {dtype} and {x.dtype}")
    memory = workspace(number, numba.config.NUMBA_NUM_THREADS, size)
    operands = arrays + arrays[-1:] * (OPERANDS - len(arrays))
    integers = np.zeros(APART * len(memory) + 4 * OPERANDS, np.int64)
    slot = next_slot()
    done = _compiled(tasks, dtype)(operands, shape, lse.reshape(-1), number.type(scale), _offset(shape, causal),
                                   _dropout(number, dropout_p, seed), integers, memory, slot)  # fmt: skip
    if not done:
        raise ValueError("attention needs strides that are multiples of the item size; copy the arrays first")
    if slot:
        leave(sum(x.nbytes for x in arrays[3 if len(arrays) == 4 else 5 :]), operands, lse, integers, memory)
    return memory


def _met_nan(memory: np.ndarray) -> bool:
    """Whether attention in parts, which takes note of it in its workspace, met NaN where a sum of parts ended."""
    settle()
    return math.isnan(sum(memory[:, 0].tolist()))


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, causal: bool, dropout_p: float = 0.0, seed: int = 0,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """softmax(scale · q kᵀ) v with q (B, H, Tq, D) and k, v (B, K, Tk, D) → (out (B, H, Tq, D), lse (B, H, Tq)),
    lse being the logarithm, to base 2, of the sum that softmax divides by.

    float32 or float64; with `matmul_precision("bfloat16")` the products of float32 arrays are rounded as in `matmul`.

    Query head h attends to key head h // (H // K). With `causal` the queries are the last Tq of Tk positions: query i
    sees keys 0 … i + Tk − Tq. The weight at (b, h, i, j) is dropped where `uniform((B, H, Tq, Tk), seed)` is below
    dropout_p, and the others are divided by 1 − dropout_p.

    Any strides do for the operands, though only those with unit stride on the last axis spare a copy; `out`, where
    given, must have it. Raises ValueError for shapes that do not fit, and for strides that end inside a number.
    """
    shape = _shape(q, k, v, causal)
    q, k, v = _readable(q), _readable(k), _readable(v)
    out = _target(out, q, "out")
    lse = np.empty(q.shape[:3], _number(q.dtype))
    few = q.shape[2] <= FEW and q.dtype != NARROW
    room = attention_vectors if few else _room(q.dtype, scale, shape)
    tasks = attention_vectors.forward_few if few else room.forward
    work = shape, (q, k, v, out), lse, scale, causal, dropout_p, seed
    memory = _run(tasks, room.forward_size(shape, lse.itemsize), *work)
    if room is attention_tiles.split and _met_nan(memory):
        _run(attention_vectors.forward, attention_vectors.forward_size(shape, lse.itemsize), *work)
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
    room = _room(q.dtype, scale, shape)
    if q.shape[2] <= FEW and q.dtype != NARROW:
        # Their scores were summed in another order. The last digits of a large one would be gone: e^(s − lse) of a key
        # that has all the weight would not be 1.
        lse, unused = np.empty_like(lse), np.empty_like(q)
        size = room.forward_size(shape, lse.itemsize)
        _run(room.forward, size, shape, (q, k, v, unused), lse, scale, causal, dropout_p, seed)
    parts = shape[-1]
    if parts > 1 and q.dtype == NARROW:
        raise ValueError("expected float32 operands for a single head, whose gradients are summed from several parts")
    sums = [(x, np.empty((parts, *x.shape), x.dtype)) for x in (dk, dv)] if parts > 1 else []
    dkv = [part.reshape(-1, *x.shape[1:]) for x, part in sums] or [dk, dv]
    work = shape, (q, k, v, out, dout, dq, *dkv), np.ascontiguousarray(lse), scale, causal, dropout_p, seed
    memory = _run(room.backward, room.backward_size(shape, lse.itemsize), *work)
    if room is attention_tiles.split and _met_nan(memory):
        _run(attention_vectors.backward, attention_vectors.backward_size(shape, lse.itemsize), *work)
    if sums:
        settle()
    for x, part in sums:
        np.add.reduce(part, axis=0, out=x)
    return dq, dk, dv
