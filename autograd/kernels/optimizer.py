"""AdamW's update and the sum of squares that gradient clipping needs, each in one pass over memory.

    g      = grad · grad_scale
    m      = beta1·m + (1 − beta1)·g
    v      = beta2·v + (1 − beta2)·g²
    param  = param·(1 − lr·weight_decay) − (lr / c₁) · m / (√(v / c₂) + eps)          cₖ = 1 − betaₖ^step

Loshchilov, Hutter, arXiv:1711.05101, with PyTorch's order of operations. Four reads, three writes and about 16
FLOPs an element: bound by memory. `grad_scale` is where clipping (and averaging) enters, so that gradients are not
written back.

Left out: AMSGrad, L2 regularisation in the gradient, sparse gradients.
"""

from __future__ import annotations

import numpy as np

from .arrays import GRAIN, flat
from .jit import kernel, prange

__all__ = ["adamw", "sum_of_squares"]


@kernel
def _adamw_span(param, grad, m, v, scalars):
    # 1 − beta comes rounded from float64: in float32, the difference would have lost five digits.
    grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, inverse_c2, eps = scalars
    for i in range(param.size):
        g = grad[i] * grad_scale
        m_i = beta1 * m[i] + one_minus_beta1 * g
        v_i = beta2 * v[i] + one_minus_beta2 * (g * g)
        m[i] = m_i
        v[i] = v_i
        param[i] = param[i] * decay - step_size * m_i / (np.sqrt(v_i * inverse_c2) + eps)


@kernel(parallel=True)
def _adamw(param, grad, m, v, scalars):
    for chunk in prange((param.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(param.size, (chunk + 1) * GRAIN))
        _adamw_span(param[span], grad[span], m[span], v[span], scalars)


@kernel
def _squares_span(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel(parallel=True)
def _squares(x, partial):
    for chunk in prange(partial.size):
        partial[chunk] = _squares_span(x[chunk * GRAIN:min(x.size, (chunk + 1) * GRAIN)])


def adamw(
    param: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    bias_correction1: float, bias_correction2: float, grad_scale: float = 1.0,
) -> None:
    """One step of AdamW on param, m and v, in place. All arrays have one shape and dtype.

    `bias_correction1` is 1 − beta1**step and `bias_correction2` is 1 − beta2**step, with steps counted from 1.
    Raises ValueError where param, m or v is not C-contiguous and writable, or shapes or dtypes differ.
    """
    for name, array in (("param", param), ("grad", grad), ("m", m), ("v", v)):
        if array.shape != param.shape or array.dtype != param.dtype:
            raise ValueError(f"expected {name} to be {param.dtype} {param.shape} like param, "
                             f"got {array.dtype} {array.shape}")
        if array is not grad and not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError(f"expected {name} to be C-contiguous and writable: it is updated in place")
    scalars = (grad_scale, beta1, 1 - beta1, beta2, 1 - beta2, 1 - lr * weight_decay, lr / bias_correction1,
               1 / bias_correction2, eps)
    _adamw(param.reshape(-1), flat(grad), m.reshape(-1), v.reshape(-1), tuple(map(param.dtype.type, scalars)))


def sum_of_squares(array: np.ndarray) -> float:
    """Σ array², accumulated in float64."""
    array = flat(array)
    partial = np.empty(-(-array.size // GRAIN), np.float64)
    _squares(array, partial)
    return float(partial.sum())
