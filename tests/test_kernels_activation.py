"""Activations against their definitions, and their backward passes against the derivatives, in higher precision."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, layouts, matrices, numbers, precise, same_bits_for_any_threads, seeds

from autograd.kernels import activation
from autograd.kernels.arrays import GRAIN

erfc = np.frompyfunc(lambda x: math.erfc(x), 1, 1)
ROOT = math.sqrt(2 / math.pi)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal_cdf(x):
    return (erfc(-x.astype(np.float64) / math.sqrt(2)) / 2).astype(x.dtype)


def tanh_argument(x):
    return ROOT * (x + 0.044715 * x**3), ROOT * (1 + 3 * 0.044715 * x**2)


def gelu_tanh_slope(x):
    u, slope = tanh_argument(x)
    return (1 + np.tanh(u)) / 2 + x * (1 - np.tanh(u) ** 2) * slope / 2


# name: (kernel, its backward, definition, derivative)
ACTIVATIONS = {
    "relu": (activation.relu, activation.relu_backward, lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
    "gelu": (lambda x: activation.gelu(x, False), lambda d, x: activation.gelu_backward(d, x, False),
             lambda x: x * normal_cdf(x), lambda x: normal_cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
    "gelu_tanh": (lambda x: activation.gelu(x, True), lambda d, x: activation.gelu_backward(d, x, True),
                  lambda x: x * (1 + np.tanh(tanh_argument(x)[0])) / 2, gelu_tanh_slope),
    "silu": (activation.silu, activation.silu_backward, lambda x: x * sigmoid(x),
             lambda x: sigmoid(x) + x * sigmoid(x) * sigmoid(-x)),
}


@given(matrices(spreads=(1.0, 10.0)), st.sampled_from(sorted(ACTIVATIONS)), seeds, st.data())
def test_one_operand(x, name, seed, data):
    forward, backward, definition, derivative = ACTIVATIONS[name]
    dout = data.draw(layouts(numbers(x.shape, x.dtype, seed)))
    with np.errstate(over="ignore"):
        check(forward(x), definition(precise(x)), 4, scale=1 + abs(x))
        check(backward(dout, x), precise(dout) * derivative(precise(x)), 12, scale=abs(dout) * (1 + abs(x)))


@given(matrices(spreads=(1.0, 10.0)), seeds, st.data())
def test_swiglu(gate, seed, data):
    up = data.draw(layouts(numbers(gate.shape, gate.dtype, seed)))
    dout = data.draw(layouts(numbers(gate.shape, gate.dtype, seed + 1)))
    g, u, d = precise(gate, up, dout)
    with np.errstate(over="ignore"):
        check(activation.swiglu(gate, up), g * sigmoid(g) * u, 6, scale=(1 + abs(gate)) * abs(up))
        dgate, dup = activation.swiglu_backward(dout, gate, up)
        slope = sigmoid(g) + g * sigmoid(g) * sigmoid(-g)
        check(dgate, d * u * slope, 12, scale=abs(dout * up) * (1 + abs(gate)))
        check(dup, d * g * sigmoid(g), 6, scale=abs(dout) * (1 + abs(gate)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_infinity(name):
    forward, backward, *_ = ACTIVATIONS[name]
    for dtype in DTYPES:
        x = np.array([np.nan, np.inf, 1e30, -1e30] * 9, dtype)
        out = forward(x).reshape(9, 4)
        assert np.isnan(out[:, 0]).all()
        assert (out[:, 1] == np.inf).all() and (out[:, 2] == dtype.type(1e30)).all() and (out[:, 3] == 0).all()
        assert np.isnan(backward(x, x)[0]) or name == "relu"


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        x, dout = numbers((50, 1001), dtype, 0), numbers((50, 1001), dtype, 1)
        for forward, backward, *_ in ACTIVATIONS.values():
            same_bits_for_any_threads(forward, x)
            same_bits_for_any_threads(backward, dout, x)
        same_bits_for_any_threads(activation.swiglu, x, dout)
        same_bits_for_any_threads(activation.swiglu_backward, dout, x, dout)


@pytest.mark.parametrize("size", [GRAIN - 1, GRAIN, GRAIN + 1, 2 * GRAIN, 2 * GRAIN + 5])
def test_every_element_of_every_chunk_is_computed(size):
    """Chunk by chunk or one after another: the same numbers."""
    dtype = DTYPES[1]
    x, up, dout = (numbers((size,), dtype, seed) for seed in range(3))
    pieces = [slice(start, start + 1000) for start in range(0, size, 1000)]
    for forward, backward, *_ in ACTIVATIONS.values():
        check(forward(x), np.concatenate([forward(x[p]) for p in pieces]), 4)
        check(backward(dout, x), np.concatenate([backward(dout[p], x[p]) for p in pieces]), 4)
    check(activation.swiglu(x, up), np.concatenate([activation.swiglu(x[p], up[p]) for p in pieces]), 4)
    parts = [activation.swiglu_backward(dout[p], x[p], up[p]) for p in pieces]
    for k, whole in enumerate(activation.swiglu_backward(dout, x, up)):
        check(whole, np.concatenate([part[k] for part in parts]), 4)
