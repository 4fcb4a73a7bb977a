# mypy: disable-error-code=misc
"""Attention: each position reads from the others.

    out = softmax(q kᵀ · scale, masked) v

The kernel never stores the (T, T) matrix of weights: it streams over blocks of keys, keeping for each query the running
maximum and sum (online softmax), and saves only their logarithm, the log-sum-exp. The backward pass recomputes the
weights P = e^(q kᵀ·scale − lse) block by block (in powers of 2, which processors make sooner).

Source: Dao et al., "FlashAttention", 2022 and "FlashAttention-2", 2023; Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018.
"""

from __future__ import annotations

import math

import numpy as np

from ..kernels import attention as kernels
from ..kernels import random as random_kernels
from ..op import Sample, fused
from .linalg import matmul
from .normalization import softmax
from .selection import masked_fill, where
from .shape import expand, permute, reshape, swapaxes, unsqueeze

__all__ = ["attention", "causal_self_attention"]


def _repeat_heads(x, times):
    """(B, K, T, D) → (B, K·times, T, D): each key/value head serves `times` query heads that stand together."""
    if times == 1:
        return x
    B, K, T, D = x.shape
    return reshape(expand(unsqueeze(x, 2), shape=(B, K, times, T, D)), shape=(B, K * times, T, D))


@fused
class attention:
    """out = dropout(softmax(q kᵀ · scale)) v, with q (B, H, Tq, D), k and v (B, K, Tk, D), K dividing H → (B, H, Tq, D)

    With P the weights that reach v, S the scores, and δ = Σ dout · out for each query:
    dv = Pᵀ dout
    dS = P · (dout vᵀ − δ)
    dq = scale · dS k
    dk = scale · dSᵀ q

    With `causal`, a query sees the keys up to its own position; the queries are the last Tq of Tk positions. Query
    head h reads from key/value head h // (H/K).
    """

    extras = ("lse",)

    def forward(q, k, v, *, causal=False, scale=None, dropout_p=0.0, seed=0):
        if not (q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]):
            raise ValueError(
                f"attention: expected q (B, H, Tq, D), k and v (B, K, Tk, D), got {q.shape}, {k.shape} and "
                f"{v.shape}"
            )
        if not k.shape[1] or q.shape[1] % k.shape[1]:
            raise ValueError(
                f"attention: expected query heads that key heads divide, got {q.shape[1]} query "
                f"heads and {k.shape[1]} key heads"
            )
        if causal and q.shape[2] > k.shape[2]:
            raise ValueError(
                f"attention: expected no more queries than keys, got {q.shape[2]} and {k.shape[2]}; a "
                f"causal query with no key has nothing to read"
            )
        scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
        return kernels.attention(q, k, v, scale=scale, causal=causal, dropout_p=dropout_p, seed=seed)

    def vjp(dout, q, k, v, out, lse, causal, scale, dropout_p, seed):
        scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
        return kernels.attention_backward(
            dout, q, k, v, out, lse, scale=scale, causal=causal, dropout_p=dropout_p, seed=seed
        )

    def plain(q, k, v, *, causal=False, scale=None, dropout_p=0.0, seed=0):
        (B, H, Tq, D), Tk = q.shape, k.shape[2]
        k, v = _repeat_heads(k, H // k.shape[1]), _repeat_heads(v, H // v.shape[1])
        scores = matmul(q, swapaxes(k, -1, -2)) * (1 / math.sqrt(D) if scale is None else scale)  # (B, H, Tq, Tk)
        if causal:
            later = np.arange(Tk)[None, :] > np.arange(Tq)[:, None] + (Tk - Tq)
            scores = masked_fill(scores, later, -math.inf)
        weights = softmax.plain(scores, dim=-1)
        if dropout_p:
            kept = random_kernels.uniform((B, H, Tq, Tk), seed) >= dropout_p
            weights = where(kept, weights * (1 / (1 - dropout_p)), 0)
        return matmul(weights, v)

    def samples(rng):
        for B, H, K, Tq, Tk, D in ((2, 2, 2, 4, 4, 3), (1, 4, 2, 3, 5, 2), (2, 3, 1, 1, 6, 4), (1, 1, 1, 17, 17, 8)):
            q, k, v = rng.normal(size=(B, H, Tq, D)), rng.normal(size=(B, K, Tk, D)), rng.normal(size=(B, K, Tk, D))
            yield Sample((q, k, v), {"causal": True})
            yield Sample((q, k, v), {"causal": False, "scale": 0.3})
        yield Sample((q, k, v), {"causal": True, "dropout_p": 0.3, "seed": 7})
        yield Sample((q[:, :, :5], k, v), {"dropout_p": 0.3})
        for wrong in ((q, k, v[:, :, :1]), (q, k[:, :, :1], v), (q[0], k[0], v[0]), (q[None], k, v), (q[0], k, v)):
            yield Sample(wrong, error=ValueError, match="expected q")
        for wrong in ((q[..., None], k, v), (q[..., None], k[..., None], v[..., None])):
            yield Sample(wrong, error=ValueError, match="expected q")
        for width in (D - 1, D + 1):
            wrong = rng.normal(size=(1, 1, 17, width))
            yield Sample((q, wrong, wrong), error=ValueError, match="expected q")
        yield Sample((q, k[:, :, :5], v[:, :, :5]), {"causal": True}, error=ValueError, match="no more queries")
        yield Sample(
            (np.zeros((1, 3, 2, 4)), np.zeros((1, 2, 2, 4)), np.zeros((1, 2, 2, 4))), error=ValueError, match="divide"
        )

    def space(draw):
        B, K, Tq, D = draw.size(1, 2), draw.size(1, 2), draw.size(1, 4), draw.size(1, 4)
        H, Tk = K * draw.size(1, 2), Tq + draw.size(0, 2)
        params = {
            "causal": draw.boolean(),
            "scale": draw.choice(None, 0.3, 5.0),
            "dropout_p": draw.choice(0.0, 0.4),
            "seed": draw.size(0, 100),
        }
        return Sample((draw.array((B, H, Tq, D)), draw.array((B, K, Tk, D)), draw.array((B, K, Tk, D))), params)


def _heads(qkv, n_head, n_kv_head):
    """The fused projection (B, T, (H + 2K)·D) as views q (B, H, T, D), k and v (B, K, T, D)."""
    B, T, _ = qkv.shape
    heads = qkv.reshape((B, T, n_head + 2 * n_kv_head, -1)).swapaxes(1, 2)
    return heads[:, :n_head], heads[:, n_head : n_head + n_kv_head], heads[:, n_head + n_kv_head :]


@fused
class causal_self_attention:
    """out = attention over the heads of a fused projection qkv (B, T, (H + 2K)·D), each position seeing itself and what
    came before → (B, T, H·D)

    dqkv: the derivatives of `attention`, written into the places of q, k and v in one array.

    The same as splitting qkv, calling `attention` and joining the heads, without the copies in between.
    """

    extras = ("lse",)

    def forward(qkv, *, n_head, n_kv_head, dropout_p=0.0, seed=0):
        if qkv.ndim != 3 or qkv.shape[2] % (n_head + 2 * n_kv_head) or n_head % n_kv_head:
            raise ValueError(
                f"causal_self_attention: expected qkv (B, T, (H + 2K)·D), H = {n_head}, K = {n_kv_head}, "
                f"K dividing H, got {qkv.shape}"
            )
        q, k, v = _heads(qkv, n_head, n_kv_head)
        B, H, T, D = q.shape
        out = np.empty((B, T, H * D), qkv.dtype)
        _, lse = kernels.attention(
            q, k, v, scale=1 / math.sqrt(D), causal=True, dropout_p=dropout_p, seed=seed, out=_split_heads(out, H)
        )
        return out, lse

    def vjp(dout, qkv, out, lse, n_head, n_kv_head, dropout_p, seed):
        q, k, v = _heads(qkv, n_head, n_kv_head)
        dqkv = np.empty(qkv.shape, qkv.dtype)
        dq, dk, dv = _heads(dqkv, n_head, n_kv_head)
        kernels.attention_backward(
            _split_heads(np.ascontiguousarray(dout), n_head),
            q,
            k,
            v,
            _split_heads(out, n_head),
            lse,
            scale=1 / math.sqrt(q.shape[3]),
            causal=True,
            dropout_p=dropout_p,
            seed=seed,
            dq=dq,
            dk=dk,
            dv=dv,
        )
        yield dqkv

    def plain(qkv, *, n_head, n_kv_head, dropout_p=0.0, seed=0):
        q, k, v = _heads(qkv, n_head, n_kv_head)
        out = attention.plain(q, k, v, causal=True, dropout_p=dropout_p, seed=seed)
        return reshape(permute(out, dims=(0, 2, 1, 3)), shape=(*qkv.shape[:2], -1))  # (B, T, H·D)

    def samples(rng):
        for B, T, H, K, D in ((2, 4, 2, 2, 3), (1, 5, 4, 2, 2), (2, 1, 2, 1, 4), (1, 19, 1, 1, 8)):
            yield Sample((rng.normal(size=(B, T, (H + 2 * K) * D)),), {"n_head": H, "n_kv_head": K})
        yield Sample((rng.normal(size=(1, 6, 16)),), {"n_head": 2, "n_kv_head": 1, "dropout_p": 0.4, "seed": 3})
        refused = {(1, 6, 16): (3, 1), (1, 6, 28): (3, 2), (1, 6, 15): (2, 1), (6, 16): (2, 1), (1, 1, 8, 16): (2, 1)}
        for shape, heads in refused.items():
            params = {"n_head": heads[0], "n_kv_head": heads[1]}
            yield Sample((rng.normal(size=shape),), params, error=ValueError, match="expected qkv")

    def space(draw):
        B, T, K, D = draw.size(1, 2), draw.size(1, 4), draw.size(1, 2), draw.size(1, 4)
        H = K * draw.size(1, 2)
        params = {"n_head": H, "n_kv_head": K, "dropout_p": draw.choice(0.0, 0.4), "seed": draw.size(0, 100)}
        return Sample((draw.array((B, T, (H + 2 * K) * D)),), params)


def _split_heads(x, n_head):
    """A view of (B, T, H·D) as (B, H, T, D)."""
    return x.reshape(*x.shape[:2], n_head, -1).swapaxes(1, 2)
