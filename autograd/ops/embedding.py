# mypy: disable-error-code=misc
"""Where position and identity enter: embedding tables and rotary position embedding."""

from __future__ import annotations

import numpy as np

from ..kernels import embedding as embedding_kernels
from ..kernels import rotary as rotary_kernels
from ..op import Sample, fused
from .selection import getitem
from .shape import chunk, concatenate, unsqueeze

__all__ = ["embedding", "rotary_embedding"]


@fused
class embedding:
    """out = weight[ids], with weight (V, C) and integer ids of any shape → (*ids.shape, C)

    dweight = zeros with each row of dout added at its id
    """

    constant = ("ids",)

    def forward(weight, ids):
        if ids.dtype.kind not in "iu":
            raise TypeError(f"embedding: expected integer ids, got {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= weight.shape[0]):
            bad = ids[(ids < 0) | (ids >= weight.shape[0])].flat[0]
            raise IndexError(f"embedding: expected ids from 0 to {weight.shape[0] - 1}, got {bad}")
        return embedding_kernels.embedding(weight, ids.astype(np.int64, copy=False))

    def vjp(dout, ids, weight_shape):
        yield embedding_kernels.embedding_backward(dout, ids.astype(np.int64, copy=False), weight_shape[0])

    def plain(weight, ids):
        return getitem(weight, index=ids.array if hasattr(ids, "array") else ids)

    def samples(rng):
        for shape in ((3,), (2, 3), (), (0,)):
            yield Sample((rng.normal(size=(5, 4)), rng.integers(0, 5, shape)))
        yield Sample((rng.normal(size=(5, 4)), np.array([1, 1, 1])))
        yield Sample((rng.normal(size=(5, 4)), np.array([1, 5])), error=IndexError, match="from 0 to 4, got 5")
        yield Sample((rng.normal(size=(5, 4)), np.array([2, -1])), error=IndexError, match="from 0 to 4, got -1")
        yield Sample((rng.normal(size=(5, 4)), np.array([0, 2, 6])), error=IndexError, match="from 0 to 4, got 6")

    def space(draw):
        V = draw.size(1, 5)
        return Sample((draw.array((V, draw.size(0, 4))), draw.integers(0, V, draw.shape(max_dims=2))))


@fused
class rotary_embedding:
    """out = x with the pair (xᵢ, xᵢ₊D/2) of each head turned by the angle t·θᵢ of its position t, for x (B, T, H, D)
    and tables cos, sin (T, D/2):

    out₁ = x₁ cos − x₂ sin
    out₂ = x₁ sin + x₂ cos

    dx₁ =  dout₁ cos + dout₂ sin
    dx₂ = −dout₁ sin + dout₂ cos

    A rotation is undone by the rotation back, so the derivative is the same kernel with −sin. With `heads`, only the
    first that many heads are turned: queries and keys of a fused projection, not its values.

    Source: Su et al., "RoFormer", 2021; halves instead of neighbouring pairs as in Llama's published weights.
    """

    constant = ("cos", "sin")

    def forward(x, cos, sin, *, heads=None):
        if x.ndim != 4 or x.shape[3] % 2 or cos.shape != (x.shape[1], x.shape[3] // 2) or sin.shape != cos.shape:
            raise ValueError(
                f"rotary_embedding: expected x (B, T, H, D) with D even and cos, sin (T, D/2), "
                f"got {x.shape}, {cos.shape} and {sin.shape}"
            )
        return rotary_kernels.rotary(x, cos, sin, heads)

    def vjp(dout, cos, sin, heads):
        yield rotary_kernels.rotary(dout, cos, -sin, heads)

    def plain(x, cos, sin, *, heads=None):
        heads = x.shape[2] if heads is None else heads
        turned, rest = x[:, :, :heads], x[:, :, heads:]
        x1, x2 = chunk(turned, 2, dim=-1)
        cos, sin = unsqueeze(cos, 1), unsqueeze(sin, 1)  # (T, 1, D/2)
        return concatenate(concatenate(x1 * cos - x2 * sin, x1 * sin + x2 * cos, dim=-1), rest, dim=2)

    def samples(rng):
        for shape, heads in (((2, 3, 4, 6), None), ((1, 3, 4, 2), 3), ((2, 1, 1, 4), None), ((2, 3, 4, 6), 0)):
            angles = rng.normal(size=(shape[1], shape[3] // 2))
            yield Sample((rng.normal(size=shape), np.cos(angles), np.sin(angles)), {"heads": heads})
        yield Sample(
            (rng.normal(size=(2, 3, 4, 5)), np.ones((3, 2)), np.ones((3, 2))), error=ValueError, match="D even"
        )

        yield Sample(
            (rng.normal(size=(2, 3, 4, 4)), np.ones((3, 2)), np.ones((3, 1))), error=ValueError, match="cos, sin"
        )
        yield Sample(
            (rng.normal(size=(2, 3, 4, 4)), np.ones((3, 1)), np.ones((3, 1))), error=ValueError, match="cos, sin"
        )

    def space(draw):
        B, T, H, D = draw.size(1, 2), draw.size(1, 3), draw.size(1, 3), draw.choice(2, 4, 6)
        angles = draw.array((T, D // 2), -3, 3)
        return Sample(
            (draw.array((B, T, H, D)), np.cos(angles), np.sin(angles)), {"heads": draw.choice(None, draw.size(0, H))}
        )
