"""The yardstick of the proof: is what an error may be really what rounding does to the problem?"""

import numpy as np
import pytest
from kernel_checks import impatient

import autograd
from autograd import Tensor, ops
from autograd.kernels import activation as activation_kernels
from autograd.kernels import bfloat16, cross_entropy, multi_head
from autograd.kernels import matmul as matmul_kernels
from autograd.kernels import mlp as mlp_kernels
from autograd.kernels import norm as norm_kernels
from autograd.kernels.bfloat16 import amx_available, matmul_precision, round_to_bfloat16
from autograd.op import Op, Sample, registry
from autograd.proof import BFLOAT16, Case, ProofError, prove
from model import GPT, GPTConfig

needs_amx = pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")


def scales_of(name, *inputs, **params):
    return Case(registry[name], Sample(inputs, params)).scales


def test_a_well_conditioned_result_may_be_off_by_its_own_last_digits():
    x = np.array([1.0, -3.0])
    out, dx = scales_of("neg", x)
    assert out == pytest.approx(2 * 3)  # its size, and as much again for the input's last digit
    assert dx == pytest.approx(2 * np.abs(Case(registry["neg"], Sample((x,))).dout).max())


@pytest.mark.parametrize("x", [2.0, 5.0, 20.0])
def test_the_condition_number_of_a_function_is_part_of_its_scale(x):
    """A relative change of x by one unit changes eˣ by x units, and the exponential's own rounding by one."""
    (out, _), size = scales_of("exp", np.full(50, x)), np.exp(x)
    assert (1 + x) * size <= out <= (2 + x) * size * 1.001


def test_what_cancels_inside_a_definition_is_part_of_its_scale():
    class cancels:
        """out = (x + 10⁶) − 10⁶

        dx = dout
        """

        def forward(x):
            return x

        def vjp(dout):
            yield dout

        def plain(x):
            return ops.sub(ops.add(x, 1e6), 1e6)

        def samples(rng):
            return ()

    op = Op(cancels, is_fused=True)
    try:
        out, dx = Case(op, Sample((np.ones(20),))).scales
        assert out == pytest.approx(1e6, rel=0.01)
        assert dx < 10, "its derivative does not cancel"
    finally:
        registry.pop("cancels")


def test_a_sum_may_be_off_by_what_is_summed_and_not_by_the_little_that_is_left():
    x = np.random.default_rng(0).normal(size=400)
    out, _ = scales_of("sum", np.concatenate([x, -x]))
    assert 0.2 * np.linalg.norm(x) < out < 5 * np.linalg.norm(x)


def test_the_operators_are_whole_again_after_they_were_made_unsteady():
    before = {name: op.forward for name, op in registry.items()}
    _ = scales_of("softmax", np.ones((2, 3)), dim=-1)
    assert all(op.forward is before[name] for name, op in registry.items())


@pytest.mark.parametrize("ulps", [40, -40])
@pytest.mark.parametrize("name", ["gelu", "softmax", "layer_norm", "linear_cross_entropy"])
def test_a_float32_kernel_that_is_forty_units_off_is_caught(name, ulps):
    op, sample = registry[name], next(iter(registry[name].samples(np.random.default_rng(0))))
    prove(op, sample, only=["float32"])
    forward = op.forward

    def off(*inputs, **params):
        result = forward(*inputs, **params)
        out, *rest = result if isinstance(result, tuple) else (result,)
        out = out * (1 + ulps * np.finfo(out.dtype).eps)
        return (out, *rest) if op.extras else out

    op.forward = off
    try:
        with pytest.raises(ProofError, match='fails the check "float32"'):
            prove(op, sample, only=["float32"])
    finally:
        op.forward = forward


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


@needs_amx
@pytest.mark.parametrize("shape", [(40, 33, 50), (17, 200, 64), (130, 96, 31)], ids=str)
def test_products_and_their_gradients_in_bfloat16_stay_within_the_stated_bound(shape):
    """|error| ≤ 2⁻⁷ Σ|a·b| for each element (both operands wrong by 2⁻⁸), and what float32 sums add."""
    M, K, N = shape
    rng = np.random.default_rng(0)
    a, b, dout = rng.normal(size=(M, K)), rng.normal(size=(K, N)), rng.normal(size=(M, N))
    a, b, dout = (x.astype(np.float32) for x in (a, b, dout))
    x, y = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
    with matmul_precision("bfloat16"):
        out = x @ y
        out.backward(Tensor(dout))
    a, b, dout = (p.astype(np.float64) for p in (a, b, dout))
    for found, left, right in ((out, a, b), (x.grad, dout, b.T), (y.grad, a.T, dout)):
        terms = np.abs(left) @ np.abs(right)
        bound = (BFLOAT16 * (2 + BFLOAT16) + 2 * left.shape[1] * np.finfo(np.float32).eps) * terms
        error = np.abs(found.array - left @ right)
        assert (error <= bound).all()
        assert error.max() > 1e-3 * bound.max(), "it was rounded at all"


STYLES = {
    "gpt2": {"bias": True},
    "llama": {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 1, "tie_embeddings": False},
}


def attention_by(multiply, change):
    """Attention and its backward pass in float64, with the matrix products of the kernel, done by `multiply`.

    What it gives is kept with the `change` that operands undergo.
    """

    def heads(x, H):
        return np.repeat(x, H // x.shape[1], axis=1)

    def scores_of(q, k, scale):
        T = q.shape[2]
        return np.where(np.tri(T, dtype=bool), multiply(q, heads(k, q.shape[1]).swapaxes(2, 3)) * scale, -np.inf)

    def forward(q, k, v, *, scale, out, **_):
        scores = scores_of(q, k, scale)
        largest = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        out[...] = multiply(weights, heads(v, q.shape[1])) / total
        return out, (largest + np.log(total))[..., 0]

    def backward(dout, q, k, v, out, lse, *, scale, dq, dk, dv, **_):
        weights = np.exp(scores_of(q, k, scale) - lse[..., None])
        dweights = multiply(dout, heads(v, q.shape[1]).swapaxes(2, 3))
        dscores = weights * (dweights - (dout * out).sum(axis=-1, keepdims=True))
        over_groups = lambda x: x.reshape(*k.shape[:2], -1, *k.shape[2:]).sum(axis=2)
        dq[...] = change(scale * multiply(dscores, heads(k, q.shape[1])))
        dk[...] = change(scale * over_groups(multiply(dscores.swapaxes(2, 3), q)))
        dv[...] = change(over_groups(multiply(weights.swapaxes(2, 3), dout)))
        return dq, dk, dv

    return forward, backward


def mlp_by(multiply, change):
    """The same for GPT-2's MLP and its hidden numbers."""

    def forward(x, up, down, up_bias, down_bias, tanh, onto=None):
        u = multiply(x, up.T, bias=up_bias)
        h = activation_kernels.gelu(u, tanh)
        slope = activation_kernels.gelu_backward(np.ones_like(u), u, tanh)
        return multiply(h, down.T, bias=down_bias, onto=onto), change(slope), h

    def backward(dout, x, up, down, slope, h, needs):
        du = multiply(dout, down) * slope
        gradients = multiply(du, up), multiply(du.T, x), multiply(dout.T, h), change(du).sum(axis=0), dout.sum(axis=0)
        return mlp_kernels.MLPGradients(*gradients)

    return forward, backward


@needs_amx
@pytest.mark.parametrize("style", STYLES)
def test_a_whole_model_in_bfloat16_is_as_wrong_as_its_operands(style, monkeypatch):
    """Every gradient of a GPT, against the same model in float64, whose matrix products are then disturbed in two ways.

    Their operands, forward and backward, rounded to bfloat16 and multiplied exactly: the errors must be these and no
    others. And moved up or down at random by 2⁻⁹ of their value, half of what rounding can do at most: gradients may
    be off by twice as much, since the same number is rounded the same way wherever it is used, and that adds up.
    """
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=96, **STYLES[style])
    autograd.manual_seed(0)
    gpt = GPT(config)
    rng = np.random.default_rng(1)
    idx = rng.integers(0, config.vocab_size, (4, 33))

    def gradients():
        for p in gpt.parameters():
            p.grad = None
        loss = gpt(idx[:, :-1].copy(), idx[:, 1:].copy())[1]
        loss.backward()
        return [loss.array.astype(np.float64), *(p.grad.array.astype(np.float64) for p in gpt.parameters())]

    with matmul_precision("bfloat16"):
        actual = gradients()
    single = gradients()
    gpt.to(np.float64)
    exact = gradients()
    multiply, layer_norm_backward = matmul_kernels.matmul, norm_kernels.layer_norm_backward

    def with_operands(change):
        disturbed = lambda a, b, **how: multiply(change(a), change(b), **how)
        monkeypatch.setattr(matmul_kernels, "matmul", disturbed)
        monkeypatch.setattr(cross_entropy, "matmul", disturbed)
        monkeypatch.setattr(multi_head, "matmul", disturbed)
        for name, function in zip(("attention", "attention_backward"), attention_by(disturbed, change), strict=True):
            monkeypatch.setattr(multi_head, name, function)
        for name, function in zip(("mlp", "mlp_backward"), mlp_by(disturbed, change), strict=True):
            monkeypatch.setattr(mlp_kernels, name, function)
        def to_the_norm(dn, *rest, **how):  # of a branch it is rounded, as what the norm makes
            return layer_norm_backward(change(dn) if "onto" in how else dn, *rest, **how)

        monkeypatch.setattr(norm_kernels, "layer_norm_backward", to_the_norm)
        with impatient(monkeypatch):  # what stands in for kernels reads what others have made
            return gradients()

    rounded = with_operands(lambda x: round_to_bfloat16(x).astype(np.float64))
    moved = [with_operands(lambda x: x * (1 + BFLOAT16 / 2 * rng.choice([-1.0, 1.0], x.shape))) for _ in range(4)]
    for k, name in enumerate(["loss", *(name for name, _ in gpt.named_parameters())]):
        size, error = np.linalg.norm(exact[k]), actual[k] - exact[k]
        allowed = 2 * max(float(np.linalg.norm(run[k] - exact[k])) for run in moved)
        assert np.linalg.norm(error) <= allowed <= 0.05 * size, name
        assert np.linalg.norm(single[k] - exact[k]) <= 1e-5 * size, f"{name}: float32 is far closer"
        expected = rounded[k] - exact[k]
        alike = np.sum(error * expected) / (np.linalg.norm(error) * np.linalg.norm(expected))
        assert alike > 0.8, f"{name}: errors come from rounding and from nothing else"


@needs_amx
def test_what_is_drawn_reaches_the_bfloat16_kernel():
    """The column of the certificate is not empty where it should not be."""
    sample = Sample((np.ones((5, 7)) / 3, np.ones((7, 6)) / 7))
    assert "bfloat16" in prove("matmul_2d", sample)
    assert "bfloat16" not in prove("exp", Sample((np.ones(3),)))
    assert bfloat16.matmul_precision.current == "float32"


def test_where_all_digits_cancel_the_bound_is_what_rounding_does():
    """Rows of equal numbers: second derivatives of the norm are zero, and their terms are 10⁸ times larger than x."""
    x = Tensor(np.repeat([[-1.11699], [0.66901], [-0.62099], [-0.90099]], 3, axis=1), requires_grad=True)
    assert autograd.gradgradcheck(lambda x: ops.layer_norm(x, None, None, eps=1e-5), (x,))


def test_rounding_excuses_no_derivative_that_is_wrong():
    x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    with pytest.raises(autograd.GradcheckError, match="off"):
        autograd.gradcheck(lambda x: x * 1.0 + (x * 1e-6).detach(), (x,))


@needs_amx
@pytest.mark.parametrize("heads", [2, 1])
def test_branches_of_bfloat16_keep_what_their_norm_makes_in_half_the_memory(heads):
    """Where all products round it anyway: not for a lone head, whose attention is cut into parts."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: Tensor(rng.normal(size=shape).astype(np.float32), requires_grad=True)
    x, norm = normal(1, 5, 8), (normal(8), normal(8))
    with matmul_precision("bfloat16"):
        attention = ops.residual_attention(x, *norm, normal(24, 8), normal(8, 8), n_head=heads, n_kv_head=heads)
        mlp = ops.residual_mlp(x, *norm, normal(16, 8), normal(8, 16))
    for out, kept in ((attention, "uint16" if heads > 1 else "float32"), (mlp, "uint16")):
        assert out.node.saved[out.node.plan.names.index("n")].dtype == kept
