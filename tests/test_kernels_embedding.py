"""Embedding and its backward pass against indexing and np.add.at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, dtypes, layouts, lengths, numbers, precise, same_bits_for_any_threads, seeds

from autograd.kernels import embedding as module
from autograd.kernels.embedding import embedding, embedding_backward

shapes = st.sampled_from([(), (0,), (1,), (7,), (3, 0), (2, 3), (4, 50)])


integers = st.sampled_from([np.int64, np.int32, np.uint16])


@given(shapes, st.sampled_from([1, 2, 9, 300]), lengths, dtypes, seeds, integers, st.data())
def test_rows_out_and_gradients_back(shape, num_rows, width, dtype, seed, integer, data):
    idx = np.asarray(np.random.default_rng(seed).integers(0, num_rows, shape).astype(integer))
    weight = data.draw(layouts(numbers((num_rows, width), dtype, seed)))
    out = embedding(weight, idx)
    np.testing.assert_array_equal(out, weight[idx])
    assert out.flags.c_contiguous and out.base is not weight
    dout = data.draw(layouts(numbers((*shape, width), dtype, seed)))
    expected = np.zeros((num_rows, width), precise(dout).dtype)
    np.add.at(expected, idx, precise(dout))
    check(embedding_backward(dout, idx, num_rows), expected, 4 + idx.size)


def test_a_row_adds_up_in_the_order_of_its_positions():
    for dtype in DTYPES:
        dout = numbers((100, 3), dtype, 0)
        total = np.zeros(3, dtype)
        for row in dout:
            total += row
        np.testing.assert_array_equal(embedding_backward(dout, np.full(100, 2), 4)[2], total)


@pytest.mark.parametrize("wrong", [-1, 5, 1000])
def test_indices_are_checked(wrong):
    weight = np.zeros((5, 2), np.float32)
    with pytest.raises(IndexError, match=f"index {wrong} is out of range for a table of 5 rows"):
        embedding(weight, np.array([[0, 4], [wrong, 1]]))
    with pytest.raises(IndexError, match=f"index {wrong} is out of range"):
        embedding_backward(np.zeros((1, 2), np.float32), np.array([wrong]), 5)


def test_lists_of_positions_stay_in_their_bounds(monkeypatch):
    """The kernel as Python code, which notices."""
    monkeypatch.setattr(module, "_sort_positions", module._sort_positions.py_func)
    for idx in ([], [2, 0, 2], [4, 4, 4], [0, 1, 2, 3, 4]):
        dout = np.ones((len(idx), 1), np.float32)
        counts = embedding_backward(dout, np.array(idx, np.int64), 5)
        np.testing.assert_array_equal(counts[:, 0], np.bincount(np.array(idx, int), minlength=5))


def test_same_bits_for_any_threads():
    idx = np.random.default_rng(0).integers(0, 500, (40, 50))
    for dtype in DTYPES:
        same_bits_for_any_threads(embedding, numbers((500, 65), dtype, 0), idx)
        same_bits_for_any_threads(embedding_backward, numbers((40, 50, 65), dtype, 1), idx, 500)
