"""bfloat16 products against their definition: round to bfloat16, multiply exactly, sum in float32."""

import itertools
import types
import warnings

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd.kernels import bfloat16
from autograd.kernels import matmul as matmul_kernels
from autograd.kernels.bfloat16 import (
    amx_available,
    matmul_bf16,
    matmul_narrow,
    matmul_precision,
    round_to_bfloat16,
    rounded_product,
)
from autograd.kernels.jit import num_threads, set_num_threads
from autograd.kernels.matmul import NOTHING, matmul
from autograd.kernels.memory import empty
from autograd.kernels.tasks import share
from tests.kernel_checks import (
    LAYOUTS,
    TARGETS,
    at_the_end_of_memory,
    in_guarded_workspace,
    laid_out,
    refuses_broken_strides,
)

# none, one, the tiles (16, 32), the group of rows (128), the blocks of the sum and of columns (512)
sizes = st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 96, 130, 161])
long_sizes = sizes | st.sampled_from([384, 511, 513, 560, 1030])


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """A kernel that does not compile fails here, once, and not in every example that Hypothesis tries."""
    matmul_bf16(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def bits(x):
    """float32 → bfloat16, as uint16."""
    return (round_to_bfloat16(x).view(np.uint32) >> 16).astype(np.uint16)


def check(a, b, result, *starts):
    """Products of bfloat16 are exact in float32, so that only the sums round: (K + starts)·eps·Σ|terms|.

    AMX leaves it open in which order, and whether to even, the pairs of a step are summed: twice the bound.
    """
    a, b, *starts = (np.asarray(x, np.float64) for x in (round_to_bfloat16(a), round_to_bfloat16(b), *starts))
    exact, terms = sum(starts, a @ b), sum(map(abs, starts), abs(a) @ abs(b))
    bound = 2 * (a.shape[-1] + len(starts)) * np.finfo(np.float32).eps * terms
    assert result.dtype == np.float32 and result.shape == exact.shape
    assert (abs(result - exact) <= bound).all()


@settings(max_examples=100)
@given(
    shape=st.tuples(sizes.filter(lambda n: n != 1), long_sizes, long_sizes.filter(lambda n: n != 1)),
    layouts=st.tuples(*map(st.sampled_from, (LAYOUTS, LAYOUTS, TARGETS))),
    biased=st.booleans(),
    onto=st.sampled_from(["nothing", "out", *LAYOUTS]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_exact_product_of_rounded_operands(shape, layouts, biased, onto, seed):
    M, K, N = shape
    rng = np.random.default_rng(seed)
    a, b = laid_out(normal(rng, M, K), layouts[0]), laid_out(normal(rng, K, N), layouts[1])
    a.flags.writeable = b.flags.writeable = False
    bias = normal(rng, 2 * N)[:: rng.choice([1, 2, -2])][:N] if biased else None
    out = laid_out(normal(rng, M, N), layouts[2])
    below = {"nothing": None, "out": out}.get(onto, laid_out(normal(rng, M, N), onto) if onto in LAYOUTS else None)
    starts = [start.copy() for start in (bias, below) if start is not None]
    assert matmul_bf16(a, b, bias=bias, out=out, onto=below) is out
    check(a, b, out, *starts)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_rounding_goes_to_the_nearest_and_ties_to_even(values):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle for rounding")
    x = np.array(values, np.float32)
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(round_to_bfloat16(x), expected)


def test_the_tiles_round_as_the_definition_does():
    """One term in each sum: only the rounding of a is left. Every exponent of float32, ties and their neighbours."""
    exponents = np.arange(1, 255, dtype=np.uint32)[:, None] << 23
    mantissas = np.array([0, 0x7FFF, 0x8000, 0x8001, 0x17FFF, 0x18000, 0x18001, 0x7F7FFF], np.uint32)
    a = (exponents | mantissas).view(np.float32)
    product = matmul_bf16(a, np.eye(len(mantissas), dtype=np.float32))
    np.testing.assert_array_equal(product, round_to_bfloat16(a))


def test_batches_broadcast():
    rng = np.random.default_rng(0)
    a, b = normal(rng, 3, 1, 40, 70), normal(rng, 2, 70, 50)
    result = matmul_bf16(a, b)
    for i in range(3):
        for j in range(2):
            check(a[i, 0], b[j], result[i, j])


@pytest.mark.parametrize("shape", [(300, 1100, 700), (65, 400, 1200), (700, 64, 65), (32, 3000, 600)])
def test_the_same_bits_for_any_number_of_threads(shape, monkeypatch):
    M, K, N = shape
    rng = np.random.default_rng(1)
    a, b, threads = normal(rng, M, K), normal(rng, K, N), num_threads()
    if not amx_available():
        pytest.skip("this processor has no bfloat16 tiles")
    product = bfloat16._product(np.float32, np.float32)
    results = []
    try:
        for n in (1, threads):
            set_num_threads(n)
            monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", n)
            # The plan is made for as many threads as there are workspaces.
            monkeypatch.setattr(product, "workspace", matmul_kernels._Workspace(bfloat16.WORKSPACE, product.dtype))
            results.append(matmul_bf16(a, b))
            monkeypatch.undo()
    finally:
        set_num_threads(threads)
    np.testing.assert_array_equal(*results)


@given(rows=st.integers(2, 200), columns=st.integers(2, 200))
@settings(max_examples=10)
def test_the_bits_depend_on_nothing_but_the_row_and_the_column(rows, columns):
    rng = np.random.default_rng(2)
    a, b = normal(rng, 200, 600), normal(rng, 600, 200)
    np.testing.assert_array_equal(matmul_bf16(a[:rows], b[:, :columns]), matmul_bf16(a, b)[:rows, :columns])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(poison):
    rng = np.random.default_rng(3)
    a, b = normal(rng, 31, 37), normal(rng, 37, 45)
    a[30, 36] = b[36, 44] = poison
    expected = np.ones((31, 45), bool)
    expected[30] = expected[:, 44] = False
    np.testing.assert_array_equal(np.isfinite(matmul_bf16(a, b)), expected)


def test_a_product_with_a_vector_is_not_rounded():
    rng = np.random.default_rng(4)
    a, b = normal(rng, 1, 300), normal(rng, 300, 200)
    np.testing.assert_array_equal(matmul_bf16(a, b), matmul(a, b))
    np.testing.assert_array_equal(matmul_bf16(b.T, a.T), matmul(b.T, a.T))
    rows = normal(rng, 5, 1, 300)  # five tokens of a batch are no vector
    np.testing.assert_array_equal(matmul_bf16(rows, b)[:, 0], matmul_bf16(rows[:, 0], b))


def test_the_precision_is_a_setting_and_a_context():
    rng = np.random.default_rng(5)
    a, b = normal(rng, 20, 30), normal(rng, 30, 20)
    exact, double = matmul(a, b), matmul(a.astype("d"), b.astype("d"))
    if not amx_available():
        with pytest.warns(RuntimeWarning, match="no AMX"), matmul_precision("bfloat16"):
            np.testing.assert_array_equal(matmul(a, b), exact)
        return
    rounded = matmul_bf16(a, b)
    assert (rounded != exact).any()
    with matmul_precision("bfloat16"):
        np.testing.assert_array_equal(matmul(a, b), rounded)
        np.testing.assert_array_equal(matmul(a.astype("d"), b.astype("d")), double)
        with matmul_precision("float32"):
            np.testing.assert_array_equal(matmul(a, b), exact)
        np.testing.assert_array_equal(matmul(a, b), rounded)
    np.testing.assert_array_equal(matmul(a, b), exact)
    with pytest.raises(ValueError, match="float16"):
        matmul_precision("float16")


@given(st.integers(1, 30000), st.integers(1, 5000), st.integers(1, bfloat16.WIDTH))
def test_blocks_that_are_packed_at_a_time_fit_into_the_workspace(K, M, N):
    wide = -(-min(N, bfloat16.widest(K, NOTHING)) // bfloat16.SQUARE) * bfloat16.SQUARE
    blocks = -(-K // bfloat16.DEPTH)
    at_a_time = min(bfloat16.blocks_packed(K, M, wide), blocks)
    assert at_a_time >= 1
    for first in range(0, blocks, at_a_time):
        begin, _ = share(K, 32, first, blocks)
        last, depth = share(K, 32, min(first + at_a_time, blocks) - 1, blocks)
        assert (last - begin + -(-depth // 32) * 32) * wide <= bfloat16.B_NUMBERS


@pytest.mark.parametrize("shape", [(17, 33, 35), (33, 64, 47), (2, 2, 3), (49, 545, 16)], ids=str)
def test_nothing_is_read_or_written_beyond_the_operands(shape):
    M, K, N = shape
    rng = np.random.default_rng(8)
    numbers = [normal(rng, *shape) for shape in ((M, K), (K, N), (N,), (M, N))]
    for orders in itertools.product("CF", repeat=3):
        a, b, out = (at_the_end_of_memory(x, order) for x, order in zip(numbers[:2] + numbers[3:], orders, strict=True))
        bias = at_the_end_of_memory(numbers[2])
        check(a, b, matmul_bf16(a, b, out=out, onto=out), numbers[3])
        check(a, b, matmul_bf16(a, b, bias=bias, out=out), bias)


@pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")
@pytest.mark.parametrize("shape", [(17, 64, 35), (33, 96, 17), (49, 33, 3)], ids=str)
def test_nothing_is_read_beyond_operands_that_are_bfloat16_already(shape):
    M, K, N = shape
    rng = np.random.default_rng(9)
    a, b = normal(rng, M, K), normal(rng, K, N)
    for orders in itertools.product("CF", repeat=2):
        narrow = [at_the_end_of_memory(bits(x), order) for x, order in zip((a, b), orders, strict=True)]
        np.testing.assert_array_equal(matmul_narrow(*narrow), matmul_bf16(a, b))


@pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")
@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize(
    ("M", "K", "N"), [(130, 512, 1200), (700, 6144, 513), (60, 5000, 1100), (33, bfloat16.LONGEST, 70)]
)
def test_a_workspace_is_as_large_as_what_is_laid_out_in_it(M, K, N, rounds):
    rng = np.random.default_rng(7)
    a, b = normal(rng, M, K), normal(rng, K, N)
    expected = bits(matmul_bf16(a, b)) if rounds else matmul_bf16(a, b)
    product, multiply = bfloat16._product(np.float32, np.float32), rounded_product if rounds else matmul_bf16
    size, zeros = bfloat16.WORKSPACE, bfloat16.WIDEST
    result, used = in_guarded_workspace(product, size, zeros, lambda: multiply(a, b))
    np.testing.assert_array_equal(result, expected)
    assert used == size or K > bfloat16.DEPTH  # longer sums are packed in blocks that need not fill it


@pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")
def test_narrow_products_are_those_that_are_rounded():
    single, double = (np.ones((2, bfloat16.LONGEST), dtype) for dtype in (np.float32, np.float64))
    longer = np.ones((2, bfloat16.LONGEST + 1), np.float32)
    others = [(double, single), (single, double), (double, double), (single[:1], single), (single, single[:1])]
    others.append((longer, longer))
    with matmul_precision("bfloat16"):
        assert bfloat16.narrow_products(single, single)
        assert not any(bfloat16.narrow_products(*pair) for pair in others)
    assert not bfloat16.narrow_products(single, single)


def test_without_amx_the_rounded_operands_are_multiplied_in_float32(monkeypatch):
    rng = np.random.default_rng(6)
    a, b, bias = normal(rng, 40, 100), normal(rng, 100, 33), normal(rng, 33)
    monkeypatch.setattr(bfloat16, "amx_available", lambda: False)
    check(a, b, matmul_bf16(a, b, bias=bias), bias)


TILES = {"amx-tile", "amx-bf16", "avx512bf16", "avx512bw"}


@pytest.mark.parametrize(
    ("features", "system", "machine", "permitted", "expected"),
    [
        (TILES, "linux", "x86_64", True, True),
        *((TILES - {lacking}, "linux", "x86_64", True, False) for lacking in sorted(TILES)),
        (TILES, "darwin", "x86_64", True, False),
        (TILES, "linux", "aarch64", True, False),
        (TILES, "linux", "zarch", True, False),
        (TILES, "linux", "x86_64", False, False),
        (TILES, "linux", "x86_64", None, False),
    ],
)
def test_tiles_need_their_instructions_and_the_systems_permission(
    monkeypatch, features, system, machine, permitted, expected
):
    """The permission is asked for through libc's `syscall`; here it answers as Linux does, as a sandbox, or not."""
    requests = []

    def library(name):
        if permitted is None:
            raise OSError("there is no such library")
        return types.SimpleNamespace(syscall=lambda *arguments: requests.append(arguments) or -(not permitted))

    monkeypatch.setattr(bfloat16, "has", lambda *names: features.issuperset(names))
    monkeypatch.setattr(bfloat16.sys, "platform", system)
    monkeypatch.setattr(bfloat16.platform, "machine", lambda: machine)
    monkeypatch.setattr(bfloat16.ctypes, "CDLL", library)
    assert amx_available.__wrapped__() is expected
    assert not requests or requests == [(158, 0x1023, 18)]  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)


def test_where_tiles_are_denied_products_stay_in_float32(monkeypatch):
    monkeypatch.setattr(bfloat16, "amx_available", lambda: False)
    with pytest.warns(RuntimeWarning, match="stay in float32") as warned, matmul_precision("bfloat16"):
        a = np.full((2, 2), 1.001, np.float32)
        np.testing.assert_array_equal(matmul(a, a), np.full((2, 2), 2 * np.float32(1.001) ** 2, np.float32))
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matmul_precision("float32")


def test_errors_say_what_came():
    with pytest.raises(TypeError, match=r"float32.*float64"):
        matmul_bf16(np.ones((2, 2), np.float32), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 3\)"):
        matmul_bf16(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        matmul_bf16(np.ones((2, 3), np.float32), np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        matmul_bf16(np.ones(3, np.float32), np.ones((3, 2), np.float32))


@pytest.mark.skipif(not amx_available(), reason="without bfloat16 tiles the operands are copied")
def test_strides_that_break_numbers_are_refused():
    refuses_broken_strides(matmul_bf16)


@pytest.mark.parametrize("step", [1, 2, -1])
def test_a_bias_counts_wherever_it_lies(step):
    rng = np.random.default_rng(0)
    a, b, bias = normal(rng, 64, 40), normal(rng, 40, 64), normal(rng, 200)[::step][:64]
    np.testing.assert_array_equal(matmul_bf16(a, b, bias=bias), matmul_bf16(a, b, bias=bias.copy()))


@pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")
@pytest.mark.parametrize("K", [31, 40, 62, 64])
@pytest.mark.parametrize("step", [1, 2])
def test_what_lies_between_the_numbers_of_a_does_not_count(K, step):
    """However nearly its rows are tiles already."""
    rng = np.random.default_rng(0)
    wide = empty((64, 256), np.uint16)  # begins with a cache line
    wide[...] = 0x7FC0  # NaN
    a = wide[:, : step * K : step]
    a[...], b = bits(normal(rng, 64, K)), normal(rng, K, 40)
    np.testing.assert_array_equal(matmul_narrow(a, b), matmul_narrow(a.copy(), b))
    assert np.isfinite(matmul_narrow(a, b)).all()
