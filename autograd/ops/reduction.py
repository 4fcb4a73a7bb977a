# mypy: disable-error-code=misc
"""Many numbers into one: sum and extremes along axes, and what is built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..op import Sample, primitive
from ._axes import normalize_axes, normalize_axis
from .elementwise import exp, sqrt
from .selection import getitem, where
from .shape import concatenate, expand, flip, reshape

__all__ = ["amax", "amin", "cumsum", "logsumexp", "mean", "norm", "prod", "std", "sum_", "var"]

Dim = int | Sequence[int] | None


def _axes_kept(shape: tuple[int, ...], dim: Dim) -> tuple[int, ...]:
    """`shape` with size 1 where it was reduced."""
    axes = normalize_axes(dim, len(shape))
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _stretch(reduced: Any, shape: tuple[int, ...], dim: Dim) -> Any:
    """A reduced array beside each element that went into it."""
    return expand(reshape(reduced, shape=_axes_kept(shape, dim)), shape=shape)


def _dim_samples(rng):
    for shape, dim in (((2, 3), None), ((2, 3), 0), ((2, 3, 4), (0, 2)), ((2, 3), -1), ((), None), ((1, 3), 0)):
        for keepdim in (False, True):
            # Distinct, well-spaced values: an extreme has no derivative at a tie.
            x = rng.permutation(math.prod(shape)).reshape(shape) * 0.37 - 1.0
            yield Sample((x,), {"dim": dim, "keepdim": keepdim})
    yield Sample((rng.normal(size=(2, 3)),), {"dim": 2}, error=IndexError, match="dim between -2 and 1")
    yield Sample((rng.normal(size=(2, 3)),), {"dim": (1, -1)}, error=ValueError, match="each dim once")


def _dim_space(draw, min_side=1):
    shape = draw.shape(min_side=min_side)
    return Sample((draw.array(shape),), {"dim": draw.axes(len(shape)), "keepdim": draw.boolean()})


@primitive
class sum_:
    """out = Σ x along `dim`

    dx = dout, beside each element that was summed
    """

    def forward(x, *, dim=None, keepdim=False):
        dtype = np.int64 if x.dtype.kind in "biu" else None
        return np.sum(x, axis=normalize_axes(dim, x.ndim), keepdims=keepdim, dtype=dtype)

    def dx(dout, x_shape, dim):
        return _stretch(dout, x_shape, dim)

    def samples(rng):
        yield from _dim_samples(rng)
        yield Sample((np.zeros((0, 3)),), {"dim": 0})

    def space(draw):
        return _dim_space(draw, min_side=0)


@primitive
class amax:
    """out = max x along `dim`

    dx = dout where x is the maximum; elements that tie share it equally
    """

    kinks = "ties"

    def forward(x, *, dim=None, keepdim=False):
        return np.max(x, axis=normalize_axes(dim, x.ndim), keepdims=keepdim)

    def dx(dout, x, out, x_shape, dim):
        return _share(dout, x, out, x_shape, dim)

    def samples(rng):
        yield from _dim_samples(rng)
        yield Sample(
            (np.array([[3.0, 1.0, 3.0], [2.0, 2.0, 2.0]]),),
            {"dim": 1},
            subgradient=(np.array([[0.5, 0.0, 0.5], [1 / 3, 1 / 3, 1 / 3]]),),
        )

    space = _dim_space


@primitive
class amin:
    """out = min x along `dim`

    dx = dout where x is the minimum; elements that tie share it equally
    """

    kinks = "ties"

    def forward(x, *, dim=None, keepdim=False):
        return np.min(x, axis=normalize_axes(dim, x.ndim), keepdims=keepdim)

    def dx(dout, x, out, x_shape, dim):
        return _share(dout, x, out, x_shape, dim)

    def samples(rng):
        yield from _dim_samples(rng)
        yield Sample(
            (np.array([[0.0, 1.0, 0.0], [2.0, 2.0, 2.0]]),),
            {"dim": 1},
            subgradient=(np.array([[0.5, 0.0, 0.5], [1 / 3, 1 / 3, 1 / 3]]),),
        )

    space = _dim_space


def _share(dout: Any, x: Any, out: Any, shape: tuple[int, ...], dim: Dim) -> Any:
    chosen = (x == _stretch(out, shape, dim)).astype(dout.dtype)
    axes = normalize_axes(dim, len(shape))
    return chosen * (_stretch(dout, shape, dim) / chosen.sum(axes, keepdims=True))


@primitive
class logsumexp:
    """out = ln Σ eˣ along `dim`, computed as m + ln Σ e^(x − m) with m = max x, which cannot overflow

    dx = dout · e^(x − out), the softmax
    """

    floats = True

    def forward(x, *, dim=None, keepdim=False):
        axes = normalize_axes(dim, x.ndim)
        m = np.max(x, axis=axes, keepdims=True, initial=-np.inf)  # of nothing: -inf, the logarithm of 0
        m = np.where(np.isfinite(m), m, 0)  # a row of -inf sums to 0, a row with +inf to inf
        with np.errstate(divide="ignore"):
            out = np.log(np.sum(np.exp(x - m), axis=axes, keepdims=True)) + m
        return out if keepdim else out.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])

    def dx(dout, x, out, x_shape, dim):
        return _stretch(dout, x_shape, dim) * exp(x - _stretch(out, x_shape, dim))

    samples = _dim_samples
    space = _dim_space


@primitive
class cumsum:
    """outᵢ = x₀ + … + xᵢ along `dim`

    dxᵢ = doutᵢ + … + doutₙ: element i is part of every later sum
    """

    def forward(x, *, dim):
        axis, dtype = normalize_axis(dim, x.ndim), np.int64 if x.dtype.kind in "biu" else None
        return np.cumsum(x, axis=axis if x.ndim else None, dtype=dtype).reshape(x.shape)

    def dx(dout, dim):
        return flip(cumsum(flip(dout, dim), dim=dim), dim)

    def samples(rng):
        yield Sample((rng.normal(size=(2, 3)),), {"dim": 0})
        yield Sample((rng.normal(size=(2, 3)),), {"dim": -1})
        yield Sample((rng.normal(size=(0, 3)),), {"dim": 0})
        yield Sample((rng.normal(size=(2, 3)),), {"dim": 2}, error=IndexError, match="dim between")

    def space(draw):
        shape = draw.shape()
        return Sample((draw.array(shape),), {"dim": draw.axis(len(shape))})


# What follows is built from the operators above and needs no rule of its own.


def mean(x: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """Σ x / n along `dim`, over the n elements that each sum holds. For floating inputs."""
    if x.dtype.kind not in "fc":
        raise TypeError(f"mean: expected a floating dtype, got {x.dtype}; convert with x.float()")
    count = math.prod(x.shape[axis] for axis in normalize_axes(dim, len(x.shape)))
    # An empty mean is 0/0, a visible NaN, as in PyTorch.
    return sum_(x, dim=dim, keepdim=keepdim) * (1 / count if count else math.nan)


def var(x: Any, dim: Dim = None, correction: float = 1, keepdim: bool = False) -> Any:
    """Σ (x − mean)² / (n − correction) along `dim`. The default is Bessel's correction, as in PyTorch."""
    count = math.prod(x.shape[axis] for axis in normalize_axes(dim, len(x.shape)))
    centred = x - mean(x, dim, keepdim=True)
    return sum_(centred * centred, dim=dim, keepdim=keepdim) * (
        1 / (count - correction) if count > correction else math.nan
    )


def std(x: Any, dim: Dim = None, correction: float = 1, keepdim: bool = False) -> Any:
    """The square root of `var`; its derivative is 0 where all numbers are equal."""
    return _root(var(x, dim, correction, keepdim), 2)


def norm(x: Any, p: float | str = 2, dim: Dim = None, keepdim: bool = False) -> Any:
    """(Σ |x|ᵖ)^(1/p) along `dim`; p = 2 (or "fro") is the Euclidean length, ±inf an extreme of |x|, 0 counts.

    The derivative of the length of zeros is 0, as in PyTorch.
    """
    if x.dtype.kind not in "fc":
        raise TypeError(f"norm: expected a floating dtype, got {x.dtype}; convert with x.float()")
    if p in (2, "fro"):
        return _root(sum_(x * x, dim=dim, keepdim=keepdim), 2)
    if not isinstance(p, int | float):
        raise ValueError(f'norm: expected a number or "fro" for p, got {p!r}')
    if p == 0:
        return sum_((x != 0).astype(x.dtype), dim=dim, keepdim=keepdim)
    if math.isinf(p):
        return (amax if p > 0 else amin)(abs(x), dim=dim, keepdim=keepdim)
    return _root(sum_(abs(x) ** p, dim=dim, keepdim=keepdim), p)


def _root(x: Any, p: float) -> Any:
    """x^(1/p) with 0 as its derivative at 0, the middle of what a length's derivative can be there."""
    zero = x == 0
    positive = where(zero, 1, x)
    return where(zero, 0, sqrt(positive) if p == 2 else positive ** (1 / p))


def prod(x: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """Π x along `dim`, by multiplying halves: its derivative never divides, so zeros are no special case."""
    shape = tuple(x.shape)
    axes = normalize_axes(dim, len(shape))
    if x.dtype.kind in "biu":
        x = x.astype(np.int64)
    for axis in axes:
        before = (slice(None),) * axis
        while x.shape[axis] > 1:
            half = x.shape[axis] // 2
            rest = getitem(x, index=(*before, slice(2 * half, None)))
            x = getitem(x, index=(*before, slice(0, half))) * getitem(x, index=(*before, slice(half, 2 * half)))
            if rest.shape[axis]:
                first = getitem(x, index=(*before, slice(0, 1))) * rest
                x = concatenate(first, getitem(x, index=(*before, slice(1, None))), dim=axis)
        if x.shape[axis] == 0:  # the product of nothing
            x = sum_(x, dim=axis, keepdim=True) + 1
    return reshape(
        x,
        shape=_axes_kept(shape, dim) if keepdim else tuple(size for axis, size in enumerate(shape) if axis not in axes),
    )
