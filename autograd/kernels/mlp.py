"""GPT-2's feed-forward layer, out = gelu(x W_upᵀ + b_up) W_downᵀ + b_down, and its backward pass.

    u = x W_upᵀ + b_up                    (N, H)    product, with an epilogue that makes of it
    h = gelu(u),  slope = gelu′(u)        (N, H)    what is kept
    out = h W_downᵀ + b_down              (N, C)    product
    backward
    du = (dout W_down) ∘ slope                      product, with an epilogue
    dx = du W_up,  dW_up = duᵀ x,  db_up = Σ du,  dW_down = doutᵀ h,  db_down = Σ dout

12·N·C·H FLOPs forward and 24·N·C·H backward, as six products have. What is saved is traffic: H is 4·C, so h, slope and
du are the largest arrays of a model, and each is written once and read by the products alone. Where products are
rounded to bfloat16 (`matmul_precision`) they are kept in bfloat16, as the products would round h and du anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import epilogue
from .bfloat16 import matmul_narrow, narrow_products, rounded_product
from .matmul import matmul, multiply_with, product_for
from .memory import empty
from .sums import column_sums

__all__ = ["MLPGradients", "mlp", "mlp_backward"]


def mlp(
    x: np.ndarray, up: np.ndarray, down: np.ndarray, up_bias: np.ndarray | None, down_bias: np.ndarray | None,
    tanh: bool, onto: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """x (N, C), up (H, C), down (C', H), up_bias (H,), down_bias (C',) → (out (N, C'), slope, h).

    slope and h, for the backward pass, are (N, H) of x's dtype, or bfloat16 as uint16, which x may be, too. `tanh`:
    GPT-2's form of GELU. `onto` (N, C') is added to out.
    """
    shape = (len(x), len(up))
    if x.dtype == np.uint16 or narrow_products(x, up):
        slope, h = empty(shape, np.uint16), empty(shape, np.uint16)
        make = epilogue.gelu(h.dtype, tanh).address
        matmul_narrow(x, up.T, bias=up_bias, epilogue=make, sides=(slope, h))
        return matmul_narrow(h, down.T, bias=down_bias, onto=onto), slope, h
    slope, h = empty(shape, x.dtype), empty(shape, x.dtype)
    make = epilogue.gelu(x.dtype, tanh).address
    multiply_with(product_for(x, up.T), x, up.T, up_bias, slope, epilogue=make, sides=(slope, h))
    return matmul(h, down.T, bias=down_bias, onto=onto), slope, h


class MLPGradients(NamedTuple):
    """One for each input of `mlp`; None where it is not wanted."""

    x: np.ndarray | None
    up: np.ndarray | None
    down: np.ndarray | None
    up_bias: np.ndarray | None
    down_bias: np.ndarray | None


def mlp_backward(
    dout: np.ndarray, x: np.ndarray, up: np.ndarray, down: np.ndarray, slope: np.ndarray, h: np.ndarray,
    needs: tuple[bool, ...],
) -> MLPGradients:  # fmt: skip
    """Gradients of what `needs` marks (in the order of the result) from dout (N, C') and what `mlp` returned.

    dx has x's dtype.
    """
    narrow = h.dtype == np.uint16
    product = matmul_narrow if narrow else matmul
    product_like_x = rounded_product if x.dtype == np.uint16 else product
    wants_x, wants_up, wants_down, wants_up_bias, wants_down_bias = (*needs, False, False)[:5]
    du = empty(h.shape, h.dtype)
    times, sides = epilogue.times(h.dtype).address, (slope, du)
    if not (wants_x or wants_up or wants_up_bias):
        pass
    elif narrow:
        matmul_narrow(dout, down, epilogue=times, sides=sides)
    else:
        multiply_with(product_for(dout, down), dout, down, out=du, epilogue=times, sides=sides)
    return MLPGradients(
        product_like_x(du, up) if wants_x else None,
        product(du.T, x) if wants_up else None,
        product(dout.T, h) if wants_down else None,
        column_sums(du) if wants_up_bias else None,
        column_sums(dout) if wants_down_bias else None,
    )
