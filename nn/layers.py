"""The layers a transformer is made of.

Each owns its parameters and hands the work to `nn.functional`. Parameters begin as PyTorch's do (a model may fill
them anew: see `nn.init`); all are float32 until `module.to(dtype)`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nn import functional as F
from nn import init
from nn.module import Module, Parameter

__all__ = [
    "GELU", "MLP", "Dropout", "Embedding", "Identity", "LayerNorm", "Linear", "RMSNorm", "ReLU", "SiLU",
    "Sigmoid", "Softmax", "SwiGLU", "Tanh", "residual",
]  # fmt: skip


def _new(*shape: int, decay: bool = True) -> Parameter:
    return Parameter(np.zeros(shape, np.float32), decay=decay)


class Linear(Module):
    """x Wᵀ + b: (..., in_features) → (..., out_features). weight (out, in), bias (out,)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _new(out_features, in_features)
        self.bias = _new(out_features, decay=False) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/√in_features, weight and bias alike."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"


class Embedding(Module):
    """A table of vectors: ids (...) → (..., embedding_dim). weight (num_embeddings, embedding_dim)."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = init.normal_(_new(num_embeddings, embedding_dim, decay=False))

    def forward(self, idx: Any) -> Any:
        return F.embedding(idx, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class LayerNorm(Module):
    """Zero mean and unit variance over the last axis, then scale and shift: (..., C) → (..., C)."""

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps, self.elementwise_affine = shape, eps, elementwise_affine
        self.weight = init.ones_(_new(*shape, decay=False)) if elementwise_affine else None
        self.bias = init.zeros_(_new(*shape, decay=False)) if elementwise_affine and bias else None

    def forward(self, x: Any) -> Any:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(Module):
    """Unit mean square over the last axis, then scale: (..., C) → (..., C). No mean is subtracted, no bias added."""

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps, self.elementwise_affine = shape, eps, elementwise_affine
        self.weight = init.ones_(_new(*shape, decay=False)) if elementwise_affine else None

    def forward(self, x: Any) -> Any:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class Dropout(Module):
    """In training, each element is zeroed with probability p and the rest scaled by 1/(1 − p); else nothing."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability must be between 0 and 1, got {p}")
        self.p = p

    def forward(self, x: Any) -> Any:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class GELU(Module):
    """x · Φ(x), elementwise. approximate "none" (by erf) | "tanh"."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        return F.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """x · sigmoid(x), elementwise."""

    def forward(self, x: Any) -> Any:
        return F.silu(x)


class ReLU(Module):
    """max(x, 0), elementwise."""

    def forward(self, x: Any) -> Any:
        return F.relu(x)


class Sigmoid(Module):
    """1 / (1 + exp(−x)), elementwise."""

    def forward(self, x: Any) -> Any:
        return F.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent, elementwise."""

    def forward(self, x: Any) -> Any:
        return F.tanh(x)


class Softmax(Module):
    """exp(x) / Σ exp(x) along `dim`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return F.softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Identity(Module):
    """Gives back what it gets."""

    def forward(self, x: Any) -> Any:
        return x


def unchanged(kind: type[Module], *parts: Module) -> bool:
    """Whether modules do what their class does, so that their work may be done without them.

    One that was replaced by another kind must run, and so must one with hooks: someone wants to see it run.
    """
    return all(type(part) is kind and not part.has_hooks for part in parts)


def residual(x: Any, norm: Any, branch: Any, dropout: Any, *args: Any) -> Any:
    """x + dropout(branch(norm(x), *args)), a branch of a pre-norm block, as one operator where there is one.

    A branch may have a method `residual(x, norm, *args)`, which returns x + branch(norm(x), *args) for a `LayerNorm`,
    or None if it can't. It is asked where nothing else stands in between.
    """
    known = unchanged(LayerNorm, norm) and unchanged(Dropout, dropout) and not branch.has_hooks
    if known and not (dropout.training and dropout.p) and norm.normalized_shape == x.shape[-1:]:
        out = branch.residual(x, norm, *args) if hasattr(branch, "residual") else None
        if out is not None:
            return out
    return x + dropout(branch(norm(x), *args))


class MLP(Module):
    """GPT-2's feed-forward layer, down(gelu(up(x))): (..., n_embd) → (..., n_embd).

    hidden   width in between; None: 4 · n_embd
    gelu     "tanh" | "exact"
    """

    def __init__(self, n_embd: int, hidden: int | None = None, *, bias: bool = True, gelu: str = "tanh") -> None:
        super().__init__()
        hidden = 4 * n_embd if hidden is None else hidden
        self.up = Linear(n_embd, hidden, bias)
        self.activation = GELU("tanh" if gelu == "tanh" else "none")
        self.down = Linear(hidden, n_embd, bias)

    def forward(self, x: Any) -> Any:
        if not self._is_whole():
            return self.down(self.activation(self.up(x)))
        up, down = self.up, self.down
        return F.mlp(x, up.weight, down.weight, up.bias, down.bias, self.activation.approximate)

    def residual(self, x: Any, norm: LayerNorm) -> Any:
        """x + self(norm(x)) as one operator, or None where parts have been replaced: see `residual` above."""
        if type(self) is not MLP or not self._is_whole():
            return None
        up, down, gelu = self.up, self.down, self.activation.approximate
        return F.residual_mlp(
            x, norm.weight, norm.bias, up.weight, down.weight, up.bias, down.bias, gelu, norm.eps
        )  # fmt: skip

    def _is_whole(self) -> bool:
        return unchanged(Linear, self.up, self.down) and unchanged(GELU, self.activation)


class SwiGLU(Module):
    """Llama's feed-forward layer, down(silu(gate(x)) · up(x)): (..., n_embd) → (..., n_embd). Shazeer 2020."""

    def __init__(self, n_embd: int, hidden: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate = Linear(n_embd, hidden, bias)
        self.up = Linear(n_embd, hidden, bias)
        self.down = Linear(hidden, n_embd, bias)

    def forward(self, x: Any) -> Any:
        return self.down(F.swiglu(self.gate(x), self.up(x)))
