"""How weights begin: fill a parameter in place, and return it.

    nn.init.normal_(layer.weight, std=0.02)

Random numbers come from the project's generator (`autograd.manual_seed`), so a seed fixes a model. The rules of
Xavier (Glorot & Bengio 2010) and Kaiming (He et al. 2015) choose the spread so that activations (or gradients) keep
their variance from layer to layer; they need a matrix (out, in).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from autograd import Tensor, generator

__all__ = [
    "constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "skipped", "trunc_normal_", "uniform_",
    "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip


_drawing = True


@contextlib.contextmanager
def skipped() -> Iterator[None]:
    """Draw no random weights within this context: for a model whose weights are filled in afterwards.

    They stay as they are, 0 in new layers, until then. Constants (norms at 1, biases at 0) are still set.
    """
    global _drawing
    before, _drawing = _drawing, False
    try:
        yield
    finally:
        _drawing = before


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Every element becomes `value`."""
    tensor.mutate()[...] = value
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Every element becomes 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element becomes 1."""
    return constant_(tensor, 1.0)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Independent normal numbers."""
    if _drawing:
        array = tensor.mutate()
        generator().standard_normal(dtype=array.dtype, out=array)
        array *= std
        array += mean
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Independent numbers, uniform in [a, b)."""
    if _drawing:
        array = tensor.mutate()
        generator().random(dtype=array.dtype, out=array)
        array *= b - a
        array += a
    return tensor


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Normal numbers, drawn again until they lie in [a, b]."""
    if _drawing:
        array = tensor.mutate()
        flat, outside = np.empty(array.size), np.arange(array.size)
        while outside.size:
            flat[outside] = generator().normal(mean, std, outside.size)
            outside = outside[(flat[outside] < a) | (flat[outside] > b)]
        array[...] = flat.reshape(array.shape)
    return tensor


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform in ±gain · √(6 / (in + out)); weight (out, in)."""
    bound = gain * math.sqrt(6 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with std gain · √(2 / (in + out)); weight (out, in)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(_fans(tensor))))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Uniform in ±gain · √(3 / fan); weight (out, in). `a` is the negative slope of leaky_relu."""
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Normal with std gain / √fan; weight (out, in). `a` is the negative slope of leaky_relu."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def _fans(tensor: Tensor) -> tuple[int, int]:
    """(inputs, outputs) of a weight (out, in)."""
    if len(tensor.shape) != 2:
        raise ValueError(f"this rule is for matrices (out, in), got shape {tensor.shape}; use normal_ or uniform_")
    return tensor.shape[1], tensor.shape[0]


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    leaky = math.sqrt(2 / (1 + a * a))
    gains = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu": leaky}
    if nonlinearity not in gains:
        raise ValueError(f"nonlinearity must be one of {', '.join(gains)}, got {nonlinearity!r}")
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'mode must be "fan_in" or "fan_out", got {mode!r}')
    return gains[nonlinearity] / math.sqrt(_fans(tensor)[mode == "fan_out"])
