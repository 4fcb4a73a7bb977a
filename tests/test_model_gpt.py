"""GPT against a PyTorch reference written here: logits, loss, and every gradient of one step, for both styles."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_model_config import configs

import autograd as ag
import nn
from model import GPT, GPTConfig

GPT2 = {"bias": True, "gelu": "tanh"}
LLAMA = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 2, "tie_embeddings": False}
STYLES = {
    "gpt2": GPT2,
    "gpt2 without biases, exact gelu": {"gelu": "exact"},
    "llama": LLAMA,
    "llama, tied": {**LLAMA, "tie_embeddings": True, "n_kv_head": 1},
    "rope with layernorm and biases": {"position": "rope", "bias": True, "rope_theta": 100.0},
    "learned with rmsnorm and swiglu": {"norm": "rmsnorm", "mlp": "swiglu", "mlp_hidden": 20, "norm_eps": 1e-3},
}


def build(style, **changes):
    small = {"n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": 16, "vocab_size": 33}
    return GPTConfig(**{**small, **style, **changes})


def scramble(gpt, seed=0):
    """Weights large enough for every part to matter, norms and biases included."""
    rng = np.random.default_rng(seed)
    for p in gpt.parameters():
        p.mutate()[...] = p.array * 4 + rng.normal(size=p.shape) * 0.1
    return gpt


def reference(torch, config, w, idx, targets):
    """The model as its papers describe it, in PyTorch's primitives; w: name → tensor."""

    def norm(x, name):
        scale, shift = w[f"{name}.weight"], w.get(f"{name}.bias", 0)
        if config.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * scale + shift

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def rotate(x):  # (B, H, T, D)
        T, D = x.shape[-2:]
        angle = torch.arange(T, dtype=torch.float64)[:, None] * config.rope_theta ** (
            -torch.arange(0, D, 2, dtype=torch.float64) / D
        )
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., : D // 2], x[..., D // 2 :]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def gelu(x):
        if config.gelu == "exact":
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    B, T = idx.shape
    H, K, D = config.n_head, config.kv_heads, config.head_size
    x = w["token_embedding.weight"][idx]
    if config.position == "learned":
        x = x + w["position_embedding.weight"][:T]
    for i in range(config.n_layer):
        block = f"blocks.{i}"
        qkv = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv")
        q, k, v = qkv.view(B, T, H + 2 * K, D).transpose(1, 2).split([H, K, K], 1)
        if config.position == "rope":
            q, k = rotate(q), rotate(k)
        k, v = k.repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(D)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, H * D)
        x = x + linear(y, f"{block}.attention.out")
        h = norm(x, f"{block}.mlp_norm")
        if config.mlp == "gelu":
            h = gelu(linear(h, f"{block}.mlp.up"))
        else:
            gate = linear(h, f"{block}.mlp.gate")
            h = gate * torch.sigmoid(gate) * linear(h, f"{block}.mlp.up")
        x = x + linear(h, f"{block}.mlp.down")
    x = norm(x, "norm")
    logits = x @ w["token_embedding.weight" if config.tie_embeddings else "head.weight"].T
    kept = targets != -100
    losses = logits.logsumexp(-1) - logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return logits, losses[kept].mean()


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-9)])
@pytest.mark.parametrize("fused", [True, False], ids=["fused loss", "with logits"])
@pytest.mark.parametrize("style", STYLES)
def test_one_step_matches_pytorch(style, fused, dtype, tolerance):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    config = build(STYLES[style])
    gpt = scramble(GPT(config).to(dtype))
    rng = np.random.default_rng(1)
    idx, targets = rng.integers(0, config.vocab_size, (2, 3, 13))
    targets[0, :4] = -100

    w = {name: torch.tensor(np.array(p.array), requires_grad=True) for name, p in gpt.named_parameters()}
    their_logits, their_loss = reference(torch, config, w, torch.tensor(idx), torch.tensor(targets))
    their_loss.backward()

    logits, loss = gpt(idx, targets, with_logits=not fused)
    assert (logits is None) == fused
    loss.backward()
    for ours in [gpt(idx)[0]] + ([] if fused else [logits]):
        assert ours.dtype == dtype
        assert relative(ours.detach().numpy(), their_logits.detach().numpy()) < tolerance
    assert abs(loss.item() / their_loss.item() - 1) < tolerance
    for name, p in gpt.named_parameters():
        assert p.grad.dtype == dtype
        assert relative(p.grad.numpy(), w[name].grad.numpy()) < tolerance, name


def loss_and_gradients(gpt, idx, targets, seed):
    ag.manual_seed(seed)
    gpt.zero_grad()
    _, loss = gpt(idx, targets)
    loss.backward()
    return {"loss": loss.item()} | {name: p.grad.array for name, p in gpt.named_parameters()}


@given(configs(max_layers=2), st.sampled_from([0.0, 0.3]), st.integers(0, 2**32 - 1))
def test_plain_definitions_and_checkpointing_change_nothing(config, dropout, seed):
    """The same loss and gradients, the same elements dropped."""
    gpt = scramble(GPT(dataclasses.replace(config, dropout=dropout)).double(), seed)
    batch = np.random.default_rng(seed).integers(0, config.vocab_size, (2, 2, config.block_size))
    fused = loss_and_gradients(gpt, *batch, seed)
    with ag.plain():
        plain = loss_and_gradients(gpt, *batch, seed)
    for block in gpt.blocks:
        block.forward = functools.partial(ag.checkpoint, block.forward)
    checkpointed = loss_and_gradients(gpt, *batch, seed)
    for name, expected in fused.items():
        np.testing.assert_allclose(plain[name], expected, rtol=1e-7, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(checkpointed[name], expected, rtol=1e-12, atol=1e-14, err_msg=name)


@given(configs(), st.integers(0, 2**32 - 1))
def test_the_past_does_not_know_the_future(config, seed):
    gpt = scramble(GPT(config), seed)
    rng = np.random.default_rng(seed)
    T = config.block_size
    idx = rng.integers(0, config.vocab_size, (1, T))
    cut = rng.integers(0, T)
    other = idx.copy()
    other[:, cut:] = rng.integers(0, config.vocab_size, (1, T - cut))
    a, b = gpt(idx)[0].detach().numpy(), gpt(other)[0].detach().numpy()
    np.testing.assert_allclose(a[:, :cut], b[:, :cut], rtol=1e-4, atol=1e-4)


def test_initial_weights():
    ag.manual_seed(0)
    config = build(LLAMA, n_embd=128, n_layer=8, vocab_size=500)
    gpt = GPT(config)
    for name, p in gpt.named_parameters():
        if p.ndim == 2:
            std = 0.02 / math.sqrt(2 * 8) if name.endswith(("attention.out.weight", "mlp.down.weight")) else 0.02
            assert p.array.std() == pytest.approx(std, rel=0.05), name
            assert abs(p.array.mean()) < std / 10, name
        else:
            assert (p.array == 1).all(), name
    assert not any(p.array.any() for n, p in GPT(build(GPT2)).named_parameters() if n.endswith("bias"))
    ag.manual_seed(0)
    for a, b in zip(GPT(config).parameters(), gpt.parameters(), strict=True):
        np.testing.assert_array_equal(a.array, b.array)
    loss = gpt(*np.random.default_rng(0).integers(0, 500, (2, 16, 16)))[1].item()
    assert loss == pytest.approx(math.log(500), rel=0.02)  # knows nothing yet: as good as guessing


def test_dropout_only_in_training():
    gpt = GPT(build(GPT2, dropout=0.5))
    idx = np.arange(10)[None]
    assert not np.array_equal(gpt(idx)[0].array, gpt(idx)[0].array)
    ag.manual_seed(3)
    first = gpt(idx)[0].array
    ag.manual_seed(3)
    np.testing.assert_array_equal(gpt(idx)[0].array, first)
    gpt.eval()
    np.testing.assert_array_equal(gpt(idx)[0].array, gpt(idx)[0].array)


def test_shapes():
    gpt = GPT(build(LLAMA))
    idx = np.arange(6)
    logits, loss = gpt(idx)
    assert (logits.shape, loss) == ((6, 33), None)
    batch, loss = gpt(idx[None], idx[None], with_logits=True)
    assert (batch.shape, loss.shape) == ((1, 6, 33), ())
    np.testing.assert_allclose(batch.array[0], logits.array, rtol=1e-5)
    assert gpt(ag.tensor(idx.astype(np.int32)), idx)[1].item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("idx", "targets", "error", "message"),
    [
        (np.zeros((1, 17), int), None, ValueError, "17 tokens are more than the block_size of 16"),
        (np.array([[0, 33]]), None, IndexError, "ids from 0 to 32"),
        (np.array([[-1, 3]]), None, IndexError, "got -1 … 3"),
        (np.array([[0.0]]), None, ValueError, "must be integers, got an array of float64"),
        (np.zeros((1, 0), int), None, ValueError, "at least one token"),
        (np.zeros((1, 1, 1), int), None, ValueError, r"must be \(B, T\)"),
        (np.zeros((1, 2), int), np.zeros((1, 3), int), ValueError, "targets must have the shape of idx"),
        (np.zeros((1, 2), int), np.array([[0, 33]]), IndexError, "targets must be ids from 0 to 32"),
    ],
)
def test_bad_input(idx, targets, error, message):
    with pytest.raises(error, match=message):
        GPT(build(GPT2))(idx, targets)


@pytest.mark.parametrize("style", [{**GPT2, "dropout": 0.1}, LLAMA], ids=["gpt2", "llama"])
def test_learns_by_heart_and_recites(style):
    """The whole of it together: forward, backward, optimizer, writing."""
    ag.manual_seed(0)
    gpt = GPT(build(style, n_embd=32, vocab_size=16))
    text = np.random.default_rng(0).permutation(16)
    optimizer = nn.AdamW(gpt, lr=1e-2, betas=(0.9, 0.95))
    for _ in range(60):
        _, loss = gpt(text[None, :-1], text[None, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert gpt.generate(text[:1], 15, temperature=0).tolist() == text.tolist()


@pytest.mark.parametrize("style", STYLES)
def test_directional_derivative(style):
    """Without an oracle: the slope of the loss along random directions, dropout included, is gradient · direction."""
    gpt = scramble(GPT(build(STYLES[style], dropout=0.2)).double())
    rng = np.random.default_rng(2)
    idx, targets = rng.integers(0, 33, (2, 2, 9))
    gradients = loss_and_gradients(gpt, idx, targets, seed=4)
    start = {name: p.array.copy() for name, p in gpt.named_parameters()}
    for _ in range(3):
        direction = {name: rng.normal(size=value.shape) for name, value in start.items()}

        def loss(distance, direction=direction):
            for name, p in gpt.named_parameters():
                p.mutate()[...] = start[name] + distance * direction[name]
            return loss_and_gradients(gpt, idx, targets, seed=4)["loss"]

        def slope(eps, loss=loss):
            return (loss(eps) - loss(-eps)) / (2 * eps)

        expected = sum((gradients[name] * direction[name]).sum() for name in start)
        richardson = (4 * slope(1e-6) - slope(2e-6)) / 3
        assert richardson == pytest.approx(expected, rel=1e-7, abs=1e-7)
