"""Every operator, in files by kind. Each is one block: formula, forward, derivative, samples.

    arithmetic     + − · / power, maximum, clip           normalization  softmax, layer and RMS norm
    elementwise    exp, log, tanh, …                      activation     GELU, SiLU, SwiGLU
    selection      where, indexing, scatter               embedding      tables, rotary positions
    shape          reshape, permute, concatenate, …       attention      streaming attention
    reduction      sum, max, logsumexp, cumsum, …         loss           cross-entropy
    linalg         matmul, linear                         randomness     dropout
    feedforward    GPT-2's MLP                            residual       the branches of a block, norm to sum
"""

from .activation import gelu, silu, swiglu
from .arithmetic import abs_, add, clip, div, floor_divide, maximum, minimum, mul, neg, pow_, remainder, sub
from .attention import attention, causal_self_attention, multi_head_attention
from .elementwise import cos, erf, exp, expm1, log, log1p, relu, rsqrt, sigmoid, sin, sqrt, tanh
from .embedding import embedding, rotary_embedding
from .feedforward import mlp
from .linalg import linear, matmul
from .loss import cross_entropy, linear_cross_entropy
from .normalization import layer_norm, log_softmax, rms_norm, softmax
from .randomness import dropout
from .reduction import amax, amin, cumsum, logsumexp, mean, norm, prod, std, sum_, var
from .residual import residual_attention, residual_mlp
from .selection import gather, getitem, masked_fill, scatter, take, where
from .shape import (
    alias,
    cast,
    chunk,
    clone,
    concatenate,
    expand,
    flip,
    permute,
    reshape,
    split,
    squeeze,
    stack,
    swapaxes,
    unsqueeze,
)

__all__ = [
    "abs_",
    "add",
    "alias",
    "amax",
    "amin",
    "attention",
    "cast",
    "causal_self_attention",
    "chunk",
    "clip",
    "clone",
    "concatenate",
    "cos",
    "cross_entropy",
    "cumsum",
    "div",
    "dropout",
    "embedding",
    "erf",
    "exp",
    "expand",
    "expm1",
    "flip",
    "floor_divide",
    "gather",
    "gelu",
    "getitem",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "masked_fill",
    "matmul",
    "maximum",
    "mean",
    "minimum",
    "mlp",
    "mul",
    "multi_head_attention",
    "neg",
    "norm",
    "permute",
    "pow_",
    "prod",
    "relu",
    "remainder",
    "reshape",
    "residual_attention",
    "residual_mlp",
    "rms_norm",
    "rotary_embedding",
    "rsqrt",
    "scatter",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "split",
    "sqrt",
    "squeeze",
    "stack",
    "std",
    "sub",
    "sum_",
    "swapaxes",
    "swiglu",
    "take",
    "tanh",
    "unsqueeze",
    "var",
    "where",
]
