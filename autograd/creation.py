"""Tensors from nothing: constants, ranges, and random numbers from one seeded generator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .graph import Variable
from .tensor import Tensor, check_device

__all__ = [
    "arange",
    "empty",
    "eye",
    "from_numpy",
    "full",
    "full_like",
    "generator",
    "linspace",
    "manual_seed",
    "next_seed",
    "ones",
    "ones_like",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
]


def _shape(sizes: tuple) -> tuple[int, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def _finish(array: np.ndarray, requires_grad: bool) -> Tensor:
    out = Variable.wrap(array)
    return out.requires_grad_() if requires_grad else out


def _placed(create: Callable) -> Callable:
    """Accept PyTorch's `device`, as in `arange(T, device=idx.device)`: there is one, the "cpu"."""

    @functools.wraps(create)
    def call(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        check_device(device)
        return create(*args, **kwargs)

    return call


@_placed
def tensor(data: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of `data`, in its shape; see `Tensor`."""
    return Tensor(data, requires_grad=requires_grad, dtype=dtype)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor of the shape and memory of `array`. Writing to the array afterwards goes unnoticed; `tensor` copies."""
    return Variable.wrap(array)


@_placed
def zeros(*sizes: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Zeros of the shape `sizes`."""
    return _finish(np.zeros(_shape(sizes), dtype), requires_grad)


@_placed
def ones(*sizes: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Ones of the shape `sizes`."""
    return _finish(np.ones(_shape(sizes), dtype), requires_grad)


@_placed
def empty(*sizes: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """A tensor of the shape `sizes`, to be written to (filled with zeros meanwhile: never with leftovers)."""
    return zeros(*sizes, dtype=dtype, requires_grad=requires_grad)


@_placed
def full(size: Any, fill_value: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of shape `size` filled with one number."""
    if dtype is None:
        dtype = np.float32 if isinstance(fill_value, float) else None
    return _finish(np.full(size, fill_value, dtype), requires_grad)


@_placed
def zeros_like(x: Tensor, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros in the shape and dtype of `x`."""
    return _finish(np.zeros(x.shape, dtype or x.dtype), requires_grad)


@_placed
def ones_like(x: Tensor, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones in the shape and dtype of `x`."""
    return _finish(np.ones(x.shape, dtype or x.dtype), requires_grad)


@_placed
def full_like(x: Tensor, fill_value: Any, dtype: Any = None) -> Tensor:
    """One number in the shape and dtype of `x`."""
    return Variable.wrap(np.full(x.shape, fill_value, dtype or x.dtype))


@_placed
def eye(n: int, m: int | None = None, dtype: Any = np.float32) -> Tensor:
    """Ones on the diagonal of an (n, m) matrix, 0 elsewhere."""
    return Variable.wrap(np.eye(n, m, dtype=dtype))


@_placed
def arange(*bounds: Any, dtype: Any = None) -> Tensor:
    """arange(stop), arange(start, stop) or arange(start, stop, step); int64, or float32 if a bound is a float."""
    if dtype is None:
        dtype = np.float32 if any(isinstance(b, float) for b in bounds) else np.int64
    return Variable.wrap(np.arange(*bounds, dtype=dtype))


@_placed
def linspace(start: float, end: float, steps: int, dtype: Any = np.float32) -> Tensor:
    """`steps` numbers from `start` to `end`, both included (steps,)."""
    return Variable.wrap(np.linspace(start, end, steps, dtype=dtype))


# One generator serves every random number that is not given a generator of its own.
_state = {"generator": np.random.Generator(np.random.PCG64(0))}


def generator() -> np.random.Generator:
    """The generator that random tensors, initialisers and dropout draw from."""
    return _state["generator"]


def manual_seed(seed: int) -> np.random.Generator:
    """Start the generator again from `seed` (a non-negative int)."""
    _state["generator"] = np.random.Generator(np.random.PCG64(seed))
    return _state["generator"]


def next_seed() -> int:
    """A seed for one operation whose random numbers are a function of it, such as dropout."""
    return int(generator().integers(0, 2**63 - 1))


@_placed
def rand(*sizes: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Uniform numbers from [0, 1), in the shape `sizes`."""
    return _finish(generator().random(_shape(sizes)).astype(dtype), requires_grad)


@_placed
def randn(*sizes: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Numbers from the standard normal distribution, in the shape `sizes`."""
    return _finish(generator().standard_normal(_shape(sizes)).astype(dtype), requires_grad)


@_placed
def randint(low: int, high: Any = None, size: Any = (), dtype: Any = np.int64) -> Tensor:
    """Integers from low to high − 1: randint(low, high, size), or randint(high, size) from 0."""
    if high is None or isinstance(high, tuple | list):
        low, high, size = 0, low, size if high is None else high
    return Variable.wrap(np.asarray(generator().integers(low, high, size)).astype(dtype))


@_placed
def randperm(n: int) -> Tensor:
    """The integers 0 to n − 1 in random order (n,)."""
    return Variable.wrap(generator().permutation(n))


def multinomial(probabilities: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    """Positions drawn from rows (..., V) of weights, which need not sum to 1 → (..., num_samples) int64.

    ValueError where a row has no positive weight, or too few to draw from without replacement.
    """
    weights = probabilities.array.astype(np.float64)
    if not weights.size or (weights < 0).any() or not np.isfinite(weights).all():
        raise ValueError("multinomial: expected finite weights of at least 0")
    enough = (weights > 0).sum(-1)
    if (enough < (1 if replacement else num_samples)).any():
        raise ValueError(f"multinomial: expected at least {1 if replacement else num_samples} positive weights in each "
                         f"row, got {enough.min()}")
    rows = weights.reshape(-1, weights.shape[-1])
    draws = [
        generator().choice(len(row), num_samples, replace=replacement, p=row / row.sum(), shuffle=False) for row in rows
    ]
    return Variable.wrap(np.array(draws, np.int64).reshape(*weights.shape[:-1], num_samples))
