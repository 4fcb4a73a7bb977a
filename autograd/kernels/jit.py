"""How kernels are compiled: once, for this processor, and remembered on disk.

`kernel` is the project's spelling of `numba.njit`. It settles in one place what every kernel needs:

- **Cache.** Compiled code is stored in a folder named by a hash of all kernel sources. Numba's own cache
  looks only at the file in which a function stands; a changed helper in another file would go unseen.
  Processor and features are part of Numba's key, so machines can share a home directory. Where no folder is
  writable, kernels compile afresh in each process and everything else works.
- **Threads.** OpenMP first: entering a parallel region costs about 2 µs there, against over 100 µs on
  Numba's portable layer. Kernels split work by *shape*, never by the number of threads, and reduce in a
  fixed order: the same bits come out for any number of threads.
- **Floating point.** Sums may be reassociated, multiply-add contracted (both fixed at compile time, so
  results repeat bit for bit). NaN and infinity keep their meaning: masks are made of -inf, and a NaN must
  stay visible.

- **No overlap.** The arrays a helper is called with lie apart. (Where two are the same memory, as `start` and `out`
  of an accumulating product, each number is written from what was read in its own place.)

`compilations()` counts what had to be compiled, so that a first run can say why it waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba import prange
from numba.core import config, event
from numba.core.cpu import CPUTargetOptions

__all__ = ["callback", "compilations", "kernel", "num_threads", "prange", "set_num_threads"]

FLOATING_POINT = {"reassoc", "contract", "arcp", "nsz"}  # deliberately without nnan and ninf

# Numba can tell LLVM that a function's arguments do not overlap, but has no option that asks for it.
CPUTargetOptions.noalias = CPUTargetOptions.Mapping("noalias")
if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
if "OMP_WAIT_POLICY" not in os.environ:
    # GNU OpenMP lets an idle thread spin for some milliseconds before it sleeps. Where another process wants the core,
    # the last thread then waits for its turn behind a spinner. But to wake a sleeping thread takes 0.2 ms, on a core
    # that is often the wrong one. Half a millisecond spans what Python does between two kernels of a training step.
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")


def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path | None:
    """The first of the candidate folders that can be written, or None."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    roots = [os.environ.get("NUMBA_CACHE_DIR"), os.path.join(user_cache, "groundup"),
             os.path.join(tempfile.gettempdir(), f"groundup-{os.getuid() if hasattr(os, 'getuid') else 0}")]
    for root in filter(None, roots):
        folder = Path(root) / f"kernels-{_source_hash()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


CACHE_FOLDER = _cache_folder()


@contextlib.contextmanager
def _numba_caches_in(folder: Path | None) -> Iterator[None]:
    """Numba reads its cache folder at decoration; ours must not leak into the user's own functions."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


def kernel(function: Callable | None = None, *, signature: Any = None, parallel: bool = False, **options: Any) -> Any:
    """Compile an array function at its first call, for the types it is called with.

    `@kernel` for a helper or a serial kernel, `@kernel(parallel=True)` for one whose `prange` loops run on
    all threads. With a `signature` it is compiled at once, for those types only, and arguments are converted
    to them: a read-only array of any layout takes every array, so one compilation serves all.
    Further options go to `numba.njit`.
    """
    if function is None:
        return lambda f: kernel(f, signature=signature, parallel=parallel, **options)
    settings = {
        "parallel": parallel,
        "fastmath": FLOATING_POINT,
        "error_model": "numpy",
        "nogil": True,
        # Left to choose, LLVM inlines a helper in the process that compiles it and calls the stored one in the next;
        # their sums may associate differently, and a run would depend on whether its kernels came from the cache.
        "forceinline": not parallel,
        # Where arrays might overlap, LLVM writes a loop twice, with vectors and without, and chooses by how far apart
        # they lie. The two round differently, and the bits of a run would depend on where its memory happens to be.
        "noalias": not parallel,
    } | options
    if signature is not None:
        numba.get_num_threads()  # loads what parallel loops call. Numba does so for a cached kernel with a loop of its
        # own, and not for one that calls another's; to meet an unknown symbol ends the process
    with _numba_caches_in(CACHE_FOLDER):
        return numba.njit(signature, cache=CACHE_FOLDER is not None, **settings)(function)


def callback(signature: Any) -> Callable:
    """Compile a function for kernels that are told at run time what to call (`call` in ir.py); see its `address`.

    So a kernel can take another as an argument, and is not compiled anew for each.
    """
    settings = {"cache": CACHE_FOLDER is not None, "fastmath": FLOATING_POINT, "error_model": "numpy"}

    def compiled(function: Callable) -> Any:
        with _numba_caches_in(CACHE_FOLDER):
            return numba.cfunc(signature, **settings)(function)

    return compiled


def set_num_threads(n: int) -> None:
    """Use `n` threads in every kernel from now on (1 ≤ n ≤ the number the process started with).

    Results do not depend on `n`, to the last bit.
    """
    if not 1 <= n <= config.NUMBA_NUM_THREADS:
        raise ValueError(
            f"expected between 1 and {config.NUMBA_NUM_THREADS} threads, got {n}; "
            f"set NUMBA_NUM_THREADS before Python starts to allow more"
        )
    numba.set_num_threads(n)


def num_threads() -> int:
    """The number of threads that kernels use."""
    return numba.get_num_threads()


class CompileLog(event.Listener):
    """Counts compilations and the seconds they took; calls `report(name, count, seconds)` after each."""

    def __init__(self, report: Callable[[str, int, float], None] | None = None) -> None:
        self.count = 0
        self.seconds = 0.0
        self._report = report
        self._started: list[float] = []

    def on_start(self, event: Any) -> None:
        self._started.append(time.perf_counter())

    def on_end(self, event: Any) -> None:
        elapsed = time.perf_counter() - self._started.pop()
        if self._started:  # a helper, compiled for the kernel that calls it and counted with it
            return
        self.count += 1
        self.seconds += elapsed
        if self._report:
            self._report(event.data["dispatcher"].py_func.__name__, self.count, self.seconds)


@contextlib.contextmanager
def compilations(report: Callable[[str, int, float], None] | None = None) -> Iterator[CompileLog]:
    """Watch kernels being compiled. Kernels loaded from the cache are not counted.

    >>> with compilations() as log:
    ...     train()
    >>> print(log.count, log.seconds)
    """
    log = CompileLog(report)
    event.register("numba:compile", log)
    try:
        yield log
    finally:
        event.unregister("numba:compile", log)
