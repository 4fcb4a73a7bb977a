"""The cache gives the logits of the full forward pass; what is written follows prompt, seed and settings."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_model_config import configs
from test_model_gpt import GPT2, LLAMA, build, scramble

import autograd as ag
from model import GPT
from model.sampling import sample


@given(configs(), st.integers(1, 3), st.data())
def test_cached_logits_are_those_of_the_full_forward(config, batch, data):
    gpt = scramble(GPT(config).double(), 0).eval()
    T = config.block_size
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1)))) if T > 1 else []
    idx = np.random.default_rng(T).integers(0, config.vocab_size, (batch, T))
    full = gpt(idx)[0].detach().numpy()
    cache = gpt.make_cache(batch)
    parts = [gpt(idx[:, a:b], cache=cache)[0].detach().numpy() for a, b in itertools.pairwise([0, *cuts, T])]
    np.testing.assert_allclose(np.concatenate(parts, 1), full, rtol=1e-9, atol=1e-11)
    assert cache[0].length == T
    with pytest.raises(ValueError, match="block_size"):
        gpt(idx[:, :1], cache=cache)


def slow(gpt, prompt, count, seed, **how):
    """Writing without a cache: read the last block_size tokens for each new one."""
    rng, text = np.random.default_rng(seed), np.array(prompt)
    for _ in range(count):
        logits = gpt(text[:, -gpt.config.block_size :])[0].detach().numpy()[:, -1]
        text = np.concatenate([text, sample(logits, rng, **how)[:, None]], 1)
    return text


@given(
    configs(),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(0, 20),
    st.sampled_from([{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}]),
)
def test_writes_what_the_uncached_model_would(config, batch, length, count, how):
    """Prompts longer than the context and texts that outgrow it included."""
    gpt = scramble(GPT(config).double(), 1).eval()
    prompt = np.random.default_rng(length).integers(0, config.vocab_size, (batch, length))
    text = gpt.generate(prompt, count, seed=5, **how)
    assert text.dtype == np.int64
    np.testing.assert_array_equal(text, slow(gpt, prompt, count, 5, **how))


@pytest.mark.parametrize("style", [GPT2, LLAMA])
def test_stream_is_generate_one_by_one(style):
    gpt = scramble(GPT(build(style)))
    prompt = np.array([1, 2, 3])
    text = gpt.generate(prompt, 30, seed=1, temperature=2.0)
    assert text.shape == (33,)
    assert list(gpt.stream(prompt, 30, seed=1, temperature=2.0)) == text[3:].tolist()
    assert list(gpt.stream(ag.tensor([1, 2, 3]), 2, seed=1, temperature=2.0)) == text[3:5].tolist()
    assert not np.array_equal(gpt.generate(prompt, 30, seed=2, temperature=2.0), text)
    assert gpt.generate(prompt, 0).tolist() == [1, 2, 3]


def test_stops_after_the_stop_token():
    gpt = scramble(GPT(build(GPT2, vocab_size=4)))
    prompt = np.array([[0], [1], [2], [3]])
    free = gpt.generate(prompt, 40, seed=0, temperature=3.0)
    ended = gpt.generate(prompt, 40, seed=0, temperature=3.0, stop_id=2)
    firsts = [(row[1:] == 2).argmax() + 1 for row in free]
    assert len(set(firsts)) > 1, "rows should end at different times for this test to mean something"
    assert ended.shape[1] == max(firsts) + 1
    for row, all_of_it in zip(ended, free, strict=True):
        np.testing.assert_array_equal(row[: min(firsts) + 1], all_of_it[: min(firsts) + 1])
        assert (row[1:] == 2).argmax() + 1 >= min(firsts)
        stop = (row[1:] == 2).argmax() + 1
        assert (row[stop:] == 2).all()
    one = list(gpt.stream(prompt[0], 40, seed=0, temperature=3.0, stop_id=2))
    assert one[-1] == 2
    assert 2 not in one[:-1]


def test_leaves_the_model_as_it_was():
    gpt = GPT(build(GPT2, dropout=0.5))
    gpt.blocks[0].eval()
    modes = [m.training for m in gpt.modules()]
    stream = gpt.stream([1, 2], 5, seed=0)
    next(stream)
    assert [m.training for m in gpt.modules()] == modes
    _, loss = gpt(np.array([[1, 2]]), np.array([[2, 3]]))
    loss.backward()
    assert gpt.generate([1, 2], 5, seed=0).tolist() == gpt.generate([1, 2], 5, seed=0).tolist()
    assert [m.training for m in gpt.modules()] == modes


def test_bad_input_is_refused_before_the_first_token():
    gpt = GPT(build(GPT2))
    for call, error, message in [
        (lambda: gpt.stream([], 3), ValueError, "prompt is empty"),
        (lambda: gpt.stream([[1, 2]], 3), ValueError, "one prompt"),
        (lambda: gpt.stream([1], -1), ValueError, "max_new_tokens"),
        (lambda: gpt.stream([1], 3, temperature=-1), ValueError, "temperature"),
        (lambda: gpt.stream([1], 3, top_k=0), ValueError, "top_k"),
        (lambda: gpt.generate([99], 3), IndexError, "ids from 0 to 32"),
        (lambda: gpt.generate([0.5], 0), ValueError, "integers"),
        (lambda: gpt.generate([[[1]]], 3), ValueError, r"got shape \(1, 1, 1\)"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_a_cache_is_not_for_training():
    gpt = GPT(build(LLAMA))
    idx = np.array([[1, 2]])
    with pytest.raises(ValueError, match="leave it out to compute a loss"):
        gpt(idx, idx, cache=gpt.make_cache())
    assert not gpt(idx, cache=gpt.make_cache())[0].requires_grad
    assert gpt(idx)[0].requires_grad


def test_a_cache_of_another_size_is_refused():
    gpt = GPT(build(GPT2))
    with pytest.raises(ValueError, match="batch of 1"):
        gpt(np.zeros((2, 3), int), cache=gpt.make_cache(1))
    with pytest.raises(ValueError, match="2 positions"):
        gpt(np.zeros((1, 3), int), cache=gpt.make_cache(1, capacity=2))
