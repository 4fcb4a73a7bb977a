"""What a model looks at: attention weights, written out.

The kernels stream over the keys and never hold the weights; here they are computed by the definition, for a short
sequence, from what the attention layers read:

    weights[l, h, i, j] = softmax over j ≤ i of q_i · k_j / √D        layer l, head h, query i, key j

Cost O(n_layer · H · T²) in memory; that is what streaming avoids.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autograd import Tensor, no_grad
from model.generation import as_ids
from model.gpt import GPT
from nn import CausalSelfAttention
from nn import functional as F
from nn.attention import rotary_tables

__all__ = ["attention_weights"]


def attention_weights(model: GPT, idx: Any) -> np.ndarray:
    """How much each position takes from each: idx (T,) → (n_layer, H, T, T) float32, rows sum to 1, j > i is 0.

    idx   integers, at most block_size of them. Dropout is left out; the mode of the model stays as it is.

    Raises ValueError (IndexError for an id out of range) for what the model can't read.
    """
    ids = as_ids(idx, "idx")
    if ids.ndim != 1:
        raise ValueError(f"expected one sequence of ids (T,), got shape {ids.shape}")
    seen: list[Tensor] = []
    hooks = [block.attention.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in model.blocks]
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            model.hidden(ids)
            return np.stack([_weights(block.attention, x) for block, x in zip(model.blocks, seen, strict=True)])
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def _weights(attention: CausalSelfAttention, x: Tensor) -> np.ndarray:
    """x (1, T, C) → (H, T, T)."""
    T, H, K, D = x.shape[1], attention.n_head, attention.n_kv_head, attention.head_size
    heads = attention.qkv(x).reshape((1, T, H + 2 * K, D))
    if attention.rope_theta is not None:
        cos, sin = rotary_tables(attention.block_size or T, D, attention.rope_theta, str(heads.dtype))
        heads = F.rotary_embedding(heads, cos[:T], sin[:T], heads=H + K)
    qkv = heads.array[0].swapaxes(0, 1)  # (H + 2K, T, D)
    q, k = qkv[:H], np.repeat(qkv[H : H + K], H // K, axis=0)  # (H, T, D)
    scores = q @ k.swapaxes(1, 2) / math.sqrt(D)  # (H, T, T)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
