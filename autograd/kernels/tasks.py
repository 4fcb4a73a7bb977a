"""How the tasks of one kernel come to its threads.

Work is cut into tasks by shape; any thread may do any task. Each thread has a queue of its own, an equal share of
neighbouring tasks, and helps the others when that is done. So neighbours in memory stay with one thread, from one
kernel to the next: what it has just written is in its own cache, while a line that another core has written takes a
hundred nanoseconds to fetch. And a thread that the system holds up delays only the task that it has begun.

What the threads share in a call is a tuple of native values: arrays, sizes, settings. It lies on the stack of the
kernel that was called, or in a *slot*, memory of the caller's, for a call that is made later (see `together.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .ir import INT, call, fetch_add, pointer, shift
from .jit import kernel, prange

__all__ = [
    "APART", "HEADER", "SLOT", "declare", "is_last", "load", "next_task", "queues", "reset", "run", "run_slots", "save",
    "share",
]  # fmt: skip

APART = 16  # numbers (of 8 bytes) from one queue's counter to the next: two threads must not write to one line
SLOT = 1152  # bytes
HEADER = 128  # of them, before what the threads share: what to call, and how


def queues(workers: int) -> np.ndarray:
    """Counters of the tasks taken, for so many threads, and of those that are done; `run` begins them anew."""
    return np.zeros(APART * workers, np.int64)


@kernel
def share(size, unit, part, parts):
    """Where part number `part` begins and how long it is, if `size` is cut evenly at multiples of `unit`."""
    units = -(-size // unit)
    begin = units * part // parts * unit
    return begin, min(units * (part + 1) // parts * unit, size) - begin


@kernel
def reset(queues):
    """Nothing is taken yet, nor done."""
    queues[1] = 0
    for queue in range(0, len(queues), APART):
        queues[queue] = 0


@kernel
def next_task(queues, worker, tasks):
    """The number of a task that no thread has taken (of this worker's share as long as there is one), or −1."""
    workers = len(queues) // APART
    for turn in range(workers):
        queue = (worker + turn) % workers
        first, size = share(tasks, 1, queue, workers)
        taken = fetch_add(shift(pointer(queues), APART * queue))
        if taken < size:
            return first + taken
    return -1


@kernel
def is_last(queues, tasks):
    """Whether the task that is now done is the last of all: what the others have written can be read then."""
    return fetch_add(shift(pointer(queues), 1)) == tasks - 1


_shared: dict[str, types.BaseTuple] = {}


def declare(name: str, kind: types.BaseTuple) -> str:
    """Give a name to the type of what the threads of some kernel share. (Numba's cache knows closures by strings.)"""
    _shared[name] = kind
    return name


CALL = declare("a call", types.Tuple([types.int64, types.int64, types.Array(types.int64, 1, "C")]))


def _borrowed(context: Any, builder: Any, kind: types.Type, value: Any) -> Any:
    """The value with arrays that own nothing: whoever calls keeps them."""
    if isinstance(kind, types.BaseTuple):
        parts = zip(kind, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(builder, kind, [_borrowed(context, builder, *part) for part in parts])
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    return value


@intrinsic(prefer_literal=True)
def save(typingctx, values, name, slot):
    """The address (int64) of a copy of a tuple, of a declared type: in the slot, an address; or, if that is 0, where it
    lives as long as the calling kernel runs.
    """
    kind = _shared[name.literal_value]

    def codegen(context, builder, signature, args):
        form = context.get_data_type(kind)
        if context.get_abi_sizeof(form) > SLOT - HEADER:
            raise ValueError(f"{name.literal_value} needs {context.get_abi_sizeof(form)} bytes, more than a slot has")
        here, there = cgutils.alloca_once(builder, form), builder.inttoptr(args[2], form.as_pointer())
        place = builder.select(builder.icmp_signed("==", args[2], INT(0)), here, there)
        values = _borrowed(context, builder, kind, args[0])
        builder.store(context.data_model_manager[kind].as_data(builder, values), place)
        return builder.ptrtoint(place, INT)

    return types.int64(kind, name, types.int64), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, address, name):
    """The tuple at an address that `save` gave."""
    kind = _shared[name.literal_value]

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], context.get_data_type(kind).as_pointer())
        return context.data_model_manager[kind].from_data(builder, builder.load(place))

    return kind(types.int64, name), codegen


@kernel(parallel=True)
def _on_all_threads(work, shared, workers):
    for worker in prange(workers):
        call(work, (shared, np.int64(worker)))


@kernel
def _call(work, shared, workers, queues):
    reset(queues)
    if workers == 1:
        call(work, (shared, 0))
    else:
        _on_all_threads(work, shared, workers)


@kernel
def run(work, shared, workers, queues, slot):
    """Call the compiled function `work` (its address: see `callback` in jit.py) with (shared, worker), on so many
    threads; or, where there is a slot, leave all this in it.

    `shared` is the address of what the threads share. Kernels that bring their own work have this one parallel loop in
    common: Numba takes seconds to compile each.
    """
    if slot == 0:
        _call(work, shared, workers, queues)
    else:
        save((work, workers, queues), CALL, slot - HEADER)


@kernel
def run_slots(first, count):
    """Make the calls that wait in so many slots, one after the other. A slot begins behind its header."""
    for i in range(count):
        slot = first + i * SLOT
        work, workers, queues = load(slot - HEADER, CALL)
        _call(work, slot, workers, queues)
