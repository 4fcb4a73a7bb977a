"""Sums of arrays: as NumPy's, to the bit where each number is one addition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, dtypes, layouts, matrices, numbers, precise, same_bits_for_any_threads, seeds

from autograd.kernels.arrays import GRAIN
from autograd.kernels.sums import add, column_sums

shapes = st.sampled_from([(), (0,), (5,), (2 * GRAIN - 1,), (3, GRAIN), (2, 3, GRAIN // 2 + 1)])


@given(shapes, dtypes, seeds, st.data())
def test_add(shape, dtype, seed, data):
    a, b = (np.asarray(numbers(shape, dtype, seed + i)) for i in range(2))
    if shape:
        a, b = data.draw(layouts(a)), data.draw(layouts(b))
    expected = a + b
    out = add(a, b)
    assert out.dtype == dtype and out.tobytes() == expected.tobytes()
    target = np.array(a)
    assert add(target, b, out=target) is target
    assert target.tobytes() == expected.tobytes()
    assert add(a, 2.0).tobytes() == add(2.0, a).tobytes() == (a + 2.0).tobytes()


def test_add_broadcasts_and_doubles():
    a = numbers((4, GRAIN), np.float32, 0)
    for part in (a[0], a[:1], a[:, :1]):
        np.testing.assert_array_equal(add(a, part), a + part)
        np.testing.assert_array_equal(add(part, a), a + part)
    with pytest.raises(ValueError, match="broadcast"):
        add(a, a[:2])
    expected = a + a
    np.testing.assert_array_equal(add(a, a, out=a), expected)


@given(matrices(shapes=st.sampled_from([(0, 3), (1, 5), (7, 1), (300, 65), (5000, 3), (40, 3 * GRAIN)])))
def test_column_sums(x):
    sums = column_sums(x)
    check(sums, precise(x).sum(axis=0), 64, scale=1 + abs(precise(x)).sum(axis=0) / 8)
    assert sums.dtype == x.dtype
    rounded = (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)  # bfloat16, by its bits
    sums = column_sums(rounded)
    widened = (rounded.astype(np.uint32) << 16).view(np.float32)
    check(sums, precise(widened).sum(axis=0), 64, scale=1 + abs(precise(widened)).sum(axis=0) / 8)
    assert sums.dtype == np.float32


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        same_bits_for_any_threads(column_sums, numbers((5000, 65), dtype, 0))
