"""Layers as functions: PyTorch's `torch.nn.functional`, name for name, over this project's operators.

    from nn import functional as F

Every function takes Tensors (or ndarrays, and then returns an ndarray) and keeps their dtype. What PyTorch has,
has PyTorch's argument names, order and meaning; seven functions are not in PyTorch: `swiglu`, `mlp`,
`multi_head_attention`, `residual_mlp`, `residual_attention`, `rotary_embedding` and `linear_cross_entropy`. Nothing
here computes: formulas and derivatives are in `autograd.ops`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import autograd
from autograd import Tensor, next_seed

__all__ = [
    "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "linear", "linear_cross_entropy",
    "log_softmax", "mlp", "mse_loss", "multi_head_attention", "relu", "residual_attention", "residual_mlp",
    "rms_norm", "rotary_embedding", "scaled_dot_product_attention", "sigmoid", "silu", "softmax", "swiglu", "tanh",
]  # fmt: skip

Array = Any  # a Tensor or an ndarray
ops: Any = autograd.ops  # operators are declared as classes, which type checkers take literally


# Element by element


def relu(input: Array) -> Array:
    """max(x, 0); any shape. The derivative at 0 is 0."""
    return ops.relu(input)


def gelu(input: Array, approximate: str = "none") -> Array:
    """x · Φ(x), Φ the normal distribution function; any shape (Hendrycks & Gimpel 2016).

    approximate   "none": Φ by erf. "tanh": Φ(x) ≈ ½ (1 + tanh(√(2/π) (x + 0.044715 x³))), as in GPT-2.
    """
    return ops.gelu(input, approximate=approximate)


def silu(input: Array) -> Array:
    """x · sigmoid(x); any shape (also called swish)."""
    return ops.silu(input)


def sigmoid(input: Array) -> Array:
    """1 / (1 + exp(−x)); any shape."""
    return ops.sigmoid(input)


def tanh(input: Array) -> Array:
    """The hyperbolic tangent; any shape."""
    return ops.tanh(input)


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) · up, both of one shape (Shazeer 2020, "GLU variants improve transformer")."""
    return ops.swiglu(gate, up)


def dropout(input: Array, p: float = 0.5, training: bool = True) -> Array:
    """Each element becomes 0 with probability p and is divided by 1 − p otherwise; nothing unless `training`.

    Which ones is a function of a seed drawn from the project's generator (`autograd.manual_seed`).
    """
    return ops.dropout(input, p=p, seed=next_seed()) if training and p else input


# Along an axis


def softmax(input: Array, dim: int = -1) -> Array:
    """exp(x) / Σ exp(x) along `dim`; same shape."""
    return ops.softmax(input, dim=dim)


def log_softmax(input: Array, dim: int = -1) -> Array:
    """x − log Σ exp(x) along `dim`; same shape."""
    return ops.log_softmax(input, dim=dim)


def layer_norm(
    input: Array,
    normalized_shape: int | tuple[int, ...],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> Array:
    """(x − mean) / √(variance + eps) · weight + bias over the last axis; x (..., C), weight and bias (C,).

    Ba, Kiros & Hinton 2016. `normalized_shape` is C: only the last axis can be normalised.
    """
    _check_last_axis("layer_norm", input, normalized_shape)
    return ops.layer_norm(input, weight, bias, eps=eps)


def rms_norm(
    input: Array,
    normalized_shape: int | tuple[int, ...],
    weight: Array | None = None,
    eps: float | None = None,
) -> Array:
    """x / √(mean(x²) + eps) · weight over the last axis; x (..., C), weight (C,). Zhang & Sennrich 2019.

    eps   None: the machine epsilon of the dtype, as in PyTorch
    """
    _check_last_axis("rms_norm", input, normalized_shape)
    return ops.rms_norm(input, weight, eps=float(np.finfo(input.dtype).eps) if eps is None else eps)


def _check_last_axis(name: str, x: Array, normalized_shape: int | tuple[int, ...]) -> None:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if shape != tuple(x.shape[-1:]):
        raise ValueError(
            f"{name}: normalized_shape must be the size of the last axis, {tuple(x.shape[-1:])}, got {shape}; "
            "flatten the axes to be normalised together"
        )


# Tables and matrices


def embedding(input: Array, weight: Array) -> Array:
    """Rows of a table: ids of any shape (...), weight (V, C) → (..., C). IndexError for an id outside 0 … V − 1."""
    return ops.embedding(weight, _integers(input))


def linear(input: Array, weight: Array, bias: Array | None = None) -> Array:
    """x Wᵀ + b: x (..., in), weight (out, in), bias (out,) → (..., out)."""
    return ops.linear(input, weight, bias)


def mlp(
    input: Array,
    up: Array,
    down: Array,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    approximate: str = "none",
) -> Array:
    """down(gelu(up(x))), as `linear(gelu(linear(x, up, up_bias)), down, down_bias)` in one pass.

    x (..., C), up (H, C), down (C_out, H), up_bias (H,), down_bias (C_out,) → (..., C_out). `approximate` as in `gelu`.
    """
    return ops.mlp(input, up, down, up_bias, down_bias, approximate=approximate)


def residual_mlp(
    input: Array,
    norm_weight: Array | None,
    norm_bias: Array | None,
    up: Array,
    down: Array,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    approximate: str = "none",
    eps: float = 1e-5,
) -> Array:
    """x + mlp(layer_norm(x)) in one pass, the second branch of a pre-norm block: (..., C) → (..., C).

    norm_weight and norm_bias (C,) and eps as in `layer_norm`; the others as in `mlp`, down (C, H).
    """
    return ops.residual_mlp(
        input, norm_weight, norm_bias, up, down, up_bias, down_bias, approximate=approximate, eps=eps
    )  # fmt: skip


# Losses


def cross_entropy(
    input: Array, target: Array, *, ignore_index: int = -100, reduction: str = "mean"
) -> Array:
    """−log softmax(input)[target], in nats.

    input         logits: (V,), (N, V) or (N, V, d1, …), classes along axis 1 as in PyTorch
    target        class ids: (), (N,) or (N, d1, …)
    ignore_index  targets of this value count for nothing
    reduction     "mean" over the targets that count (nan if none does) | "sum" | "none": the target's shape,
                  0 where ignored
    """
    target = _integers(target)
    shape = target.shape
    classes = input.shape[min(1, input.ndim - 1)]
    if tuple(input.shape) != (*shape[:1], classes, *shape[1:]):
        raise ValueError(
            f"cross_entropy: expected logits (N, V) and targets (N,), got {tuple(input.shape)} and {shape}; "
            "flatten them: logits.view(-1, logits.size(-1)), targets.view(-1)"
        )
    rows = _classes_last(input).reshape((-1, classes))
    losses = ops.cross_entropy(rows, target.reshape(-1), ignore_index=ignore_index)
    if reduction == "none":
        return losses.reshape(shape)
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / np.asarray(np.count_nonzero(target != ignore_index), losses.dtype)
    raise ValueError(f'cross_entropy: reduction must be "mean", "sum" or "none", got {reduction!r}')


def linear_cross_entropy(input: Array, weight: Array, target: Array, *, ignore_index: int = -100) -> Array:
    """cross_entropy(linear(input, weight), target) without ever holding all logits: the mean, in nats.

    input (..., C), weight (V, C), target (...) ids; targets of `ignore_index` count for nothing.
    """
    target = _integers(target)
    if tuple(input.shape[:-1]) != target.shape:
        raise ValueError(
            f"linear_cross_entropy: expected one target for each row of input, got input {tuple(input.shape)} "
            f"and targets {target.shape}"
        )
    rows = input.reshape((-1, input.shape[-1]))
    return ops.linear_cross_entropy(rows, weight, target.reshape(-1), ignore_index=ignore_index)


def mse_loss(input: Array, target: Array, *, reduction: str = "mean") -> Array:
    """(input − target)², both of one shape; reduction "mean" | "sum" | "none"."""
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(f"mse_loss: expected one shape, got {tuple(input.shape)} and {tuple(target.shape)}")
    difference = input - target
    losses = difference * difference
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'mse_loss: reduction must be "mean", "sum" or "none", got {reduction!r}')
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


# Attention


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """softmax(q kᵀ · scale) v (Vaswani et al. 2017).

    query         (..., H, Tq, D)
    key, value    (..., H, Tk, D), or with `enable_gqa` (..., K, Tk, D) where K divides H: query head h looks at
                  key head h // (H / K)
    attn_mask     broadcasts to (..., H, Tq, Tk); boolean: True takes part; floating: added to the scores
    dropout_p     probability of dropping an attention weight. It applies whenever it is above 0, as in PyTorch:
                  pass 0 outside training
    is_causal     query i sees keys 0 … i
    scale         None: 1/√D

    Returns (..., H, Tq, D). Without a mask it streams and never holds a (Tq, Tk) square.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("scaled_dot_product_attention: attn_mask and is_causal exclude each other; pass one of them")
    H, D = (query.shape[-3] if query.ndim > 2 else 1), query.shape[-1]
    K = key.shape[-3] if key.ndim > 2 else 1
    if K != H and not (enable_gqa and H % K == 0):
        raise ValueError(
            f"scaled_dot_product_attention: got {H} query heads and {K} key heads; expected as many, or with "
            "enable_gqa=True a number of query heads that the number of key heads divides"
        )
    scale = 1 / math.sqrt(D) if scale is None else scale
    Tq, Tk = query.shape[-2], key.shape[-2]
    if is_causal and Tq < Tk:  # PyTorch lines up the first query with the first key: later keys are seen by none
        key, value, Tk = key[..., :Tq, :], value[..., :Tq, :], Tq
    streams = (
        attn_mask is None
        and tuple(key.shape[:-3]) == tuple(query.shape[:-3])
        and tuple(value.shape) == tuple(key.shape)
        and (not is_causal or Tq == Tk)
    )
    if streams:
        out = ops.attention(
            query.reshape((-1, H, Tq, D)),
            key.reshape((-1, K, Tk, D)),
            value.reshape((-1, K, Tk, D)),
            scale=scale,
            causal=is_causal,
            dropout_p=dropout_p,
            seed=next_seed() if dropout_p else 0,
        )
        return out.reshape(tuple(query.shape))

    if K != H:
        key, value = (_repeat_heads(x, H // K) for x in (key, value))
    scores = ops.matmul(query, key.swapaxes(-1, -2)) * scale  # (..., H, Tq, Tk)
    if is_causal:
        attn_mask = np.tril(np.ones((Tq, Tk), bool))
    if attn_mask is not None:
        mask = attn_mask if isinstance(attn_mask, Tensor) else np.asarray(attn_mask)
        scores = ops.where(mask, scores, -math.inf) if mask.dtype == bool else scores + mask
    return ops.matmul(dropout(softmax(scores), dropout_p), value)  # (..., H, Tq, D)


def multi_head_attention(
    input: Array,
    qkv_weight: Array,
    out_weight: Array,
    qkv_bias: Array | None = None,
    out_bias: Array | None = None,
    *,
    n_head: int,
    n_kv_head: int | None = None,
    dropout_p: float = 0.0,
) -> Array:
    """Causal self-attention with the projections before and after it, in one pass.

    input         (B, T, C)
    qkv_weight    ((H + 2K) · D, C): the rows of q, k and v of all heads, one below the other; qkv_bias as many
    out_weight    (C_out, H · D); out_bias (C_out,)
    n_head        H
    n_kv_head     K, which divides H; None: H
    dropout_p     probability of dropping an attention weight, as in `scaled_dot_product_attention`

    Returns (B, T, C_out).
    """
    seed, n_kv_head = next_seed() if dropout_p else 0, n_head if n_kv_head is None else n_kv_head
    return ops.multi_head_attention(
        input, qkv_weight, out_weight, qkv_bias, out_bias, n_head=n_head, n_kv_head=n_kv_head, dropout_p=dropout_p,
        seed=seed,
    )  # fmt: skip


def residual_attention(
    input: Array,
    norm_weight: Array | None,
    norm_bias: Array | None,
    qkv_weight: Array,
    out_weight: Array,
    qkv_bias: Array | None = None,
    out_bias: Array | None = None,
    *,
    n_head: int,
    n_kv_head: int | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-5,
) -> Array:
    """x + multi_head_attention(layer_norm(x)) in one pass, the first branch of a pre-norm block: (B, T, C) → (B, T, C).

    norm_weight and norm_bias (C,) and eps as in `layer_norm`; the others as in `multi_head_attention`, out_weight
    (C, H · D).
    """
    seed, n_kv_head = next_seed() if dropout_p else 0, n_head if n_kv_head is None else n_kv_head
    return ops.residual_attention(
        input, norm_weight, norm_bias, qkv_weight, out_weight, qkv_bias, out_bias, n_head=n_head, n_kv_head=n_kv_head,
        dropout_p=dropout_p, seed=seed, eps=eps,
    )  # fmt: skip


def rotary_embedding(input: Array, cos: Array, sin: Array, heads: int | None = None) -> Array:
    """Turn pairs of channels by an angle that grows with the position (Su et al. 2021).

    input      (B, T, H, D); channel i is paired with i + D/2 (the "rotate half" convention of Llama)
    cos, sin   (T, D/2): of the angle for each position and pair; see `nn.attention.rotary_tables`
    heads      rotate only the first so many heads and copy the rest; None: all

    Returns the shape of input.
    """
    return ops.rotary_embedding(input, cos, sin, heads=heads)


# Small helpers


def _integers(ids: Array) -> np.ndarray:
    """Ids as an int64 ndarray: they have no gradient, so they need not be Tensors."""
    array = ids.array if isinstance(ids, Tensor) else np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise TypeError(f"expected integer ids, got an array of {array.dtype}; convert it with .astype(np.int64)")
    return array.astype(np.int64, copy=False)


def _classes_last(x: Array) -> Array:
    """(N, V, d1, …) → (N, d1, …, V)."""
    for axis in range(1, x.ndim - 1):
        x = x.swapaxes(axis, axis + 1)
    return x


def _repeat_heads(x: Array, times: int) -> Array:
    """(..., K, T, D) → (..., K · times, T, D), each head `times` in a row."""
    *lead, K, T, D = x.shape
    return x.reshape((*lead, K, 1, T, D))[..., [0] * times, :, :].reshape((*lead, K * times, T, D))
