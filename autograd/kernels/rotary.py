"""Rotary position embedding: each head's pairs (x_j, x_{j+D/2}) turn by an angle that grows with the position.

    out_j        = x_j·cos_j − x_{j+D/2}·sin_j
    out_{j+D/2}  = x_{j+D/2}·cos_j + x_j·sin_j             j < D/2

in the "rotate half" arrangement of Hugging Face's Llama. Su et al., arXiv:2104.09864. A rotation is undone by the
opposite angle, so the backward pass is the same kernel with −sin. 3 FLOPs and 2 memory accesses an element.

Left out: making the table of angles (that is the model's), interleaved pairs, partial rotation of a head.
"""

from __future__ import annotations

import numpy as np

from .arrays import operand
from .jit import kernel, prange

__all__ = ["rotary"]


@kernel
def _rotate(x, cos, sin, heads, out):
    """One position: x (H, D), cos (D/2,), sin (D/2,)."""
    half = cos.size
    for h in range(heads):
        low, high, out_low, out_high = x[h, :half], x[h, half:], out[h, :half], out[h, half:]
        for j in range(half):
            out_low[j] = low[j] * cos[j] - high[j] * sin[j]
        for j in range(half):
            out_high[j] = high[j] * cos[j] + low[j] * sin[j]
    for h in range(heads, len(x)):
        for j in range(2 * half):
            out[h, j] = x[h, j]


@kernel(parallel=True)
def _rotary(x, cos, sin, heads, out):
    B, T = x.shape[:2]
    for t in prange(T):
        for b in range(B):
            _rotate(x[b, t], cos[t], sin[t], heads, out[b, t])


def rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, heads: int | None = None) -> np.ndarray:
    """Turn the first `heads` heads (default: all) of x (B, T, H, D) by the angles of cos, sin (T, D/2), copy the rest.

    The gradient of x is `rotary(dout, cos, -sin, heads)`. Raises ValueError where the shapes do not fit.
    """
    if x.ndim != 4 or x.shape[3] % 2 or not cos.shape == sin.shape == (x.shape[1], x.shape[3] // 2):
        raise ValueError(f"expected x (B, T, H, D) with even D and cos, sin (T, D/2), "
                         f"got {x.shape}, {cos.shape}, {sin.shape}")
    out = np.empty(x.shape, x.dtype)
    cos, sin = operand(np.asarray(cos, x.dtype)), operand(np.asarray(sin, x.dtype))
    _rotary(operand(x), cos, sin, x.shape[2] if heads is None else heads, out)
    return out
