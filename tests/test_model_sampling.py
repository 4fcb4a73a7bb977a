"""Sampling: properties of the distributions, and that draws follow them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from model.sampling import keep_top_k, keep_top_p, probabilities, sample

tenths = st.integers(-300, 300).map(lambda tenth: tenth / 10)  # coarse, so that ties are common
logits_arrays = arrays(np.float64, array_shapes(min_dims=1, max_dims=2, max_side=12), elements=tenths)


@given(logits_arrays, st.floats(0.05, 5), st.integers(1, 12), st.floats(0.01, 1))
def test_is_a_distribution_that_keeps_order(logits, temperature, k, p):
    out = probabilities(logits, temperature=temperature, top_k=k, top_p=p)
    assert out.shape == logits.shape
    np.testing.assert_allclose(out.sum(-1), 1, rtol=1e-12)
    ranked = np.take_along_axis(out, np.argsort(-logits, -1, kind="stable"), -1)
    assert (np.diff(ranked, axis=-1) <= 1e-12).all()
    assert (np.take_along_axis(out, logits.argmax(-1)[..., None], -1) > 0).all()


@given(logits_arrays, st.integers(1, 12))
def test_top_k_keeps_exactly_those_no_smaller_than_the_kth(logits, k):
    kept = np.isfinite(keep_top_k(logits, k))
    larger = (logits[..., None, :] > logits[..., :, None]).sum(-1)  # how many are larger than each
    np.testing.assert_array_equal(kept, larger < k)


@given(logits_arrays, st.floats(0.01, 0.999))
def test_top_p_is_the_smallest_nucleus(logits, p):
    full = probabilities(logits)
    kept = np.isfinite(keep_top_p(logits, p))
    for row, keep in zip(full.reshape(-1, full.shape[-1]), kept.reshape(-1, full.shape[-1]), strict=True):
        inside = np.sort(row[keep])[::-1]
        assert inside.sum() >= p - 1e-9  # enough
        assert inside[:-1].sum() < p + 1e-9  # and without the last, not enough
        assert not (~keep).any() or row[~keep].max() <= inside[-1] + 1e-12


@given(logits_arrays, st.integers(0, 100))
def test_greedy_and_its_limits(logits, seed):
    rng = np.random.default_rng(seed)
    best = logits.argmax(-1)
    np.testing.assert_array_equal(sample(logits, rng, temperature=0), best)
    distinct = logits + np.arange(logits.shape[-1]) * 1e-3
    np.testing.assert_array_equal(sample(distinct, rng, temperature=1e-300), distinct.argmax(-1))
    np.testing.assert_array_equal(sample(distinct, rng, top_k=1), distinct.argmax(-1))
    np.testing.assert_array_equal(sample(distinct, rng, top_p=1e-9), distinct.argmax(-1))


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1]))
    n = 40_000
    for settings in ({}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.8}):
        p = probabilities(logits, **settings)
        ids = sample(np.tile(logits, (n, 1)), np.random.default_rng(0), **settings)
        counts = np.bincount(ids, minlength=4)
        assert (counts[p == 0] == 0).all()
        np.testing.assert_allclose(counts / n, p, atol=5 * 0.5 / np.sqrt(n))


def test_same_seed_same_draws_in_any_precision():
    logits = np.random.default_rng(1).normal(size=(50, 20)).astype(np.float32)
    draws = [sample(x, np.random.default_rng(7)) for x in (logits, logits.astype(np.float64))]
    np.testing.assert_array_equal(*draws)
    assert draws[0].dtype == np.int64


def test_matches_the_filters_of_transformers():
    torch = pytest.importorskip("torch", reason="PyTorch is an oracle here")
    transformers = pytest.importorskip("transformers", reason="transformers is an oracle here")
    logits = np.random.default_rng(0).normal(size=(8, 50)) * 3
    for k, p in ((5, 1.0), (50, 0.7), (9, 0.6)):
        scores = transformers.TopKLogitsWarper(k)(None, torch.tensor(logits / 0.8))
        scores = transformers.TopPLogitsWarper(p)(None, scores)
        ours = probabilities(logits, temperature=0.8, top_k=k, top_p=p)
        np.testing.assert_allclose(ours, scores.softmax(-1).numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"temperature": float("inf")}, {"temperature": float("nan")}, {"top_k": 0}, {"top_k": 1.5},
     {"top_p": 0}, {"top_p": 1.1}],
)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        sample(np.zeros(3), np.random.default_rng(0), **settings)


def test_nan_logits_are_refused():
    with pytest.raises(FloatingPointError, match="NaN"):
        sample(np.array([0.0, np.nan]), np.random.default_rng(0))
