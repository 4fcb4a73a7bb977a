"""softmax and log_softmax against their definitions in higher precision."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, dtypes, layouts, matrices, numbers, precise, same_bits_for_any_threads, seeds

from autograd.kernels.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward


def exact_log_softmax(x):
    shifted = x - x.max(axis=-1, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@given(matrices())
def test_forward(x):
    expected = exact_log_softmax(precise(x))
    check(softmax(x), np.exp(expected), 8)
    check(log_softmax(x), expected, 4, scale=1 + abs(expected).max(axis=-1, keepdims=True, initial=0))


@given(matrices(), seeds, st.data())
def test_backward(x, seed, data):
    dout = data.draw(layouts(numbers(x.shape, x.dtype, seed)))
    p, d = np.exp(exact_log_softmax(precise(x))), precise(dout)
    size = 1 + abs(d).sum(axis=-1, keepdims=True)
    check(softmax_backward(dout, softmax(x)), p * (d - (d * p).sum(axis=-1, keepdims=True)), 16, scale=size)
    spread = 1 + abs(exact_log_softmax(precise(x))).max(axis=-1, keepdims=True, initial=0)
    check(log_softmax_backward(dout, log_softmax(x)), d - p * d.sum(axis=-1, keepdims=True), 16, scale=size * spread)


@given(matrices(), seeds)
def test_minus_infinity_is_a_probability_of_exactly_zero(x, seed):
    hidden = np.random.default_rng(seed).random(x.shape) < 0.5
    hidden[:, :1] = False
    masked = np.where(hidden, -np.inf, x).astype(x.dtype)
    p = softmax(masked)
    assert (p[hidden] == 0).all() and (log_softmax(masked)[hidden] == -np.inf).all()
    check(p.sum(axis=-1), np.ones(len(p), x.dtype), 8 + x.shape[1])


@given(dtypes, st.sampled_from([1, 5, 40]))
def test_rows_without_a_distribution_are_nan(dtype, width):
    hopeless = np.full((3, width), -np.inf, dtype)
    hopeless[1, 0], hopeless[2, -1] = np.inf, np.nan
    for function in (softmax, log_softmax):
        mixed = function(np.concatenate([hopeless, np.zeros((1, width), dtype)]))
        assert np.isnan(mixed[0]).all() and np.isnan(mixed[1, 0]) and np.isnan(mixed[2]).all()
        assert np.isfinite(mixed[3]).all()


def test_many_axes_and_none():
    for dtype in DTYPES:
        x = numbers((2, 3, 0, 5), dtype, 0)
        assert softmax(x).shape == log_softmax(x).shape == x.shape
        x = numbers((2, 3, 4, 5), dtype, 0)
        np.testing.assert_array_equal(softmax(x)[1, 2, 3], softmax(x[1, 2, 3]))


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        x, dout = numbers((257, 300), dtype, 0), numbers((257, 300), dtype, 1)
        p = same_bits_for_any_threads(softmax, x)
        same_bits_for_any_threads(softmax_backward, dout, p)
        same_bits_for_any_threads(log_softmax_backward, dout, same_bits_for_any_threads(log_softmax, x))
