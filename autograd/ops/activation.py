# mypy: disable-error-code=misc
"""Activations: functions of each element that stand between two matrix products."""

from __future__ import annotations

import math

from ..kernels import activation as kernels
from ..op import Sample, fused
from .elementwise import erf, sigmoid, tanh

__all__ = ["gelu", "silu", "swiglu"]

_SHAPES = ((2, 3), (4,), (), (0, 3), (3, 17))


@fused
class gelu:
    """out = x · Φ(x), with Φ the normal distribution function ½(1 + erf(x/√2))

    dx = dout · (Φ(x) + x · φ(x)), with φ(x) = e^(−x²/2)/√(2π)

    With `approximate="tanh"`, Φ(x) ≈ ½(1 + tanh u), u = √(2/π)(x + 0.044715 x³), and
    dx = dout · (½(1 + tanh u) + ½ x (1 − tanh² u) u′), u′ = √(2/π)(1 + 3 · 0.044715 x²).

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016. GPT-2 uses the tanh form.
    """

    def forward(x, *, approximate="none"):
        if approximate not in ("none", "tanh"):
            raise ValueError(f"gelu: expected approximate='none' or 'tanh', got {approximate!r}")
        return kernels.gelu(x, approximate == "tanh")

    def vjp(dout, x, approximate):
        yield kernels.gelu_backward(dout, x, approximate == "tanh")

    def plain(x, *, approximate="none"):
        if approximate == "tanh":
            return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
        return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))

    def samples(rng):
        for shape in _SHAPES:
            yield Sample((rng.normal(size=shape) * 2,), {"approximate": "none"})
            yield Sample((rng.normal(size=shape) * 2,), {"approximate": "tanh"})
        yield Sample((rng.normal(size=(2,)),), {"approximate": "sigmoid"}, error=ValueError, match="approximate")

    def space(draw):
        return Sample((draw.array(draw.shape(), -4, 4),), {"approximate": draw.choice("none", "tanh")})


@fused
class silu:
    """out = x · σ(x), with σ(x) = 1/(1 + e⁻ˣ)

    dx = dout · σ(x) (1 + x (1 − σ(x)))

    Source: Elfwing et al., "Sigmoid-weighted linear units", 2017; also called swish.
    """

    def forward(x):
        return kernels.silu(x)

    def vjp(dout, x):
        yield kernels.silu_backward(dout, x)

    def plain(x):
        return x * sigmoid(x)

    def samples(rng):
        for shape in _SHAPES:
            yield Sample((rng.normal(size=shape) * 2,))


@fused
class swiglu:
    """out = silu(gate) · up

    dgate = dout · up · σ(gate) (1 + gate (1 − σ(gate)))
    dup   = dout · silu(gate)

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    def forward(gate, up):
        if gate.shape != up.shape:
            raise ValueError(f"swiglu: expected gate and up of one shape, got {gate.shape} and {up.shape}")
        return kernels.swiglu(gate, up)

    def vjp(dout, gate, up):
        return kernels.swiglu_backward(dout, gate, up)

    def plain(gate, up):
        return gate * sigmoid(gate) * up

    def samples(rng):
        for shape in _SHAPES:
            yield Sample((rng.normal(size=shape) * 2, rng.normal(size=shape)))
        yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(3,))), error=ValueError, match="one shape")
