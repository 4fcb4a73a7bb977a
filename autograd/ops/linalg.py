# mypy: disable-error-code=misc
"""Matrix products: where a network's time goes.

For C = A B the derivative needs two more products, each with one operand transposed:

    C = A B        (M, N) = (M, K)(K, N)      cᵢⱼ = Σₖ aᵢₖ bₖⱼ
    dA = dC Bᵀ     (M, K) = (M, N)(N, K)      each aᵢₖ met bₖⱼ in every cᵢⱼ
    dB = Aᵀ dC     (K, N) = (K, M)(M, N)

so a step backward costs twice a step forward. The kernel reads transposed operands in place.
"""

from __future__ import annotations

import math
from typing import Any

from ..kernels import matmul as kernels
from ..kernels.sums import column_sums
from ..op import Sample, fused, primitive
from .shape import reshape, swapaxes

__all__ = ["linear", "matmul", "matmul_2d"]


@primitive
class matmul_2d:
    """out = a b, on the last two axes; the axes before them broadcast

    da = dout bᵀ
    db = aᵀ dout
    """

    broadcasts = True
    fresh = True

    def forward(a, b):
        if a.dtype.kind != "f":
            return a @ b
        return kernels.matmul(a, b)

    def da(dout, b):
        return matmul_2d(dout, swapaxes(b, -1, -2))

    def db(dout, a):
        return matmul_2d(swapaxes(a, -1, -2), dout)

    def samples(rng):
        shapes = [
            ((2, 3), (3, 4)),
            ((5, 2, 3), (5, 3, 4)),
            ((2, 1, 2, 3), (3, 3, 2)),
            ((2, 2, 3), (3, 4)),
            ((1, 1), (1, 1)),
            ((0, 3), (3, 2)),
            ((2, 0), (0, 2)),
            ((2, 3), (2, 3, 2)),
        ]
        for a, b in shapes:
            yield Sample((rng.normal(size=a), rng.normal(size=b)))
        yield Sample((rng.normal(size=(3, 2)).T, rng.normal(size=(4, 3)).T))
        yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(4, 2))), error=ValueError, match="matmul")

    def space(draw):
        batch_a, batch_b = draw.shapes(2, max_dims=2, max_side=3)
        M, K, N = draw.size(), draw.size(), draw.size()
        return Sample((draw.array((*batch_a, M, K)), draw.array((*batch_b, K, N))))


def matmul(a: Any, b: Any) -> Any:
    """The product of vectors and (stacks of) matrices, as torch.matmul and `@`.

    (..., M, K) @ (..., K, N) → (..., M, N). A 1-D operand is a row on the left and a column on the right, and that axis
    is dropped from the result.
    """
    if not a.shape or not b.shape:
        raise ValueError(
            f"matmul: expected operands with axes, got {a.shape} and {b.shape}; use * for numbers"
        )
    row, column = len(a.shape) == 1, len(b.shape) == 1
    if not (row or column):
        return matmul_2d(a, b)
    out = matmul_2d(reshape(a, shape=(1, -1)) if row else a, reshape(b, shape=(-1, 1)) if column else b)
    shape = out.shape[:-2] + (() if row else out.shape[-2:-1]) + (() if column else out.shape[-1:])
    return reshape(out, shape=shape)


@fused
class linear:
    """out = x Wᵀ + b, with x (..., C_in), W (C_out, C_in), b (C_out,) or None → (..., C_out)

    dx = dout W
    dW = doutᵀ x        (summed over all rows of x)
    db = Σ dout
    """

    def forward(x, weight, bias=None):
        if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"linear: expected x (..., {weight.shape[1]}) for a weight of shape {weight.shape} "
                f"(out, in), got {x.shape}"
            )
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return kernels.matmul(rows, weight.T, bias=bias).reshape(*x.shape[:-1], weight.shape[0])

    def vjp(dout, x, weight, needs):
        drows = dout.reshape(math.prod(x.shape[:-1]), weight.shape[0])
        rows = x.reshape(len(drows), weight.shape[1])
        yield kernels.matmul(drows, weight).reshape(x.shape) if needs[0] else None
        yield kernels.matmul(drows.T, rows) if needs[1] else None
        if len(needs) > 2:
            yield column_sums(drows) if needs[2] else None

    def plain(x, weight, bias=None):
        out = matmul(x, swapaxes(weight, 0, 1))
        return out if bias is None else out + bias

    def samples(rng):
        for shape in ((2, 3), (3,), (2, 4, 3), (0, 3)):
            yield Sample((rng.normal(size=shape), rng.normal(size=(5, 3)), rng.normal(size=(5,))))
        yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(5, 3))))
        yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(5, 3)), None))
        yield Sample((rng.normal(size=(2, 0)), rng.normal(size=(5, 0)), rng.normal(size=(5,))))
        yield Sample((rng.normal(size=(2, 3)), rng.normal(size=(0, 3))))
        yield Sample((rng.normal(size=(2, 4)), rng.normal(size=(5, 3))), error=ValueError, match="linear")

    def space(draw):
        rows, C_in, C_out = draw.shape(max_dims=2), draw.size(), draw.size()
        bias = draw.choice((), (None,), (draw.array((C_out,)),))
        return Sample((draw.array((*rows, C_in)), draw.array((C_out, C_in)), *bias))
