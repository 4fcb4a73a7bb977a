"""Calls of kernels that wait for each other, and are then made in one go.

Between two kernels, Python takes views, asks for memory and checks shapes for the next one. That takes 4 µs when all
it needs is in the processor's caches, and several times as long behind a kernel that has just streamed through them.
So where nobody looks at results in between, kernels wait, while Python prepares one after the other:

    with together:
        h = multiply(x, up)         # memory for h, and a call that waits
        out = multiply(h, down)     # another
                                    # both are made here, one after the other

A call that waits lies in a slot, as the native values that its threads share (see `tasks.py`). What is called inside
must be a kernel that can wait (`Product`, attention, `Shared`), or `settle` before it reads what others make. Within
`postponed`, calls may wait beyond the end of `together`: until that ends, or until somebody settles, who must do so
before looking at any result. Each thread has slots of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from .jit import callback, kernel
from .tasks import APART, HEADER, SLOT, declare, queues, run, run_slots, save

__all__ = ["Shared", "leave", "next_slot", "postponed", "settle", "together"]

SLOTS = 64
PENDING = 16 << 20  # bytes of results at most, beyond what one operator makes: memory is free again only when they are


class _Calls(threading.local):
    """Those that wait in this thread."""

    def __init__(self) -> None:
        self.slots = np.zeros(SLOTS * SLOT // 8, np.int64)
        self.first = self.slots.ctypes.data + HEADER
        self.queues = queues(numba.config.NUMBA_NUM_THREADS)  # of kernels that bring none
        self.count = 0
        self.pending = 0  # bytes of what they will make
        self.needed: list[object] = []
        self.together = self.postponed = 0  # how many of these are open, one within the other


_calls = _Calls()


def next_slot() -> int:
    """The address of a slot for a call that is to wait, or 0: call now."""
    calls = _calls
    if not calls.together:
        if calls.count:
            settle()
        return 0
    if calls.count == SLOTS:
        settle()
    return calls.first + calls.count * SLOT


def leave(size: int, *needed: object) -> None:
    """The call in the slot, which will make `size` bytes, is complete. What it needs is kept until it is made."""
    calls = _calls
    calls.count += 1
    calls.pending += size
    calls.needed.append(needed)


def settle() -> None:
    """Make the calls that wait in this thread."""
    calls = _calls
    if calls.count:
        count, calls.count, calls.pending = calls.count, 0, 0
        run_slots(calls.first, count)
        calls.needed.clear()


class _Together:
    def __enter__(self) -> None:
        _calls.together += 1

    def __exit__(self, *exception: object) -> None:
        calls = _calls
        calls.together -= 1
        if not calls.together and (not calls.postponed or calls.pending > PENDING):
            settle()


class _Postponed:
    def __enter__(self) -> None:
        _calls.postponed += 1

    def __exit__(self, *exception: object) -> None:
        calls = _calls
        calls.postponed -= 1
        if not calls.postponed:
            settle()


together, postponed = _Together(), _Postponed()


def _entry(shared_type: str) -> Callable:
    def enter(arguments, work, workers, queues, slot):
        run(work, save((*arguments, queues), shared_type, slot), workers, queues, slot)

    return enter


class Shared:
    """A kernel whose threads share its arguments as they are, and which can wait.

    kinds   Numba's types of the arguments
    work    function of the name of what is shared: a tuple of the arguments, the number of tasks, and the queues that
            give them out. It returns what each thread does: a function of (its address, the thread's number)
    """

    def __init__(self, name: str, kinds: tuple[types.Type, ...], work: Callable) -> None:
        integer, integers = types.int64, types.Array(types.int64, 1, "C")
        arguments = types.Tuple([*kinds, integer])
        name = declare(name, types.Tuple([*arguments, integers]))
        self._enter = kernel(_entry(name), signature=types.void(arguments, integer, integer, integers, integer))
        self._work = callback(types.void(integer, integer))(work(name))
        self._address = self._work.address

    def __call__(self, tasks: int, size: int, *arguments: Any) -> None:
        """Do so many tasks, which make `size` bytes: now, or when the calls that wait are made."""
        slot, queues = next_slot(), _calls.queues
        self._enter((*arguments, tasks), self._address, min(tasks, queues.size // APART), queues, slot)
        if slot:
            leave(size, arguments)
