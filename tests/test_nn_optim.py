"""Optimizers and clipping: against torch.optim, against their formulas, and their bookkeeping."""

import copy
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nn
from model import GPT, GPTConfig
from nn.optim import clip_scale

SHAPES = [(3, 4), (5,), (), (1, 1)]


def run_ours(make, dtype, steps=12):
    rng = np.random.default_rng(0)
    params = [nn.Parameter(rng.normal(size=shape).astype(dtype)) for shape in SHAPES]
    optimizer = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = rng.normal(size=p.shape).astype(dtype)
        optimizer.step()
    return [p.array.copy() for p in params]


def run_torch(torch, make, dtype, steps=12):
    rng = np.random.default_rng(0)
    params = [torch.tensor(rng.normal(size=shape).astype(dtype), requires_grad=True) for shape in SHAPES]
    optimizer = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.tensor(rng.normal(size=tuple(p.shape)).astype(dtype))
        optimizer.step()
    return [p.detach().numpy() for p in params]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2}),
        ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
        ("AdamW", {"lr": 0.01}),
        ("AdamW", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
        ("AdamW", {"lr": 0.1, "betas": (0.0, 0.0), "weight_decay": 0.0}),
    ],
)
def test_matches_torch(name, options, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    ours = run_ours(lambda params: getattr(nn, name)(params, **options), dtype)
    theirs = run_torch(torch, lambda params: getattr(torch.optim, name)(params, **options), dtype)
    tolerance = {"rtol": 2e-5, "atol": 2e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-13}
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@given(
    lr=st.floats(1e-4, 1), beta1=st.floats(0, 0.99), beta2=st.floats(0, 0.999), eps=st.floats(1e-8, 1e-2),
    decay=st.floats(0, 1), steps=st.integers(1, 6),
)  # fmt: skip
def test_adamw_is_its_formula(lr, beta1, beta2, eps, decay, steps):
    rng = np.random.default_rng(steps)
    p = nn.Parameter(rng.normal(size=(2, 3)))
    theta, m, v = p.array.copy(), 0, 0
    optimizer = nn.AdamW([p], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    for t in range(1, steps + 1):
        g = rng.normal(size=(2, 3))
        p.grad = g
        optimizer.step(grad_scale=0.5)
        g = 0.5 * g
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        theta = theta - lr * (m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps) + decay * theta)
    np.testing.assert_allclose(p.array, theta, rtol=1e-10, atol=1e-12)


def test_decay_spares_norms_biases_and_embeddings():
    gpt2, llama = GPTConfig(n_layer=1, bias=True), GPTConfig.preset("toy", n_layer=1, tie_embeddings=False)
    for config in (gpt2, llama):
        gpt = GPT(config)
        decayed, others = nn.decay_groups(gpt, 0.1)
        names = {id(p): name for name, p in gpt.named_parameters()}
        decayed_names = {names[id(p)] for p in decayed["params"]}
        other_names = {names[id(p)] for p in others["params"]}
        assert decayed_names == {n for n in names.values() if not n.endswith("bias") and not re.search("norm|embed", n)}
        assert decayed_names | other_names == set(names.values())
        assert decayed_names
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)

        before = {name: p.array.copy() for name, p in gpt.named_parameters()}
        optimizer = nn.AdamW(gpt.parameters(), lr=0.5, weight_decay=0.1)
        for p in gpt.parameters():
            p.grad = np.zeros(p.shape, p.dtype)
        optimizer.step()
        for name, p in gpt.named_parameters():
            factor = 0.95 if name in decayed_names else 1.0
            np.testing.assert_allclose(p.array, before[name] * np.float32(factor), rtol=1e-6)


def test_groups_are_taken_as_they_are():
    norm = nn.LayerNorm(3)
    optimizer = nn.AdamW([{"params": norm.parameters()}], lr=0.5, weight_decay=0.1)
    norm.weight.grad = np.zeros(3, np.float32)
    optimizer.step()
    np.testing.assert_allclose(norm.weight.array, 0.95)


def test_parameters_without_gradient_stay():
    a, b = nn.Parameter([1.0, 2.0]), nn.Parameter([3.0])
    for make in (nn.SGD, nn.AdamW):
        optimizer = make([a, b], lr=0.1)
        a.grad = np.ones(2, np.float32)
        before = b.array.copy()
        optimizer.step()
        np.testing.assert_array_equal(b.array, before)
        assert b not in optimizer.state
        optimizer.zero_grad()
        assert a.grad is None


@pytest.mark.parametrize("make", [lambda ps: nn.AdamW(ps, lr=0.1), lambda ps: nn.SGD(ps, lr=0.1, momentum=0.9)])
def test_state_dict_resumes_to_the_bit(make):
    rng = np.random.default_rng(3)
    gradients = [[rng.normal(size=s).astype(np.float32) for s in SHAPES] for _ in range(6)]

    def params():
        return [nn.Parameter(np.ones(s, np.float32)) for s in SHAPES]

    def go(ps, optimizer, some):
        for gs in some:
            for p, g in zip(ps, gs, strict=True):
                p.grad = g
            optimizer.step()

    straight = params()
    go(straight, make(straight), gradients)
    first = params()
    optimizer = make(first)
    go(first, optimizer, gradients[:3])
    saved = copy.deepcopy(optimizer.state_dict())
    second = [nn.Parameter(p.array) for p in first]
    resumed = make(second)
    resumed.load_state_dict(saved)
    go(second, resumed, gradients[3:])
    for a, b in zip(straight, second, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_load_state_dict_refuses_what_does_not_fit():
    p = nn.Parameter([1.0, 2.0])
    p.grad = np.ones(2, np.float32)
    optimizer = nn.AdamW([p])
    optimizer.step()
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"groups of \[2\]"):
        nn.AdamW([nn.Parameter([1.0]), nn.Parameter([1.0])]).load_state_dict(state)
    with pytest.raises(ValueError, match="shape"):
        nn.AdamW([nn.Parameter([1.0])]).load_state_dict(state)


def test_bad_settings():
    p = nn.Parameter([1.0])
    for make, message in [
        (lambda: nn.AdamW([p], lr=-1), "lr must be at least 0"),
        (lambda: nn.AdamW([p], lr=math.nan), "lr must be at least 0"),
        (lambda: nn.AdamW([p], betas=(0.9, 1.0)), "betas"),
        (lambda: nn.SGD([p], nesterov=True), "nesterov needs momentum"),
        (lambda: nn.SGD([]), "needs parameters"),
        (lambda: nn.SGD([p, p]), "twice"),
        (lambda: nn.SGD([{"params": [p], "speed": 1}]), 'no setting "speed"'),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.floats(0.01, 100))
def test_clipping_shortens_and_keeps_direction(values, max_norm):
    params = [nn.Parameter(np.zeros(1)) for _ in values]
    for p, g in zip(params, values, strict=True):
        p.grad = np.array([g])
    norm = nn.clip_grad_norm_(params, max_norm)
    assert norm == pytest.approx(math.hypot(*values))
    after = np.array([p.grad.item() for p in params])
    assert np.linalg.norm(after) <= max_norm * (1 + 1e-12)
    np.testing.assert_allclose(after, np.array(values) * clip_scale(norm, max_norm), rtol=1e-12)
    if norm < max_norm * 0.999:
        np.testing.assert_array_equal(after, values)


def test_clipping_like_torch_and_non_finite():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    g = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32) * 5
    p, q = nn.Parameter(np.zeros((7, 9), np.float32)), torch.zeros(7, 9, requires_grad=True)
    p.grad, q.grad = g, torch.tensor(g)
    assert nn.clip_grad_norm_(p, 1.0) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(q, 1.0)), rel=1e-6)
    np.testing.assert_allclose(p.grad.array, q.grad.numpy(), rtol=1e-6)
    p.grad = np.full((7, 9), np.nan, np.float32)
    assert math.isnan(nn.clip_grad_norm_([p], 1.0))
    with pytest.raises(FloatingPointError, match="detect_anomaly"):
        nn.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
