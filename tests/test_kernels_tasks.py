"""Tasks: every one is done, by one thread."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import as_pointer
from numba import types

from autograd.kernels import jit, tasks
from autograd.kernels.jit import callback

counts = st.integers(1, 9)


@given(st.integers(0, 5000), st.integers(1, 600), counts)
def test_shares_are_even_and_lie_side_by_side(size, unit, parts):
    shares = [tasks.share(size, unit, part, parts) for part in range(parts)]
    end = 0
    for begin, length in shares:
        assert begin == end or length == 0
        assert length >= 0 and (begin % unit == 0 or length == 0)
        end = max(end, begin + length)
    assert end == size == sum(length for _, length in shares)
    units = [-(-length // unit) for _, length in shares]
    assert max(units) - min(units) <= 1


@given(counts, st.integers(0, 40), st.data())
def test_every_task_is_taken_once(workers, number, data):
    queues = tasks.queues(workers)
    for _ in range(2):
        taken = []
        for _ in range(number):
            taken.append(tasks.next_task(queues, data.draw(st.integers(0, workers - 1)), number))
        assert sorted(taken) == list(range(number))
        for _ in range(3):
            assert {tasks.next_task(queues, worker, number) for worker in range(workers)} == {-1}
        tasks.reset(queues)
        assert not queues.any()


@given(counts, st.integers(0, 40), st.data())
def test_a_thread_does_its_own_share_and_then_helps_its_neighbours(workers, number, data):
    worker, queues = data.draw(st.integers(0, workers - 1)), tasks.queues(workers)
    shares = [tasks.share(number, 1, (worker + turn) % workers, workers) for turn in range(workers)]
    expected = [begin + i for begin, length in shares for i in range(length)]
    assert [tasks.next_task(queues, worker, number) for _ in range(number)] == expected


def test_counters_of_two_threads_share_no_line_of_the_cache():
    queues = tasks.queues(3)
    for worker in range(3):
        tasks.next_task(queues, worker, 300)
    places = np.flatnonzero(queues)
    assert len(places) == 3 and (np.diff(places) * queues.itemsize >= 64).all()


@given(counts, st.integers(1, 40))
def test_the_last_task_is_known(workers, number):
    queues = tasks.queues(workers)
    assert [tasks.is_last(queues, number) for _ in range(number)] == [i == number - 1 for i in range(number)]
    tasks.reset(queues)
    assert not queues.any()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_work_is_called_for_every_worker(workers, monkeypatch):
    monkeypatch.setattr(jit, "CACHE_FOLDER", None)

    @callback(types.void(types.int64, types.int64))
    def work(shared, worker):
        numba.carray(as_pointer(shared), 8)[worker] += 1 + worker

    called, queues = np.zeros(8, np.int64), np.ones(3 * tasks.APART, np.int64)
    tasks.run(work.address, called.ctypes.data, workers, queues, 0)
    np.testing.assert_array_equal(called, [1 + i if i < workers else 0 for i in range(8)])
    assert not queues[[0, 1, tasks.APART, 2 * tasks.APART]].any(), "begun anew"


@pytest.mark.parametrize("numbers", [128, 129])
def test_what_does_not_fit_into_a_slot_is_refused(numbers, monkeypatch):
    monkeypatch.setattr(jit, "CACHE_FOLDER", None)
    name = tasks.declare(f"{numbers} numbers", types.UniTuple(types.int64, numbers))

    @jit.kernel
    def put(values, slot):
        return tasks.save(values, name, slot)

    slot, values = np.zeros(tasks.SLOT // 8, np.int64), tuple(range(numbers))
    place = slot.ctypes.data + tasks.HEADER
    if 8 * numbers > tasks.SLOT - tasks.HEADER:
        with pytest.raises(Exception, match="129 numbers needs 1032 bytes, more than a slot has"):
            put(values, place)
    else:
        assert put(values, place) == place
        np.testing.assert_array_equal(slot[-numbers:], values)
