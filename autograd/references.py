"""Each primitive in NumPy's own words: what its result is compared with.

A fused operator is compared with its definition. A primitive is its own definition, so here it is said a
second time, by another route where there is one (sums by `fsum`, functions by the platform, products by
broadcasting).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CONTINUED", "REFERENCES"]


def _axes(x: np.ndarray, dim: Any) -> tuple[int, ...]:
    dims = range(x.ndim) if dim is None else dim if isinstance(dim, tuple) else (dim,)
    return tuple(d % x.ndim for d in dims) if x.ndim else ()


def _reduced(by: Callable) -> Callable:
    """A reduction, row by row: the reduced axes are moved to the end and flattened."""

    def reference(x: np.ndarray, dim: Any = None, keepdim: bool = False) -> np.ndarray:
        axes = _axes(x, dim)
        kept = [axis for axis in range(x.ndim) if axis not in axes]
        rows = x.transpose(*kept, *axes).reshape(
            math.prod(x.shape[k] for k in kept), math.prod(x.shape[a] for a in axes)
        )
        out = np.array([by(row) for row in rows.tolist()], float)
        return out.reshape([1 if axis in axes else x.shape[axis] for axis in (range(x.ndim) if keepdim else kept)])

    return reference


def _each(function: Callable) -> Callable:
    return lambda x: np.array([function(v) for v in np.ravel(x).tolist()], float).reshape(np.shape(x))


def _pairs(function: Callable) -> Callable:
    def reference(a: Any, b: Any) -> np.ndarray:
        a, b = np.broadcast_arrays(a, b)
        return np.array([function(x, y) for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)]).reshape(
            a.shape
        )

    return reference


def _where(condition: Any, a: Any, b: Any) -> np.ndarray:
    condition, a, b = np.broadcast_arrays(condition, a, b)
    out = np.array(b, copy=True)
    np.copyto(out, a, where=condition)
    return out


def _scatter(x: np.ndarray, shape: tuple, index: Any) -> np.ndarray:
    out = np.zeros(shape)
    places = np.arange(out.size).reshape(shape)[index]
    for place, v in zip(places.ravel().tolist(), np.broadcast_to(x, places.shape).ravel().tolist(), strict=True):
        out.flat[place] += v
    return out


def _cumsum(x: np.ndarray, dim: int) -> np.ndarray:
    if not x.ndim:
        return x
    rows = np.moveaxis(x, dim, -1)
    return np.moveaxis(rows @ np.triu(np.ones((rows.shape[-1],) * 2)), -1, dim)


def _concatenate(*xs: np.ndarray, dim: int) -> np.ndarray:
    axis = dim % xs[0].ndim
    shape = list(xs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    out, start = np.empty(shape), 0
    for x in xs:
        out[(slice(None),) * axis + (slice(start, start + x.shape[axis]),)] = x
        start += x.shape[axis]
    return out


def _erf(z: np.ndarray) -> np.ndarray:
    """The error function of complex numbers: its power series near 0, the continued fraction of erfc further out.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.5 and 7.1.14.
    """
    z = np.asarray(z)
    t = np.where(z.real < 0, -z, z)
    near, far = np.where(t.real < 2, t, 0), np.where(t.real < 2, 2, t)
    term, series = near, near
    for n in range(1, 60):
        term = term * (-near * near / n)
        series = series + term / (2 * n + 1)
    fraction = far
    for n in range(120, 0, -1):
        fraction = far + n / 2 / fraction
    root = math.sqrt(math.pi)
    out = np.where(t.real < 2, series * (2 / root), 1 - np.exp(-far * far) / (fraction * root))
    return np.where(z.real < 0, -out, out)


# Operators that take real numbers only, though their function holds for complex ones.
CONTINUED: dict[str, Callable] = {"erf": _erf}

REFERENCES: dict[str, Callable] = {
    "alias": lambda x: x,
    "clone": lambda x: x,
    "cast": lambda x, dtype: np.asarray(x, dtype),
    # arithmetic, in Python's own numbers
    "add": _pairs(lambda a, b: a + b),
    "sub": _pairs(lambda a, b: a - b),
    "mul": _pairs(lambda a, b: a * b),
    "div": _pairs(lambda a, b: a / b),
    "pow": _pairs(lambda a, b: math.pow(a, b)),
    "maximum": _pairs(max),
    "minimum": _pairs(min),
    "neg": lambda x: 0 - x,
    "abs": lambda x: np.sqrt(x * x),
    "clip": lambda x, low, high: _each(
        lambda v: max(min(v, math.inf if high is None else high), -math.inf if low is None else low)
    )(x),
    # functions of one number, by the platform's mathematics library
    "exp": _each(math.exp),
    "expm1": _each(math.expm1),
    "log": _each(math.log),
    "log1p": _each(math.log1p),
    "sqrt": _each(math.sqrt),
    "rsqrt": _each(lambda v: v**-0.5),
    "sin": _each(math.sin),
    "cos": _each(math.cos),
    "tanh": _each(math.tanh),
    "sigmoid": _each(lambda v: (1 + math.tanh(v / 2)) / 2),
    "erf": _each(math.erf),
    "relu": lambda x: x * (x > 0),
    # choosing
    "where": _where,
    "getitem": lambda x, index: x.ravel()[np.arange(x.size).reshape(x.shape)[index]],
    "scatter": _scatter,
    # shape
    "reshape": lambda x, shape: np.array(x.ravel()).reshape(shape),
    "permute": lambda x, dims: np.moveaxis(x, [d % x.ndim for d in dims], range(x.ndim)),
    "expand": lambda x, shape: x + np.zeros([1 if size == -1 else size for size in shape]),
    "concatenate": _concatenate,
    # reductions and products
    "sum": _reduced(math.fsum),
    "amax": _reduced(max),
    "amin": _reduced(min),
    "logsumexp": _reduced(lambda row: max(row) + math.log(math.fsum(math.exp(v - max(row)) for v in row))),
    "cumsum": _cumsum,
    "matmul_2d": lambda a, b: np.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2),
}
