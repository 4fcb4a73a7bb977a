"""The polynomials in kernels: every function against a library of higher precision, over all magnitudes."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_checks import DTYPES, PRECISE
from llvmlite import ir

from autograd.kernels import elementary, jit
from autograd.kernels.bfloat16 import round_to_bfloat16
from autograd.kernels.elementary import as_number, as_stored, is_narrow
from autograd.kernels.ir import pointer
from autograd.kernels.jit import kernel

erf = np.frompyfunc(lambda x: math.erf(x), 1, 1)
erfc = np.frompyfunc(lambda x: math.erfc(x), 1, 1)

# function: (definition in higher precision, bound in ulp of the result, bound in ulp of 1 instead)
FUNCTIONS = {
    "exp": (np.exp, 1.5, 0),
    "log": (np.log, 2.5, 0),
    "tanh": (np.tanh, 4, 0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 4, 0),
    "erf": (lambda x: erf(x.astype(np.float64)).astype(x.dtype), 4, 0),
    "normal_cdf": (lambda x: (erfc(-x.astype(np.float64) / math.sqrt(2)) / 2).astype(x.dtype), 0, 2.5),
    "normal_pdf": (lambda x: np.exp(-x * x / 2) / np.sqrt(2 * np.asarray(np.pi, x.dtype)), 0, 1),
}


def mapped(function):
    @kernel
    def apply(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return apply


COMPILED = {name: mapped(getattr(elementary, name)) for name in [*FUNCTIONS, "exp2", "widen", "as_number"]}


def apply(name, x):
    out = np.empty_like(x)
    COMPILED[name](x, out)
    return out


def check(name, x):
    definition, relative, absolute = FUNCTIONS[name]
    info = np.finfo(x.dtype)
    with np.errstate(all="ignore"):
        expected = definition(x.astype(PRECISE[x.dtype]))
        rounded = expected.astype(x.dtype)
    actual = apply(name, x)
    normal = np.isfinite(rounded) & (abs(expected) >= info.tiny)
    if name == "log":
        normal &= x >= info.tiny
    error = abs(actual[normal] - expected[normal])
    # relative errors are counted in units of the last place of the exact result
    limit = relative * np.spacing(abs(rounded[normal])) + absolute * info.eps
    assert (error <= limit).all(), (name, x[normal][(error / limit).argmax()], (error / limit).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_close_to_the_definition_everywhere(name, dtype):
    rng = np.random.default_rng(0)
    magnitudes = 10.0 ** rng.uniform(-30, 3, 5000)
    x = np.concatenate([rng.uniform(-4, 4, 5000), rng.uniform(-100, 100, 5000), magnitudes, -magnitudes,
                        1 + magnitudes[:1000] * 1e-3]).astype(dtype)
    check(name, abs(x) if name == "log" else x)


@given(x=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
       name=st.sampled_from(sorted(FUNCTIONS)), dtype=st.sampled_from(DTYPES))
def test_close_to_the_definition_at_awkward_numbers(x, name, dtype):
    x = np.array(x, dtype)
    check(name, abs(x) if name == "log" else x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinities_and_nan_as_in_the_library(name, dtype):
    x = np.array([np.inf, -np.inf, np.nan, 0, -0.0] * 7, dtype)  # vector code and what is left over
    expected = {
        "exp": (np.inf, 0, np.nan, 1, 1),
        "log": (np.inf, np.nan, np.nan, -np.inf, -np.inf),
        "tanh": (1, -1, np.nan, 0, 0),
        "sigmoid": (1, 0, np.nan, 0.5, 0.5),
        "erf": (1, -1, np.nan, 0, 0),
        "normal_cdf": (1, 0, np.nan, 0.5, 0.5),
        "normal_pdf": (0, 0, np.nan, 1 / math.sqrt(2 * math.pi), 1 / math.sqrt(2 * math.pi)),
    }[name]
    np.testing.assert_array_max_ulp(apply(name, x), np.array(expected * 7, dtype), maxulp=1, dtype=dtype)


@pytest.mark.parametrize(("number", "bits"), [(ir.FloatType(), 32), (ir.DoubleType(), 64)], ids=str)
def test_constants_stand_in_every_lane_of_a_vector(number, bits):
    vector, integer = ir.VectorType(number, 8), ir.IntType(bits)
    assert elementary.constants_of(vector) is elementary.constants_of(number)
    assert elementary.constants_of(number).zero.itemsize * 8 == bits
    assert elementary.integers_like(number) == integer
    assert elementary.integers_like(vector) == ir.VectorType(integer, 8)
    assert str(elementary.constant(vector, 2)) == str(ir.Constant(vector, [2.0] * 8))
    assert str(elementary.constant(integer, 2.0)) == str(ir.Constant(integer, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exp_never_returns_a_subnormal_number(dtype):
    x = np.linspace(2 * np.log(np.finfo(dtype).tiny), np.log(np.finfo(dtype).tiny) + 1, 10000).astype(dtype)
    y = apply("exp", x)
    assert ((y == 0) | (y >= np.finfo(dtype).tiny)).all()
    assert (y == 0).any() and (y > 0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exp2_where_attention_needs_it(dtype):
    """From the largest power down to nothing; there it may underflow as it likes, but masked scores weigh nothing."""
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    whole_range, common = rng.uniform(info.minexp, info.maxexp - 1, 20000), rng.uniform(-1, 1, 20000)
    x = np.concatenate([whole_range, common, np.arange(-30, 30)]).astype(dtype)
    exact = np.exp2(x.astype(PRECISE[x.dtype]))
    assert (abs(apply("exp2", x) - exact) <= 2 * np.spacing(exact.astype(dtype))).all()
    below = apply("exp2", np.linspace(-1e5, info.minexp, 10000).astype(dtype))
    assert (below >= 0).all() and (below <= info.tiny).all()
    special = apply("exp2", np.array([-np.inf, np.nan, 0] * 7, dtype))
    np.testing.assert_array_equal(special, np.array([0, np.nan, 1] * 7, dtype))


@pytest.fixture(scope="module", params=["as this processor does", "without the instruction"])
def narrow(request):
    """Numbers rounded to bfloat16, as processors do it that have an instruction for that, or have none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "CACHE_FOLDER", None)
        if request.param == "without the instruction":
            patch.setattr(elementary, "has", lambda *names: False)
        compiled = mapped(elementary.narrow)
        compiled(np.ones(1, np.float32), np.empty(1, np.uint16))
        return compiled


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
@example([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF7FFFFF, 0x3F808000, 0x3F818000, 0x3F808001, 0x80000000])
def test_bfloat16_is_the_nearest_and_ties_go_to_even(narrow, bits):
    x, short = np.array(bits, np.uint32).view(np.float32), np.empty(len(bits), np.uint16)
    narrow(x, short)
    wide = np.empty(len(bits), np.float32)
    COMPILED["widen"](short, wide)
    assert [int(s) << 16 for s in short] == list(wide.view(np.uint32))
    with np.errstate(invalid="ignore"):  # NaN that signals
        double = x.astype(np.float64)
    for number in (short, x, double):  # what kernels read from arrays of any kind
        read = np.empty(len(bits), np.float64)
        COMPILED["as_number"](number, read)
        np.testing.assert_array_equal(read, wide if number is short else number)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(x))
    for b, s in zip(bits, short, strict=True):
        if not np.isnan(np.uint32(b).view(np.float32)):
            nearest = (b >> 16) + ((b & 0xFFFF) + (b >> 16 & 1) > 0x8000)
            assert s == nearest or (b & 0x7F800000 == 0 and s == b >> 16 & 0x8000), "below 2⁻¹²⁶ it may be 0"


@kernel
def put(x, place):
    start = pointer(place)
    start[0] = as_stored(x, start)
    return is_narrow(start), as_number(start[0])


@pytest.mark.parametrize("x", [1 / 3, -0.1, 2.0, 1 + 3 * 2**-8, np.inf])
def test_numbers_are_stored_as_their_place_says(x):
    for dtype in (np.float32, np.float64):
        place = np.zeros(1, dtype)
        assert put(dtype(x), place) == (False, dtype(x)) and place[0] == dtype(x)
    bits = np.zeros(1, np.uint16)
    rounded = round_to_bfloat16(np.float32([x]))
    assert put(np.float32(x), bits) == (True, rounded[0]) and bits[0] == rounded.view(np.uint32)[0] >> 16



@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(x=st.lists(st.floats(width=32), max_size=40))
def test_row_maximum(x, dtype):
    x = np.array(x, dtype)
    expected = x.max(initial=-np.inf)
    actual = elementary.row_maximum(x)
    if not np.isnan(x).any():
        assert actual == expected
