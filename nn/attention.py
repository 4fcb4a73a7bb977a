"""Causal self-attention: each position gathers from itself and the positions before it.

One matrix makes queries, keys and values of all heads at once; heads attend on their own; another matrix mixes
their results:

    qkv = x W_qkv                       (B, T, (H + 2K) · D)    H query heads, K key heads and K value heads
    head h: softmax(q_h k_gᵀ / √D) v_g  g = h // (H / K)        causal: query i sees keys 0 … i
    out = concat(heads) W_out           (B, T, C)

With K < H (grouped-query attention, Ainslie et al. 2023) several query heads share one key/value head, which makes
the cache smaller. With rotary positions q and k are turned by angles proportional to their position, so q · k
depends on the distance only (Su et al. 2021).

While text is generated, keys and values of past positions do not change; a `KVCache` keeps them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

import autograd
from autograd import Tensor, next_seed
from nn import functional as F
from nn.layers import LayerNorm, Linear, unchanged
from nn.module import Module

__all__ = ["CausalSelfAttention", "KVCache", "rotary_tables"]

ops: Any = autograd.ops  # operators are declared as classes, which type checkers take literally


@functools.lru_cache(maxsize=8)
def rotary_tables(length: int, head_size: int, theta: float, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the rotary angles, each (length, head_size // 2): position t, pair i turns by t · theta^(−2i/D).

    Equal tables are made once and shared; treat them as read-only.
    """
    frequencies = theta ** (-np.arange(0, head_size, 2) / head_size)  # (D/2,)
    angles = np.arange(length)[:, None] * frequencies  # (length, D/2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


class KVCache:
    """Keys and values of the positions one attention layer has seen, for up to `capacity` positions.

    length   positions held so far
    """

    def __init__(self, batch: int, n_kv_head: int, capacity: int, head_size: int, dtype: Any = np.float32) -> None:
        self.keys = np.zeros((batch, n_kv_head, capacity, head_size), dtype)  # (B, K, capacity, D)
        self.values = np.zeros_like(self.keys)
        self.length = 0

    def extend(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add k and v (B, K, T, D) of the next T positions; returns views of all held so far, (B, K, length, D)."""
        start, end = self.length, self.length + k.shape[2]
        batch, _, capacity, _ = self.keys.shape
        if k.shape[0] != batch or end > capacity:
            raise ValueError(
                f"this cache is for a batch of {batch} and {capacity} positions, {start} of them taken; "
                f"got a batch of {k.shape[0]} with {k.shape[2]} positions more; make a larger one"
            )
        self.keys[:, :, start:end] = k
        self.values[:, :, start:end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class CausalSelfAttention(Module):
    """Multi-head causal self-attention, (B, T, C) → (B, T, C).

    n_embd      C
    n_head      H query heads of size D = C / H
    n_kv_head   K key/value heads, K divides H; None: H
    bias        biases in both projections
    dropout     probability of dropping an attention weight, in training
    rope_theta  base of rotary positions; None: no rotation
    block_size  the longest sequence; needed with rope_theta
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        n_kv_head: int | None = None,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        rope_theta: float | None = None,
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = n_head, n_head if n_kv_head is None else n_kv_head
        if n_embd % n_head or n_head % self.n_kv_head:
            raise ValueError(
                f"expected n_head to divide n_embd and n_kv_head to divide n_head, got n_embd={n_embd}, "
                f"n_head={n_head}, n_kv_head={self.n_kv_head}"
            )
        if rope_theta is not None and block_size is None:
            raise ValueError("rotary positions need block_size, the longest sequence there will be")
        self.head_size = n_embd // n_head
        self.rope_theta, self.block_size, self.dropout = rope_theta, block_size, dropout
        self.qkv = Linear(n_embd, (n_head + 2 * self.n_kv_head) * self.head_size, bias)
        self.out = Linear(n_embd, n_embd, bias)

    def forward(self, x: Any, cache: KVCache | None = None) -> Any:
        """x (B, T, C) → (B, T, C). With a cache, x are the T positions that follow those in it, and no gradient
        flows: it is for generating.
        """
        B, T, _ = x.shape
        H, K, D = self.n_head, self.n_kv_head, self.head_size
        dropout_p = self.dropout if self.training else 0.0
        if self._is_whole(cache):
            qkv, out = self.qkv, self.out
            return F.multi_head_attention(
                x, qkv.weight, out.weight, qkv.bias, out.bias, n_head=H, n_kv_head=K, dropout_p=dropout_p
            )  # fmt: skip
        start = 0 if cache is None else cache.length
        qkv = self.qkv(x)  # (B, T, (H+2K)·D)
        if self.rope_theta is not None:
            cos, sin = rotary_tables(self.block_size, D, self.rope_theta, str(qkv.dtype))
            if start + T > self.block_size:
                raise ValueError(f"expected at most block_size={self.block_size} positions, got {start + T}")
            heads = qkv.reshape((B, T, H + 2 * K, D))
            heads = F.rotary_embedding(heads, cos[start : start + T], sin[start : start + T], heads=H + K)
            qkv = heads.reshape((B, T, (H + 2 * K) * D))
        if cache is None:
            seed = next_seed() if dropout_p else 0
            y = ops.causal_self_attention(qkv, n_head=H, n_kv_head=K, dropout_p=dropout_p, seed=seed)  # (B, T, C)
        else:
            y = self._attend_with(cache, qkv.array if isinstance(qkv, Tensor) else qkv)  # (B, T, C)
        return self.out(y)

    def residual(self, x: Any, norm: LayerNorm, cache: KVCache | None = None) -> Any:
        """x + self(norm(x), cache) as one operator, or None where it is not one: see `nn.residual`."""
        if type(self) is not CausalSelfAttention or not self._is_whole(cache):
            return None
        qkv, out, dropout_p = self.qkv, self.out, self.dropout if self.training else 0.0
        return F.residual_attention(
            x, norm.weight, norm.bias, qkv.weight, out.weight, qkv.bias, out.bias, n_head=self.n_head,
            n_kv_head=self.n_kv_head, dropout_p=dropout_p, eps=norm.eps,
        )  # fmt: skip

    def _is_whole(self, cache: KVCache | None) -> bool:
        """Whether projections and attention may be one operator."""
        return cache is None and self.rope_theta is None and unchanged(Linear, self.qkv, self.out)

    def _attend_with(self, cache: KVCache, qkv: np.ndarray) -> Tensor:
        B, T, _ = qkv.shape
        H, K, D = self.n_head, self.n_kv_head, self.head_size
        heads = qkv.reshape(B, T, H + 2 * K, D).swapaxes(1, 2)  # (B, H+2K, T, D)
        k, v = cache.extend(heads[:, H : H + K], heads[:, H + K :])  # (B, K, cache.length, D)
        y = ops.attention(heads[:, :H], k, v, scale=1 / math.sqrt(D), causal=True)  # (B, H, T, D)
        return Tensor.wrap(y.swapaxes(1, 2).reshape(B, T, H * D))

    def extra_repr(self) -> str:
        rope = "" if self.rope_theta is None else f", rope_theta={self.rope_theta}"
        return f"n_head={self.n_head}, n_kv_head={self.n_kv_head}, head_size={self.head_size}{rope}"
