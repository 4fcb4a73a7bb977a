"""AdamW against the algorithm as its paper states it, and the sum of squares against its definition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, dtypes, layouts, matrices, numbers, precise, same_bits_for_any_threads, seeds

from autograd.kernels.arrays import GRAIN
from autograd.kernels.optimizer import AdamWSettings, adamw, sum_of_squares

settings = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


def at_step(step, **others):
    chosen = settings | others
    return AdamWSettings(
        **chosen,
        bias_correction1=1 - chosen["beta1"] ** step,
        bias_correction2=1 - chosen["beta2"] ** step,
    )


shapes = st.sampled_from([(), (0,), (1,), (17,), (3, 50), (20000,)])


@given(dtypes, shapes, seeds, st.sampled_from([{}, {"grad_scale": 0.25}]), st.data())
def test_adamw_like_the_textbook(dtype, shape, seed, scaled, data):
    rng = np.random.default_rng(seed)
    param, m, v = (np.asarray(x, dtype) for x in (rng.standard_normal(shape), np.zeros(shape), np.zeros(shape)))
    exact = param.astype(np.longdouble)
    mean = square = np.zeros(shape, np.longdouble)
    for step in range(1, 4):
        grad = np.asarray(rng.standard_normal(shape), dtype)
        if shape:
            grad = data.draw(layouts(grad))
        adamw([(param, grad, m, v, at_step(step, **scaled))])
        g = grad.astype(np.longdouble) * scaled.get("grad_scale", 1)
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
    wrongs = [np.zeros(12, np.float32), np.zeros((3, 4)), np.zeros((3, 4), np.float16), np.zeros((4, 3), np.float32)]
    for name, wrong in (*itertools.product(("grad", "m", "v"), wrongs), ("m", transposed), ("v", transposed)):
        arrays = {"param": good(), "grad": good(), "m": good(), "v": good()} | {name: wrong}
        with pytest.raises(ValueError, match=f"expected {name} to be|expected param, m and v"):
            adamw([(*arrays.values(), at_step(1))])
    with pytest.raises(ValueError, match="expected grad to be float32"):
        adamw([(good(), np.zeros((3, 4)), np.zeros((3, 4)), good(), at_step(1))])


many_sizes = st.lists(st.sampled_from([0, 1, 100, GRAIN - 1, GRAIN, GRAIN + 1, 3 * GRAIN]), max_size=6)


@given(many_sizes, seeds, st.data())
def test_many_arrays_at_once_are_each_by_itself(sizes, seed, data):
    updates = []
    for i, size in enumerate(sizes):
        dtype = data.draw(dtypes)
        param, grad, m, v = (numbers(size, dtype, seed + 4 * i + j) for j in range(4))
        updates.append((param, grad, m, abs(v), at_step(i + 1, lr=10.0**-i)))
    alone = [(param.copy(), grad, m.copy(), v.copy(), s) for param, grad, m, v, s in updates]
    for update in alone:
        adamw([update])
    adamw(updates)
    for (*together, _), (*apart, _) in zip(updates, alone, strict=True):
        assert [x.tobytes() for x in together] == [x.tobytes() for x in apart]
    grads = [grad for _, grad, *_ in updates]
    assert math.isclose(sum_of_squares(grads), sum(sum_of_squares([grad]) for grad in grads), rel_tol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [GRAIN, GRAIN + 1, 4 * GRAIN, 5 * GRAIN - 1])
def test_an_array_of_many_chunks_is_as_its_pieces(dtype, size):
    param, grad, m, v = (numbers(size, dtype, seed) for seed in range(4))
    whole, pieces = ([param.copy(), grad, m.copy(), abs(v)] for _ in range(2))
    adamw([(*whole, at_step(2))])
    cut = [[x[first:first + 1000] for x in pieces] for first in range(0, size, 1000)]
    for piece in cut:
        adamw([(*piece, at_step(2))])
    for a, b in zip(whole, pieces, strict=True):
        check(a, precise(b), 2)
    apart = sum(sum_of_squares([m[i:i + 1000]]) for i in range(0, size, 1000))
    assert math.isclose(sum_of_squares([m]), apart, rel_tol=1e-12)


def test_nothing_changes_where_one_parameter_is_refused():
    arrays = [np.ones(5, np.float32) for _ in range(4)]
    with pytest.raises(ValueError, match="expected m to be"):
        adamw([(*arrays, at_step(1)), (arrays[0], arrays[1], np.ones(4, np.float32), arrays[3], at_step(1))])
    assert all((x == 1).all() for x in arrays)


@given(matrices())
def test_sum_of_squares(x):
    total = sum_of_squares([x])
    assert isinstance(total, float)
    assert math.isclose(total, float((precise(x).astype(np.longdouble) ** 2).sum()), rel_tol=1e-12)


def test_not_finite_shows():
    for dtype in DTYPES:
        x = numbers(100, dtype, 0)
        x[50] = np.inf
        assert sum_of_squares([x]) == np.inf
        x[51] = np.nan
        assert math.isnan(sum_of_squares([x]))


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        arrays = [abs(numbers(100_001, dtype, seed)) for seed in range(4)]

        def step(param, grad, m, v):
            param, m, v = param.copy(), m.copy(), v.copy()
            adamw([(param, grad, m, v, at_step(3))])
            return param, m, v

        same_bits_for_any_threads(step, *arrays)
        same_bits_for_any_threads(lambda x: np.float64(sum_of_squares([x, x[1:]])), arrays[0])
