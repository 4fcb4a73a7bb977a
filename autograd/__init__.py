"""Reverse-mode automatic differentiation on NumPy arrays, with the names of PyTorch.

    from autograd import Tensor

    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    y.backward()
    x.grad                      # tensor([2., 4.])

The rooms, from the ground up: `kernels` (arrays in, arrays out), `storage` and `graph` (the tape), `op` (what an
operator is), `ops` (all of them), `tensor`, and on top `functional` (the calculus) and `gradcheck` (the proof).
"""

import numpy as np

from . import ops
from .creation import (
    arange,
    empty,
    eye,
    from_numpy,
    full,
    full_like,
    generator,
    linspace,
    manual_seed,
    multinomial,
    next_seed,
    ones,
    ones_like,
    rand,
    randint,
    randn,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from .functional import checkpoint, grad, hessian, hvp, jacobian, jvp, vjp
from .functions import *
from .gradcheck import GradcheckError, gradcheck, gradgradcheck
from .graph import AnomalyError, detect_anomaly, enable_grad, no_grad, plain
from .kernels.bfloat16 import matmul_precision
from .kernels.jit import num_threads, set_num_threads
from .op import Op, Sample, fused, primitive, registry
from .ops import (
    cos,
    erf,
    exp,
    expm1,
    log,
    log1p,
    logsumexp,
    masked_fill,
    matmul,
    maximum,
    minimum,
    relu,
    rsqrt,
    sigmoid,
    sin,
    sqrt,
    tanh,
    where,
)
from .tensor import Tensor

float32, float64, int64, int32, bool = np.float32, np.float64, np.int64, np.int32, np.bool_
float, double, long, int = float32, float64, int64, int32  # PyTorch's other names
inf, nan, pi, e = np.inf, np.nan, np.pi, np.e
mm = bmm = matmul

__all__ = [
    "AnomalyError", "GradcheckError", "Op", "Sample", "Tensor", "arange", "bmm", "cat", "checkpoint",
    "concatenate", "cos", "detect_anomaly", "empty", "enable_grad", "erf", "exp", "expm1", "eye",
    "float32", "float64", "from_numpy", "full", "full_like", "fused", "generator", "grad", "gradcheck",
    "gradgradcheck", "hessian", "hvp", "inf", "int32", "int64", "jacobian", "jvp", "linspace", "log",
    "log1p", "logsumexp", "manual_seed", "masked_fill", "matmul", "matmul_precision", "maximum",
    "minimum", "mm", "multinomial", "nan", "next_seed", "no_grad", "num_threads", "ones", "ones_like", "ops",
    "outer", "plain", "primitive", "rand", "randint", "randn", "randperm", "registry", "relu", "rsqrt",
    "set_num_threads", "sigmoid", "sin", "softmax", "sqrt", "stack", "tanh", "tensor", "topk", "tril", "triu",
    "vjp", "where", "zeros", "zeros_like",
]
