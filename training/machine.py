"""What this machine can do: operations and bytes per second, measured, and memory that is free.

Rates are measured with the project's own kernels and all of their threads, once a process: the best of several tries
over a few tenths of a second, because whatever else the machine does can only make a try slower.
"""

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from autograd import num_threads
from autograd.kernels.bfloat16 import matmul_bf16
from autograd.kernels.matmul import matmul
from autograd.kernels.optimizer import sum_of_squares

SIDE = 1536  # of the square matrices: 7.2 GFLOP a product; larger ones are no faster
STREAM_BYTES = 128 << 20  # more than caches hold
BUDGET_SECONDS = 0.3


def peak_flops(precision: str = "float32") -> float:
    """Operations per second of a large matrix product with all threads, in "float32" or "bfloat16".

    The bound against which model FLOPs utilisation is told: what our own matmul reaches when nothing stands in its
    way, not what the processor's data sheet promises. Takes about 0.3 s at the first call (compiling not counted).
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f'the precision of a matmul is "float32" or "bfloat16", got {precision!r}')
    return _peak_flops(precision, num_threads())


@functools.cache
def _peak_flops(precision: str, threads: int) -> float:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    out = np.empty_like(a)
    multiply = matmul_bf16 if precision == "bfloat16" else matmul
    return 2 * SIDE**3 / best_seconds(lambda: multiply(a, b, out=out))


def read_bandwidth() -> float:
    """Bytes per second that all threads together read from memory. Takes about 0.3 s at the first call."""
    return _read_bandwidth(num_threads())


@functools.cache
def _read_bandwidth(threads: int) -> float:
    numbers = np.ones(STREAM_BYTES // 4, np.float32)
    return STREAM_BYTES / best_seconds(lambda: sum_of_squares([numbers]))


def best_seconds(work: Callable[[], object], budget_seconds: float = BUDGET_SECONDS) -> float:
    """The shortest time that `work` took, over at least three tries and about `budget_seconds`."""
    work()  # compiles, and touches memory
    end = time.perf_counter() + budget_seconds
    best = float("inf")
    for attempt in itertools.count(1):
        began = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - began)
        if attempt >= 3 and now >= end:
            return best
    raise AssertionError


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still get without swapping: the system's free memory, or less in a container.

    root   where /proc and /sys are looked for
    """
    return min([psutil.virtual_memory().available, *_room_in_cgroups(root)])


def resident_memory() -> int:
    """Bytes of memory that this process occupies now."""
    return psutil.Process().memory_info().rss


def _room_in_cgroups(root: Path) -> list[int]:
    """What each memory limit on the way from this process's control group to the top leaves: limit − use + caches.

    Version 2 has memory.max and memory.current in one tree, version 1 memory.limit_in_bytes and
    memory.usage_in_bytes in a tree of its own (where no limit is a number near 2**63). Inside a container the group's
    path may not exist there: its files then are at the top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, use, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            use, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = top / path.strip("/")
        for folder in [group, *group.parents]:
            try:
                room = int((folder / limit).read_text()) - int((folder / use).read_text())
                caches = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                rooms.append(max(0, room + int(caches.get(cache, 0))))
            except (OSError, ValueError):  # no such folder here, or "max"
                pass
            if folder == top:
                break
    return rooms
