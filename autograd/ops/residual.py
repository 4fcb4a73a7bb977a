# mypy: disable-error-code=misc
"""The branches of a GPT-2 block as one operator each, from the norm to the stream that they are added to:

    out = x + f(layer_norm(x))

Only products read what the norm makes. So where they round to bfloat16 (`matmul_precision`) it is kept in bfloat16, and
so is its gradient. The last product of f adds its result to x, and the backward pass of the norm adds its own to dout,
the gradient on the way that leads past the branch: two passes over memory less.
"""

from __future__ import annotations

import math

import numpy as np

from ..kernels import mlp as mlp_kernels
from ..kernels import multi_head as attention_kernels
from ..kernels import norm as norm_kernels
from ..kernels.bfloat16 import narrow_products
from ..op import Sample, fused
from .attention import check_heads, multi_head_attention
from .feedforward import check_mlp, mlp
from .normalization import check_norm, layer_norm

__all__ = ["residual_attention", "residual_mlp"]


def _check_sum(name, x, weight):
    """Raise ValueError where a branch that ends with this weight cannot be added to x."""
    if len(weight) != x.shape[-1]:
        raise ValueError(f"{name}: expected a last weight of {x.shape[-1]} rows, to add to x of {x.shape}, "
                         f"got {weight.shape}")  # fmt: skip


def _norm_backward(dn, dout, x, norm_weight, mean, rstd, needs):
    """(dx, dnorm_weight, dnorm_bias), from the gradients of the norm's result and of the branch's."""
    if dn is None:
        return None, None, None
    return norm_kernels.layer_norm_backward(dn, x, norm_weight, mean, rstd, with_bias=needs[2], onto=dout)


@fused
class residual_mlp:
    """out = x + mlp(n), with n = layer_norm(x)

    x (..., C), norm_weight and norm_bias (C,) or None, and as `mlp` has them, up (H, C), down (C, H), up_bias (H,) or
    None, down_bias (C,) or None → (..., C)

    dn, dup, ddown, …: the derivative of `mlp`, from dout
    dx, dnorm_weight, dnorm_bias: the derivative of `layer_norm`, from dn; and to dx, dout is added
    """

    waits = True
    extras = ("n", "mean", "rstd", "slope", "h")

    def forward(
        x, norm_weight, norm_bias, up, down, up_bias=None, down_bias=None, *, approximate="none", eps=1e-5
    ):  # fmt: skip
        check_mlp("residual_mlp", x, up, down, approximate)
        check_norm("residual_mlp", x, norm_weight, norm_bias)
        _check_sum("residual_mlp", x, down)
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        n, mean, rstd = norm_kernels.layer_norm(rows, norm_weight, norm_bias, eps, narrow=narrow_products(rows, up))
        out, slope, h = mlp_kernels.mlp(n, up, down, up_bias, down_bias, approximate == "tanh", onto=rows)
        return out.reshape(x.shape), n, mean, rstd, slope, h

    def vjp(dout, x, norm_weight, up, down, n, mean, rstd, slope, h, needs):
        wants = any(needs[:3]), *needs[3:]
        found = mlp_kernels.mlp_backward(dout.reshape(n.shape), n, up, down, slope, h, wants)
        return *_norm_backward(found.x, dout, x, norm_weight, mean, rstd, needs), *found[1:]

    def plain(x, norm_weight, norm_bias, up, down, up_bias=None, down_bias=None, *, approximate="none", eps=1e-5):
        n = layer_norm.plain(x, norm_weight, norm_bias, eps=eps)
        return x + mlp.plain(n, up, down, up_bias, down_bias, approximate=approximate)

    def samples(rng):
        normal = lambda *shape: rng.normal(size=shape)
        weights = normal(5, 4), normal(4, 5)
        for shape in ((2, 4), (4,), (2, 3, 4), (0, 4)):
            biases = normal(5), normal(4)
            yield Sample((normal(*shape), normal(4), normal(4), *weights, *biases), {"approximate": "tanh"})
            yield Sample((normal(*shape), normal(4), None, *weights), {"eps": 1e-3})
        yield Sample((normal(2, 4), None, normal(4), *weights, None, normal(4)))
        yield Sample((normal(2, 4), None, None, *weights, normal(5), None))
        x, norm = normal(2, 4), (normal(4), normal(4))
        for wrong in ((x[:, 1:], *norm, *weights), (x, *norm, weights[0], normal(4, 6))):
            yield Sample(wrong, error=ValueError, match="residual_mlp: expected x")
        for wrong in ((normal(3), normal(4)), (normal(4), normal(3))):
            yield Sample((x, *wrong, *weights), error=ValueError, match="expected a weight of shape")
        for rows in (3, 5):
            yield Sample((x, *norm, weights[0], normal(rows, 5)), error=ValueError, match="last weight of 4 rows")
        yield Sample((x, *norm, *weights), {"approximate": "sigmoid"}, error=ValueError, match="approximate")

    def space(draw):
        rows, C, H = draw.shape(max_dims=2), draw.size(3, 5), draw.size()
        norm = [draw.array((C,)) if draw.boolean() else None for _ in range(2)]
        biases = [draw.array((size,)) if draw.boolean() else None for size in (H, C)]
        inputs = draw.array((*rows, C)), *norm, draw.array((H, C)), draw.array((C, H)), *biases
        return Sample(inputs, {"approximate": draw.choice("none", "tanh"), "eps": draw.choice(1e-5, 1e-3, 0.1)})


@fused
class residual_attention:
    """out = x + multi_head_attention(n), with n = layer_norm(x)

    x (B, T, C), norm_weight and norm_bias (C,) or None, and as `multi_head_attention` has them, qkv_weight
    ((H + 2K)·D, C), out_weight (C, H·D), qkv_bias and out_bias or None → (B, T, C)

    dn, dqkv_weight, dout_weight, …: the derivative of `multi_head_attention`, from dout
    dx, dnorm_weight, dnorm_bias: the derivative of `layer_norm`, from dn; and to dx, dout is added
    """

    waits = True
    extras = ("n", "mean", "rstd", "qkv", "y", "lse")

    def forward(
        x, norm_weight, norm_bias, qkv_weight, out_weight, qkv_bias=None, out_bias=None, *, n_head, n_kv_head,
        dropout_p=0.0, seed=0, eps=1e-5,
    ):  # fmt: skip
        check_heads("residual_attention", x, qkv_weight, out_weight, n_head, n_kv_head)
        check_norm("residual_attention", x, norm_weight, norm_bias)
        _check_sum("residual_attention", x, out_weight)
        narrow = attention_kernels.narrow_heads(x, qkv_weight, out_weight, n_kv_head)
        n, mean, rstd = norm_kernels.layer_norm(x, norm_weight, norm_bias, eps, narrow=narrow)
        out, qkv, y, lse = attention_kernels.multi_head(
            n, qkv_weight, out_weight, qkv_bias, out_bias, n_head, n_kv_head, dropout_p, seed, onto=x
        )
        return out, n, mean, rstd, qkv, y, lse

    def vjp(
        dout, x, norm_weight, qkv_weight, out_weight, n, mean, rstd, qkv, y, lse, n_head, n_kv_head, dropout_p, seed,
        needs,
    ):  # fmt: skip
        dout, wants = np.ascontiguousarray(dout), (any(needs[:3]), *needs[3:])
        found = attention_kernels.multi_head_backward(
            dout, n, qkv_weight, out_weight, qkv, y, lse, n_head, n_kv_head, dropout_p, seed, wants
        )
        return *_norm_backward(found.x, dout, x, norm_weight, mean, rstd, needs), *found[1:]

    def plain(
        x, norm_weight, norm_bias, qkv_weight, out_weight, qkv_bias=None, out_bias=None, *, n_head, n_kv_head,
        dropout_p=0.0, seed=0, eps=1e-5,
    ):  # fmt: skip
        n, params = layer_norm.plain(x, norm_weight, norm_bias, eps=eps), {"dropout_p": dropout_p, "seed": seed}
        return x + multi_head_attention.plain(
            n, qkv_weight, out_weight, qkv_bias, out_bias, n_head=n_head, n_kv_head=n_kv_head, **params
        )

    def samples(rng):
        normal = lambda *shape: rng.normal(size=shape)
        for B, T, H, K, D in ((2, 4, 2, 2, 3), (1, 5, 4, 2, 2), (2, 1, 2, 1, 4)):
            width, params = (H + 2 * K) * D, {"n_head": H, "n_kv_head": K}
            norm, weights = (normal(4), normal(4)), (normal(width, 4), normal(4, H * D))
            yield Sample((normal(B, T, 4), *norm, *weights, normal(width), normal(4)), params)
            yield Sample((normal(B, T, 4), norm[0], None, *weights), {**params, "eps": 1e-3})
        yield Sample((normal(B, T, 4), None, None, *weights, None, normal(4)), {**params, "dropout_p": 0.4, "seed": 3})
        yield Sample((normal(2, 7, 4), None, norm[1], *weights, normal(width), None), {**params, "dropout_p": 0.4})
        x, (qkv, out) = normal(2, 4, 4), weights
        for wrong in ((x[0], *norm, *weights), (x, *norm, qkv[1:], out), (x, *norm, qkv, out[:, 1:])):
            yield Sample(wrong, params, error=ValueError, match="residual_attention: expected x")
        for wrong in ((normal(3), normal(4)), (normal(4), normal(3))):
            yield Sample((x, *wrong, *weights), params, error=ValueError, match="expected a weight of shape")
        yield Sample((x, *norm, qkv, out[1:]), params, error=ValueError, match="last weight of 4 rows")

    def space(draw):
        B, T, K, D, C = draw.size(1, 2), draw.size(1, 4), draw.size(1, 2), draw.size(1, 4), draw.size(3, 5)
        H = K * draw.size(1, 2)
        width = (H + 2 * K) * D
        norm = [draw.array((C,)) if draw.boolean() else None for _ in range(2)]
        biases = [draw.array((size,)) if draw.boolean() else None for size in (width, C)]
        params = {"n_head": H, "n_kv_head": K, "dropout_p": draw.choice(0.0, 0.4), "seed": draw.size(0, 100)}
        weights = draw.array((width, C)), draw.array((C, H * D))
        inputs = draw.array((B, T, C)), *norm, *weights, *biases
        return Sample(inputs, params | {"eps": draw.choice(1e-5, 1e-3, 0.1)})
