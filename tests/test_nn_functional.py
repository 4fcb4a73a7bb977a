"""Functions and layers against torch.nn.functional: values and gradients, in float64."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
import nn
from nn import functional as F
from nn.attention import rotary_tables


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the oracle here")


def agree(torch, ours, theirs, *arrays, rtol=1e-9, atol=1e-11):
    """Both functions give the same value and, for one random upstream gradient, the same gradients."""
    a = [ag.tensor(x, requires_grad=x.dtype.kind == "f") if isinstance(x, np.ndarray) else x for x in arrays]
    b = [torch.tensor(x, requires_grad=x.dtype.kind == "f") if isinstance(x, np.ndarray) else x for x in arrays]
    ya, yb = ours(*a), theirs(*b)
    assert ya.shape == tuple(yb.shape)
    assert ya.dtype == yb.detach().numpy().dtype
    np.testing.assert_allclose(ya.array, yb.detach().numpy(), rtol=rtol, atol=atol)
    dout = np.random.default_rng(0).normal(size=ya.shape).astype(ya.dtype)
    ya.backward(ag.tensor(dout))
    yb.backward(torch.tensor(dout))
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if isinstance(x, ag.Tensor) and x.requires_grad:
            np.testing.assert_allclose(x.grad.array, y.grad.numpy(), rtol=rtol, atol=atol, err_msg=f"input {i}")


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.bool_, np.float16])
def test_fused_operators_refuse_what_their_kernels_cannot_compute(dtype):
    x = ag.tensor(np.ones((1, 2, 4, 4), dtype))
    ids = np.zeros(4, np.int64)
    calls = [
        lambda: F.softmax(x), lambda: F.log_softmax(x), lambda: F.gelu(x), lambda: F.silu(x), lambda: F.swiglu(x, x),
        lambda: F.layer_norm(x, 4), lambda: F.rms_norm(x, 4, eps=1e-6), lambda: F.linear(x, x[0, 0]),
        lambda: F.scaled_dot_product_attention(x, x, x, is_causal=True), lambda: F.cross_entropy(x[0, 0], ids),
        lambda: F.linear_cross_entropy(x[0, 0], x[0, 0], ids), lambda: F.dropout(x), lambda: F.embedding(ids, x[0, 0]),
        lambda: F.mlp(x, x[0, 0], x[0, 0]),
    ]  # fmt: skip
    for call in calls:
        for mode in (contextlib.nullcontext, ag.plain):
            with mode(), pytest.raises(TypeError, match="in float32 or float64, got"):
                call()



@pytest.mark.parametrize("name", ["relu", "silu", "sigmoid", "tanh", "gelu"])
def test_activations(torch, name):
    x = np.random.default_rng(0).normal(size=(3, 7)) * 3
    theirs = getattr(torch.nn.functional, name)
    agree(torch, getattr(F, name), theirs, x)
    if name == "gelu":
        agree(torch, lambda x: F.gelu(x, approximate="tanh"), lambda x: theirs(x, approximate="tanh"), x)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(torch, name, dim):
    x = np.random.default_rng(0).normal(size=(3, 4, 5)) * 5
    agree(torch, lambda x: getattr(F, name)(x, dim=dim), lambda x: getattr(torch.nn.functional, name)(x, dim=dim), x)


def test_norms(torch):
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=(2, 3, 8)) * 3 + 1, rng.normal(size=8), rng.normal(size=8)
    T = torch.nn.functional
    agree(torch, lambda x, w, b: F.layer_norm(x, (8,), w, b, 1e-3), lambda x, w, b: T.layer_norm(x, (8,), w, b, 1e-3),
          x, weight, bias)  # fmt: skip
    agree(torch, lambda x: F.layer_norm(x, 8), lambda x: T.layer_norm(x, (8,)), x)
    agree(torch, lambda x, w: F.rms_norm(x, (8,), w, 1e-3), lambda x, w: T.rms_norm(x, (8,), w, 1e-3), x, weight)
    agree(torch, lambda x: F.rms_norm(x, (8,)), lambda x: T.rms_norm(x, (8,)), x)
    with pytest.raises(ValueError, match=r"must be the size of the last axis, \(8,\), got \(3, 8\)"):
        F.layer_norm(x, (3, 8))


def test_linear_and_embedding(torch):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(4, 3)), rng.normal(size=4)
    for shape in ((3,), (2, 3), (2, 5, 3)):
        agree(torch, F.linear, torch.nn.functional.linear, rng.normal(size=shape), w, b)
        agree(torch, F.linear, torch.nn.functional.linear, rng.normal(size=shape), w)
    for shape in ((), (5,), (2, 3)):
        agree(torch, F.embedding, torch.nn.functional.embedding, rng.integers(0, 4, shape), w)
    with pytest.raises(IndexError):
        F.embedding(np.array([4]), w)
    with pytest.raises(TypeError, match="integer ids"):
        F.embedding(np.array([1.0]), w)


@given(st.sampled_from(["mean", "sum", "none"]), st.integers(0, 3), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_cross_entropy(reduction, extra, classes, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 4, extra))
    x = rng.normal(size=(*shape[:1], classes, *shape[1:])) * 4
    target = rng.integers(0, classes, shape)
    target = np.where(rng.random(shape) < 0.3, -1, target)
    if reduction == "mean":
        target.reshape(-1)[0] = 0  # where none counts the mean is nan: tested apart
    options = {"ignore_index": -1, "reduction": reduction}
    agree(
        torch,
        lambda x: F.cross_entropy(x, target, **options),
        lambda x: torch.nn.functional.cross_entropy(x, torch.tensor(target), **options),
        x,
    )


def test_losses_with_no_target_are_nan():
    x, w, none = ag.tensor(np.ones((2, 3))), ag.tensor(np.ones((4, 3))), np.full(2, -100)
    with np.errstate(invalid="ignore"):
        assert math.isnan(F.cross_entropy(x, none).item())
        assert math.isnan(F.linear_cross_entropy(x, w, none).item())


def test_linear_cross_entropy_is_the_two_in_one():
    rng = np.random.default_rng(0)
    x, w, target = rng.normal(size=(2, 5, 3)), rng.normal(size=(7, 3)), rng.integers(0, 7, (2, 5))
    target[0, 1] = -100
    gradients = []
    for fused in (True, False):
        a, b = ag.tensor(x, requires_grad=True), ag.tensor(w, requires_grad=True)
        if fused:
            loss = F.linear_cross_entropy(a, b, target)
        else:
            loss = F.cross_entropy(F.linear(a, b).reshape(-1, 7), target.reshape(-1))
        (loss * 3).backward()
        gradients.append((loss.array, a.grad.array, b.grad.array))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_wrong_shapes_are_named():
    x = np.ones((2, 3, 5))
    for call, message in [
        (lambda: F.cross_entropy(x, np.zeros((2, 3), int)), r"expected logits \(N, V\) and targets \(N,\), got"),
        (lambda: F.cross_entropy(x[0], np.zeros(3, int), reduction="max"), "reduction"),
        (lambda: F.linear_cross_entropy(x, np.ones((7, 5)), np.zeros(2, int)), "one target for each row"),
        (lambda: F.mse_loss(x, x[0]), "one shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@given(
    B=st.integers(1, 2), K=st.integers(1, 3), groups=st.integers(1, 3), Tq=st.integers(1, 6), Tk=st.integers(1, 6),
    D=st.integers(1, 5), mask=st.sampled_from([None, "causal", "bool", "float"]), scale=st.sampled_from([None, 0.3]),
    lead=st.integers(0, 2),
)  # fmt: skip
def test_attention(B, K, groups, Tq, Tk, D, mask, scale, lead):
    """Any mask, lengths and grouping; leading axes of 0 to 2."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    rng = np.random.default_rng(0)
    H = K * groups
    q, k, v = (rng.normal(size=(B, h, t, D)) for h, t in ((H, Tq), (K, Tk), (K, Tk)))
    if lead < 2:
        q, k, v = q[0], k[0], v[0]
    if lead < 1 and groups == 1:
        q, k, v = q[0], k[0], v[0]
    options = {"scale": scale, "is_causal": mask == "causal", "enable_gqa": groups > 1}
    allowed = np.arange(Tk) <= rng.integers(0, Tk, (Tq, 1))
    attn_mask = {"bool": allowed, "float": rng.normal(size=(Tq, Tk))}.get(mask)
    agree(
        torch,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask, **options),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, None if attn_mask is None else torch.tensor(attn_mask), **options
        ),
        q, k, v,
    )  # fmt: skip


def test_attention_refuses():
    q, k = np.ones((1, 4, 3, 2)), np.ones((1, 2, 3, 2))
    with pytest.raises(ValueError, match="enable_gqa=True"):
        F.scaled_dot_product_attention(q, k, k)
    with pytest.raises(ValueError, match="exclude each other"):
        F.scaled_dot_product_attention(q, q, q, attn_mask=np.ones((3, 3), bool), is_causal=True)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_dropout_keeps_the_mean(masked):
    ag.manual_seed(0)
    q = np.random.default_rng(0).normal(size=(1, 1, 4, 3))
    mask = np.ones((4, 4), bool) if masked else None
    draws = [F.scaled_dot_product_attention(q, q, q, mask, dropout_p=0.5) for _ in range(4000)]
    assert not np.array_equal(draws[0], draws[1])
    np.testing.assert_allclose(np.mean(draws, 0), F.scaled_dot_product_attention(q, q, q, mask), atol=0.1)


@given(st.integers(0, 50), st.integers(0, 50), st.sampled_from([10.0, 10000.0]))
def test_rotary_products_depend_on_the_distance_only(a, b, theta):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 8))
    cos, sin = rotary_tables(64, 8, theta, "float64")

    def turned(x, t):
        return F.rotary_embedding(x.reshape(1, 1, 1, 8), cos[t : t + 1], sin[t : t + 1]).reshape(8)

    shift = 13
    near = turned(q, a) @ turned(k, b)
    assert near == pytest.approx(turned(q, a + shift) @ turned(k, b + shift), abs=1e-9)
    assert np.linalg.norm(turned(q, a)) == pytest.approx(np.linalg.norm(q))
    np.testing.assert_allclose(turned(q, 0), q)


def test_dropout():
    ag.manual_seed(0)
    x = ag.tensor(np.ones((200, 50)), requires_grad=True)
    out = F.dropout(x, 0.2)
    assert set(np.unique(out.array)) == {0.0, 1.25}
    assert out.array.mean() == pytest.approx(1, abs=0.05)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.array, out.array)  # what was dropped has no gradient
    assert F.dropout(x, 0.2, training=False) is x
    assert F.dropout(x, 0.0) is x
    with pytest.raises(ValueError):
        F.dropout(x, 1.5)


def test_arrays_in_arrays_out():
    x = np.ones((2, 3), np.float32)
    for out in (F.softmax(x), F.gelu(x), F.layer_norm(x, 3), F.linear(x, x), F.cross_entropy(x, np.array([0, 1]))):
        assert isinstance(out, np.ndarray | np.generic)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_match_torch(torch, bias):
    x = np.random.default_rng(0).normal(size=(4, 6))
    for build in (
        lambda nn: nn.Linear(6, 3, bias=bias),
        lambda nn: nn.LayerNorm(6, eps=1e-3, bias=bias),
        lambda nn: nn.RMSNorm(6, eps=1e-3),
        lambda nn: nn.Sequential(nn.GELU("tanh"), nn.SiLU(), nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softmax(-1)),
    ):
        ours, theirs = build(nn).double(), build(torch.nn).double()
        theirs.load_state_dict({name: torch.tensor(np.array(v)) for name, v in ours.state_dict().items()})
        agree(torch, ours, theirs, x)


def test_feed_forward_layers_are_their_formulas():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6))
    mlp = nn.MLP(6, 9, gelu="exact").double()
    inner = x @ mlp.up.weight.array.T + mlp.up.bias.array
    inner = inner * np.vectorize(math.erf)(inner / math.sqrt(2)) / 2 + inner / 2
    np.testing.assert_allclose(mlp(x).array, inner @ mlp.down.weight.array.T + mlp.down.bias.array, rtol=1e-10)
    glu = nn.SwiGLU(6, 9).double()
    gate, up = x @ glu.gate.weight.array.T, x @ glu.up.weight.array.T
    np.testing.assert_allclose(glu(x).array, gate / (1 + np.exp(-gate)) * up @ glu.down.weight.array.T, rtol=1e-10)


@pytest.mark.parametrize("rope_theta", [None, 100.0])
def test_attention_layer_is_scaled_dot_product_attention(rope_theta):
    layer = nn.CausalSelfAttention(24, 6, 2, rope_theta=rope_theta, block_size=9).double()
    x = np.random.default_rng(0).normal(size=(2, 7, 24))
    q, k, v = np.split(layer.qkv(x).array.reshape(2, 7, 10, 4), [6, 8], axis=2)
    if rope_theta:
        cos, sin = (table[:7] for table in rotary_tables(9, 4, rope_theta, "float64"))
        q, k = F.rotary_embedding(q, cos, sin), F.rotary_embedding(k, cos, sin)
    q, k, v = (t.swapaxes(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).swapaxes(1, 2).reshape(2, 7, 24)
    np.testing.assert_allclose(layer(x).array, layer.out(y).array, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initialisers(dtype):
    ag.manual_seed(0)
    w = nn.Parameter(np.empty((300, 200), dtype))
    deviations = {
        nn.init.xavier_uniform_: math.sqrt(2 / 500),
        nn.init.xavier_normal_: math.sqrt(2 / 500),
        nn.init.kaiming_uniform_: math.sqrt(2 / 200),
        nn.init.kaiming_normal_: math.sqrt(2 / 200),
        lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="tanh"): 5 / 3 / math.sqrt(300),
        lambda w: nn.init.normal_(w, std=0.02): 0.02,
        lambda w: nn.init.uniform_(w, -3, 3): math.sqrt(3),
        lambda w: nn.init.trunc_normal_(w, std=0.5, a=-9, b=9): 0.5,
    }
    for fill, std in deviations.items():
        assert fill(w) is w
        assert w.array.std() == pytest.approx(std, rel=0.02)
        assert abs(w.array.mean()) < std / 20
    nn.init.trunc_normal_(w, std=3.0)
    assert abs(w.array).max() <= 2
    nn.init.uniform_(w, 5, 6)
    assert 5 <= w.array.min() <= w.array.max() <= 6
    assert (nn.init.normal_(w, mean=4, std=0).array == 4).all()
    assert (nn.init.ones_(w).array == 1).all()
    assert not nn.init.zeros_(w).array.any()
    assert (nn.init.constant_(w, 7).array == 7).all()
    with pytest.raises(ValueError, match="matrices"):
        nn.init.xavier_normal_(nn.Parameter([1.0]))


def test_seed_decides_initial_weights():
    weights = []
    for seed in (1, 1, 2):
        ag.manual_seed(seed)
        weights.append(nn.Linear(3, 3).weight.array)
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
