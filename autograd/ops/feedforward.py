# mypy: disable-error-code=misc
"""The feed-forward layer of GPT-2: two matrix products and what stands between them."""

from __future__ import annotations

import math

from ..kernels import mlp as kernels
from ..op import Sample, fused
from .activation import gelu
from .linalg import linear

__all__ = ["mlp"]


def check_mlp(name, x, up, down, approximate):
    """Raise ValueError where `mlp`, or what is called `name`, cannot work on these."""
    H, C = up.shape
    if x.ndim == 0 or x.shape[-1] != C or down.shape[1] != H:
        raise ValueError(
            f"{name}: expected x (..., C), up (H, C) and down (C_out, H), got {x.shape}, {up.shape} and {down.shape}"
        )
    if approximate not in ("none", "tanh"):
        raise ValueError(f"{name}: expected approximate='none' or 'tanh', got {approximate!r}")


@fused
class mlp:
    """out = h W_downᵀ + b_down, with h = gelu(u), u = x W_upᵀ + b_up

    x (..., C), up = W_up (H, C), down = W_down (C′, H), up_bias (H,) or None, down_bias (C′,) or None → (..., C′)

    ddown      = doutᵀ h           ddown_bias = Σ dout
    du         = (dout W_down) ∘ gelu′(u)
    dup        = duᵀ x             dup_bias = Σ du
    dx         = du W_up

    gelu′(u) is made with gelu(u), and kept: `slope`. `approximate` is gelu's. Source: Radford et al., "Language Models
    are Unsupervised Multitask Learners", 2019.
    """

    waits = True
    extras = ("slope", "h")

    def forward(x, up, down, up_bias=None, down_bias=None, *, approximate="none"):
        check_mlp("mlp", x, up, down, approximate)
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        out, slope, h = kernels.mlp(rows, up, down, up_bias, down_bias, approximate == "tanh")
        return out.reshape(*x.shape[:-1], len(down)), slope, h

    def vjp(dout, x, up, down, slope, h, needs):
        drows, rows = dout.reshape(len(h), len(down)), x.reshape(len(h), up.shape[1])
        found = kernels.mlp_backward(drows, rows, up, down, slope, h, needs)
        return (None if found.x is None else found.x.reshape(x.shape), *found[1:])

    def plain(x, up, down, up_bias=None, down_bias=None, *, approximate="none"):
        u = linear.plain(x, up, up_bias)
        return linear.plain(gelu.plain(u, approximate=approximate), down, down_bias)

    def samples(rng):
        normal = lambda *shape: rng.normal(size=shape)
        for shape in ((2, 3), (3,), (2, 4, 3), (0, 3)):
            biases = normal(5), normal(4)
            yield Sample((normal(*shape), normal(5, 3), normal(4, 5), *biases), {"approximate": "tanh"})
            yield Sample((normal(*shape), normal(5, 3), normal(4, 5)), {"approximate": "none"})
        yield Sample((normal(2, 3), normal(5, 3), normal(4, 5), None, normal(4)))
        yield Sample((normal(2, 3), normal(5, 3), normal(4, 5), normal(5), None), {"approximate": "tanh"})
        yield Sample((normal(2, 0), normal(5, 0), normal(4, 5), normal(5), None))
        yield Sample((normal(2, 3), normal(0, 3), normal(4, 0)))
        for x in (normal(2, 4), normal()):
            yield Sample((x, normal(5, 3), normal(4, 5)), error=ValueError, match="mlp: expected x")
        yield Sample((normal(2, 3), normal(5, 3), normal(4, 6)), error=ValueError, match="mlp")
        weights = normal(2, 3), normal(5, 3), normal(4, 5)
        yield Sample(weights, {"approximate": "sigmoid"}, error=ValueError, match="approximate")

    def space(draw):
        rows, C, H, C_out = draw.shape(max_dims=2), draw.size(), draw.size(), draw.size()
        biases = [draw.array((size,)) if draw.boolean() else None for size in (H, C_out)]
        inputs = draw.array((*rows, C)), draw.array((H, C)), draw.array((C_out, H)), *biases
        return Sample(inputs, {"approximate": draw.choice("none", "tanh")})
