"""A program that trains keeps what it frees: no fresh pages step after step, and large ones."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autograd.kernels import memory

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

PROGRAM = """
import re, resource
import numpy as np
from autograd.kernels.memory import empty, keep_freed_memory

def round():
    arrays = [empty((512, 512), np.float32) for _ in range(100)]
    for array in arrays:
        array[...] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = keep_freed_memory()
round()
large = sum(int(n) for n in re.findall(r"AnonHugePages: *([0-9]+) kB", open("/proc/self/smaps_rollup").read()))
before = round()
print(kept, round() - before, large)
"""

has_mallopt = hasattr(ctypes.CDLL(None), "mallopt") if sys.platform == "linux" else False


@pytest.mark.skipif(not has_mallopt, reason="memory is kept where the C library is glibc")
def test_freed_memory_comes_back_without_page_faults_and_in_large_pages():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, faults, large = done.stdout.split()
    assert kept == "True"
    assert int(faults) < 100, "100 arrays of 1 MiB are 25600 small pages, or 50 large ones"
    if "[never]" not in LARGE_PAGES.read_text():
        assert int(large) > 50 * 1024, "kB of the 100 MiB that the round before had written to"


def test_a_c_library_without_the_means_is_no_error(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


def test_a_process_with_few_addresses_keeps_its_memory_all_the_same():
    def never(*_):
        raise AssertionError("there is nothing to advise or to free")

    memory._ask_for_large_pages(SimpleNamespace(malloc=lambda size: None, free=never, madvise=lambda *_: never()))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_large_arrays_begin_with_a_line_of_the_cache(dtype):
    for shape in ((300, 257), (2, 129, 333)):
        array = memory.empty(shape, dtype)
        assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable
        assert array.ctypes.data % memory.LINE == 0
