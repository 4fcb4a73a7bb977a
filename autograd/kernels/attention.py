"""Scaled dot-product attention, streaming, forward and backward. (First, plain version: the blocked kernel is being built.)

    s_ij = scale · q_i·k_j  (−inf where masked)      p_ij = exp(s_ij − lse_i)      out_i = Σ_j p_ij · v_j
    lse_i = log Σ_j exp(s_ij)

    backward:  δ_i = dout_i·out_i       ds_ij = p_ij · (dout_i·v_j − δ_i)
               dq_i = scale · Σ_j ds_ij·k_j     dk_j = scale · Σ_i ds_ij·q_i     dv_j = Σ_i p_ij·dout_i
"""

from __future__ import annotations

import numpy as np

from .arrays import span
from .elementary import exp, row_maximum
from .jit import kernel, prange
from .random import keep_threshold, keys, random_bits

__all__ = ["attention", "attention_backward"]


@kernel
def _scores(q, qi, k, k0, ks, D, scale, s):
    for j in range(s.size):
        total = q.dtype.type(0)
        kj = k0 + j * ks
        for d in range(D):
            total += q[qi + d] * k[kj + d]
        s[j] = total * scale


@kernel
def _drop(p, row, Tk, key0, key1, threshold, keep_scale):
    for j in range(p.size):
        p[j] = p[j] * keep_scale if random_bits(key0, key1, row * Tk + j) >= threshold else p.dtype.type(0)


@kernel
def _forward_head(q, k, v, out, lse, strides, b, h, shape, causal, scale, key0, key1, threshold, keep_scale):
    H, K, Tq, Tk, D = shape
    kv = h // (H // K)
    scratch = np.empty(Tk, q.dtype)
    for i in range(Tq):
        visible = min(Tk, i + Tk - Tq + 1) if causal else Tk
        qi = b * strides[0, 0] + h * strides[0, 1] + i * strides[0, 2]
        oi = b * strides[3, 0] + h * strides[3, 1] + i * strides[3, 2]
        s = scratch[:visible]
        _scores(q, qi, k, b * strides[1, 0] + kv * strides[1, 1], strides[1, 2], D, scale, s)
        m = row_maximum(s)
        total = q.dtype.type(0)
        for j in range(visible):
            e = exp(s[j] - m)
            s[j] = e
            total += e
        r = q.dtype.type(1) / total
        for j in range(visible):
            s[j] *= r
        row = (b * H + h) * Tq + i
        lse[row] = m + np.log(total)
        if threshold:
            _drop(s, row, Tk, key0, key1, threshold, keep_scale)
        for d in range(D):
            out[oi + d] = 0
        for j in range(visible):
            vj = b * strides[2, 0] + kv * strides[2, 1] + j * strides[2, 2]
            for d in range(D):
                out[oi + d] += s[j] * v[vj + d]


@kernel
def _backward_group(dout, q, k, v, out, lse, dq, dk, dv, strides, b, kv, shape, causal, scale, key0, key1, threshold,
                    keep_scale):
    H, K, Tq, Tk, D = shape
    zero = q.dtype.type(0)
    k0 = b * strides[1, 0] + kv * strides[1, 1]
    v0 = b * strides[2, 0] + kv * strides[2, 1]
    dk0 = b * strides[6, 0] + kv * strides[6, 1]
    dv0 = b * strides[7, 0] + kv * strides[7, 1]
    for j in range(Tk):
        for d in range(D):
            dk[dk0 + j * strides[6, 2] + d] = zero
            dv[dv0 + j * strides[7, 2] + d] = zero
    scratch_p, scratch_s = np.empty(Tk, q.dtype), np.empty(Tk, q.dtype)
    for h in range(kv * (H // K), (kv + 1) * (H // K)):
        for i in range(Tq):
            visible = min(Tk, i + Tk - Tq + 1) if causal else Tk
            qi = b * strides[0, 0] + h * strides[0, 1] + i * strides[0, 2]
            oi = b * strides[3, 0] + h * strides[3, 1] + i * strides[3, 2]
            di = b * strides[4, 0] + h * strides[4, 1] + i * strides[4, 2]
            dqi = b * strides[5, 0] + h * strides[5, 1] + i * strides[5, 2]
            p, ds = scratch_p[:visible], scratch_s[:visible]
            row = (b * H + h) * Tq + i
            _scores(q, qi, k, k0, strides[1, 2], D, scale, p)
            _scores(dout, di, v, v0, strides[2, 2], D, q.dtype.type(1), ds)
            delta = zero
            for d in range(D):
                delta += dout[di + d] * out[oi + d]
            for j in range(visible):
                p[j] = exp(p[j] - lse[row])
            if threshold:
                _drop(ds, row, Tk, key0, key1, threshold, keep_scale)
            for j in range(visible):
                ds[j] = p[j] * (ds[j] - delta) * scale
            if threshold:
                _drop(p, row, Tk, key0, key1, threshold, keep_scale)
            for d in range(D):
                dq[dqi + d] = zero
            for j in range(visible):
                kj, vj = dk0 + j * strides[6, 2], dv0 + j * strides[7, 2]
                for d in range(D):
                    dq[dqi + d] += ds[j] * k[k0 + j * strides[1, 2] + d]
                    dk[kj + d] += ds[j] * q[qi + d]
                    dv[vj + d] += p[j] * dout[di + d]


@kernel(parallel=True)
def _forward(q, k, v, out, lse, strides, B, shape, causal, scale, key0, key1, threshold, keep_scale):
    H = shape[0]
    for head in prange(B * H):
        _forward_head(q, k, v, out, lse, strides, head // H, head % H, shape, causal, scale, key0, key1, threshold,
                      keep_scale)


@kernel(parallel=True)
def _backward(dout, q, k, v, out, lse, dq, dk, dv, strides, B, shape, causal, scale, key0, key1, threshold, keep_scale):
    K = shape[1]
    for group in prange(B * K):
        _backward_group(dout, q, k, v, out, lse, dq, dk, dv, strides, group // K, group % K, shape, causal, scale, key0,
                        key1, threshold, keep_scale)


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
    _forward(span(q), span(k), span(v), span(out), lse.reshape(-1), _strides(q, k, v, out), q.shape[0], shape, causal,
             number(scale), *keys(seed), keep_threshold(dropout_p), number(1 / (1 - dropout_p)))
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
    _backward(span(dout), span(q), span(k), span(v), span(out), np.ascontiguousarray(lse).reshape(-1), span(dq), span(dk),
              span(dv), _strides(q, k, v, out, dout, dq, dk, dv), q.shape[0], shape, causal, number(scale), *keys(seed),
              keep_threshold(dropout_p), number(1 / (1 - dropout_p)))
    return dq, dk, dv
