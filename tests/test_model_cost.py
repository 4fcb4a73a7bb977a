"""What a model costs is counted from its shape; here it is held against a model that runs."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd.kernels.attention import attention, attention_backward
from autograd.kernels.bfloat16 import amx_available
from autograd.kernels.matmul import matmul, multiply_with
from model import GPT, GPTConfig, presets
from model.cost import flops_per_token, forward_flops_per_token, memory, parameters
from nn.optim import AdamW

needs_amx = pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")


@st.composite
def configs(draw, widths=(8, 16), layers=(1, 3)):
    """Small models of every kind."""
    n_head = draw(st.sampled_from([1, 2, 4]))
    return GPTConfig(
        n_layer=draw(st.integers(*layers)),
        n_head=n_head,
        n_kv_head=draw(st.sampled_from([None, *(k for k in (1, 2, 4) if n_head % k == 0)])),
        n_embd=n_head * draw(st.sampled_from(widths)),
        block_size=draw(st.integers(1, 70)),
        vocab_size=draw(st.sampled_from([3, 65, 300])),
        bias=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.2])),
        position=draw(st.sampled_from(["learned", "rope"])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        mlp=draw(st.sampled_from(["gelu", "swiglu"])),
        mlp_hidden=draw(st.sampled_from([None, 24])),
        tie_embeddings=draw(st.booleans()),
    )


def batch(config, batch_size):
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, config.block_size + 1))
    return ids[:, :-1], ids[:, 1:]


@given(configs())
def test_parameters_are_those_of_the_model(config):
    assert sum(parameters(config).values()) == sum(p.array.size for p in GPT(config).parameters())


@settings(deadline=None, max_examples=25)
@given(configs(), st.integers(1, 3))
def test_flops_are_those_of_the_products_that_are_computed(config, batch_size):
    """Every call of matmul is counted while a step runs; attention, which calls none, by its own formula."""
    counted = {"forward": 0, "backward": 0}
    phase = "forward"

    def counting_matmul(a, b, **options):
        counted[phase] += 2 * a.shape[-2] * a.shape[-1] * b.shape[-1] * int(np.prod(a.shape[:-2]))
        return matmul(a, b, **options)

    def counting_multiply_with(product, a, b, *rest, **options):
        counted[phase] += 2 * a.shape[-2] * a.shape[-1] * b.shape[-1]
        return multiply_with(product, a, b, *rest, **options)

    def head_products(q):  # of one product of the scores' size, q (B, H, T, D): the causal half
        B, H, T, D = q.shape
        return 2 * B * H * T * (T + 1) // 2 * D

    def counting_attention(q, k, v, **options):
        counted["forward"] += 2 * head_products(q)  # q kᵀ and weights · v
        return attention(q, k, v, **options)

    def counting_attention_backward(dout, q, *rest, **options):
        counted["backward"] += 4 * head_products(q)  # dq, dk, dv, dweights; not the scores that are made again
        return attention_backward(dout, q, *rest, **options)

    model = GPT(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autograd.kernels.matmul.matmul", counting_matmul)
        patch.setattr("autograd.kernels.cross_entropy.matmul", counting_matmul)
        patch.setattr("autograd.kernels.mlp.matmul", counting_matmul)
        patch.setattr("autograd.kernels.mlp.multiply_with", counting_multiply_with)
        patch.setattr("autograd.kernels.multi_head.matmul", counting_matmul)
        patch.setattr("autograd.kernels.multi_head.attention", counting_attention)
        patch.setattr("autograd.kernels.multi_head.attention_backward", counting_attention_backward)
        model.eval()
        with ag.no_grad():
            model(*batch(config, batch_size))
        tokens = batch_size * config.block_size
        assert counted["forward"] == pytest.approx(tokens * forward_flops_per_token(config), rel=1e-9)
        counted["forward"] = 0
        model.train()
        _, loss = model(*batch(config, batch_size))
        phase = "backward"
        loss.backward()
    assert sum(counted.values()) == pytest.approx(tokens * flops_per_token(config), rel=1e-9)


def test_attention_grows_with_the_context():
    gpt2 = presets["gpt2"]
    short, long = flops_per_token(gpt2, 128), flops_per_token(gpt2, 1024)
    assert long - short == 3 * 4 * gpt2.n_layer * gpt2.n_embd * (1024 - 128) / 2
    assert flops_per_token(gpt2) == long


LLAMA = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu"}


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_amx)])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("config", "batch_size"),
    [
        (GPTConfig(), 12),
        (GPTConfig(dropout=0.1, bias=True), 6),
        (GPTConfig(n_embd=192, n_head=6, n_kv_head=2, block_size=128, vocab_size=1024, **LLAMA), 8),
        (GPTConfig(n_embd=192, vocab_size=8192, block_size=32, **LLAMA), 1),  # nearly all of it parameters
        (GPTConfig(n_embd=192, vocab_size=8192, block_size=32, tie_embeddings=False, n_layer=1), 4),
    ],
    ids=["tiny", "dropout", "llama", "vocabulary", "untied"],
)
def test_memory_is_what_a_step_takes(config, batch_size, accumulation, precision):
    """NumPy tells tracemalloc of every array. The figure may be wrong by a few percent, not by an array."""
    model = GPT(config)
    optimizer = AdamW(model.parameters())
    weights = sum(p.array.nbytes for p in model.parameters())
    inputs, targets = batch(config, batch_size)

    def step():
        optimizer.zero_grad()
        with ag.matmul_precision(precision):
            for _ in range(accumulation):
                _, loss = model(inputs, targets)
                (loss / accumulation).backward()
        optimizer.step()

    step()  # the moments come into being, and the kernels' workspaces
    optimizer.zero_grad()
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1] + 3 * weights  # weights and moments were there before
    tracemalloc.stop()
    planned = memory(config, batch_size, accumulation, narrow=precision == "bfloat16")
    assert planned.peak == pytest.approx(peak, rel=0.05)
    assert (planned.parameters, planned.gradients, planned.moments) == (weights, weights, 2 * weights)
