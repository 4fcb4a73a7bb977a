"""Attention as the textbooks write it for PyTorch runs here with its import lines changed, and computes the same.

`TEXTBOOK` is run twice: once over torch, once over this project. Only the three names it imports differ.
"""

import types

import numpy as np
import pytest

import autograd as ag
import nn
from nn import functional as F

TEXTBOOK = '''
import math

class CausalSelfAttention(nn.Module):
    """All heads in one fused projection, with the mask as a buffer."""

    def __init__(self, n_embd, n_head, block_size, dropout=0.0):
        super().__init__()
        assert n_embd % n_head == 0
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.attn_dropout = nn.Dropout(dropout)
        self.n_head = n_head
        mask = torch.tril(torch.ones(block_size, block_size))
        self.register_buffer("mask", mask.view(1, 1, block_size, block_size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


class Head(nn.Module):
    """One head with matrices of its own."""

    def __init__(self, n_embd, head_size, block_size):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))

    def forward(self, x):
        B, T, C = x.shape
        wei = self.query(x) @ self.key(x).transpose(-2, -1) * self.key.weight.shape[0] ** -0.5
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        return wei @ self.value(x)


class MultiHead(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd, n_embd // n_head, block_size) for _ in range(n_head)])
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x):
        return self.proj(torch.cat([h(x) for h in self.heads], dim=-1))


class SplitAttention(nn.Module):
    """`split` in place of `chunk`, einsum-free, through scaled_dot_product_attention."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.n_embd, self.n_head = n_embd, n_head

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(self.n_embd, dim=2)
        q, k, v = [t.view(B, T, self.n_head, -1).permute(0, 2, 1, 3) for t in (q, k, v)]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(B, T, C)


class TinyGPT(nn.Module):
    def __init__(self, vocab_size, n_embd, n_head, block_size):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.sa = MultiHead(n_embd, n_head, block_size)
        self.attn = CausalSelfAttention(n_embd, n_head, block_size)
        self.split = SplitAttention(n_embd, n_head)
        self.ffwd = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd),
            nn.GELU(),
            nn.Linear(4 * n_embd, n_embd),
            nn.Dropout(0.0),
        )
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx, targets=None):
        B, T = idx.shape
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(T, device=idx.device))
        x = x + self.sa(self.ln1(x))
        x = x + self.attn(self.ln2(x))
        x = x + self.split(x)
        x = x + self.ffwd(x)
        logits = self.lm_head(x)
        if targets is None:
            return logits, None
        B, T, C = logits.shape
        return logits, F.cross_entropy(logits.view(B * T, C), targets.view(B * T))
'''


def textbook(**names):
    module = types.SimpleNamespace()
    exec(TEXTBOOK, names)
    module.__dict__.update(names)
    return module


ours = textbook(torch=ag, nn=nn, F=F, __name__="ours")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the oracle here")


@pytest.fixture(scope="module")
def theirs(torch):
    return textbook(torch=torch, nn=torch.nn, F=torch.nn.functional, __name__="theirs")


def double(module, rng):
    """float64, with parameters that a generator decides."""
    module.double()
    for name, p in module.named_parameters():
        with ag.no_grad():
            p.copy_(ag.tensor(rng.normal(size=p.shape) * 0.3))
        assert name
    return module


@pytest.mark.parametrize(
    ("name", "args"),
    [("CausalSelfAttention", (12, 3, 9)), ("Head", (12, 5, 9)), ("MultiHead", (12, 3, 9)), ("SplitAttention", (12, 3))],
)
def test_attention_matches_torch(torch, theirs, name, args):
    rng = np.random.default_rng(0)
    a = double(getattr(ours, name)(*args), rng)
    b = getattr(theirs, name)(*args).double()
    b.load_state_dict({k: torch.tensor(np.array(v)) for k, v in a.state_dict().items()})
    x = rng.normal(size=(2, 7, 12))
    xa, xb = ag.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    ya, yb = a(xa), b(xb)
    np.testing.assert_allclose(ya.detach().numpy(), yb.detach().numpy(), rtol=1e-10, atol=1e-12)
    dout = rng.normal(size=ya.shape)
    ya.backward(ag.tensor(dout))
    yb.backward(torch.tensor(dout))
    np.testing.assert_allclose(xa.grad.numpy(), xb.grad.numpy(), rtol=1e-9, atol=1e-11)
    for (key, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-9, atol=1e-11, err_msg=key)


def test_a_whole_gpt_trains_in_step_with_torch(torch, theirs):
    rng = np.random.default_rng(1)
    a = double(ours.TinyGPT(11, 12, 3, 9), rng)
    b = theirs.TinyGPT(11, 12, 3, 9).double()
    b.load_state_dict({k: torch.tensor(np.array(v)) for k, v in a.state_dict().items()})
    step_a = nn.AdamW([{"params": a.parameters()}], lr=0.01, weight_decay=0.1)
    step_b = torch.optim.AdamW(b.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(5):
        idx, targets = rng.integers(0, 11, (2, 3, 7))
        losses = []
        for model, step, tensor in ((a, step_a, ag.tensor), (b, step_b, torch.tensor)):
            _, loss = model(tensor(idx), tensor(targets))
            step.zero_grad(set_to_none=True)
            loss.backward()
            step.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_runs_without_torch():
    """The same in float32, so that a machine without the oracle still sees it run."""
    model = ours.TinyGPT(11, 12, 3, 9)
    idx = ag.tensor(np.random.default_rng(0).integers(0, 11, (2, 9)))
    logits, none = model(idx)
    assert logits.shape == (2, 9, 11)
    assert none is None
    _, loss = model(idx, idx)
    loss.backward()
    assert all(p.grad is not None and np.isfinite(p.grad.array).all() for p in model.parameters())
    later = idx.array.copy()
    later[:, 5:] = 0
    np.testing.assert_allclose(model(later)[0].array[:, :5], logits.array[:, :5], rtol=1e-5, atol=1e-6)
