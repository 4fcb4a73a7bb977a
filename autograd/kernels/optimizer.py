"""AdamW's update and the sum of squares that gradient clipping needs, each in one pass over many arrays.

    g      = grad · grad_scale
    m      = beta1·m + (1 − beta1)·g
    v      = beta2·v + (1 − beta2)·g²
    param  = param·(1 − lr·weight_decay) − (lr / c₁) · m / (√(v / c₂) + eps)          cₖ = 1 − betaₖ^step

Loshchilov, Hutter, arXiv:1711.05101, with PyTorch's order of operations. Four reads, three writes and about 16
FLOPs an element: bound by memory. `grad_scale` is where clipping (and averaging) enters, so that gradients are not
written back.

A model has dozens of parameters, most of them small, and a kernel's call costs more than the update of a norm's
weight. So a kernel takes all of them at once, as a table of where they lie; each is cut into chunks of `GRAIN`, and the
threads share the chunks of all.

Left out: AMSGrad, L2 regularisation in the gradient, sparse gradients.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .arrays import GRAIN, flat
from .ir import shift, stored_pointer
from .jit import kernel, prange

__all__ = ["AdamWSettings", "adamw", "sum_of_squares"]


class AdamWSettings(NamedTuple):
    """The numbers of one step. `bias_correction1` is 1 − beta1**step, with steps counted from 1; 2 likewise."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction1: float
    bias_correction2: float
    grad_scale: float = 1.0


@kernel
def _adamw_span(param, grad, m, v, size, scalars):
    # 1 − beta comes rounded from float64: in float32, the difference would have lost five digits.
    grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, inverse_c2, eps = scalars
    for i in range(size):
        g = grad[i] * grad_scale
        m_i = beta1 * m[i] + one_minus_beta1 * g
        v_i = beta2 * v[i] + one_minus_beta2 * (g * g)
        m[i] = m_i
        v[i] = v_i
        param[i] = param[i] * decay - step_size * m_i / (np.sqrt(v_i * inverse_c2) + eps)


@kernel
def _squares_span(x, size):
    total = 0.0
    for i in range(size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel
def _chunk(sizes, first_chunks, chunk):
    """(which array the chunk belongs to, its first element, its size)."""
    below, above = 0, len(sizes)
    while above - below > 1:
        middle = (below + above) // 2
        if first_chunks[middle] <= chunk:
            below = middle
        else:
            above = middle
    first = (chunk - first_chunks[below]) * GRAIN
    return below, first, min(GRAIN, sizes[below] - first)


@kernel(parallel=True)
def _adamw(addresses, sizes, first_chunks, chunks, scalars, rows):
    """`addresses` (arrays, 4) of each param, grad, m and v, and which of the `rows` of `scalars` (…, 9) it goes by."""
    for chunk in prange(chunks):
        i, first, size = _chunk(sizes, first_chunks, np.int64(chunk))
        s = scalars[rows[i]]
        param, grad = stored_pointer(addresses, 4 * i, s), stored_pointer(addresses, 4 * i + 1, s)
        m, v = stored_pointer(addresses, 4 * i + 2, s), stored_pointer(addresses, 4 * i + 3, s)
        _adamw_span(shift(param, first), shift(grad, first), shift(m, first), shift(v, first), size,
                    (s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8]))


@kernel(parallel=True)
def _squares(addresses, sizes, first_chunks, like, partial):
    """partial[chunk] = its sum of squares, where `addresses` are of arrays like `like`."""
    for chunk in prange(len(partial)):
        i, first, size = _chunk(sizes, first_chunks, np.int64(chunk))
        partial[chunk] = _squares_span(shift(stored_pointer(addresses, i, like), first), size)


def _address(array: np.ndarray) -> int:
    """Where a C-contiguous, writable array begins: `array.ctypes.data`, three times as fast."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array))


def _by_dtype(items: Sequence[Any], first: Any) -> dict[np.dtype, list]:
    """The items, apart by the dtype of `first(item)`. Empty arrays are left out."""
    groups: dict[np.dtype, list] = {}
    for item in items:
        array = first(item)
        if array.size:
            groups.setdefault(array.dtype, []).append(item)
    return groups


@functools.lru_cache(maxsize=16)
def _cut(*sizes: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(the size of each array, the number of its first chunk, how many chunks there are)."""
    ends = np.cumsum([-(-size // GRAIN) for size in sizes])
    return np.array(sizes), np.concatenate(([0], ends[:-1])), int(ends[-1])


def _checked(param: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    alike = grad.shape == m.shape == v.shape == param.shape and grad.dtype == m.dtype == v.dtype == param.dtype
    if not (alike and param.flags.carray and m.flags.carray and v.flags.carray):
        for name, array in (("grad", grad), ("m", m), ("v", v)):
            if array.shape != param.shape or array.dtype != param.dtype:
                raise ValueError(f"expected {name} to be {param.dtype} {param.shape} like param, "
                                 f"got {array.dtype} {array.shape}")
        raise ValueError("expected param, m and v to be C-contiguous and writable: they are updated in place")
    return param, grad if grad.flags.carray else flat(grad), m, v


def adamw(updates: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, AdamWSettings]]) -> None:
    """One step of AdamW on many parameters: (param, grad, m, v, settings) of each; param, m and v change in place.

    The arrays of a parameter have one shape and dtype. Raises ValueError, before anything is changed, where param, m
    or v is not C-contiguous and writable, or shapes or dtypes differ.
    """
    checked = [(_checked(*arrays), settings) for *arrays, settings in updates]
    for dtype, group in _by_dtype(checked, lambda update: update[0][0]).items():
        sizes, first_chunks, chunks = _cut(*[arrays[0].size for arrays, _ in group])
        addresses = np.array([_address(array) for arrays, _ in group for array in arrays])
        numbers: dict[AdamWSettings, int] = {}  # most arrays share their settings
        rows = np.array([numbers.setdefault(settings, len(numbers)) for _, settings in group])
        scalars = np.array([_scalars(settings) for settings in numbers], dtype)
        _adamw(addresses, sizes, first_chunks, chunks, scalars, rows)


def _scalars(s: AdamWSettings) -> tuple[float, ...]:
    return (s.grad_scale, s.beta1, 1 - s.beta1, s.beta2, 1 - s.beta2, 1 - s.lr * s.weight_decay,
            s.lr / s.bias_correction1, 1 / s.bias_correction2, s.eps)


def sum_of_squares(arrays: Sequence[np.ndarray]) -> float:
    """Σ x² over all elements of all arrays, accumulated in float64."""
    total = 0.0
    for dtype, group in _by_dtype([flat(array) for array in arrays], lambda array: array).items():
        sizes, first_chunks, chunks = _cut(*[x.size for x in group])
        partial = np.empty(chunks, np.float64)
        _squares(np.array([_address(x) for x in group]), sizes, first_chunks, np.empty(0, dtype), partial)
        total += float(partial.sum())
    return total
