"""PyTorch's functions that are not operators of their own: another spelling of methods, for code that is written so."""

from __future__ import annotations

from typing import Any

from . import ops
from .tensor import Tensor

__all__ = ["cat", "concatenate", "outer", "softmax", "stack", "topk", "tril", "triu"]


def cat(tensors: Any, dim: int = 0) -> Tensor:
    """Tensors one after another along an existing axis (torch.cat)."""
    return ops.concatenate(*tensors, dim=dim)


concatenate = cat


def stack(tensors: Any, dim: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis."""
    return ops.stack(tensors, dim)


def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two axes."""
    return x.tril(diagonal)


def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two axes."""
    return x.triu(diagonal)


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """(values, indices) of the k largest elements along `dim`, sorted."""
    return x.topk(k, dim, largest)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """The products of each element of `a` (M,) with each of `b` (N,) → (M, N)."""
    return a.reshape(-1, 1) * b.reshape(1, -1)


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x) / Σ exp(x) along `dim`."""
    return ops.softmax(x, dim=dim)
