"""AdamW against the algorithm as its paper states it, and the sum of squares against its definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, dtypes, layouts, matrices, numbers, precise, same_bits_for_any_threads, seeds

from autograd.kernels.optimizer import adamw, sum_of_squares

settings = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


def corrections(step):
    return {"bias_correction1": 1 - settings["beta1"] ** step, "bias_correction2": 1 - settings["beta2"] ** step}


shapes = st.sampled_from([(), (0,), (1,), (17,), (3, 50), (20000,)])


@given(dtypes, shapes, seeds, st.sampled_from([1.0, 0.25]), st.data())
def test_adamw_like_the_textbook(dtype, shape, seed, grad_scale, data):
    rng = np.random.default_rng(seed)
    param, m, v = (np.asarray(x, dtype) for x in (rng.standard_normal(shape), np.zeros(shape), np.zeros(shape)))
    exact = param.astype(np.longdouble)
    mean = square = np.zeros(shape, np.longdouble)
    for step in range(1, 4):
        grad = np.asarray(rng.standard_normal(shape), dtype)
        if shape:
            grad = data.draw(layouts(grad))
        adamw(param, grad, m, v, **settings, **corrections(step), grad_scale=grad_scale)
        g = grad.astype(np.longdouble) * grad_scale
        exact = exact - settings["lr"] * settings["weight_decay"] * exact
        mean = settings["beta1"] * mean + (1 - settings["beta1"]) * g
        square = settings["beta2"] * square + (1 - settings["beta2"]) * g * g
        mean_hat, square_hat = (x / (1 - settings[b] ** step) for x, b in ((mean, "beta1"), (square, "beta2")))
        exact = exact - settings["lr"] * mean_hat / (np.sqrt(square_hat) + settings["eps"])
    check(param, exact, 8, scale=1 + abs(exact))
    check(m, mean, 8, scale=1)
    check(v, square, 16)


def test_arrays_are_checked():
    good = lambda: np.zeros((3, 4), np.float32)
    transposed = np.zeros((4, 3), np.float32).T
    for name, wrong in (("grad", np.zeros(12, np.float32)), ("m", np.zeros((3, 4))), ("v", transposed)):
        arrays = {"param": good(), "grad": good(), "m": good(), "v": good()} | {name: wrong}
        with pytest.raises(ValueError, match=f"expected {name} to be"):
            adamw(**arrays, **settings, **corrections(1))


@given(matrices())
def test_sum_of_squares(x):
    total = sum_of_squares(x)
    assert isinstance(total, float)
    assert math.isclose(total, float((precise(x).astype(np.longdouble) ** 2).sum()), rel_tol=1e-12)


def test_not_finite_shows():
    for dtype in DTYPES:
        x = numbers(100, dtype, 0)
        x[50] = np.inf
        assert sum_of_squares(x) == np.inf
        x[51] = np.nan
        assert math.isnan(sum_of_squares(x))


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        arrays = [abs(numbers(100_001, dtype, seed)) for seed in range(4)]

        def step(param, grad, m, v):
            param, m, v = param.copy(), m.copy(), v.copy()
            adamw(param, grad, m, v, **settings, **corrections(3))
            return param, m, v

        same_bits_for_any_threads(step, *arrays)
        same_bits_for_any_threads(lambda x: np.float64(sum_of_squares(x)), arrays[0])
