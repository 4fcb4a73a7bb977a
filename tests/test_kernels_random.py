"""Counter-based random numbers: are they random, and does dropout obey them?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, layouts, matrices, numbers, same_bits_for_any_threads, seeds

from autograd.kernels.random import dropout, keys, random_bits, uniform

SIZE = 1 << 18


@given(matrices(), st.floats(0, 0.99), seeds, st.data())
def test_dropout_follows_uniform(x, p, seed, data):
    kept = uniform(x.shape, seed) >= p
    out = dropout(data.draw(layouts(x)), p, seed)
    np.testing.assert_array_equal(out != 0, kept & (x != 0))
    np.testing.assert_allclose(out, np.where(kept, x / (1 - p), 0), rtol=4 * np.finfo(x.dtype).eps)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, -1, 123456789])
def test_numbers_are_spread_evenly(seed):
    u = uniform((SIZE,), seed)
    assert u.min() >= 0 and u.max() < 1
    # each count of a fair draw is within five standard deviations of its mean, for coarse and for fine bins
    for bins in (2, 64, 1024):
        counts = np.bincount((u * bins).astype(int), minlength=bins)
        expected = SIZE / bins
        assert abs(counts - expected).max() < 5 * np.sqrt(expected)
    low_bits = (u * 2**32).astype(np.int64) & 0xFF
    assert abs(np.bincount(low_bits, minlength=256) - SIZE / 256).max() < 5 * np.sqrt(SIZE / 256)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**62))
def test_bits_are_the_hash_of_their_position(key0, key1, i):
    """In whole numbers of any length: a run that is resumed on another machine draws the same masks."""
    word = 2**32 - 1
    h = ((i & word) * 0x9E3779B9 + key0) & word
    h = ((h ^ h >> 16) * 0x7FEB352D) & word
    h ^= key1 ^ ((i >> 32) * 0x85EBCA6B & word)
    h = ((h ^ h >> 15) * 0x846CA68B) & word
    h = ((h ^ h >> 13) * 0xC2B2AE35) & word
    assert random_bits(np.uint32(key0), np.uint32(key1), i) == h ^ h >> 16


@pytest.mark.parametrize(("seed", "bits"), [(0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)])
def test_keys_are_the_first_number_of_splitmix64(seed, bits):
    """Numbers that other implementations publish; `seed` counts by its lowest 64 bits."""
    for same in (seed, seed + 2**64, seed - 2**64):
        low, high = keys(same)
        assert int(high) << 32 | int(low) == bits


def correlation(a, b):
    return abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(len(a))  # in standard deviations


@pytest.mark.parametrize("distance", [1, 2, 3, 16, 64, 1000, 1024, 4096, 65536])
def test_neighbours_know_nothing_of_each_other(distance):
    u = uniform((SIZE,), 7)
    assert correlation(u[:-distance], u[distance:]) < 5


@pytest.mark.parametrize("other", [1, 2, 255, 2**16, 2**31, 2**32, 2**32 + 1, 2**40, -1])
def test_seeds_know_nothing_of_each_other(other):
    a, b = uniform((SIZE,), 0), uniform((SIZE,), other)
    assert correlation(a, b) < 5
    assert correlation(a[1:], b[:-1]) < 5
    assert len(np.intersect1d(a[:1000], b[:1000])) < 5


def test_numbers_hardly_repeat():
    # 2**18 draws of 2**32 values coincide about 8 times
    assert SIZE - 40 < len(np.unique(uniform((SIZE,), 3))) <= SIZE


def test_every_position_has_its_number():
    np.testing.assert_array_equal(uniform((6, 7), 5).ravel(), uniform((50,), 5)[:42])


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_probabilities_are_checked(p):
    with pytest.raises(ValueError, match="0 ≤ p < 1"):
        dropout(np.zeros(3, np.float32), p, 0)


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        same_bits_for_any_threads(dropout, numbers((50, 1001), dtype, 0), 0.3, 1)
