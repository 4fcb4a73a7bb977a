# mypy: disable-error-code=misc
"""Arithmetic on two inputs that broadcast, and its relatives with one.

The derivatives are those of any calculus book. Where an input was stretched by broadcasting, the engine sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import Variable
from ..kernels import sums as kernels
from ..op import Sample, primitive, promote
from .elementwise import log
from .selection import where

__all__ = ["abs_", "add", "clip", "div", "floor_divide", "maximum", "minimum", "mul", "neg", "pow_", "remainder", "sub"]


def _pairs(rng, low=-2.0, high=2.0):
    """Pairs of inputs: same shape, stretched along one axis or several, 0-d, and empty."""
    shapes = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 2)), ((4, 1, 2), (3, 1)), ((0, 3), (3,))]
    for shape_a, shape_b in shapes:
        yield rng.uniform(low, high, shape_a), rng.uniform(low, high, shape_b)


def _pair_samples(rng, low=-2.0, high=2.0):
    yield from (Sample(pair) for pair in _pairs(rng, low, high))
    yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(4,))), error=ValueError, match="broadcast")


@primitive
class add:
    """out = a + b

    da = dout
    db = dout
    """

    broadcasts = True

    def forward(a, b):
        return kernels.add(a, b)

    def da(dout):
        return dout

    def db(dout):
        return dout

    samples = _pair_samples


@primitive
class sub:
    """out = a − b

    da = dout
    db = −dout
    """

    broadcasts = True

    def forward(a, b):
        return np.subtract(a, b)

    def da(dout):
        return dout

    def db(dout):
        return -dout

    samples = _pair_samples


@primitive
class mul:
    """out = a · b

    da = dout · b
    db = dout · a
    """

    broadcasts = True

    def forward(a, b):
        return a * b

    def da(dout, b):
        return dout * b

    def db(dout, a):
        return dout * a

    samples = _pair_samples


@primitive
class div:
    """out = a / b

    da = dout / b
    db = −dout · a / b² = −dout · out / b
    """

    broadcasts = True
    floats = True

    def forward(a, b):
        return a / b

    def da(dout, b):
        return dout / b

    def db(dout, out, b):
        return -dout * out / b

    def samples(rng):
        yield from _pair_samples(rng, 0.5, 2.0)
        yield Sample((rng.normal(size=(3,)), -rng.uniform(0.5, 2.0, (3,))))

    def space(draw):
        shape_a, shape_b = draw.shapes(2)
        return Sample((draw.array(shape_a), draw.array(shape_b, 0.5, 2) * draw.choice(1, -1)))


@primitive
class pow_:
    """out = aᵇ

    da = dout · b · aᵇ⁻¹, and 0 where b = 0 (the function is constant there, even at a = 0)
    db = dout · aᵇ · ln a, and 0 at a = 0, the limit from the right for b > 0
    """

    broadcasts = True

    def forward(a, b):
        return a**b

    def da(dout, a, b):
        if isinstance(b, int | float):
            return dout * (b * a ** (b - 1)) if b else dout * 0
        return where(b == 0, 0, dout * (b * a ** where(b == 0, 1, b - 1)))

    def db(dout, out, a):
        if isinstance(a, int | float):
            return dout * out * (float(np.log(a)) if a else 0.0)
        return dout * out * log(where(a == 0, 1, a))

    def samples(rng):
        yield from _pair_samples(rng, 0.5, 2.0)
        for exponent in (0, 1, 2, 3, 0.5, -1, -0.5):
            yield Sample((rng.uniform(0.5, 2.0, (2, 3)), exponent))
        yield Sample((rng.normal(size=(2, 3)), 2))
        yield Sample((rng.normal(size=(2, 3)), 3.0))

    def space(draw):
        shape_a, shape_b = draw.shapes(2)
        exponent = draw.array(shape_b) if draw.boolean() else draw.choice(0, 1, 2, 3, 0.5, -1, -1.5)
        return Sample((draw.array(shape_a, 0.5, 2), exponent))


@primitive
class neg:
    """out = −x

    dx = −dout
    """

    def forward(x):
        return -x

    def dx(dout):
        return -dout

    def samples(rng):
        yield Sample((rng.normal(size=(2, 3)),))
        yield Sample((rng.normal(size=()),))


@primitive
class abs_:
    """out = |x|

    dx = dout · sign(x), with sign(0) = 0: the middle of the subgradients [−1, 1]
    """

    kinks = "x = 0"
    analytic = False

    def forward(x):
        return np.abs(x)

    def dx(dout, x):
        return where(x > 0, dout, where(x < 0, -dout, dout * 0))

    def samples(rng):
        yield Sample((rng.uniform(0.1, 2.0, (2, 3)) * rng.choice([-1.0, 1.0], (2, 3)),))
        yield Sample((np.array([-1.0, 0.0, 1.0]),), subgradient=(np.array([-1.0, 0.0, 1.0]),))


def _apart(rng, shape_a, shape_b):
    """Two inputs without ties: the derivative of a maximum jumps where both are equal."""
    b = rng.normal(size=shape_b)
    return np.round(rng.normal(size=shape_a), 1) + 0.05, np.round(b, 1)


@primitive
class maximum:
    """out = max(a, b)

    da = dout where a > b, dout/2 where a = b, else 0 (equal inputs share the gradient)
    db = dout where b > a, dout/2 where a = b, else 0
    """

    broadcasts = True
    kinks = "a = b"

    def forward(a, b):
        return np.maximum(a, b)

    def da(dout, a, b):
        return where(a > b, dout, where(a == b, dout * 0.5, dout * 0))

    def db(dout, a, b):
        return where(b > a, dout, where(a == b, dout * 0.5, dout * 0))

    def samples(rng):
        yield Sample(_apart(rng, (2, 3), (2, 3)))
        yield Sample(_apart(rng, (2, 1), (3,)))
        yield Sample(
            (np.array([0.0, 1.0, 2.0]), np.ones(3)), subgradient=(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0]))
        )


@primitive
class minimum:
    """out = min(a, b)

    da = dout where a < b, dout/2 where a = b, else 0 (equal inputs share the gradient)
    db = dout where b < a, dout/2 where a = b, else 0
    """

    broadcasts = True
    kinks = "a = b"

    def forward(a, b):
        return np.minimum(a, b)

    def da(dout, a, b):
        return where(a < b, dout, where(a == b, dout * 0.5, dout * 0))

    def db(dout, a, b):
        return where(b < a, dout, where(a == b, dout * 0.5, dout * 0))

    def samples(rng):
        yield Sample(_apart(rng, (2, 3), (2, 3)))
        yield Sample(_apart(rng, (2, 1), (3,)))
        yield Sample(
            (np.array([0.0, 1.0, 2.0]), np.ones(3)), subgradient=(np.array([1.0, 0.5, 0.0]), np.array([0.0, 0.5, 1.0]))
        )


@primitive
class clip:
    """out = min(max(x, low), high), with None for no bound

    dx = dout where low ≤ x ≤ high (the edges included, as in PyTorch), else 0
    """

    kinks = "x = low, x = high"

    def forward(x, *, low=None, high=None):
        if low is None and high is None:
            raise ValueError("clip: expected at least one of min and max, got neither")
        low, high = (bound.item() if isinstance(bound, np.generic) else bound for bound in (low, high))
        if x.dtype.kind in "biu" and (isinstance(low, float) or isinstance(high, float)):
            x = x.astype(np.float32)  # as PyTorch does
        return np.clip(x, low, high)

    def dx(dout, x, low, high):
        inside = x == x if low is None else x >= low
        if high is not None:
            inside = inside & (x <= high)
        return where(inside, dout, dout * 0)

    def samples(rng):
        x = np.round(rng.normal(size=(3, 4)), 1) + 0.05
        yield Sample((x,), {"low": -0.5, "high": 0.5})
        yield Sample((x,), {"low": -0.5})
        yield Sample((x,), {"high": 0.5})
        yield Sample((x,), error=ValueError, match="at least one")
        edges = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
        yield Sample((edges,), {"low": 0.0, "high": 1.0}, subgradient=(np.array([0.0, 1.0, 1.0, 1.0, 0.0]),))

    def space(draw):
        low, high = draw.choice((-0.5, 0.5), (-0.5, None), (None, 0.5), (0.3, 0.3))
        return Sample((draw.array(draw.shape()),), {"low": low, "high": high})


# Division with a whole result, which is flat between its jumps.


def floor_divide(a: Any, b: Any) -> Any:
    """⌊a / b⌋, both broadcast; nothing to differentiate."""
    tensors = isinstance(a, Variable) or isinstance(b, Variable)
    arrays = [x.array if isinstance(x, Variable) else x.item() if isinstance(x, np.generic) else x for x in (a, b)]
    out = np.asarray(np.floor_divide(*promote(arrays, floats=False)))
    return Variable.wrap(out) if tensors else out


def remainder(a: Any, b: Any) -> Any:
    """a − b · ⌊a / b⌋, which has the sign of b."""
    whole = floor_divide(a, b)
    with np.errstate(invalid="ignore"):  # 0 · ∞, which is not taken
        return where(whole == 0, a, a - b * whole)
