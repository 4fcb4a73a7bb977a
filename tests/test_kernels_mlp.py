"""The MLP in one go against its parts: the products, and GELU as a kernel of its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd.kernels.activation import gelu, gelu_backward
from autograd.kernels.bfloat16 import amx_available, matmul_bf16, matmul_narrow, matmul_precision, round_to_bfloat16
from autograd.kernels.matmul import matmul
from autograd.kernels.mlp import mlp, mlp_backward
from tests.kernel_checks import check, narrow, numbers, same_bits_for_any_threads, widen

needs_amx = pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")
ALL = (True,) * 5
# None, one, and around the tiles, groups of rows and blocks of the sum and of columns.
sizes = st.sampled_from([0, 1, 2, 15, 17, 31, 33, 64, 113, 130])
long_sizes = sizes | st.sampled_from([384, 385, 511, 520, 1030])
several = sizes.filter(lambda n: n > 1)
seeds = st.integers(0, 2**32 - 1)


def problem(N, C, H, C_out, seed, dtype="float32"):
    """(x, up, down, up_bias, down_bias), dout"""
    shapes = [(N, C), (H, C), (C_out, H), (H,), (C_out,), (N, C_out)]
    *inputs, dout = (numbers(shape, dtype, seed + i, 0.3) for i, shape in enumerate(shapes))
    return inputs, dout


@settings(max_examples=60)
@given(st.tuples(sizes, long_sizes, long_sizes, sizes), st.sampled_from(["float32", "float64"]), st.booleans(), seeds)
def test_is_its_parts_one_after_the_other(shape, dtype, tanh, seed):
    (x, up, down, up_bias, down_bias), dout = problem(*shape, seed, dtype)
    out, slope, h = mlp(x, up, down, up_bias, down_bias, tanh)
    u = matmul(x, up.T, bias=up_bias)
    # A product with a vector is summed by `matmul` in another order.
    off = 4 * (x.shape[1] * (1 + np.abs(x) @ np.abs(up.T)) if len(up) == 1 else 1)
    check(h, gelu(u, tanh), 4, off + np.abs(u))
    check(slope, gelu_backward(np.ones_like(u), u, tanh), 8, off + np.abs(u))
    np.testing.assert_array_equal(out, matmul(h, down.T, bias=down_bias))

    found = mlp_backward(dout, x, up, down, slope, h, ALL)
    dh = matmul(dout, down)
    du = dh * slope
    scale = 1 + np.abs(dh).max(initial=0)
    check(found.up, matmul(du.T, x), 8 + len(x), scale * (1 + np.abs(x).sum(axis=0)))
    check(found.x, matmul(du, up), 8 + len(up), scale * (1 + np.abs(up).sum(axis=0)))
    check(found.up_bias, du.sum(axis=0), 8 + len(x), scale * (1 + len(x)))
    np.testing.assert_array_equal(found.down, matmul(dout.T, h))
    check(found.down_bias, dout.sum(axis=0), 8 + len(x), scale * (1 + len(x)))


def test_only_what_is_wanted_is_computed():
    (x, up, down, *_), dout = problem(5, 7, 9, 4, 0)
    _, slope, h = mlp(x, up, down, None, None, True)
    everything = mlp_backward(dout, x, up, down, slope, h, (True,) * 3)
    assert everything.up_bias is None and everything.down_bias is None
    for i in range(3):
        one = mlp_backward(dout, x, up, down, slope, h, tuple(j == i for j in range(3)))
        assert [g is not None for g in one] == [j == i for j in range(5)]
        np.testing.assert_array_equal(one[i], everything[i])


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_amx)])
@pytest.mark.parametrize("shape", [(300, 200, 700, 90), (1, 300, 500, 200), (70, 1100, 65, 33)])
def test_the_same_bits_for_any_number_of_threads(shape, precision):
    inputs, dout = problem(*shape, 1)

    def run():
        with matmul_precision(precision):
            out, slope, h = mlp(*inputs, True)
            return (out, slope, h, *mlp_backward(dout, *inputs[:3], slope, h, ALL))

    same_bits_for_any_threads(run)


@needs_amx
@settings(max_examples=60)
@given(st.tuples(several, long_sizes, long_sizes, several), st.booleans(), seeds)
def test_in_bfloat16_what_is_kept_is_the_rounded_number(shape, tanh, seed):
    (x, up, down, up_bias, down_bias), dout = problem(*shape, seed)
    H = len(up)
    with matmul_precision("bfloat16"):
        out, slope, h = mlp(x, up, down, up_bias, down_bias, tanh)
        found = mlp_backward(dout, x, up, down, slope, h, ALL)
    if H < 2:
        return  # products with a vector are not rounded
    assert slope.dtype == h.dtype == np.uint16
    u = matmul_bf16(x, up.T, bias=up_bias)
    for kept, exact in ((h, gelu(u, tanh)), (slope, gelu_backward(np.ones_like(u), u, tanh))):
        # a sum that is computed in another order may round to the other side
        assert (np.abs(widen(kept) - exact) <= 2.0**-8 * np.abs(exact) + 1e-4).all()
    np.testing.assert_array_equal(out, matmul_bf16(widen(h), down.T, bias=down_bias))
    np.testing.assert_array_equal(found.down, matmul_bf16(dout.T, widen(h)))
    du = round_to_bfloat16(matmul_bf16(dout, down) * widen(slope))
    scale = 2.0**-8 * np.abs(du) + 1e-4
    if len(x):
        assert (np.abs(found.x - matmul_bf16(du, up)) <= 1e-4 + scale @ np.abs(up)).all()
        assert (np.abs(found.up - matmul_bf16(du.T, x)) <= 1e-4 + scale.T @ np.abs(x)).all()
        assert (np.abs(found.up_bias - du.sum(axis=0)) <= 1e-4 + scale.sum(axis=0)).all()


@needs_amx
@settings(max_examples=60)
@given(st.tuples(several, long_sizes, several.filter(lambda n: n > 2), several), seeds)
def test_an_x_that_is_bfloat16_gives_the_same_bits_and_a_rounded_gradient(shape, seed):
    (x, *weights), dout = problem(*shape, seed)
    with matmul_precision("bfloat16"):
        made = mlp(x, *weights, True)
        gradients = mlp_backward(dout, x, *weights[:2], *made[1:], ALL)
        narrow_made = mlp(narrow(x), *weights, True)
        narrow_gradients = mlp_backward(dout, narrow(x), *weights[:2], *narrow_made[1:], ALL)
    for a, b in zip(narrow_made + narrow_gradients[1:], made + gradients[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(narrow_gradients.x, narrow(gradients.x))


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_amx)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_last_product_is_added_to_what_is_there(biased, precision):
    (x, up, down, up_bias, down_bias), below = problem(70, 33, 129, 64, 3)
    biases = (up_bias, down_bias) if biased else (None, None)
    before = below.copy()
    with matmul_precision(precision):
        out, *_ = mlp(x, up, down, *biases, True, onto=below)
        np.testing.assert_allclose(out, before + mlp(x, up, down, *biases, True)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(below, before)


@needs_amx
@settings(max_examples=100)
@given(
    shape=st.tuples(several, long_sizes, several),
    narrow_a=st.booleans(), layouts=st.tuples(*[st.sampled_from(["C", "F", "every other"])] * 2), seed=seeds,
)  # fmt: skip
def test_operands_that_are_bfloat16_already_give_the_same_bits(shape, narrow_a, layouts, seed):
    def laid_out(array, layout):
        if layout == "every other":
            return np.repeat(np.repeat(array, 2, axis=1), 3, axis=0)[::3, ::2]
        return np.array(array, order=layout)

    M, K, N = shape
    a, b = numbers((M, K), "float32", seed), numbers((K, N), "float32", seed + 1)
    expected = matmul_bf16(a, b)
    a, b = (narrow(a), b) if narrow_a else (a, narrow(b))
    np.testing.assert_array_equal(matmul_narrow(laid_out(a, layouts[0]), laid_out(b, layouts[1])), expected)


@needs_amx
@settings(max_examples=60)
@given(
    M=st.sampled_from([2, 31, 32, 64, 128, 130, 160, 288]), K=st.sampled_from([32, 64, 96, 512, 544, 1024, 1056, 1600]),
    N=st.sampled_from([2, 32, 33, 544]), room=st.sampled_from([0, 32, 40]), transposed=st.booleans(), seed=seeds,
)  # fmt: skip
def test_rows_that_begin_with_lines_of_the_cache_are_not_packed_and_give_the_same_bits(M, K, N, room, transposed, seed):
    a, b = narrow(numbers((M, K), "float32", seed)), numbers((K, N), "float32", seed + 1)
    rows, columns = (K, M) if transposed else (M, K)
    memory = np.zeros(rows * (columns + room) + 64, np.uint16)
    first = -memory.ctypes.data % 64 // 2
    both = [memory[i : i + rows * (columns + room)].reshape(rows, -1)[:, :columns] for i in (first, first + 8)]
    placed, shifted = (x.T for x in both) if transposed else both
    placed[...] = a
    expected = matmul_narrow(placed, b)
    shifted[...] = a
    np.testing.assert_array_equal(matmul_narrow(shifted, b), expected)
    np.testing.assert_array_equal(matmul_narrow(a, b), expected)


@needs_amx
@pytest.mark.parametrize("K", [1057, 1126, 1153, 2200])
def test_sums_of_any_length_stay_within_the_workspace(K):
    """As many columns of b are packed at a time as fit: one step more would be written over another thread's memory."""
    a, b = numbers((40, K), "float32", 0), numbers((K, 480), "float32", 1)
    exact = round_to_bfloat16(a).astype("d") @ round_to_bfloat16(b).astype("d")
    bound = 2 * K * np.finfo(np.float32).eps * (np.abs(a.astype("d")) @ np.abs(b.astype("d")))
    assert (np.abs(matmul_bf16(a, b) - exact) <= bound).all()
