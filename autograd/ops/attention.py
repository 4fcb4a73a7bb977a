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
from ..kernels import multi_head
from ..kernels import random as random_kernels
from ..op import Sample, fused
from .linalg import linear, matmul
from .normalization import softmax
from .selection import masked_fill, where
from .shape import expand, permute, reshape, swapaxes, unsqueeze

__all__ = ["attention", "causal_self_attention", "multi_head_attention"]


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
        return multi_head.causal_heads(qkv, n_head, n_kv_head, dropout_p, seed)

    def vjp(dout, qkv, out, lse, n_head, n_kv_head, dropout_p, seed):
        dout = np.ascontiguousarray(dout)
        yield multi_head.causal_heads_backward(dout, qkv, out, lse, n_head, n_kv_head, dropout_p, seed)

    def plain(qkv, *, n_head, n_kv_head, dropout_p=0.0, seed=0):
        q, k, v = multi_head.heads(qkv, n_head, n_kv_head)
        out = attention.plain(q, k, v, causal=True, dropout_p=dropout_p, seed=seed)
        return reshape(permute(out, dims=(0, 2, 1, 3)), shape=(*qkv.shape[:2], -1))  # (B, T, H·D)

    def samples(rng):
        for B, T, H, K, D in ((2, 4, 2, 2, 3), (1, 5, 4, 2, 2), (2, 1, 2, 1, 4), (1, 19, 1, 1, 8)):
            yield Sample((rng.normal(size=(B, T, (H + 2 * K) * D)),), {"n_head": H, "n_kv_head": K})
        yield Sample((rng.normal(size=(1, 6, 16)),), {"n_head": 2, "n_kv_head": 1, "dropout_p": 0.4, "seed": 3})
        refused = {(1, 6, 16): (3, 1), (1, 6, 28): (3, 2), (1, 6, 14): (2, 1), (6, 16): (2, 1), (1, 1, 8, 16): (2, 1)}
        for shape, heads in refused.items():
            params = {"n_head": heads[0], "n_kv_head": heads[1]}
            yield Sample((rng.normal(size=shape),), params, error=ValueError, match="expected qkv")

    def space(draw):
        B, T, K, D = draw.size(1, 2), draw.size(1, 4), draw.size(1, 2), draw.size(1, 4)
        H = K * draw.size(1, 2)
        params = {"n_head": H, "n_kv_head": K, "dropout_p": draw.choice(0.0, 0.4), "seed": draw.size(0, 100)}
        return Sample((draw.array((B, T, (H + 2 * K) * D)),), params)


def check_heads(name, x, qkv_weight, out_weight, n_head, n_kv_head):
    """Raise ValueError where `multi_head_attention`, or what is called `name`, cannot work on these."""
    width = qkv_weight.shape[0]
    if (
        x.ndim != 3
        or x.shape[2] != qkv_weight.shape[1]
        or n_head % n_kv_head
        or width % (n_head + 2 * n_kv_head)
        or out_weight.shape[1] != width // (n_head + 2 * n_kv_head) * n_head
    ):
        raise ValueError(
            f"{name}: expected x (B, T, C), qkv_weight ((H + 2K)·D, C) and out_weight (C_out, H·D), H = {n_head}, "
            f"K = {n_kv_head}, K dividing H, got {x.shape}, {qkv_weight.shape} and {out_weight.shape}"
        )


@fused
class multi_head_attention:
    """out = y W_outᵀ + b_out, with y = causal_self_attention(x W_qkvᵀ + b_qkv)

    x (B, T, C), qkv_weight = W_qkv ((H + 2K)·D, C), out_weight = W_out (C′, H·D), qkv_bias and out_bias or None
    → (B, T, C′)

    dout_weight  = doutᵀ y              dout_bias = Σ dout
    dqkv         = the derivative of `causal_self_attention`, from dy = dout W_out
    dqkv_weight  = dqkvᵀ x              dqkv_bias = Σ dqkv
    dx           = dqkv W_qkv

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.2.
    """

    waits = True
    extras = ("qkv", "y", "lse")

    def forward(
        x, qkv_weight, out_weight, qkv_bias=None, out_bias=None, *, n_head, n_kv_head, dropout_p=0.0, seed=0
    ):
        check_heads("multi_head_attention", x, qkv_weight, out_weight, n_head, n_kv_head)
        return multi_head.multi_head(
            x, qkv_weight, out_weight, qkv_bias, out_bias, n_head, n_kv_head, dropout_p, seed
        )

    def vjp(dout, x, qkv_weight, out_weight, qkv, y, lse, n_head, n_kv_head, dropout_p, seed, needs):
        dout = np.ascontiguousarray(dout)
        return multi_head.multi_head_backward(
            dout, x, qkv_weight, out_weight, qkv, y, lse, n_head, n_kv_head, dropout_p, seed, needs
        )

    def plain(x, qkv_weight, out_weight, qkv_bias=None, out_bias=None, *, n_head, n_kv_head, dropout_p=0.0, seed=0):
        qkv = linear.plain(x, qkv_weight, qkv_bias)
        y = causal_self_attention.plain(qkv, n_head=n_head, n_kv_head=n_kv_head, dropout_p=dropout_p, seed=seed)
        return linear.plain(y, out_weight, out_bias)

    def samples(rng):
        normal = lambda *shape: rng.normal(size=shape)
        for B, T, H, K, D in ((2, 4, 2, 2, 3), (1, 5, 4, 2, 2), (2, 1, 2, 1, 4)):
            width, params = (H + 2 * K) * D, {"n_head": H, "n_kv_head": K}
            weights = normal(width, 3), normal(4, H * D)
            yield Sample((normal(B, T, 3), *weights, normal(width), normal(4)), params)
            yield Sample((normal(B, T, 3), *weights), params)
        yield Sample((normal(B, T, 3), *weights, None, normal(4)), {**params, "dropout_p": 0.4, "seed": 3})
        yield Sample((normal(2, 7, 3), *weights, normal(width), None), {**params, "dropout_p": 0.4})
        x, (qkv, out) = normal(2, 4, 3), weights
        longer = np.concatenate([qkv, qkv[:2]])
        for wrong in ((x[0], qkv, out), (x[..., :2], qkv, out), (x, longer, out), (x, qkv, out[:, 1:])):
            yield Sample(wrong, params, error=ValueError, match="multi_head_attention: expected x")
        yield Sample((x, qkv, out), {"n_head": 2, "n_kv_head": 4}, error=ValueError, match="K dividing H")

    def space(draw):
        B, T, K, D, C = draw.size(1, 2), draw.size(1, 4), draw.size(1, 2), draw.size(1, 4), draw.size(1, 4)
        H = K * draw.size(1, 2)
        width, C_out = (H + 2 * K) * D, draw.size(1, 4)
        biases = [draw.array((size,)) if draw.boolean() else None for size in (width, C_out)]
        params = {"n_head": H, "n_kv_head": K, "dropout_p": draw.choice(0.0, 0.4), "seed": draw.size(0, 100)}
        return Sample((draw.array((B, T, C)), draw.array((width, C)), draw.array((C_out, H * D)), *biases), params)
