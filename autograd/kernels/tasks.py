"""How the tasks of one kernel come to its threads.

Work is cut into tasks by shape; any thread may do any task. Each thread has a queue of its own, an equal share of
neighbouring tasks, and helps the others when that is done. So neighbours in memory stay with one thread, from one
kernel to the next: what it has just written is in its own cache, while a line that another core has written takes a
hundred nanoseconds to fetch. And a thread that the system holds up delays only the task that it has begun.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .ir import INT, call, fetch_add, pointer, shift
from .jit import kernel, prange

__all__ = ["declare", "load", "next_task", "queues", "reset", "run", "save", "share"]

APART = 16  # numbers (of 8 bytes) from one queue's counter to the next: two threads must not write to one line


def queues(workers: int) -> np.ndarray:
    """Counters of the tasks taken, for so many threads; begun anew for each kernel (`reset`, or fresh ones)."""
    return np.zeros(APART * workers, np.int64)


@kernel
def share(size, unit, part, parts):
    """Where part number `part` begins and how long it is, if `size` is cut evenly at multiples of `unit`."""
    units = -(-size // unit)
    begin = units * part // parts * unit
    return begin, min(units * (part + 1) // parts * unit, size) - begin


@kernel
def reset(queues):
    """Nothing is taken yet."""
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


_shared: dict[str, types.BaseTuple] = {}


def declare(name: str, kind: types.BaseTuple) -> str:
    """Give a name to the type of what the threads of some kernel share. (Numba's cache knows closures by strings.)"""
    _shared[name] = kind
    return name


@intrinsic(prefer_literal=True)
def save(typingctx, values, name):
    """The address (int64) of a copy of a tuple, of a declared type, that lives as long as the calling kernel runs."""
    kind = _shared[name.literal_value]

    def codegen(context, builder, signature, args):
        place = cgutils.alloca_once(builder, context.get_data_type(kind))
        builder.store(context.data_model_manager[kind].as_data(builder, args[0]), place)
        return builder.ptrtoint(place, INT)

    return types.int64(kind, name), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, address, name):
    """The tuple at an address that `save` gave."""
    kind = _shared[name.literal_value]

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], context.get_data_type(kind).as_pointer())
        values = context.data_model_manager[kind].from_data(builder, builder.load(place))
        context.nrt.incref(builder, kind, values)  # Numba takes what a function returns for its own
        return values

    return kind(types.int64, name), codegen


@kernel(parallel=True)
def _on_all_threads(work, shared, workers):
    for worker in prange(workers):
        call(work, (shared, np.int64(worker)))


@kernel
def run(work, shared, workers):
    """Call the compiled function `work` (its address: see `callback` in jit.py) with (shared, worker), on so many
    threads.

    `shared` is the address of what the threads share. Kernels that bring their own work have this one parallel loop in
    common: Numba takes seconds to compile each.
    """
    if workers == 1:
        call(work, (shared, 0))
    else:
        _on_all_threads(work, shared, workers)
