"""PyTorch's functions that are not operators of their own: another spelling of methods, for code that is written so."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import ops
from .tensor import Tensor

__all__ = [
    "abs", "add", "all", "allclose", "amax", "amin", "any", "argmax", "argmin", "argsort", "as_tensor", "cat", "ceil",
    "chunk", "clamp", "clip", "clone", "concatenate", "cumsum", "div", "dot", "equal", "flatten", "flip", "floor",
    "gather", "index_select", "is_tensor", "isfinite", "isinf", "isnan", "log_softmax", "max", "mean", "min", "mul",
    "norm", "outer", "permute", "pow", "prod", "reciprocal", "repeat_interleave", "reshape", "round", "sign", "softmax",
    "sort", "split", "square", "squeeze", "stack", "std", "sub", "sum", "swapaxes", "take", "topk", "transpose", "tril",
    "triu", "unbind", "unsqueeze", "var",
]  # fmt: skip


def _method(name: str) -> Any:
    """torch.f(x, …), which is x.f(…)."""
    method = getattr(Tensor, name)

    @functools.wraps(method)
    def function(x: Any, *args: Any, **kwargs: Any) -> Any:
        return method(as_tensor(x), *args, **kwargs)

    return function


# Element by element; reductions; other shapes; parts.
abs, pow, square, reciprocal, sign = map(_method, ("abs", "pow", "square", "reciprocal", "sign"))
add, sub, mul, div = map(_method, ("add", "sub", "mul", "div"))
floor, ceil, round = map(_method, ("floor", "ceil", "round"))
clamp = clip = _method("clip")
isnan, isinf, isfinite = map(_method, ("isnan", "isinf", "isfinite"))
sum, mean, prod, var, std, norm = map(_method, ("sum", "mean", "prod", "var", "std", "norm"))
max, min, amax, amin, argmax, argmin = map(_method, ("max", "min", "amax", "amin", "argmax", "argmin"))
any, all, cumsum, sort, argsort, topk = map(_method, ("any", "all", "cumsum", "sort", "argsort", "topk"))
softmax, log_softmax = map(_method, ("softmax", "log_softmax"))
reshape, flatten, permute, transpose = map(_method, ("reshape", "flatten", "permute", "transpose"))
swapaxes, squeeze, unsqueeze, flip = map(_method, ("swapaxes", "squeeze", "unsqueeze", "flip"))
split, chunk, unbind, tril, triu = map(_method, ("split", "chunk", "unbind", "tril", "triu"))
gather, take, index_select = map(_method, ("gather", "take", "index_select"))
repeat_interleave, clone, dot = map(_method, ("repeat_interleave", "clone", "dot"))


def as_tensor(data: Any, dtype: Any = None) -> Tensor:
    """`data` itself if it is a tensor (of that dtype), else a tensor with a copy of it."""
    if not isinstance(data, Tensor):
        return Tensor(data, dtype=dtype)
    return data if dtype is None else data.to(dtype)


def is_tensor(x: Any) -> bool:
    """Whether `x` is a Tensor."""
    return isinstance(x, Tensor)


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether |a − b| ≤ atol + rtol · |b| everywhere."""
    return bool(np.allclose(as_tensor(a).array, as_tensor(b).array, rtol, atol, equal_nan))


def equal(a: Any, b: Any) -> bool:
    """Whether shapes and all values are the same."""
    return np.array_equal(as_tensor(a).array, as_tensor(b).array)


def cat(tensors: Any, dim: int = 0) -> Tensor:
    """Tensors one after another along an existing axis (torch.cat). Beside others an empty vector (0,) is nothing."""
    return ops.concatenate(*([x for x in tensors if tuple(x.shape) != (0,)] or tensors), dim=dim)


concatenate = cat


def stack(tensors: Any, dim: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis."""
    return ops.stack(tensors, dim)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """The products of each element of `a` (M,) with each of `b` (N,) → (M, N)."""
    return a.reshape(-1, 1) * b.reshape(1, -1)
