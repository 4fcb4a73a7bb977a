"""PyTorch agrees: every operator that both have, on our samples and on samples drawn from its whole space."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings

import autograd
from autograd.proof import Case, _run
from autograd.testing import samples_of, spaces

torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
F = torch.nn.functional


def index(i):
    """An index without negative steps, which PyTorch has not, or None."""
    parts = i if isinstance(i, tuple) else (i,)
    if any(isinstance(part, slice) and part.step is not None and part.step < 0 for part in parts):
        pytest.skip("PyTorch has no negative steps")
    tensors = [torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in parts]
    return tuple(int(part) if isinstance(part, np.integer) else part for part in tensors)


def reduced(function):
    return lambda x, dim=None, keepdim=False: function(x, tuple(range(x.ndim)) if dim is None else dim, keepdim)


def scatter(x, shape, index):
    place = torch.arange(int(np.prod(shape))).reshape(shape).numpy()[index]
    return torch.zeros(int(np.prod(shape)), dtype=x.dtype).index_add(
        0, torch.from_numpy(np.array(place).reshape(-1)), x.expand(place.shape).reshape(-1)
    ).reshape(shape)  # fmt: skip


def rotary(x, cos, sin, heads=None):
    heads = x.shape[2] if heads is None else heads
    a, b = x[:, :, :heads].chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([torch.cat([a * cos - b * sin, b * cos + a * sin], -1), x[:, :, heads:]], 2)


def attention(q, k, v, causal=False, scale=None, dropout_p=0.0, seed=0):
    Tq, Tk = q.shape[2], k.shape[2]
    mask = torch.ones(Tq, Tk, dtype=torch.bool).tril(Tk - Tq) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def causal_self_attention(qkv, n_head, n_kv_head, dropout_p=0.0, seed=0):
    B, T, _ = qkv.shape
    heads = qkv.reshape(B, T, n_head + 2 * n_kv_head, -1).transpose(1, 2)
    q, k, v = heads.split([n_head, n_kv_head, n_kv_head], 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).reshape(B, T, -1)


def multi_head_attention(x, qkv, out, qkv_bias=None, out_bias=None, **heads):
    return F.linear(causal_self_attention(F.linear(x, qkv, qkv_bias), **heads), out, out_bias)


def residual_mlp(x, norm_weight, norm_bias, up, down, up_bias=None, down_bias=None, approximate="none", eps=1e-5):
    n = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    return x + F.linear(F.gelu(F.linear(n, up, up_bias), approximate=approximate), down, down_bias)


def residual_attention(x, norm_weight, norm_bias, *weights, eps=1e-5, **heads):
    return x + multi_head_attention(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), *weights, **heads)


THEIRS = {
    "abs": torch.abs, "add": torch.add, "alias": lambda x: x.view_as(x), "amax": reduced(torch.amax),
    "amin": reduced(torch.amin), "attention": attention, "cast": lambda x, dtype: x.to(torch.float64),
    "causal_self_attention": causal_self_attention, "clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "clone": torch.clone, "concatenate": lambda *xs, dim=0: torch.cat(xs, dim), "cos": torch.cos,
    "cross_entropy": lambda x, t, ignore_index=-100: F.cross_entropy(x, t, ignore_index=ignore_index, reduction="none"),
    "cumsum": torch.cumsum, "div": torch.div, "embedding": lambda weight, ids: F.embedding(ids, weight),
    "erf": torch.erf,
    "exp": torch.exp, "expand": lambda x, shape: x.expand(shape), "expm1": torch.expm1,
    "gelu": F.gelu, "getitem": lambda x, index: x[globals()["index"](index)],
    "layer_norm": lambda x, weight=None, bias=None, eps=1e-5: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
    "linear": F.linear,
    "linear_cross_entropy": lambda x, w, t, ignore_index=-100: F.cross_entropy(x @ w.T, t, ignore_index=ignore_index),
    "log": torch.log, "log1p": torch.log1p, "log_softmax": torch.log_softmax, "logsumexp": reduced(torch.logsumexp),
    "matmul_2d": torch.matmul, "maximum": lambda a, b: torch.maximum(a, b), "minimum": lambda a, b: torch.minimum(a, b),
    "mlp": lambda x, up, down, up_bias=None, down_bias=None, approximate="none": F.linear(
        F.gelu(F.linear(x, up, up_bias), approximate=approximate), down, down_bias),
    "mul": torch.mul, "multi_head_attention": multi_head_attention, "neg": torch.neg,
    "permute": lambda x, dims: x.permute(dims), "pow": torch.pow, "relu": torch.relu,
    "reshape": lambda x, shape: x.reshape(shape),
    "residual_attention": residual_attention, "residual_mlp": residual_mlp,
    "rms_norm": lambda x, weight=None, eps=1e-5: F.rms_norm(x, x.shape[-1:],
    weight, eps), "rotary_embedding": rotary, "rsqrt": torch.rsqrt, "scatter": scatter, "sigmoid": torch.sigmoid,
    "silu": F.silu, "sin": torch.sin, "softmax": torch.softmax, "sqrt": torch.sqrt, "sub": torch.sub,
    "sum": reduced(torch.sum), "swiglu": lambda gate, up: F.silu(gate) * up, "tanh": torch.tanh,
    "where": lambda c, a, b: torch.where(c, a, torch.tensor(b) if isinstance(b, float) else b),
}  # fmt: skip
NOT_THERE = {"dropout": "its random numbers are its own"}


def test_no_operator_is_left_out():
    assert THEIRS.keys() | NOT_THERE.keys() == autograd.registry.keys()


def agree(op, sample, dtype=np.float64):
    if sample.params.get("dropout_p"):
        return  # the random numbers are our own
    case = Case(op, sample)
    ours = _run(case.call, case.inputs, case.dout)
    theirs = [torch.tensor(np.array(x)) if isinstance(x, np.ndarray | np.generic) else x for x in sample.inputs]
    asked = [t.requires_grad_() for x, t in zip(case.inputs, theirs, strict=True) if getattr(x, "requires_grad", False)]
    out = THEIRS[op.name](*theirs, **sample.params)
    expected = [out.detach().numpy()]
    if out.requires_grad:
        found = torch.autograd.grad(out, asked, torch.tensor(case.dout), allow_unused=True)
        expected += [np.zeros(x.shape) if g is None else g.numpy() for g, x in zip(found, asked, strict=True)]
    for a, e in zip(ours, expected, strict=False):
        assert a.shape == e.shape
        scale = max(np.abs(e[np.isfinite(e)]).max(initial=0), 1.0)
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12 * scale)


SHARED = [op for name, op in sorted(autograd.registry.items()) if name in THEIRS]


@pytest.mark.parametrize("op", SHARED, ids=lambda op: op.name)
def test_pytorch_agrees_on_every_sample(op):
    compared = 0
    for sample in samples_of(op):
        try:
            agree(op, sample)
            compared += 1
        except pytest.skip.Exception:
            continue
    assert compared, "one sample at least is compared"


@pytest.mark.parametrize("op", SHARED, ids=lambda op: op.name)
def test_pytorch_agrees_on_all_of_its_space(op):
    few, phases = max(5, settings().max_examples // 4), set(settings().phases) - {Phase.explain}

    @settings(max_examples=few, phases=phases, derandomize=True)
    @given(spaces(op))
    def drawn(sample):
        try:
            agree(op, sample)
        except pytest.skip.Exception:
            return

    drawn()


@pytest.mark.parametrize("masked", [[0], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_masked_rows_are_what_pytorch_makes_of_them(name, masked):
    x = np.random.default_rng(0).normal(size=(2, 3))
    x[0, masked] = -np.inf
    ours, theirs = autograd.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    with np.errstate(all="ignore"):
        out = autograd.registry[name](ours, dim=-1)
        out.sum().backward()
    expected = getattr(torch, name)(theirs, dim=-1)
    expected.sum().backward()
    np.testing.assert_allclose(out.array, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.grad.array, theirs.grad.numpy(), rtol=1e-12, atol=1e-15)
