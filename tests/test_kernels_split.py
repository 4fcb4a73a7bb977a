"""float32 on AMX tiles: three parts of eight bits lose nothing, and what has no parts is multiplied all the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd.kernels import matmul as matmul_module
from autograd.kernels import split
from autograd.kernels.bfloat16 import amx_available
from autograd.kernels.matmul import allow_tiles, matmul
from tests.kernel_checks import in_guarded_workspace, laid_out

pytestmark = pytest.mark.skipif(not amx_available(), reason="the processor has no AMX, or the system keeps it back")


@pytest.fixture(autouse=True, scope="module")
def every_size():
    """Small products, too: usually they go to vectors."""
    usual, matmul_module.TILED = matmul_module.TILED, 2
    yield
    matmul_module.TILED = usual


EPS = float(np.finfo(np.float32).eps)


def floats(smallest, largest):
    """float32 numbers of either sign whose absolute values lie between these."""
    sizes = st.floats(smallest, largest, width=32)
    return st.builds(lambda size, sign: np.float32(size * sign), sizes, st.sampled_from([-1, 1]))


@settings(max_examples=60)
@given(st.data(), st.integers(2, 70), st.integers(2, 70), st.sampled_from("CF"))
def test_the_parts_of_a_number_add_up_to_it(data, rows, columns, order):
    """x times one is x to the last bit: nothing is lost in h + m + l, wherever it lies."""
    drawn = data.draw(st.lists(floats(2.0**-100, 2.0**127), min_size=1, max_size=20))
    x = np.resize(np.array(drawn, np.float32), (rows, columns)).copy(order=order)
    np.testing.assert_array_equal(matmul(x, np.eye(columns, dtype=np.float32)), x)
    np.testing.assert_array_equal(matmul(np.eye(rows, dtype=np.float32), x), x)


@settings(max_examples=100)
@given(floats(2.0**-50, 2.0**50), floats(2.0**-50, 2.0**50))
def test_one_product_is_wrong_by_less_than_a_unit_in_the_last_place(x, y):
    a, b = np.full((2, 1), x), np.full((1, 2), y)
    exact = float(x) * float(y)
    assert (abs(matmul(a, b) - exact) <= EPS * abs(exact)).all()


def test_what_is_small_stays_on_vectors(monkeypatch):
    product_for, tiles = matmul_module.product_for, split.split_product()
    monkeypatch.setattr(matmul_module, "TILED", 64)
    zeros = lambda *shape: np.zeros(shape, np.float32)
    for M, K, N, large in ((64, 32, 64, True), (63, 99, 99, False), (99, 99, 63, False), (99, 31, 99, False)):
        a, b = zeros(M, K), zeros(K, N)
        assert (product_for(a, b) is tiles) == large
        assert (product_for(zeros(2, M, K), zeros(2, K, N)) is tiles) == large
        assert product_for(a.astype(np.float64), b.astype(np.float64)) is not tiles
    assert product_for(zeros(2, 32, 32), zeros(32, 64)) is tiles, "one tall matrix of 64 rows"
    assert product_for(zeros(2, 32, 32), zeros(2, 32, 64)) is not tiles, "two of 32"


@pytest.mark.parametrize("K", [64, 300, 1000])
def test_sums_are_closer_to_the_truth_than_on_vectors(K):
    rng = np.random.default_rng(K)
    a, b = rng.standard_normal((64, K), np.float32), rng.standard_normal((K, 96), np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    on_tiles = np.sqrt(np.mean((matmul(a, b) - exact) ** 2))
    try:
        allow_tiles(False)
        on_vectors = np.sqrt(np.mean((matmul(a, b) - exact) ** 2))
    finally:
        allow_tiles(True)
    assert on_tiles < on_vectors


@settings(max_examples=30)
@given(st.integers(2, 80), st.integers(2, 300), st.integers(2, 80), st.data())
def test_infinite_numbers_and_nan_give_what_numpy_gives(M, K, N, data):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    for x in (a, b):
        for _ in range(data.draw(st.integers(0, 2))):
            place = tuple(data.draw(st.integers(0, size - 1)) for size in x.shape)
            x[place] = data.draw(st.sampled_from([np.inf, -np.inf, np.nan, 0.0]))
    with np.errstate(invalid="ignore"):
        expected = a @ b
    np.testing.assert_allclose(matmul(a, b), expected, rtol=1e-4, atol=1e-4)
    bias = np.where(np.arange(N) % 7, 1, -np.inf).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected += bias
    np.testing.assert_allclose(matmul(a, b, bias=bias), expected, rtol=1e-4, atol=1e-4)


def test_numbers_that_round_to_infinity_are_multiplied_as_they_are():
    largest = np.finfo(np.float32).max
    a, b = np.full((40, 3), largest), np.full((3, 33), np.float32(2.0**-60))
    np.testing.assert_allclose(matmul(a, b), 3 * float(largest) * 2.0**-60, rtol=1e-6)
    out = np.full((40, 33), np.float32(1e19))
    matmul(a, b, out=out, onto=out)
    np.testing.assert_allclose(out, 1e19 + 3 * float(largest) * 2.0**-60, rtol=1e-6)


@settings(max_examples=100)
@given(st.integers(2, 40), st.integers(1, 70), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_of_the_smallest_numbers_only_digits_below_the_normal_ones_are_lost(M, K, N, seed):
    """Parts below 2⁻¹²⁶ count as zero, and so do sums: that much of a number is lost, and nothing of its neighbours."""
    rng = np.random.default_rng(seed)
    sizes = [-149, -140, -126, -120, -110, -60, 0]
    a, b = (
        np.ldexp(rng.standard_normal(shape), rng.choice(sizes, shape)).astype(np.float32)
        for shape in ((M, K), (K, N))
    )
    exact, terms = a.astype(np.float64) @ b.astype(np.float64), abs(a).astype(np.float64) @ abs(b).astype(np.float64)
    # two parts of each number, times the other; and six products of parts for each term
    lost = 2.0**-126 * (2 * abs(a).sum(axis=1, keepdims=True) + 2 * abs(b).sum(axis=0) + 6 * K)
    assert (abs(matmul(a, b) - exact) <= (K + 1) * EPS * terms + lost).all()


@pytest.mark.parametrize("layout", ["C", "F", "every other"])
def test_a_workspace_is_as_large_as_what_is_laid_out_in_it(layout):
    rng = np.random.default_rng(4)
    a = laid_out(rng.standard_normal((split.GROUP + 3, 2 * split.DEPTH), np.float32), layout)
    b = laid_out(rng.standard_normal((2 * split.DEPTH, split.WIDTH + 3), np.float32), layout)
    result, used = in_guarded_workspace(split.split_product(), split.WORKSPACE, split.WIDTH, lambda: matmul(a, b))
    np.testing.assert_array_equal(result, matmul(a, b))
    assert used == split.WORKSPACE
