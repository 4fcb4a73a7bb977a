"""Functions and methods that are built from operators have no record of their own: each is proved here, by differences.

Whatever is public and differentiable must be in the table below: the walks at the end look for what was forgotten.
"""

import numpy as np
import pytest

import autograd
from autograd import Tensor, gradcheck, gradgradcheck, ops
from nn import functional as F

A, B, C = (3, 4), (2, 3, 4), (4,)  # shapes of inputs
IDS = np.array([[0, 2, 2], [1, 0, 3]])
TARGETS = np.array([1, -100, 3])
MASK = np.tri(3, 5, 1, dtype=bool)
ANGLES = np.linspace(-2, 2, 6).reshape(3, 2)

# name: (function, shapes of its inputs); where the numbers must be positive, |x| + ½ is what it takes
COMPOSITES = {
    # autograd.ops and autograd.functions
    "chunk": (lambda x: ops.chunk(x, 3, -1)[1], A), "flip": (lambda x: ops.flip(x, (0, -1)), A),
    "gather": (lambda x: ops.gather(x, 1, IDS), A), "take": (lambda x: ops.take(x, IDS), A),
    "masked_fill": (lambda x: ops.masked_fill(x, np.tri(3, 4) > 0, 7.0), A), "matmul": (ops.matmul, B, C),
    "mean": (lambda x: ops.mean(x, (0, -1)), B), "prod": (lambda x: ops.prod(x, 1), B),
    "norm": (lambda x: ops.norm(x, 2, -1), A), "norm, p = 3": (lambda x: ops.norm(x, 3, 0, keepdim=True), A),
    "norm, p = inf": (lambda x: ops.norm(x, np.inf, 1), A), "norm, p = 1": (lambda x: ops.norm(x, 1), A),
    "remainder": (lambda x, y: ops.remainder(x, y.abs() + 0.5), A, C),
    "split": (lambda x: ops.split(x, [1, 3], 1)[1], A), "squeeze": (lambda x: ops.squeeze(x, 0), (1, 3)),
    "stack": (lambda x, y: ops.stack([x, y, x], 1), A, A), "std": (lambda x: ops.std(x, -1), A),
    "swapaxes": (lambda x: ops.swapaxes(x, 0, 2), B), "unsqueeze": (lambda x: ops.unsqueeze(x, 1), A),
    "var": (lambda x: ops.var(x, 0, keepdim=True), A), "cat": (lambda x, y: autograd.cat([x, y], -1), A, A),
    "concatenate": (lambda x, y: autograd.concatenate([x, y]), A, A), "outer": (autograd.outer, (3,), C),
    "softmax": (lambda x: autograd.softmax(x, 0), A), "topk": (lambda x: autograd.topk(x, 2).values, A),
    "tril": (lambda x: autograd.tril(x, -1), A), "triu": (autograd.triu, B),
    "as_tensor": (lambda x: autograd.as_tensor(x) * x, A),
    # nn.functional
    "F.cross_entropy": (lambda x: F.cross_entropy(x, TARGETS), A),
    "F.cross_entropy, axes": (lambda x: F.cross_entropy(x, IDS[:, :2] % 3, reduction="none"), (2, 3, 2)),
    "F.dropout": (lambda x: (autograd.manual_seed(1), F.dropout(x, 0.4))[1], B),
    "F.embedding": (lambda w: F.embedding(IDS, w), (4, 3)), "F.gelu": (F.gelu, A),
    "F.layer_norm": (lambda x, w, b: F.layer_norm(x, 4, w, b), A, C, C), "F.linear": (F.linear, B, (5, 4), (5,)),
    "F.linear_cross_entropy": (lambda x, w: F.linear_cross_entropy(x, w, TARGETS), A, (5, 4)),
    "F.log_softmax": (F.log_softmax, A), "F.mlp": (F.mlp, B, (5, 4), (3, 5), (5,), (3,)),
    "F.multi_head_attention": (lambda x, w, out, b: F.multi_head_attention(x, w, out, b, n_head=2),
                               (2, 3, 4), (12, 4), (3, 4), (12,)),
    "F.mse_loss": (F.mse_loss, A, A), "F.relu": (F.relu, A),
    "F.residual_attention": (lambda x, *weights: F.residual_attention(x, *weights, n_head=2),
                             (2, 3, 4), (4,), (4,), (12, 4), (4, 4), (12,)),
    "F.residual_mlp": (F.residual_mlp, (2, 4), (4,), (4,), (5, 4), (4, 5), (5,), (4,)),
    "F.rms_norm": (lambda x, w: F.rms_norm(x, 4, w), A, C), "F.sigmoid": (F.sigmoid, A), "F.silu": (F.silu, A),
    "F.rotary_embedding": (lambda x: F.rotary_embedding(x, np.cos(ANGLES), np.sin(ANGLES), 1), (1, 3, 2, 4)),
    "F.scaled_dot_product_attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                                       (2, 3, 2), (2, 3, 2), (2, 3, 2)),
    "F.scaled_dot_product_attention, masked": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=MASK), (2, 3, 2), (2, 5, 2), (2, 5, 2)),
    "F.scaled_dot_product_attention, added": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m, enable_gqa=True),
        (2, 3, 2), (1, 4, 2), (1, 4, 2), (3, 4)),
    "F.softmax": (F.softmax, A), "F.swiglu": (F.swiglu, A, A), "F.tanh": (F.tanh, A),
    # methods of Tensor that are no operator's
    ".T": (lambda x: x.T, B), ".mT": (lambda x: x.mT, B), ".t": (lambda x: x.t(), A), ".var": (lambda x: x.var(1), A),
    ".square": (lambda x: x.square(), A), ".reciprocal": (lambda x: (x.abs() + 0.5).reciprocal(), A),
    ".mean": (lambda x: x.mean(1), A), ".std": (lambda x: x.std(), A), ".prod": (lambda x: x.prod(), (5,)),
    ".norm": (lambda x: x.norm(dim=1), A),
    ".max": (lambda x: x.max(1).values, A), ".min": (lambda x: x.min(0, True)[0], A),
    ".sort": (lambda x: x.sort(0, descending=True).values, A), ".dot": (lambda x, y: x.dot(y), C, C),
    ".topk": (lambda x: x.topk(2, 0, largest=False).values, A), ".view": (lambda x: x.view(2, -1), B),
    ".view_as": (lambda x: x.view_as(Tensor(np.ones((4, 3)))), A), ".flatten": (lambda x: x.flatten(1), B),
    ".unflatten": (lambda x: x.unflatten(-1, (2, 2)), A), ".transpose": (lambda x: x.transpose(0, -1), B),
    ".swapaxes": (lambda x: x.swapaxes(0, 1), A), ".squeeze": (lambda x: x.squeeze(), (1, 3, 1)),
    ".unsqueeze": (lambda x: x.unsqueeze(0), A), ".expand_as": (lambda x: x.expand_as(Tensor(np.ones(A))), C),
    ".repeat": (lambda x: x.repeat(2, 1, 2), A), ".repeat_interleave": (lambda x: x.repeat_interleave(3, 1), A),
    ".flip": (lambda x: x.flip(0), A),
    ".split": (lambda x: x.split(2, 1)[0], A), ".chunk": (lambda x: x.chunk(2)[1], A),
    ".unbind": (lambda x: x.unbind(1)[2], A), ".tril": (lambda x: x.tril(), B), ".triu": (lambda x: x.triu(1), A),
    ".masked_fill": (lambda x: x.masked_fill(np.tri(3, 4) > 0, 1.0), A), ".gather": (lambda x: x.gather(1, IDS), A),
    ".take": (lambda x: x.take(IDS), A), ".index_select": (lambda x: x.index_select(1, IDS[0]), A),
    ".contiguous": (lambda x: x.mT.contiguous(), A), ".to": (lambda x: x.to(np.float64) * x, A),
    ".astype": (lambda x: x.astype(np.float64), A), ".type": (lambda x: x.type(np.float64), A),
    ".double": (lambda x: x.double(), A), ".clamp": (lambda x: x.clamp(-0.5, 0.5), A),
    "x ** 3, 2 ** x, x / 2, 1 - x": (lambda x: x**3 + 2**x + x / 2 + (1 - x) / (x * x + 1), A),
    ".matmul": (lambda x, y: x.matmul(y.mT), A, A), ".mm": (lambda x, y: x.mm(y.mT), A, A),
    ".bmm": (lambda x, y: x.bmm(y.mT), B, B), ".float": (lambda x: x.double() * 2, A),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_has_the_derivatives_of_the_definition(name):
    function, *shapes = COMPOSITES[name]
    rng = np.random.default_rng(len(name))
    inputs = [Tensor(rng.normal(size=shape), requires_grad=True) for shape in shapes]
    gradcheck(function, inputs, rtol=1e-8)
    gradgradcheck(function, inputs)


# -- what was forgotten? -----------------------------------------------------------------------------------------------

# Public methods that have no derivative: they look, convert, compare, write in place or are part of the engine.
NO_DERIVATIVE = """
    all any argmax argmin argsort array backward bool copy_ cpu data detach device dim dtype fill_ grad grad_fn
    int is_contiguous is_leaf item long mul_ add_ sub_ zero_ masked_fill_ mutate ndim node numel numpy register_hook
    requires_grad requires_grad_ retain_grad shape size storage tensor_class tolist wrap
    eq ne lt le gt ge logical_not isnan isinf isfinite sign floor ceil round
"""  # those of the last line are constant but for jumps


def test_no_composite_function_is_left_out():
    from autograd import functions

    names = {name for name in ops.__all__ if not isinstance(getattr(ops, name), autograd.Op)}
    names |= {name for name in functions.__all__ if not hasattr(Tensor, name)}  # the others are methods' other names
    names -= {"allclose", "equal", "is_tensor"}  # their results are no tensors
    names -= {"floor_divide"}  # constant but for jumps
    names |= {f"F.{name}" for name in F.__all__}
    assert names <= COMPOSITES.keys(), names - COMPOSITES.keys()


def test_no_method_is_left_out():
    public = {name for name in dir(Tensor) if not name.startswith("_")} - set(NO_DERIVATIVE.split())
    operators = autograd.registry.keys() | {"pow"}  # `x.exp()` is exp, which has a record
    forgotten = {f".{name}" for name in public - operators} - COMPOSITES.keys()
    assert not forgotten, forgotten
