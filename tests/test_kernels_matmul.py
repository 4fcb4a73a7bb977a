"""matmul against a reference of higher precision, over shapes, strides, threads and processors."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd.kernels import matmul as module
from autograd.kernels.bfloat16 import amx_available
from autograd.kernels.jit import num_threads, set_num_threads
from autograd.kernels.matmul import allow_tiles, matmul
from tests.kernel_checks import (
    LAYOUTS,
    TARGETS,
    at_the_end_of_memory,
    in_guarded_workspace,
    laid_out,
    refuses_broken_strides,
)

PRECISE = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}

# The sizes at which something changes: none, one, the tile (14 × 32, 6 × 16) and its neighbours, a group of
# panels (112), a block of columns (512), a block of the sum (384).
sizes = st.sampled_from([0, 1, 2, 3, 5, 6, 7, 13, 14, 15, 16, 17, 28, 31, 32, 33, 48, 64, 65, 100, 113, 130])
long_sizes = sizes | st.sampled_from([255, 384, 385, 400, 515, 769])


@pytest.fixture(autouse=True, scope="module", params=["vectors", "tiles"])
def program(request):
    """Every test runs with float32 multiplied on vectors, and on tiles, even small ones, where there are any.

    A kernel that does not compile fails here, once, and not in every example that Hypothesis tries.
    """
    if request.param == "tiles" and not amx_available():
        pytest.skip("float32 goes to tiles where the processor has AMX")
    allow_tiles(request.param == "tiles")
    usual, module.TILED = module.TILED, 2
    for dtype in PRECISE:
        matmul(np.ones((1, 1), dtype), np.ones((1, 1), dtype))
        matmul(np.ones((2, 2), dtype), np.ones((2, 2), dtype))
    yield
    allow_tiles(True)
    module.TILED = usual


def check(a, b, result, *starts):
    """Every way to sum K products and some starts in floating point errs by at most (K + starts)·eps·Σ|terms|."""
    precise = PRECISE[a.dtype]
    a, b, *starts = (np.asarray(x, precise) for x in (a, b, *starts))
    exact = sum(starts, np.matmul(a, b))
    terms = sum(map(abs, starts), np.matmul(abs(a), abs(b)))
    assert result.shape == exact.shape
    assert (abs(result - exact) <= (a.shape[-1] + len(starts)) * np.finfo(result.dtype).eps * terms).all()


def normal(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


@settings(max_examples=150)
@given(
    shape=st.tuples(sizes, long_sizes, long_sizes) | st.tuples(long_sizes, sizes, sizes),
    dtype=st.sampled_from(["float32", "float64"]),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2, st.sampled_from(["new", *TARGETS])),
    biased=st.booleans(),
    onto=st.sampled_from(["nothing", "out", *LAYOUTS]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_a_more_precise_product(shape, dtype, layouts, biased, onto, seed):
    M, K, N = shape
    rng = np.random.default_rng(seed)
    a, b = laid_out(normal(rng, (M, K), dtype), layouts[0]), laid_out(normal(rng, (K, N), dtype), layouts[1])
    a.flags.writeable = b.flags.writeable = False
    bias = normal(rng, 2 * N, dtype)[::-2] if biased else None
    out = None if layouts[2] == "new" else laid_out(normal(rng, (M, N), dtype), layouts[2])
    below = None
    if onto == "out":
        below = out
    elif onto != "nothing":
        below = laid_out(normal(rng, (M, N), dtype), onto)
        below.flags.writeable = False
    starts = [start.copy() for start in (bias, below) if start is not None]
    result = matmul(a, b, bias=bias, out=out, onto=below)
    assert result.dtype == dtype and (result.flags.c_contiguous if out is None else result is out)
    check(a, b, result, *starts)


@pytest.mark.parametrize("dtype", PRECISE, ids=str)
@pytest.mark.parametrize("step", [2, -1, -3])
def test_a_bias_counts_wherever_it_lies(dtype, step):
    rng = np.random.default_rng(5)
    a, b, bias = normal(rng, (96, 7), dtype), normal(rng, (7, 96), dtype), normal(rng, 300, dtype)[::step][:96]
    np.testing.assert_array_equal(matmul(a, b, bias=bias), matmul(a, b, bias=bias.copy()))


@settings(max_examples=40)
@given(
    batches=st.sampled_from([((2,), (2,)), ((3, 1), (2,)), ((), (4,)), ((1, 2), (3, 1)), ((0,), ()), ((2, 3), (2, 3))]),
    shape=st.tuples(*[st.sampled_from([0, 1, 5, 33, 70])] * 3),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    heads_last=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_batches_broadcast(batches, shape, layouts, heads_last, seed):
    M, K, N = shape
    rng = np.random.default_rng(seed)
    a = laid_out(normal(rng, (*batches[0], M, K), "float32"), layouts[0])
    b = laid_out(normal(rng, (*batches[1], K, N), "float32"), layouts[1])
    if heads_last and len(batches[0]) == 2:  # as attention has it: (B, T, H, D) seen as (B, H, T, D)
        a = np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)
    bias = normal(rng, N, "float32")
    check(a, b, matmul(a, b, bias=bias), bias)
    out = laid_out(normal(rng, np.matmul(a, b).shape, "float32"), layouts[2] if "same" not in layouts[2] else "C")
    before = out.copy()
    check(a, b, matmul(a, b, onto=out), before)
    check(a, b, matmul(a, b, out=out, onto=out), before)


def test_a_tall_stack_of_rows_is_one_matrix():
    rng = np.random.default_rng(0)
    x, weight, bias = normal(rng, (3, 17, 65), "float32"), normal(rng, (40, 65), "float32"), normal(rng, 40, "float32")
    out = np.empty((3, 17, 40), np.float32)
    assert matmul(x, weight.T, bias=bias, out=out).shape == (3, 17, 40)
    check(x, weight.T, out, bias)
    below = np.asfortranarray(normal(rng, out.shape, "float32"))
    below.flags.writeable = False
    check(x, weight.T, matmul(x, weight.T, bias=bias, onto=below), bias, below)
    np.testing.assert_array_equal(out.reshape(51, 40), matmul(x.reshape(51, 65), weight.T, bias=bias))


SHAPES = [(300, 500, 700), (1, 800, 4000), (4000, 800, 1), (129, 1000, 65), (65, 400, 1200)]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_same_bits_for_any_number_of_threads(shape, transposed):
    M, K, N = shape
    rng = np.random.default_rng(1)
    a = normal(rng, (M, K), "float32")
    b = normal(rng, (N, K), "float32").T if transposed else normal(rng, (K, N), "float32")
    threads = num_threads()
    results = []
    try:
        for n in (1, 2, 2):
            set_num_threads(n)
            results.append(matmul(a, b))
    finally:
        set_num_threads(threads)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@given(rows=st.integers(2, 300), columns=st.integers(2, 300), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_bits_depend_on_nothing_but_the_row_and_the_column(rows, columns, seed):
    rng = np.random.default_rng(seed)
    a, b = normal(rng, (300, 450), "float32"), normal(rng, (450, 300), "float32")
    np.testing.assert_array_equal(matmul(a[:rows], b[:, :columns]), matmul(a, b)[:rows, :columns])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(poison):
    rng = np.random.default_rng(2)
    a, b = normal(rng, (31, 37), "float32"), normal(rng, (37, 45), "float32")
    a[30, 36] = b[36, 44] = poison
    finite = np.isfinite(matmul(a, b))
    expected = np.ones((31, 45), bool)
    expected[30] = expected[:, 44] = False
    np.testing.assert_array_equal(finite, expected)


def test_many_callers_at_once():
    rng = np.random.default_rng(3)
    pairs = [(normal(rng, (90, 100), "float32"), normal(rng, (100, 80 + i), "float32")) for i in range(16)]
    expected = [matmul(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for result, right in zip(pool.map(lambda pair: matmul(*pair), pairs), expected, strict=True):
                np.testing.assert_array_equal(result, right)


@pytest.mark.parametrize("dtype", PRECISE, ids=str)
@pytest.mark.parametrize("layout", ["C", "F"])
def test_a_workspace_is_as_large_as_what_is_laid_out_in_it(dtype, layout):
    lanes = module.host().vector_bytes // dtype.itemsize
    size, zeros = module._workspace_size(lanes), module.WIDTH * lanes
    rng = np.random.default_rng(4)
    a = laid_out(normal(rng, (module.GROUP + 3, 2 * module.DEPTH), dtype), layout)
    b = laid_out(normal(rng, (2 * module.DEPTH, zeros + 3), dtype), layout)
    product = module.product_of(dtype)
    multiply = lambda: module.multiply_with(product, a, b)
    result, used = in_guarded_workspace(product, size, zeros, multiply)
    np.testing.assert_array_equal(result, multiply())
    assert used == size


@pytest.mark.parametrize("dtype", PRECISE, ids=str)
@pytest.mark.parametrize("shape", [(17, 33, 35), (115, 385, 33), (1, 37, 131), (131, 37, 1), (3, 2, 3)], ids=str)
def test_nothing_is_read_or_written_beyond_the_operands(shape, dtype):
    M, K, N = shape
    rng = np.random.default_rng(5)
    numbers = [normal(rng, shape, dtype) for shape in ((M, K), (K, N), N, (M, N))]
    expected = matmul(*numbers[:2]) + numbers[3]
    for orders in itertools.product("CF", repeat=3):
        a, b, out = (at_the_end_of_memory(x, order) for x, order in zip(numbers[:2] + numbers[3:], orders, strict=True))
        bias = at_the_end_of_memory(numbers[2])
        np.testing.assert_allclose(matmul(a, b, out=out, onto=out), expected, rtol=1e-4, atol=1e-4)
        check(a, b, matmul(a, b, bias=bias, out=out), bias)


def test_errors_say_what_came():
    f32, f64 = np.ones((2, 3), np.float32), np.ones((3, 2))
    with pytest.raises(TypeError, match=r"int64"):
        matmul(np.ones((2, 3), np.int64), f64)
    with pytest.raises(TypeError, match=r"float32.*float64"):
        matmul(f32, f64)
    with pytest.raises(TypeError, match=r">f8"):
        matmul(np.ones((2, 3), ">f8"), f64)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 3\)"):
        matmul(f32, f32)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        matmul(f32, np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"\(2, 2, 3\).*\(3, 3, 2\)"):
        matmul(np.ones((2, 2, 3)), np.ones((3, 3, 2)))
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        matmul(f32, f32.T, out=np.empty((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"bias \(2,\)"):
        matmul(f32, f32.T, bias=np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"\(2, 2\).*onto is \(2, 3\)"):
        matmul(f32, f32.T, onto=np.empty((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"float32; onto is \(2, 2\) of float64"):
        matmul(f32, f32.T, onto=np.empty((2, 2)))
    with pytest.raises(ValueError, match="read-only"):
        matmul(f32, f32.T, out=np.broadcast_to(np.float32(0), (2, 2)))


def test_strides_that_break_numbers_are_refused():
    refuses_broken_strides(matmul)


SMALLER_PROCESSOR = """
import numpy as np
from autograd.kernels import ir, matmul as module
assert ir.host().vector_bytes == {vector_bytes}, ir.host()
rng = np.random.default_rng(0)
for M, K, N in [(1, 50, 70), (50, 70, 1), (97, 401, 67), (13, 65, 260)]:
    x, weight = rng.standard_normal((M, K)).astype("f"), rng.standard_normal((N, K)).astype("f")
    bias, dout = rng.standard_normal(N).astype("f"), rng.standard_normal((M, N)).astype("f")
    for a, b, start in [(x, weight.T, bias), (dout, weight, 0), (dout.T, x, 0)]:
        result = module.matmul(a, b, bias=None if isinstance(start, int) else start)
        np.testing.assert_allclose(result, a.astype("d") @ b.astype("d") + start, rtol=1e-4, atol=1e-3)
"""


@pytest.mark.parametrize("vector_bytes, lacking", [(32, ("avx512", "amx", "avx10")), (16, ("avx", "amx", "fma"))])
def test_on_a_smaller_processor(vector_bytes, lacking, tmp_path):
    from numba.core.codegen import get_host_cpu_features

    features = get_host_cpu_features().split(",")
    if not {"+avx2", "+fma"} <= set(features):
        pytest.skip("restricts the features of an x86 processor with AVX2; this is none")
    rest = ("-" + name[1:] if name[1:].startswith(lacking) else name for name in features)
    environment = os.environ | {
        "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ",".join(rest), "NUMBA_CACHE_DIR": str(tmp_path)
    }  # fmt: skip
    program = SMALLER_PROCESSOR.format(vector_bytes=vector_bytes)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
