"""The attention branch in one go against its parts: the projections, and attention as a kernel of its own."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd.kernels.attention import attention, attention_backward
from autograd.kernels.bfloat16 import amx_available, matmul_bf16, matmul_precision, round_to_bfloat16
from autograd.kernels.matmul import matmul
from autograd.kernels.multi_head import multi_head, multi_head_backward, narrow_heads
from tests.kernel_checks import check, narrow, numbers, same_bits_for_any_threads, widen

needs_amx = pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")
ALL = (True,) * 5
seeds = st.integers(0, 2**32 - 1)


dtypes = st.sampled_from(["float32", "float64"])


@st.composite
def problems(draw, dtypes=dtypes):
    """(x, qkv_weight, out_weight, qkv_bias, out_bias), dout, (n_head, n_kv_head, dropout_p, seed)"""
    B, T, C = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 33, 70])), draw(st.sampled_from([2, 16, 40]))
    K, D = draw(st.integers(1, 2)), draw(st.sampled_from([1, 8, 24]))
    H, C_out = K * draw(st.integers(1, 2)), draw(st.sampled_from([2, 33]))
    width, dtype, seed = (H + 2 * K) * D, draw(dtypes), draw(seeds)
    shapes = [(B, T, C), (width, C), (C_out, H * D), (width,), (C_out,), (B, T, C_out)]
    *inputs, dout = (numbers(shape, dtype, seed + i, 0.3) for i, shape in enumerate(shapes))
    return inputs, dout, (H, K, draw(st.sampled_from([0.0, 0.3])), seed)


def in_parts(inputs, dout, options, product, rounded=lambda x: x):
    """(out, qkv, y, lse), (dx, dqkv_weight, dout_weight, dqkv_bias, dout_bias), where `rounded` is what is kept; and
    for each gradient the largest sum of absolute values that it is made of.
    """
    x, qkv_weight, out_weight, qkv_bias, out_bias = inputs
    H, K, p, seed = options
    B, T, D = *x.shape[:2], out_weight.shape[1] // H
    heads = lambda array: [part.reshape(B, T, -1, D).swapaxes(1, 2)
                           for part in np.split(array, [H * D, (H + K) * D], axis=2)]
    together = lambda *parts: np.concatenate([part.swapaxes(1, 2).reshape(B, T, -1) for part in parts], axis=2)
    flat = lambda array: array.reshape(B * T, -1)
    common = {"scale": 1 / math.sqrt(D), "causal": True, "dropout_p": p, "seed": seed}
    qkv = rounded(product(flat(x), qkv_weight.T, bias=qkv_bias)).reshape(B, T, -1)
    y, lse = attention(*heads(qkv), **common)
    y = rounded(y)
    out = product(flat(together(y)), out_weight.T, bias=out_bias).reshape(dout.shape)
    dy = rounded(product(flat(dout), out_weight)).reshape(B, T, -1)
    dqkv = flat(rounded(together(*attention_backward(heads(dy)[0], *heads(qkv), y, lse, **common))))
    gradients = (product(dqkv, qkv_weight).reshape(x.shape), product(dqkv.T, flat(x)),
                 product(flat(dout).T, flat(together(y))), dqkv.sum(axis=0), flat(dout).sum(axis=0))  # fmt: skip
    terms = (abs(dqkv) @ abs(qkv_weight), abs(dqkv).T @ abs(flat(x)), abs(flat(dout)).T @ abs(flat(together(y))),
             abs(dqkv).sum(axis=0), abs(dout).sum(axis=(0, 1)))  # fmt: skip
    return (out, qkv, together(y), lse), gradients, [float(sums.max(initial=0)) for sums in terms]


@settings(max_examples=60)
@given(problems())
def test_is_its_parts_one_after_the_other(problem):
    inputs, dout, options = problem
    expected, expected_gradients, _ = in_parts(inputs, dout, options, matmul)
    made = multi_head(*inputs, *options)
    gradients = multi_head_backward(dout, *inputs[:3], *made[1:], *options, ALL)
    for a, b in zip((*made, *gradients[:3]), (*expected, *expected_gradients[:3]), strict=True):
        if dout.shape[:2] == (1, 1):  # products with a vector, whose sums depend on how it lies in memory
            check(a, b, 64, scale=1 + float(abs(b).max()))
        else:
            np.testing.assert_array_equal(a, b)
    for a, b in zip(gradients[3:], expected_gradients[3:], strict=True):
        check(a, b, 8 + dout.shape[0] * dout.shape[1], scale=1 + len(b) * float(abs(b).max(initial=0)))


@needs_amx
@settings(max_examples=60)
@given(problems(st.just("float32")))
def test_in_bfloat16_what_is_kept_is_the_rounded_number(problem):
    inputs, dout, options = problem
    x, _, _, _, _ = inputs
    with matmul_precision("bfloat16"):
        made = multi_head(*inputs, *options)
        gradients = multi_head_backward(dout, *inputs[:3], *made[1:], *options, ALL)
        if made[1].dtype != np.uint16:  # a single head, or a product with a vector
            assert x.shape[0] * options[1] == 1 or x.shape[:2] == (1, 1)
            return
        if x.shape[1] <= 2:
            return  # by its parts, a query or two would be attended to in float32
        expected, expected_gradients, terms = in_parts(inputs, dout, options, matmul_bf16, round_to_bfloat16)
    out, qkv, y, lse = made
    # sums in another order may be rounded to the other side
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01, atol=0.01 * (1e-6 + float(abs(b).max(initial=0))))
    for a, b in zip((out, widen(qkv), widen(y), lse), expected, strict=True):
        close(a, b)
    for a, b, scale in zip(gradients, expected_gradients, terms, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * (1e-6 + scale))


@needs_amx
@settings(max_examples=60)
@given(problems(st.just("float32")))
def test_an_x_that_is_bfloat16_gives_the_same_bits_and_a_rounded_gradient(problem):
    (x, *weights), dout, options = problem
    with matmul_precision("bfloat16"):
        if not narrow_heads(x, *weights[:2], options[1]):
            assert x.shape[0] * options[1] == 1 or x.shape[:2] == (1, 1)
            return
        made = multi_head(x, *weights, *options)
        gradients = multi_head_backward(dout, x, *weights[:2], *made[1:], *options, ALL)
        narrow_made = multi_head(narrow(x), *weights, *options)
        narrow_gradients = multi_head_backward(dout, narrow(x), *weights[:2], *narrow_made[1:], *options, ALL)
    for a, b in zip(narrow_made + narrow_gradients[1:], made + gradients[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(narrow_gradients.x, narrow(gradients.x))


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_amx)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_last_product_is_added_to_what_is_there(biased, precision):
    shapes = [(2, 70, 48), (60, 48), (48, 36), (60,), (48,), (2, 70, 48)]
    x, weight, out_weight, *biases, below = (numbers(shape, "float32", i, 0.3) for i, shape in enumerate(shapes))
    before, biases = below.copy(), biases if biased else (None, None)
    with matmul_precision(precision):
        out, *_ = multi_head(x, weight, out_weight, *biases, 3, 1, 0.2, 5, onto=below)
        alone, *_ = multi_head(x, weight, out_weight, *biases, 3, 1, 0.2, 5)
    np.testing.assert_allclose(out, before + alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(below, before)


@needs_amx
@pytest.mark.parametrize(("shape", "kept"), [((2, 5, 4), "uint16"), ((2, 5, 1), "float32"), ((1, 5, 4), "float32")])
def test_where_a_product_is_one_with_a_vector_or_there_is_one_head_nothing_is_rounded(shape, kept):
    B, T, C_out = shape
    x, weight, out_weight = (numbers(s, "float32", 0) for s in ((B, T, 7), (18, 7), (C_out, 6)))
    with matmul_precision("bfloat16"):
        _, qkv, y, _ = multi_head(x, weight, out_weight, None, None, 1, 1, 0.0, 0)
    assert qkv.dtype == y.dtype == kept


def test_only_what_is_wanted_is_computed():
    x, weight, out_weight, dout = (numbers(s, "float32", 0) for s in ((2, 5, 7), (18, 7), (4, 6), (2, 5, 4)))
    options = (2, 2, 0.0, 0)
    _, *kept = multi_head(x, weight, out_weight, None, None, *options)
    everything = multi_head_backward(dout, x, weight, out_weight, *kept, *options, (True,) * 3)
    assert everything.qkv_bias is None and everything.out_bias is None
    for i in range(3):
        needs = tuple(j == i for j in range(3))
        one = multi_head_backward(dout, x, weight, out_weight, *kept, *options, needs)
        assert [g is not None for g in one] == [j == i for j in range(5)]
        np.testing.assert_array_equal(one[i], everything[i])


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_amx)])
def test_the_same_bits_for_any_number_of_threads(precision):
    shapes = [(2, 70, 48), (60, 48), (48, 36), (60,), (48,), (2, 70, 48)]
    *inputs, dout = (numbers(shape, "float32", i, 0.3) for i, shape in enumerate(shapes))

    def run():
        with matmul_precision(precision):
            made = multi_head(*inputs, 3, 1, 0.2, 5)
            return (*made, *multi_head_backward(dout, *inputs[:3], *made[1:], 3, 1, 0.2, 5, ALL))

    same_bits_for_any_threads(run)
