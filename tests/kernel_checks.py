"""What the tests of kernels share: arrays of all kinds, and the yardstick."""

import numpy as np
from hypothesis import strategies as st

from autograd.kernels.jit import num_threads, set_num_threads

DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
PRECISE = {DTYPES[0]: np.float64, DTYPES[1]: np.longdouble}

# Around the lengths of vectors, a few odd ones, and more than a chunk holds.
lengths = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 257, 1000])
counts = st.sampled_from([0, 1, 2, 3, 5, 8, 17, 64, 131])
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)


def numbers(shape, dtype, seed, spread=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(dtype)


@st.composite
def layouts(draw, array):
    """The same numbers in other strides, or read-only."""
    kind = draw(st.sampled_from(["C", "F", "every other", "reversed", "read-only"]))
    if kind == "F":
        return np.asfortranarray(array)
    if kind == "every other":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if kind == "reversed":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    if kind == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


@st.composite
def matrices(draw, spreads=(1.0, 100.0), shapes=None):
    """(rows, columns) of normal numbers, as small and as large as the kernels must bear, in some layout."""
    shape = draw(st.tuples(counts, lengths) if shapes is None else shapes)
    return draw(layouts(numbers(shape, draw(dtypes), draw(seeds), draw(st.sampled_from(spreads)))))


def precise(*arrays):
    """The arrays in the next higher precision."""
    converted = tuple(np.asarray(a, PRECISE[a.dtype]) for a in arrays)
    return converted if len(converted) > 1 else converted[0]


def check(actual, expected, ulps, scale=None, also=0.0):
    """|actual − expected| ≤ ulps · eps · scale + also, where scale is the largest magnitude expected unless given.

    NaN and infinities must stand where they are expected.
    """
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    if scale is None:
        scale = np.abs(expected[finite]).max(initial=0)
    error = np.abs(np.where(finite, actual - np.where(finite, expected, 0), 0))
    info = np.finfo(actual.dtype)
    limit = ulps * info.eps * np.broadcast_to(scale, error.shape) + also + 4 * info.tiny
    worst = (error / limit).max(initial=0)
    assert worst <= 1, f"off by {worst:.2f} times the bound of {ulps} ulp"


def same_bits_for_any_threads(function, *arguments):
    """Run with one thread and with all; the results must not differ by a bit. Returns them."""
    threads = num_threads()
    try:
        set_num_threads(1)
        one = function(*arguments)
    finally:
        set_num_threads(threads)
    many = function(*arguments)
    as_tuple = lambda result: result if isinstance(result, tuple) else (result,)
    for a, b in zip(as_tuple(one), as_tuple(many), strict=True):
        assert a.tobytes() == b.tobytes()
    return many
