# mypy: disable-error-code=misc
"""Softmax and the norms: each row is brought to a common scale."""

from __future__ import annotations

import numpy as np

from ..kernels import norm as norm_kernels
from ..kernels import softmax as softmax_kernels
from ..op import Sample, fused
from ._axes import normalize_axis
from .elementwise import exp, rsqrt
from .reduction import logsumexp, mean

__all__ = ["layer_norm", "log_softmax", "rms_norm", "softmax"]


def _along(kernel, dim, *arrays):
    """Run a kernel that works along the last axis along `dim`."""
    axis = normalize_axis(dim, arrays[0].ndim)
    if arrays[0].ndim == 0:  # a row of one
        return kernel(*(x.reshape(1) for x in arrays)).reshape(())
    if axis == arrays[0].ndim - 1:
        return kernel(*arrays)
    return np.moveaxis(kernel(*(np.moveaxis(x, axis, -1) for x in arrays)), -1, axis)


def _softmax_samples(rng):
    yield Sample((rng.normal(size=(2, 5)),), {"dim": -1})
    yield Sample((rng.normal(size=(2, 3, 4)),), {"dim": 1})
    yield Sample((rng.normal(size=(3, 1)),), {"dim": -1})
    yield Sample((rng.normal(size=(0, 3)),), {"dim": -1})
    yield Sample((rng.normal(size=()),), {"dim": -1})
    yield Sample((rng.normal(size=(2, 37)) * 30,), {"dim": -1})
    yield Sample((rng.normal(size=(2, 3)),), {"dim": 2}, error=IndexError, match="dim between")


def _softmax_space(draw):
    shape = draw.shape(min_side=1)
    return Sample((draw.array(shape) * draw.choice(1, 20),), {"dim": draw.axis(len(shape))})


@fused
class softmax:
    """out = eˣ / Σ eˣ along `dim`, computed with the maximum subtracted, so that nothing overflows

    ∂outᵢ/∂xⱼ = outᵢ (δᵢⱼ − outⱼ), therefore
    dx = out · (dout − Σ dout · out)

    A row that is −∞ throughout has no distribution: its result is NaN, as in PyTorch.
    """

    def forward(x, *, dim):
        return _along(softmax_kernels.softmax, dim, x)

    def vjp(dout, out, dim):
        yield _along(softmax_kernels.softmax_backward, dim, dout, out)

    def plain(x, *, dim):
        return exp(x - logsumexp(x, dim=dim, keepdim=True))

    samples = _softmax_samples
    space = _softmax_space


@fused
class log_softmax:
    """out = x − ln Σ eˣ along `dim`

    dx = dout − softmax(x) · Σ dout, and softmax(x) = e^out
    """

    def forward(x, *, dim):
        return _along(softmax_kernels.log_softmax, dim, x)

    def vjp(dout, out, dim):
        yield _along(softmax_kernels.log_softmax_backward, dim, dout, out)

    def plain(x, *, dim):
        return x - logsumexp(x, dim=dim, keepdim=True)

    samples = _softmax_samples
    space = _softmax_space


def _norm_samples(rng, inputs):
    for shape in ((2, 5), (2, 3, 8), (7,), (0, 4), (3, 33)):
        x = rng.normal(size=shape)
        parameters = [rng.normal(size=shape[-1:]) for _ in range(inputs)]
        yield Sample((x, *parameters))
        yield Sample((x,))
        yield Sample((x, parameters[0]), {"eps": 1e-3})
    yield Sample((rng.normal(size=(2, 5)), rng.normal(size=(4,))), error=ValueError, match="weight of shape")


def _norm_space(draw, inputs):
    shape = (*draw.shape(max_dims=2), draw.size(3, 5))  # the norm of 2 numbers is all but constant: no digits left
    parameters = [draw.array(shape[-1:]) if draw.boolean() else None for _ in range(draw.size(0, inputs))]
    return Sample((draw.array(shape), *parameters), {"eps": draw.choice(1e-5, 1e-3, 0.1)})


def check_norm(name, x, *parameters):
    """Raise ValueError where one of the parameters does not have the size of a row of x."""
    for parameter in parameters:
        if parameter is not None and (x.ndim == 0 or parameter.shape != x.shape[-1:]):
            raise ValueError(f"{name}: expected a weight of shape {x.shape[-1:]} for x of shape {x.shape}, "
                             f"got {parameter.shape}")


@fused
class layer_norm:
    """out = x̂ · weight + bias, with x̂ = (x − μ) · rstd, μ and σ² the mean and variance of each row (over C, the last
    axis), rstd = 1/√(σ² + eps)

    With g = dout · weight, and means over the row:
    dx      = rstd · (g − mean(g) − x̂ · mean(g · x̂))     (μ and σ depend on every element of the row)
    dweight = Σ dout · x̂
    dbias   = Σ dout                                      (sums over rows)

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """

    waits = True
    extras = ("mean", "rstd")

    def forward(x, weight=None, bias=None, *, eps=1e-5):
        check_norm("layer_norm", x, weight, bias)
        return norm_kernels.layer_norm(x, weight, bias, eps)

    def vjp(dout, x, weight, mean, rstd, needs):
        return norm_kernels.layer_norm_backward(dout, x, weight, mean, rstd, with_bias=needs[2:] == (True,))

    def plain(x, weight=None, bias=None, *, eps=1e-5):
        centred = x - mean(x, -1, keepdim=True)
        out = centred * rsqrt(mean(centred * centred, -1, keepdim=True) + eps)
        if weight is not None:
            out = out * weight
        return out if bias is None else out + bias

    def samples(rng):
        yield from _norm_samples(rng, 2)

    def space(draw):
        return _norm_space(draw, 2)


@fused
class rms_norm:
    """out = x · rstd · weight, with rstd = 1/√(mean(x²) + eps) of each row (over C, the last axis)

    With g = dout · weight and x̂ = x · rstd:
    dx      = rstd · (g − x̂ · mean(g · x̂))
    dweight = Σ dout · x̂      (over rows)

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """

    extras = ("rstd",)

    def forward(x, weight=None, *, eps=1e-5):
        check_norm("rms_norm", x, weight)
        return norm_kernels.rms_norm(x, weight, eps)

    def vjp(dout, x, weight, rstd):
        return norm_kernels.rms_norm_backward(dout, x, weight, rstd)

    def plain(x, weight=None, *, eps=1e-5):
        out = x * rsqrt(mean(x * x, -1, keepdim=True) + eps)
        return out if weight is None else out * weight

    def samples(rng):
        yield from _norm_samples(rng, 1)

    def space(draw):
        return _norm_space(draw, 1)
