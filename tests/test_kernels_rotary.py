"""Rotary embedding against complex multiplication."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, dtypes, layouts, numbers, precise, same_bits_for_any_threads, seeds

from autograd.kernels.rotary import rotary

few = st.sampled_from([0, 1, 2, 3, 7])


def angles(T, half, dtype, seed):
    angle = np.random.default_rng(seed).uniform(-10, 10, (T, half))
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def turned(x, cos, sin):
    """The pair (x_j, x_{j + D/2}) as a complex number, times cos + i·sin."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)[:, None, :]
    return np.concatenate([z.real, z.imag], axis=-1)


@given(few, few, few, st.sampled_from([1, 2, 5, 16, 33]), dtypes, seeds, st.data())
def test_turns_the_first_heads(B, T, H, half, dtype, seed, data):
    x = data.draw(layouts(numbers((B, T, H, 2 * half), dtype, seed)))
    cos, sin = angles(T, half, dtype, seed)
    heads = data.draw(st.integers(0, H))
    out = rotary(x, cos, sin, heads)
    check(out[:, :, :heads], turned(*precise(np.ascontiguousarray(x[:, :, :heads]), cos, sin)), 4)
    np.testing.assert_array_equal(out[:, :, heads:], x[:, :, heads:])
    np.testing.assert_array_equal(rotary(x, cos, sin), rotary(x, cos, sin, H))


@given(dtypes, seeds)
def test_the_opposite_angle_turns_back(dtype, seed):
    x = numbers((2, 5, 3, 16), dtype, seed)
    cos, sin = angles(5, 8, dtype, seed)
    check(rotary(rotary(x, cos, sin), cos, -sin), precise(x), 8)


def test_shapes_are_checked():
    good, table = (1, 3, 2, 8), (3, 4)
    wrong = [(good, (3, 8)), (good, (2, 4)), (good, (3, 3)), ((1, 3, 2, 7), (3, 3)), ((3, 2, 8), table),
             ((*good, 1), table)]  # fmt: skip
    for x, cos, sin in (*((x, cos, cos) for x, cos in wrong), (good, table, (3, 5)), (good, (3, 5), table)):
        with pytest.raises(ValueError, match="expected x"):
            rotary(*(np.zeros(shape, np.float32) for shape in (x, cos, sin)))


def test_same_bits_for_any_threads():
    for dtype in DTYPES:
        same_bits_for_any_threads(rotary, numbers((2, 65, 3, 32), dtype, 0), *angles(65, 16, dtype, 1))
