# mypy: disable-error-code=misc
"""The same numbers in another arrangement. Nothing is computed, so each derivative is the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..op import Sample, primitive, promote
from ._axes import normalize_axes, normalize_axis
from .selection import getitem

__all__ = [
    "alias",
    "cast",
    "chunk",
    "clone",
    "concatenate",
    "expand",
    "flip",
    "permute",
    "reshape",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "unsqueeze",
]


@primitive
class alias:
    """out = x

    dx = dout

    The same value under a name of its own in the graph.
    """

    view = True

    def forward(x):
        return x.view()

    def dx(dout):
        return dout

    def samples(rng):
        yield Sample((rng.normal(size=(2, 3)),))
        yield Sample((rng.normal(size=()),))


@primitive
class reshape:
    """out = x, its elements in C order under another shape (one size may be −1)

    dx = dout under the shape of x
    """

    view = True

    def forward(x, *, shape):
        try:
            return x.reshape(shape)
        except ValueError:
            raise ValueError(
                f"reshape: expected a shape of {x.size} elements to hold those of {x.shape}, got {tuple(shape)} "
                f"of {math.prod(shape)}"
            ) from None

    def dx(dout, x_shape):
        return dout.reshape(x_shape)

    def samples(rng):
        yield Sample((rng.normal(size=(2, 6)),), {"shape": (3, 4)})
        yield Sample((rng.normal(size=(2, 6)),), {"shape": (-1,)})
        yield Sample((rng.normal(size=(1,)),), {"shape": ()})
        yield Sample((rng.normal(size=(0, 3)),), {"shape": (3, 0)})
        yield Sample((rng.normal(size=(4, 6))[::2, ::-1],), {"shape": (3, 4)})
        yield Sample((rng.normal(size=(2, 6)),), {"shape": (5, 2)}, error=ValueError, match="12 elements")

    def space(draw):
        shape = draw.shape()
        inferred = (-1, *shape[1:]) if all(shape) else shape
        target = draw.choice(shape[::-1], (math.prod(shape),), (1, *shape), (*shape, 1), inferred)
        return Sample((draw.array(shape),), {"shape": target})


@primitive
class permute:
    """out = x with its axes in the order `dims`

    dx = dout with its axes in the order that undoes it
    """

    view = True

    def forward(x, *, dims):
        if sorted(dim % max(x.ndim, 1) for dim in dims) != list(range(x.ndim)):
            raise ValueError(f"permute: expected each of the {x.ndim} axes of {x.shape} once, got {tuple(dims)}")
        return x.transpose(dims)

    def dx(dout, dims):
        inverse = [0] * len(dims)
        for position, dim in enumerate(dims):
            inverse[dim] = position
        return permute(dout, dims=tuple(inverse))

    def samples(rng):
        yield Sample((rng.normal(size=(2, 3, 4)),), {"dims": (2, 0, 1)})
        yield Sample((rng.normal(size=(2, 3, 4)),), {"dims": (-1, 1, 0)})
        yield Sample((rng.normal(size=()),), {"dims": ()})
        for dims in ((0, 0), (1, 1), (0,)):
            yield Sample((rng.normal(size=(2, 3)),), {"dims": dims}, error=ValueError, match="each of the 2 axes")

    def space(draw):
        shape = draw.shape()
        dims = draw.permutation(len(shape))
        return Sample((draw.array(shape),), {"dims": tuple(d - draw.choice(0, len(shape)) for d in dims)})


@primitive
class expand:
    """out = x, repeated along new axes and axes of size 1 until it has `shape` (no memory is copied)

    dx = dout, summed over the axes along which x was repeated: the engine does this wherever x is broadcast
    """

    view = True

    def forward(x, *, shape):
        missing = len(shape) - x.ndim
        target = tuple(x.shape[i - missing] if size == -1 and i >= missing else size for i, size in enumerate(shape))
        try:
            return np.broadcast_to(x, target)
        except ValueError:
            raise ValueError(
                f"expand: expected a shape that {x.shape} can be repeated to (axes equal or 1, aligned "
                f"at the right), got {tuple(shape)}"
            ) from None

    def dx(dout):
        return dout

    def samples(rng):
        yield Sample((rng.normal(size=(3, 1)),), {"shape": (2, 3, 4)})
        yield Sample((rng.normal(size=(3, 1)),), {"shape": (-1, 4)})
        yield Sample((rng.normal(size=()),), {"shape": (2, 2)})
        yield Sample((rng.normal(size=(3, 2)),), {"shape": (3, 4)}, error=ValueError, match="can be repeated")

    def space(draw):
        shape = draw.shape(max_dims=2)
        target = (*draw.shape(max_dims=1), *(draw.size(0, 3) if size == 1 else draw.choice(size, -1) for size in shape))
        return Sample((draw.array(shape),), {"shape": target})


@primitive
class concatenate:
    """out = the inputs, one after another along `dim`

    dxᵢ = the part of dout where xᵢ stands
    """

    def forward(*xs, dim=0):
        return np.concatenate(promote(list(xs), floats=False), axis=dim)

    def vjp(dout, shapes, dim):
        axis = normalize_axis(dim, len(dout.shape))
        start = 0
        for shape in shapes:
            yield getitem(dout, index=(slice(None),) * axis + (slice(start, start + shape[axis]),))
            start += shape[axis]

    def samples(rng):
        yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(1, 3))))
        yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(2, 0)), rng.normal(size=(2, 2))), {"dim": -1})
        yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(2, 2))), error=ValueError, match="concatenat")

    def space(draw):
        shape = draw.shape(1)
        axis = draw.size(0, len(shape) - 1)
        parts = [(*shape[:axis], draw.size(0, 3), *shape[axis + 1 :]) for _ in range(draw.size(1, 3))]
        return Sample(tuple(draw.array(part) for part in parts), {"dim": axis - draw.choice(0, len(shape))})


@primitive
class clone:
    """out = a copy of x in memory of its own

    dx = dout
    """

    def forward(x):
        return x.copy()

    def dx(dout):
        return dout

    def samples(rng):
        yield Sample((rng.normal(size=(2, 3))[:, ::-1],))


@primitive
class cast:
    """out = x in another floating dtype

    dx = dout; the engine gives every gradient the dtype of its input
    """

    analytic = False  # complex numbers do not convert to float64

    def forward(x, *, dtype):
        return x.astype(dtype)

    def dx(dout):
        return dout

    def samples(rng):
        yield Sample((rng.normal(size=(2, 3)),), {"dtype": np.dtype(np.float64)})

    def space(draw):
        return Sample((draw.array(draw.shape()),), {"dtype": np.dtype(np.float64)})


def stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    """Tensors of one shape, side by side along a new axis `dim`."""
    shapes = {tuple(x.shape) for x in tensors}
    if len(shapes) != 1:
        raise ValueError(f"stack: expected at least one tensor and all of one shape, got {sorted(shapes)}")
    return concatenate(*(unsqueeze(x, dim) for x in tensors), dim=dim)


def unsqueeze(x: Any, dim: int) -> Any:
    """`x` with a new axis of size 1 at `dim`."""
    dim = normalize_axis(dim, len(x.shape) + 1)
    return reshape(x, shape=(*x.shape[:dim], 1, *x.shape[dim:]))


def squeeze(x: Any, dim: int | Sequence[int] | None = None) -> Any:
    """`x` without its axes of size 1; with `dim` without those among them that have size 1."""
    axes = normalize_axes(dim, len(x.shape))
    return reshape(x, shape=tuple(size for axis, size in enumerate(x.shape) if size != 1 or axis not in axes))


def swapaxes(x: Any, dim0: int, dim1: int) -> Any:
    """`x` with two axes exchanged."""
    dims = list(range(len(x.shape)))
    dim0, dim1 = normalize_axis(dim0, len(dims)), normalize_axis(dim1, len(dims))
    if dims:
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(x, dims=tuple(dims))


def flip(x: Any, dims: int | Sequence[int]) -> Any:
    """`x` read backward along `dims`."""
    axes = normalize_axes(dims, len(x.shape))
    return getitem(x, index=tuple(slice(None, None, -1 if axis in axes else None) for axis in range(len(x.shape))))


def split(x: Any, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Any, ...]:
    """Parts of `x` along `dim`: of one size (the last may be smaller), or of the sizes given."""
    dim = normalize_axis(dim, len(x.shape))
    length = x.shape[dim]
    if isinstance(split_size_or_sections, int):
        if split_size_or_sections < 1:
            raise ValueError(f"split: expected a size of at least 1, got {split_size_or_sections}")
        size = split_size_or_sections
        sizes = [min(size, length - start) for start in range(0, length, size)] or [0]
    else:
        sizes = list(split_size_or_sections)
        if sum(sizes) != length:
            raise ValueError(f"split: expected sizes that add up to {length}, the length of dim {dim}, got {sizes}")
    stops = np.cumsum(sizes)
    before = (slice(None),) * dim
    return tuple(
        getitem(x, index=(*before, slice(int(stop) - size, int(stop)))) for size, stop in zip(sizes, stops, strict=True)
    )


def chunk(x: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    """`x` in at most `chunks` parts of one size along `dim` (the last may be smaller)."""
    if chunks < 1:
        raise ValueError(f"chunk: expected at least 1 chunk, got {chunks}")
    length = x.shape[normalize_axis(dim, len(x.shape))]
    return split(x, -(-length // chunks) if length else [0] * chunks, dim)
