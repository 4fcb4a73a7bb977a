"""Calls that wait: made in their order, before anybody who looks, with all that they need."""

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import types

from autograd.kernels import jit, together
from autograd.kernels.attention import attention, attention_backward
from autograd.kernels.matmul import matmul
from autograd.kernels.norm import layer_norm, layer_norm_backward
from autograd.kernels.sums import column_sums
from autograd.kernels.tasks import load
from autograd.kernels.together import SLOTS, Shared, postponed, settle

calls = together._calls


@pytest.fixture(scope="module")
def note():
    """A kernel that writes a number to the end of a list: (list, number), a list being numbers and where it ends."""
    folder, jit.CACHE_FOLDER = jit.CACHE_FOLDER, None

    def work(shared_type):
        def each(shared, worker):
            numbers, end, number, _, _ = load(shared, shared_type)
            numbers[end[0]] = number
            end[0] += 1

        return each

    row = types.Array(types.int64, 1, "C")
    try:
        yield Shared("a note for tests", (row, row, types.int64), work)
    finally:
        jit.CACHE_FOLDER = folder


class Notes:
    def __init__(self, kernel):
        self.kernel, self.numbers, self.end = kernel, np.zeros(1000, np.int64), np.zeros(1, np.int64)

    def write(self, number, size=0):
        self.kernel(1, size, self.numbers, self.end, number)

    @property
    def made(self):
        return self.numbers[: self.end[0]].tolist()


def test_a_call_is_made_now_unless_it_may_wait(note):
    notes = Notes(note)
    notes.write(1)
    assert notes.made == [1]
    with postponed:
        notes.write(2)
        assert notes.made == [1, 2], "what is not together waits for nothing"


def test_calls_wait_for_the_end_of_the_outermost_block(note):
    notes = Notes(note)
    with together.together:
        notes.write(1)
        with together.together:
            notes.write(2)
        assert notes.made == []
    assert notes.made == [1, 2] and not calls.needed and not calls.pending


def test_postponed_calls_wait_beyond_it(note):
    notes = Notes(note)
    with postponed, postponed:
        with together.together:
            notes.write(1)
        with together.together:
            notes.write(2)
        assert notes.made == []
        settle()
        assert notes.made == [1, 2]
        with together.together:
            notes.write(3)
        settle()
        assert notes.made == [1, 2, 3]
        with together.together:
            notes.write(4)
        notes.write(5)
        assert notes.made == [1, 2, 3, 4, 5], "a call that does not wait comes after those that do"
        with together.together:
            notes.write(6)
    assert notes.made == [1, 2, 3, 4, 5, 6]


@given(st.integers(1, 3 * SLOTS))
def test_there_may_be_more_calls_than_slots(number):
    notes = Notes(test_there_may_be_more_calls_than_slots.note)
    with together.together:
        for i in range(number):
            notes.write(i)
        assert len(notes.made) == (number - 1) // SLOTS * SLOTS
    assert notes.made == list(range(number))


@pytest.fixture(autouse=True)
def _for_hypothesis(note):
    test_there_may_be_more_calls_than_slots.note = note


def test_an_error_in_between_leaves_nothing_behind(note):
    notes = Notes(note)
    with pytest.raises(KeyError), postponed, together.together:
        notes.write(1)
        raise KeyError
    assert notes.made == [1] and not (calls.count or calls.together or calls.postponed or calls.needed)


def test_what_waits_is_limited_in_size(note, monkeypatch):
    monkeypatch.setattr(together, "PENDING", 100)
    notes = Notes(note)
    with postponed:
        for i in range(3):
            with together.together:
                notes.write(i, 50)
            assert notes.made == ([0, 1, 2] if i == 2 else [])


def test_each_thread_has_calls_of_its_own(note):
    notes = Notes(note)

    def other():
        with together.together:
            notes.write(2)
        settle()

    with together.together:
        notes.write(1)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert notes.made == [2]
    assert notes.made == [2, 1]


def branch(x, weight, dout, bias):
    """Kernels of all kinds, each on what others have made."""
    n, mean, rstd = layer_norm(x, weight[0], None, 1e-5)
    qkv = matmul(n, weight.T, bias=bias)
    q, k, v = qkv.reshape(2, -1, 3, 1, len(weight) // 3).transpose(2, 0, 3, 1, 4)
    sums = column_sums(qkv)
    options = {"scale": 0.5, "causal": True}
    y, lse = attention(q, k, v, **options)
    out = matmul(y[:, 0], weight[: y.shape[-1]], onto=x.reshape(2, -1, x.shape[1]))
    dy = matmul(dout, weight[: y.shape[-1]].T).reshape(y.shape)
    grads = attention_backward(dy, q, k, v, y, lse, **options)
    both = matmul(dy.reshape(len(x), -1).T, n, bias=weight[0], onto=weight[: y.shape[-1]])
    dn = matmul(grads[0].reshape(len(x), -1), weight[: y.shape[-1]])
    below = layer_norm_backward(dn, x, weight[0], mean, rstd, onto=dout)
    return [n, qkv, y, lse, out, *grads, both, sums, *below]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("T", [3, 70, 520])
def test_kernels_that_wait_make_the_same_and_keep_what_they_need(dtype, T):
    rng = np.random.default_rng(0)
    x, weight, dout = (rng.standard_normal(shape).astype(dtype) for shape in ((2 * T, 20), (48, 20), (2 * T, 20)))
    bias = rng.standard_normal(48).astype(dtype)
    expected = branch(x, weight, dout, bias)
    with postponed:
        with together.together:
            copies = [a.copy() for a in (x, weight, dout, bias)]
            found = branch(*copies)
            del copies
            gc.collect()
            taken = [np.full(x.shape, np.nan, dtype) for _ in range(50)]  # where something was that is not kept
            waiting = calls.count
        del taken
    assert waiting
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
