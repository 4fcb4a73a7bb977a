# mypy: disable-error-code=misc
"""Choosing elements: where, indexing, and the scatter that undoes indexing.

Everything that picks elements (slices, integer and boolean indices, gather, take) is one operator, `getitem`, and its
derivative is one operator, `scatter`. Each is the other's derivative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import Variable
from ..op import Sample, primitive
from ._axes import normalize_axis

__all__ = ["gather", "getitem", "masked_fill", "scatter", "take", "where"]


@primitive
class where:
    """out = a where condition, else b, element by element; all three broadcast

    da = dout where condition, else 0
    db = 0 where condition, else dout
    """

    broadcasts = True

    def forward(condition, a, b):
        return np.where(condition, a, b)

    def da(dout, condition):
        return where(condition, dout, 0)

    def db(dout, condition):
        return where(condition, 0, dout)

    def samples(rng):
        yield Sample((rng.random((2, 3)) > 0.5, rng.normal(size=(2, 3)), rng.normal(size=(2, 3))))
        yield Sample((rng.random((2, 3)) > 0.5, rng.normal(size=(3,)), rng.normal(size=(2, 1))))
        yield Sample((rng.random((2, 3)) > 0.5, rng.normal(size=(2, 3)), 0.0))
        yield Sample((rng.random((3,)) > 0.5, rng.normal(size=(2, 1)), rng.normal(size=())))
        yield Sample((rng.random((2, 3)) > 0.5, rng.normal(size=(4,)), 0.0), error=ValueError, match="broadcast")

    def space(draw):
        shapes = draw.shapes(3)
        return Sample((draw.array(shapes[0]) > 0, draw.array(shapes[1]), draw.array(shapes[2])))


def _is_basic(index: Any) -> bool:
    """Slices, integers, None and ...: such an index names each element at most once."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, slice | int | np.integer) for part in parts)


@primitive
class getitem:
    """out = x[index]

    dx = zeros with dout added at index (an element picked twice gets the sum)
    """

    view = True
    fresh = True

    def forward(x, *, index):
        return x[index]

    def dx(dout, x_shape, index):
        return scatter(dout, shape=x_shape, index=index)

    def samples(rng):
        x = rng.normal(size=(4, 5))
        indices = [0, -1, slice(1, 3), (slice(None), 2), (slice(None, None, -1), slice(0, 5, 2)), (None, Ellipsis, 1),
                   Ellipsis, np.array([0, 2, 2, -1]), (np.array([0, 0, 3]), np.array([1, 1, 2])), slice(2, 2),
                   (slice(None), np.array([[0, 1], [1, 1]])), rng.random((4, 5)) > 0.5, np.zeros((0,), np.int64)]
        for index in indices:
            yield Sample((x,), {"index": index})
        yield Sample((x,), {"index": 7}, error=IndexError, match="out of bounds")

    def space(draw):
        shape = draw.shape(1)
        return Sample((draw.array(shape),), {"index": draw.index(shape)})


@primitive
class scatter:
    """out = zeros(shape), with x added at index

    dx = dout[index]
    """

    def forward(x, *, shape, index):
        out = np.zeros(shape, x.dtype)
        if _is_basic(index):
            out[index] = x
        else:
            np.add.at(out, index, x)
        return out

    def dx(dout, index):
        return getitem(dout, index=index)

    def samples(rng):
        yield Sample((rng.normal(size=(3,)),), {"shape": (4, 3), "index": 1})
        yield Sample((rng.normal(size=(2, 3)),), {"shape": (5, 3), "index": slice(0, 4, 2)})
        yield Sample((rng.normal(size=(4,)),), {"shape": (3,), "index": np.array([0, 2, 2, 1])})

    def space(draw):
        shape = draw.shape(1)
        index = draw.index(shape)
        return Sample((draw.array(np.zeros(shape)[index].shape),), {"shape": shape, "index": index})


def plain_index(index: Any) -> Any:
    """An index as NumPy understands it: tensors become arrays of their own, which nobody can change later."""
    if isinstance(index, tuple):
        return tuple(plain_index(part) for part in index)
    if isinstance(index, Variable):
        return index.array.copy() if index.array.ndim else index.array[()]
    if isinstance(index, np.ndarray | list):
        return np.array(index)
    return index


def integers_first(index: Any) -> tuple[Any, Any]:
    """A plain index in two steps, x[first][second], where it holds integers beside arrays (else `second` is None).

    PyTorch selects by the integers before it looks at the arrays. NumPy takes an integer for an array too, and where a
    slice stands between two arrays their axes go to the front.
    """
    parts = index if isinstance(index, tuple) else (index,)
    arrays = [isinstance(part, np.ndarray | bool | np.bool_) for part in parts]
    integers = [isinstance(part, int | np.integer) and not array for part, array in zip(parts, arrays, strict=True)]
    if not (any(arrays) and any(integers)):
        return index, None
    first, second = [], []
    for part, is_array, is_integer in zip(parts, arrays, integers, strict=True):
        if is_integer:
            first.append(part)
        elif is_array:
            first += [slice(None)] * (np.ndim(part) if np.asarray(part).dtype == bool else 1)
            second.append(part)
        else:  # a slice; ... stands for the same axes in both, None for none in the first
            first += [] if part is None else [part]
            second.append(slice(None) if isinstance(part, slice) else part)
    return tuple(first), tuple(second)


def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    """`x` with `value` where `mask` (any shape that broadcasts to that of `x`) is true, in the dtype of `x`."""
    if isinstance(value, Variable | np.ndarray):
        value = value.astype(x.dtype)  # type: ignore[attr-defined]
    elif x.dtype.kind in "biu":
        try:
            value = x.dtype.type(value)
        except (ValueError, OverflowError):
            raise ValueError(f"masked_fill: {x.dtype} has no {value}; convert with x.float()") from None
    return where(mask, value, x)


def gather(x: Any, dim: int, index: Any) -> Any:
    """out[i][j][k] = x[index[i][j][k]][j][k] for dim = 0, and so on: one element of `x` for each of `index`.

    x and index have the same number of axes; index is no larger than x except along `dim`. As torch.gather.
    """
    index = np.asarray(plain_index(index))
    if index.ndim != len(x.shape):
        raise ValueError(f"gather: expected an index with {len(x.shape)} axes as x has, got shape {index.shape}")
    dim = normalize_axis(dim, index.ndim)
    if not index.ndim:
        return getitem(x.reshape(1), index=index.reshape(1)).reshape(())
    grid: list[Any] = list(np.ogrid[tuple(slice(size) for size in index.shape)])
    grid[dim] = index
    return getitem(x, index=tuple(grid))


def take(x: Any, indices: Any, dim: int | None = None) -> Any:
    """Elements of the flattened `x` (torch.take), or with `dim` whole slices along that axis (numpy.take)."""
    indices = plain_index(indices)
    if dim is None:
        return getitem(x.reshape(-1), index=indices)
    return getitem(x, index=(slice(None),) * normalize_axis(dim, len(x.shape)) + (indices,))
