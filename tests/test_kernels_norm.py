"""Layer norm and RMS norm against their definitions in higher precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import (
    DTYPES,
    check,
    layouts,
    matrices,
    narrow,
    numbers,
    precise,
    same_bits_for_any_threads,
    seeds,
)

from autograd.kernels.bfloat16 import round_to_bfloat16
from autograd.kernels.norm import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward

EPS = 1e-5


def normalized(x, center):
    shift = x.mean(axis=-1, keepdims=True) if center else 0
    return (x - shift) / np.sqrt(np.mean((x - shift) ** 2, axis=-1, keepdims=True) + EPS)


@st.composite
def problems(draw):
    x = draw(matrices(spreads=(1.0, 30.0)))
    rng, C = np.random.default_rng(draw(seeds)), x.shape[1]
    weight, bias = (rng.standard_normal(C).astype(x.dtype) for _ in range(2))
    dout = draw(layouts(rng.standard_normal(x.shape).astype(x.dtype)))
    return x, draw(st.sampled_from([weight, None])), draw(st.sampled_from([bias, None])), dout


def exact_backward(dout, x, weight, center):
    """The derivative of `normalized`, by the quotient rule and nothing else."""
    d, x = precise(dout, x)
    g = d if weight is None else d * precise(weight)
    shift = x.mean(axis=-1, keepdims=True) if center else 0
    rstd = 1 / np.sqrt(np.mean((x - shift) ** 2, axis=-1, keepdims=True) + EPS)
    dx = g * rstd - (x - shift) * rstd**3 * np.mean(g * (x - shift), axis=-1, keepdims=True)
    if center:
        dx -= dx.mean(axis=-1, keepdims=True)
    return dx, (d * normalized(x, center)).sum(axis=0), d.sum(axis=0), rstd


@given(problems())
def test_layer_norm(problem):
    x, weight, bias, dout = problem
    out, mean, rstd = layer_norm(x, weight, bias, EPS)
    expected = normalized(precise(x), True)
    expected = expected * (1 if weight is None else precise(weight)) + (0 if bias is None else precise(bias))
    # the mean is subtracted from numbers that may be much larger than the difference
    conditioning = 4 + abs(x).max(initial=0) * rstd.max(initial=0)
    check(out, expected, 8, scale=conditioning * (1 + abs(expected).max(initial=0)))
    check(mean, precise(x).mean(axis=-1), 8, scale=abs(x).max(initial=0))
    dx, dweight, dbias = layer_norm_backward(dout, x, weight, mean, rstd)
    exact_dx, exact_dweight, exact_dbias, exact_rstd = exact_backward(dout, x, weight, True)
    check(rstd, exact_rstd[:, 0], 8, scale=conditioning * rstd.max(initial=0))
    size = conditioning * (1 + abs(dout).max(initial=0)) * (1 + abs(expected).max(initial=0))
    check(dx, exact_dx, 32, scale=size * rstd.max(initial=0))
    check(dweight, exact_dweight, 8 + len(x), scale=size)
    check(dbias, exact_dbias, 8 + len(x), scale=size)


@given(problems())
def test_in_a_block_of_bfloat16_the_same_numbers_are_rounded_and_added(problem):
    """What the norm makes and its gradient may be bfloat16, and dx may be added to another gradient."""
    x, weight, bias, dout = (None if array is None else array.astype(np.float32) for array in problem)
    below = np.random.default_rng(len(x)).standard_normal(x.shape).astype(np.float32)
    out, mean, rstd = layer_norm(x, weight, bias, EPS)
    rounded_out, *statistics = layer_norm(x, weight, bias, EPS, narrow=True)
    assert rounded_out.dtype == np.uint16
    np.testing.assert_array_equal(rounded_out, narrow(out))
    for a, b in zip(statistics, (mean, rstd), strict=True):
        np.testing.assert_array_equal(a, b)
    rounded = round_to_bfloat16(dout)
    expected = layer_norm_backward(rounded, x, weight, mean, rstd)
    terms = (1 + abs(rounded).max(initial=0)) * (1 if weight is None else 1 + abs(weight).max()) * rstd.max(initial=0)
    for upstream in (rounded, narrow(dout)):
        dx, *sums = layer_norm_backward(upstream, x, weight, mean, rstd, onto=below)
        check(dx, precise(expected[0]) + below, 16, scale=terms * (1 + abs(out).max(initial=0)) + abs(below))
        for a, b in zip(sums, expected[1:], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_narrow_norm_rounds_every_number_of_rows_of_any_width():
    for width in (1, 31, 32, 33, 63, 64, 65, 130):
        x = numbers((7, width), np.dtype("float32"), width)
        np.testing.assert_array_equal(layer_norm(x, None, x[0], EPS, narrow=True)[0],
                                      narrow(layer_norm(x, None, x[0], EPS)[0]))  # fmt: skip


@given(problems())
def test_rms_norm(problem):
    x, weight, _, dout = problem
    out, rstd = rms_norm(x, weight, EPS)
    expected = normalized(precise(x), False) * (1 if weight is None else precise(weight))
    check(out, expected, 8)
    dx, dweight = rms_norm_backward(dout, x, weight, rstd)
    exact_dx, exact_dweight, _, exact_rstd = exact_backward(dout, x, weight, False)
    check(rstd, exact_rstd[:, 0], 8)
    size = (1 + abs(dout).max(initial=0)) * (1 + abs(expected).max(initial=0))
    check(dx, exact_dx, 32, scale=size * rstd.max(initial=0))
    check(dweight, exact_dweight, 8 + len(x), scale=size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_large_mean_costs_the_deviation_no_digits(dtype):
    x = numbers((5, 400), dtype, 0) + dtype.type(2e4)
    _, mean, rstd = layer_norm(x, None, None, EPS)
    check(mean, precise(x).mean(axis=-1), 8)
    check(rstd, 1 / np.sqrt(precise(x).var(axis=-1) + EPS), 64)


def test_nan_stays_in_its_row():
    for dtype in DTYPES:
        x = numbers((3, 40), dtype, 0)
        x[1, 7] = np.nan
        for out in (layer_norm(x, None, None, EPS)[0], rms_norm(x, None, EPS)[0]):
            assert np.isnan(out[1]).all() and np.isfinite(out[[0, 2]]).all()


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        x, dout, weight = numbers((3, 999, 65), dtype, 0), numbers((3, 999, 65), dtype, 1), numbers(65, dtype, 2)
        out, mean, rstd = same_bits_for_any_threads(layer_norm, x, weight, weight, EPS)
        assert out.shape == x.shape and mean.shape == rstd.shape == (3, 999)
        same_bits_for_any_threads(layer_norm_backward, dout, x, weight, mean, rstd)
        _, rstd = same_bits_for_any_threads(rms_norm, x, weight, EPS)
        same_bits_for_any_threads(rms_norm_backward, dout, x, weight, rstd)
