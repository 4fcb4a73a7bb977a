"""What the machine can do at most: multiply-adds from registers, AMX tiles, memory; measured, on all threads.

`python -m benchmarks._peaks` prints them as JSON, in FLOP and bytes a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
from numba import types
from numba.extending import intrinsic

from autograd.kernels.bfloat16 import amx_available
from autograd.kernels.ir import TileEmitter, emitted, lanes, pointer
from autograd.kernels.jit import kernel, num_threads, prange
from autograd.kernels.optimizer import sum_of_squares
from autograd.kernels.sums import add

__all__ = ["peaks"]

SUMS = 24  # that are added to in turn: more than the units' latency, fewer than the registers


@intrinsic
def _multiply_add(typingctx, x, steps):
    """`steps` × SUMS vector multiply-adds that depend on no memory."""

    def body(e, x, steps):
        value = e.load(x)
        sums = SUMS if e.lanes * e.bytes == 64 else SUMS // 2
        with e.loop(steps, [value] * sums) as carried:
            carried[:] = [e.fma(value, value, total) for total in carried]
        total = carried[0]
        for other in carried[1:]:
            total = e.add(total, other)
        e.store(total, x)

    return types.void(x, types.intp), emitted("benchmark.fma", body)


@intrinsic
def _multiply_tiles(typingctx, x, steps):
    """`steps` × 4 products of tiles that stay in their registers."""

    def body(e, x, steps):
        e.configure_tiles()
        for tile in range(8):
            e.zero_tile(tile)
        with e.loop(steps, []):
            for total in range(4):
                e.multiply_tiles(total, 4 + total // 2, 6 + total % 2)
        e.release_tiles()

    return types.void(x, types.intp), emitted("benchmark.tiles", body, emitter=TileEmitter)


@kernel(parallel=True)
def _vectors(x, steps):
    for worker in prange(len(x)):
        _multiply_add(pointer(x[worker]), steps)
    return lanes(pointer(x[0]))


@kernel(parallel=True)
def _tiles(x, steps):
    for worker in prange(len(x)):
        _multiply_tiles(pointer(x[worker]), steps)


def best_seconds(function: Callable[[], object], repeats: int = 20) -> float:
    """The shortest of several runs: what stands in the way of a peak only ever makes it lower."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def peaks() -> dict[str, float]:
    """{"float32", "bfloat16" (where there is AMX): FLOP a second; "read", "add": bytes a second}."""
    threads, steps = num_threads(), 200_000
    x = np.zeros((threads, 1024), np.float32)
    count = _vectors(x, 1)
    sums = SUMS if count * 4 == 64 else SUMS // 2
    found = {"float32": 2 * threads * steps * sums * count / best_seconds(lambda: _vectors(x, steps))}
    if amx_available():
        found["bfloat16"] = threads * steps * 4 * 2 * 16 * 16 * 32 / best_seconds(lambda: _tiles(x, steps))
    large = [np.ones(1 << 26, np.float32) for _ in range(2)]  # 256 MB each: beyond every cache
    found["read"] = large[0].nbytes / best_seconds(lambda: sum_of_squares([large[0]]), 5)
    found["add"] = 3 * large[0].nbytes / best_seconds(lambda: add(large[0], large[1], out=large[0]), 5)
    return found


if __name__ == "__main__":
    print(json.dumps(peaks()))
