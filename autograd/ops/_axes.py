"""Axes as PyTorch and NumPy spell them: None for all, an int or several, negative ones counted from the end."""

from __future__ import annotations

import operator
from collections.abc import Sequence

__all__ = ["normalize_axes", "normalize_axis"]


def normalize_axis(dim: int, ndim: int) -> int:
    """`dim` as a number from 0 to ndim - 1; IndexError where there is no such axis."""
    dim = operator.index(dim)
    size = max(ndim, 1)  # PyTorch lets a 0-d tensor pass for one with a single axis
    if not -size <= dim < size:
        raise IndexError(f"expected a dim between {-size} and {size - 1} for {ndim} axes, got {dim}")
    return dim % size


def normalize_axes(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """All axes that `dim` names, sorted; ValueError where one is named twice."""
    if dim is None or (isinstance(dim, tuple | list) and not dim):
        return tuple(range(ndim))
    dims = [dim] if not isinstance(dim, tuple | list) else list(dim)
    axes = sorted(normalize_axis(d, ndim) for d in dims)
    if len(set(axes)) != len(axes):
        raise ValueError(f"expected each dim once, got {tuple(dims)} for {ndim} axes")
    return tuple(axis for axis in axes if axis < ndim)
