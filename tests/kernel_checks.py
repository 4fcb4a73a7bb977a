"""What the tests of kernels share: arrays of all kinds, and the yardstick."""

import contextlib
import ctypes
import mmap

import numpy as np
import pytest
from hypothesis import strategies as st
from numba import types
from numba.extending import intrinsic

from autograd.kernels.bfloat16 import round_to_bfloat16
from autograd.kernels.jit import num_threads, set_num_threads
from autograd.kernels.tasks import queues
from autograd.kernels.together import together

DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
PRECISE = {DTYPES[0]: np.float64, DTYPES[1]: np.longdouble}

# Around the lengths of vectors, a few odd ones, and more than a chunk holds.
lengths = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 257, 1000])
counts = st.sampled_from([0, 1, 2, 3, 5, 8, 17, 64, 131])
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)


def numbers(shape, dtype, seed, spread=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(dtype)


def narrow(x):
    """float32 → bfloat16, by its bits: uint16."""
    return (round_to_bfloat16(x).view(np.uint32) >> 16).astype(np.uint16)


def widen(bits):
    """And back."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


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


# Of two or more axes, and those of them that can be written to.
LAYOUTS = ["C", "F", "every other", "reversed", "same row", "same column", "inside"]
TARGETS = ["C", "F", "every other", "inside"]


def laid_out(array, layout):
    """The same numbers (for "same …": numbers of the same shape) with other strides."""
    *batch, rows, columns = array.shape
    if layout == "F":
        return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "every other":
        return np.repeat(np.repeat(array, 2, axis=-1), 3, axis=-2)[..., ::3, ::2]
    if layout == "reversed":
        return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]
    if layout == "same row":
        return np.broadcast_to(array[..., :1, :], array.shape) if rows else array
    if layout == "same column":
        return np.broadcast_to(array[..., :1], array.shape) if columns else array
    if layout == "inside":
        padded = np.full((*batch, rows + 2, columns + 3), np.nan, array.dtype)
        padded[..., 1 : rows + 1, 2 : columns + 2] = array
        return padded[..., 1 : rows + 1, 2 : columns + 2]
    return np.ascontiguousarray(array)


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


@contextlib.contextmanager
def impatient(monkeypatch):
    """No kernel waits for another (see together.py)."""
    with monkeypatch.context() as patch:
        for name in ("__enter__", "__exit__"):
            patch.setattr(type(together), name, lambda self, *_: None)
        yield


@intrinsic
def as_pointer(typingctx, address):
    """An address as a pointer to int64."""
    kind = types.CPointer(types.int64)
    return kind(types.int64), lambda context, builder, signature, args: builder.inttoptr(
        args[0], context.get_value_type(kind)
    )


def in_guarded_workspace(product, size, zeros, multiply):
    """multiply() on one thread, in a workspace of `size` numbers, of which the first few must be 0, and stay so.

    What else it held before must not matter, and nothing behind it be touched. Returns the result and how many of its
    numbers were used.
    """
    own, usual = product.workspace, (product.workspace.queues, product.workspace.memory)
    assert 0 <= own.memory.shape[1] - size < 4096 // own.memory.itemsize and own.memory.ctypes.data % 64 == 0
    memory = np.full((1, size + (1 << 16)), 7, product.dtype)
    memory[:, :zeros], memory[:, zeros:size] = 0, np.nan
    own.queues, own.memory = queues(1), memory
    try:
        result = multiply()
    finally:
        own.queues, own.memory = usual
    assert (memory[:, :zeros] == 0).all() and (memory[:, size:] == 7).all()
    return result, 1 + np.flatnonzero(~np.isnan(memory[0, :size]))[-1]


def at_the_end_of_memory(x, order="C"):
    """A copy behind which no memory is: to read or write beyond it ends the process."""
    page = mmap.PAGESIZE
    size = -(-x.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    try:
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(page), 0) == 0
    except (AttributeError, TypeError):
        pytest.skip("memory is protected by mprotect, which this system does not have")
    placed = np.frombuffer(memory, x.dtype, x.size, size - x.nbytes).reshape(x.shape, order=order)
    placed[...] = x
    return placed


def packed(shape, fields):
    """Zeros of float32: an array of this shape, each of whose elements is an array of shape `fields`, and a byte."""
    return np.zeros(shape, np.dtype([("flag", "i1"), ("x", "f4", fields)]))["x"]


def refuses_broken_strides(multiply):
    """An axis along which numbers begin inside each other is an error, whichever of `matmul`'s arrays it belongs to."""
    a, b = np.zeros((2, 3), np.float32), np.zeros((3, 4), np.float32)
    both = lambda rows, columns: (packed(rows, columns), packed(columns, rows).T)
    calls = [((x, b), {}) for x in both(2, 3)] + [((a, x), {}) for x in both(3, 4)]
    calls += [((a, b), {"out": x}) for x in both(2, 4)] + [((a, b), {"bias": packed(4, 2)[:, 0]})]
    stack = np.stack([a, a])
    calls += [((packed(2, (2, 3)), b), {}), ((a, packed(2, (3, 4))), {}), ((stack, b), {"out": packed(2, (2, 4))})]
    for arrays, options in calls:
        with pytest.raises(ValueError, match="strides"):
            multiply(*arrays, **options)
