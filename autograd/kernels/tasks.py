"""How the tasks of one kernel come to its threads.

Work is cut into tasks by shape; any thread may do any task. Each thread has a queue of its own, an equal share of
neighbouring tasks, and helps the others when that is done. So neighbours in memory stay with one thread, from one
kernel to the next: what it has just written is in its own cache, while a line that another core has written takes a
hundred nanoseconds to fetch. And a thread that the system holds up delays only the task that it has begun.
"""

from __future__ import annotations

import numpy as np

from .ir import call, fetch_add, pointer, shift
from .jit import kernel, prange

__all__ = ["next_task", "queues", "reset", "run", "share"]

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


@kernel(parallel=True)
def _on_all_threads(work, arguments, workers):
    for worker in prange(workers):
        call(work, (arguments, np.int64(worker)))


@kernel
def run(work, arguments, workers):
    """Call the compiled function `work` (its address: see `callback` in jit.py) with (arguments, worker), on so many
    threads.

    `arguments` is the address of whatever `work` expects there. Kernels that bring their own work share this one
    parallel loop: Numba takes seconds to compile each.
    """
    if workers == 1:
        call(work, (arguments, 0))
    else:
        _on_all_threads(work, arguments, workers)
