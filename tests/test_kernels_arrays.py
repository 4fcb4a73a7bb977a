"""How arrays reach kernels: same numbers, one form, no copy that is not needed."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, dtypes, layouts, numbers

from autograd.kernels import arrays
from autograd.kernels.arrays import GRAIN, flat, operand, rows, rows_per_chunk, span, workspace

shapes = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)


@given(shapes, dtypes, st.data())
def test_an_operand_has_the_same_numbers_in_c_order(shape, dtype, data):
    x = data.draw(layouts(numbers(shape, dtype, 0)))
    for form, expected in ((operand, shape), (flat, (math.prod(shape),)), (rows, (math.prod(shape[:-1]), shape[-1]))):
        y = form(x)
        assert y.shape == expected and y.dtype == dtype
        assert y.flags.c_contiguous and y.flags.aligned and y.flags.writeable
        np.testing.assert_array_equal(y, x.reshape(expected))
        if x.flags.c_contiguous and x.size:
            assert np.shares_memory(x, y), "what is in order is not copied, read-only or not"


def test_an_alias_keeps_the_memory_alive():
    x = np.arange(5000.0)
    x.flags.writeable = False
    y = operand(x)
    del x
    filler = [np.full(5000, -1.0) for _ in range(10)]
    np.testing.assert_array_equal(y, np.arange(5000.0))
    assert len(filler) == 10


@pytest.mark.parametrize("width", [0, 1, 3, 100, GRAIN - 1, GRAIN, GRAIN + 1, 10 * GRAIN])
def test_a_chunk_holds_as_many_rows_as_fit_and_at_least_one(width):
    n = rows_per_chunk(width)
    assert n == 1 or n * width <= GRAIN
    assert (n + 1) * max(width, 1) > GRAIN
    assert n >= 1


@given(shapes, dtypes, st.data())
def test_a_span_goes_from_the_first_element_to_the_last(shape, dtype, data):
    kind = data.draw(st.sampled_from(["C", "F", "every other", "stride 0", "inner"]))
    x = numbers(shape, dtype, 0)
    if kind == "F":
        x = np.asfortranarray(x)
    if kind == "every other":
        x = np.repeat(x, 2, axis=0)[::2]
    if kind == "stride 0":
        x = np.broadcast_to(x[..., :1], shape)
    if kind == "inner":
        x = numbers([n + 2 for n in shape], dtype, 1)[tuple(slice(1, -1) for _ in shape)]
    y = span(x)
    assert y.ndim == 1 and y.dtype == dtype
    if not x.size:
        assert y.size == 0
        return
    steps = [stride // x.itemsize for stride in x.strides]
    places = sum(np.indices(x.shape)[i] * step for i, step in enumerate(steps))
    assert y.size == places.max() + 1, "it ends where the last element does"
    np.testing.assert_array_equal(y[places], x)
    assert np.shares_memory(x, y)


def test_a_span_of_what_kernels_cannot_walk_is_refused():
    x = numbers((6, 4), DTYPES[1], 0)
    with pytest.raises(ValueError, match="strides ≥ 0"):
        span(x[::-1])
    odd = np.zeros((3,), np.dtype([("a", np.float32), ("b", np.int8)]))["a"]  # five bytes from one to the next
    with pytest.raises(ValueError, match="aligned"):
        span(odd)
    shifted = np.frombuffer(b"0" * 41, np.uint8)[1:].view(np.float64)
    with pytest.raises(ValueError, match="aligned"):
        span(shifted)


def test_a_workspace_is_the_same_from_call_to_call_and_each_threads_own():
    arrays._held.memory = np.empty((0, 0), np.uint8)
    first = workspace(DTYPES[0], 3, 1500)
    assert first.shape == (3, 2048) and first.dtype == DTYPES[0] and first.flags.c_contiguous and first.flags.writeable
    assert workspace(DTYPES[0], 3, 1500) is workspace(DTYPES[0], 3, 2048) is first
    with ThreadPoolExecutor(1) as pool:
        assert not np.shares_memory(first, pool.submit(workspace, DTYPES[0], 3, 1500).result())
    smaller = workspace(DTYPES[1], 1, 1024)
    assert smaller.base is first.base, "used in another shape and dtype"
    assert smaller.shape == (1, 1024) and smaller.dtype == DTYPES[1]
    larger = workspace(DTYPES[1], 2, 5000)
    assert larger.shape == (2, 5120) and larger.base is not first.base
    larger[...] = 1  # all of it is there
    for elements in (1, 1000, 1025):
        parts = workspace(DTYPES[0], 3, elements)
        assert all(part.ctypes.data % 64 == 0 and part.size >= elements for part in parts), "each begins a cache line"
