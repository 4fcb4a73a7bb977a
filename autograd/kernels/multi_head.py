"""Causal self-attention with its projections, as GPT has it: out = y W_outᵀ + b_out, y = attention(q, k, v).

    qkv = x W_qkvᵀ + b_qkv      (N, (H + 2K)·D)     product; q, k and v of all heads lie side by side in a row
    y = attention               (N, H·D)            read from and written to where the heads lie: no copies
    out = y W_outᵀ + b_out      (N, C)              product
    backward
    dy = dout W_out                                 product
    dqkv                                            attention's backward pass
    dx = dqkv W_qkv,  dW_qkv = dqkvᵀ x,  db_qkv = Σ dqkv,  dW_out = doutᵀ y,  db_out = Σ dout

Only products and attention read qkv, y, dqkv and dy. So where both round to bfloat16 (`matmul_precision`) they are
kept in bfloat16, which halves what goes through memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .attention import TASKS, attention, attention_backward
from .bfloat16 import matmul_narrow, narrow_products, rounded_product
from .matmul import matmul
from .memory import empty
from .sums import column_sums

__all__ = [
    "MultiHeadGradients", "causal_heads", "causal_heads_backward", "heads", "multi_head", "multi_head_backward",
    "narrow_heads",
]  # fmt: skip


def heads(qkv: np.ndarray, n_head: int, n_kv_head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fused projection (B, T, (H + 2K)·D) as views q (B, H, T, D), k and v (B, K, T, D)."""
    B, T, _ = qkv.shape
    each = qkv.reshape((B, T, n_head + 2 * n_kv_head, -1)).swapaxes(1, 2)
    return each[:, :n_head], each[:, n_head : n_head + n_kv_head], each[:, n_head + n_kv_head :]


def _split(x: np.ndarray, n_head: int) -> np.ndarray:
    """A view of (B, T, H·D) as (B, H, T, D)."""
    return x.reshape(*x.shape[:2], n_head, -1).swapaxes(1, 2)


def causal_heads(
    qkv: np.ndarray, n_head: int, n_kv_head: int, dropout_p: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of each position to itself and those before it: qkv (B, T, (H + 2K)·D) → (y (B, T, H·D), lse)."""
    q, k, v = heads(qkv, n_head, n_kv_head)
    B, H, T, D = q.shape
    y = empty((B, T, H * D), qkv.dtype)
    options = {"scale": 1 / math.sqrt(D), "causal": True, "dropout_p": dropout_p, "seed": seed}
    _, lse = attention(q, k, v, **options, out=_split(y, H))
    return y, lse


def causal_heads_backward(
    dy: np.ndarray, qkv: np.ndarray, y: np.ndarray, lse: np.ndarray, n_head: int, n_kv_head: int, dropout_p: float,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """dqkv, of the shape and dtype of qkv."""
    q, k, v = heads(qkv, n_head, n_kv_head)
    dqkv = empty(qkv.shape, qkv.dtype)
    dq, dk, dv = heads(dqkv, n_head, n_kv_head)
    options = {"scale": 1 / math.sqrt(q.shape[3]), "causal": True, "dropout_p": dropout_p, "seed": seed}
    dy, y = _split(dy, n_head), _split(y, n_head)
    attention_backward(dy, q, k, v, y, lse, **options, dq=dq, dk=dk, dv=dv)
    return dqkv


def multi_head(
    x: np.ndarray, qkv_weight: np.ndarray, out_weight: np.ndarray, qkv_bias: np.ndarray | None,
    out_bias: np.ndarray | None, n_head: int, n_kv_head: int, dropout_p: float, seed: int,
    onto: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """x (B, T, C) → (out (B, T, C′), qkv (B, T, (H + 2K)·D), y (B, T, H·D), lse (B, H, T)).

    qkv_weight ((H + 2K)·D, C), out_weight (C′, H·D), qkv_bias, out_bias: as many numbers as rows, or None. qkv and y
    are for the backward pass, of x's dtype or bfloat16 as uint16, which x may be, too. `onto` (B, T, C′) is added to
    out.
    """
    B, T, C = x.shape
    rows = x.reshape(B * T, C)
    narrow = x.dtype == np.uint16 or narrow_heads(x, qkv_weight, out_weight, n_kv_head)
    project, product = (rounded_product, matmul_narrow) if narrow else (matmul, matmul)
    qkv = project(rows, qkv_weight.T, bias=qkv_bias).reshape(B, T, -1)
    y, lse = causal_heads(qkv, n_head, n_kv_head, dropout_p, seed)
    below = None if onto is None else onto.reshape(B * T, -1)
    out = product(y.reshape(B * T, -1), out_weight.T, bias=out_bias, onto=below)
    return out.reshape(B, T, -1), qkv, y, lse


def narrow_heads(x: np.ndarray, qkv_weight: np.ndarray, out_weight: np.ndarray, n_kv_head: int) -> bool:
    """Whether all products of `multi_head` round to bfloat16, so that what goes from one to the next may be rounded."""
    B, T, C = x.shape
    rounds = narrow_products(x.reshape(B * T, C), qkv_weight)
    return rounds and len(out_weight) > 1 and n_kv_head * B >= TASKS


class MultiHeadGradients(NamedTuple):
    """One for each input of `multi_head`; None where it is not wanted."""

    x: np.ndarray | None
    qkv_weight: np.ndarray | None
    out_weight: np.ndarray | None
    qkv_bias: np.ndarray | None
    out_bias: np.ndarray | None


def multi_head_backward(
    dout: np.ndarray, x: np.ndarray, qkv_weight: np.ndarray, out_weight: np.ndarray, qkv: np.ndarray, y: np.ndarray,
    lse: np.ndarray, n_head: int, n_kv_head: int, dropout_p: float, seed: int, needs: tuple[bool, ...],
) -> MultiHeadGradients:  # fmt: skip
    """Gradients of what `needs` marks (in the order of the result) from dout (B, T, C′) and what `multi_head` made.

    dx has x's dtype.
    """
    B, T, _ = x.shape
    flat = lambda array: array.reshape(B * T, array.shape[2])
    narrow = qkv.dtype == np.uint16
    product, project = (matmul_narrow, rounded_product) if narrow else (matmul, matmul)
    product_like_x = rounded_product if x.dtype == np.uint16 else product
    wants_x, wants_qkv_weight, wants_out_weight, wants_qkv_bias, wants_out_bias = (*needs, False, False)[:5]
    drows = flat(dout)
    dqkv = None
    if wants_x or wants_qkv_weight or wants_qkv_bias:
        dy = project(drows, out_weight).reshape(y.shape)
        dqkv = flat(causal_heads_backward(dy, qkv, y, lse, n_head, n_kv_head, dropout_p, seed))
    return MultiHeadGradients(
        product_like_x(dqkv, qkv_weight).reshape(x.shape) if wants_x else None,
        product(dqkv.T, flat(x)) if wants_qkv_weight else None,
        product(drows.T, flat(y)) if wants_out_weight else None,
        column_sums(dqkv) if wants_qkv_bias else None,
        column_sums(drows) if wants_out_bias else None,
    )
