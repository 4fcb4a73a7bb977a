# mypy: disable-error-code=misc
"""Functions of one number, applied to each element."""

from __future__ import annotations

import math

import numpy as np

from ..kernels import special
from ..op import Sample, primitive
from .selection import where

__all__ = ["cos", "erf", "exp", "expm1", "log", "log1p", "relu", "rsqrt", "sigmoid", "sin", "sqrt", "tanh"]


def _samples(low, high):
    def samples(rng):
        for shape in ((2, 3), (4,), (), (0, 2)):
            yield Sample((rng.uniform(low, high, shape),))

    return samples


@primitive
class exp:
    """out = eˣ, element by element

    dx = dout · out
    """

    floats = True

    def forward(x):
        return np.exp(x)

    def dx(dout, out):
        return dout * out

    domain = (-3, 3)
    samples = _samples(*domain)


@primitive
class expm1:
    """out = eˣ − 1, element by element, exact for small x

    dx = dout · (out + 1)
    """

    floats = True

    def forward(x):
        return np.expm1(x)

    def dx(dout, out):
        return dout * (out + 1)

    domain = (-3, 3)
    samples = _samples(*domain)


@primitive
class log:
    """out = ln x, element by element

    dx = dout / x
    """

    floats = True

    def forward(x):
        return np.log(x)

    def dx(dout, x):
        return dout / x

    domain = (0.2, 3)
    samples = _samples(*domain)


@primitive
class log1p:
    """out = ln(1 + x), element by element, exact for small x

    dx = dout / (1 + x)
    """

    floats = True

    def forward(x):
        return np.log1p(x)

    def dx(dout, x):
        return dout / (1 + x)

    domain = (-0.7, 3)
    samples = _samples(*domain)


@primitive
class sqrt:
    """out = √x, element by element

    dx = dout / (2√x)
    """

    floats = True

    def forward(x):
        return np.sqrt(x)

    def dx(dout, out):
        return dout / (2 * out)

    domain = (0.2, 3)
    samples = _samples(*domain)


@primitive
class rsqrt:
    """out = 1/√x, element by element

    dx = −½ · dout · x^(−3/2) = −½ · dout · out³
    """

    floats = True

    def forward(x):
        return 1 / np.sqrt(x)

    def dx(dout, out):
        return dout * (out * out * out) * -0.5

    domain = (0.2, 3)
    samples = _samples(*domain)


@primitive
class sin:
    """out = sin x, element by element

    dx = dout · cos x
    """

    floats = True

    def forward(x):
        return np.sin(x)

    def dx(dout, x):
        return dout * cos(x)

    domain = (-3, 3)
    samples = _samples(*domain)


@primitive
class cos:
    """out = cos x, element by element

    dx = −dout · sin x
    """

    floats = True

    def forward(x):
        return np.cos(x)

    def dx(dout, x):
        return -dout * sin(x)

    domain = (-3, 3)
    samples = _samples(*domain)


@primitive
class tanh:
    """out = tanh x, element by element

    dx = dout · (1 − out²)
    """

    floats = True

    def forward(x):
        return np.tanh(x)

    def dx(dout, out):
        return dout * (1 - out * out)

    domain = (-3, 3)
    samples = _samples(*domain)


@primitive
class sigmoid:
    """out = 1 / (1 + e⁻ˣ), element by element

    dx = dout · out · (1 − out)

    Computed from e^(−|x|), which never overflows: 1/(1+e) for x ≥ 0 and e/(1+e) for x < 0.
    """

    floats = True

    def forward(x):
        e = np.exp(np.where(x >= 0, -x, x))
        return np.where(x >= 0, 1, e) / (1 + e)

    def dx(dout, out):
        return dout * (out * (1 - out))

    domain = (-3, 3)
    samples = _samples(*domain)


@primitive
class erf:
    """out = 2/√π · ∫₀ˣ e^(−t²) dt, element by element

    dx = dout · 2/√π · e^(−x²)
    """

    floats = True

    def forward(x):
        return special.erf(x)

    def dx(dout, x):
        return dout * (exp(-x * x) * (2 / math.sqrt(math.pi)))

    domain = (-2, 2)
    samples = _samples(*domain)


@primitive
class relu:
    """out = max(x, 0), element by element

    dx = dout where x > 0, else 0 (at the kink 0, as in PyTorch)
    """

    kinks = "x = 0"

    def forward(x):
        return np.maximum(x, 0)

    def dx(dout, out):
        return where(out > 0, dout, 0)

    def samples(rng):
        yield Sample((rng.uniform(0.1, 2.0, (2, 3)) * rng.choice([-1.0, 1.0], (2, 3)),))
        yield Sample((np.array([-1.0, 0.0, 1.0]),), subgradient=(np.array([0.0, 0.0, 1.0]),))
