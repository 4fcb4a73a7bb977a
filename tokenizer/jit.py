"""How the tokenizer's loops are compiled: once, and remembered on disk.

`kernel` is `numba.njit` with a cache folder named by a hash of this room's sources, since Numba's own cache does
not see an edit in a helper that stands in another file. Where no folder is writable, loops compile afresh
in each process and everything else works.

`load_word` and `trailing_zeros` look at eight bytes at once.

Importing this file imports Numba (a quarter of a second), so the rest of the room imports it at first use.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import config as numba_config
from numba.core import types
from numba.extending import intrinsic

config: Any = numba_config  # Numba defines its settings at import, where type checkers cannot see them
njit: Any = numba.njit


def _cache_folder() -> Path | None:
    """The first of the candidate folders that can be written, or None."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    user = os.getuid() if hasattr(os, "getuid") else 0
    roots = [
        os.environ.get("NUMBA_CACHE_DIR"),
        os.path.join(user_cache, "groundup"),
        os.path.join(tempfile.gettempdir(), f"groundup-{user}"),
    ]
    for root in filter(None, roots):
        folder = Path(root) / f"tokenizer-{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


CACHE_FOLDER = _cache_folder()


def kernel(function: Callable, forceinline: bool = False) -> Callable:
    """Compile a loop over arrays at its first call. It runs without the GIL, so threads run side by side.

    A kernel owns no memory: arrays come from the caller. That allows `_nrt=False`, without which Numba counts
    references, atomically, around every call that passes an array: five times the cost of a scanner's step.
    """
    before = config.CACHE_DIR
    config.CACHE_DIR = str(CACHE_FOLDER)  # read at decoration; must not leak into the user's own functions
    try:
        return njit(
            cache=CACHE_FOLDER is not None, nogil=True, error_model="numpy", forceinline=forceinline, _nrt=False
        )(function)
    finally:
        config.CACHE_DIR = before


def inline(function: Callable) -> Callable:
    """A `kernel` that becomes part of its callers: for helpers that run once a character or once a piece."""
    return kernel(function, forceinline=True)


def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """The number of zero bits below the lowest one of a uint64 that is not 0."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), emit


trailing_zeros: Any = intrinsic(_trailing_zeros)


@inline
def load_word(data, i, count):
    """Up to 8 bytes from byte i as one little-endian word, zeros above."""
    if count <= 0:
        return np.uint64(0)
    word = np.uint64(0)
    j = np.uint64(i)
    if i + 8 <= data.size:  # written so that LLVM makes one load of it
        word = (
            np.uint64(data[j])
            | np.uint64(data[j + np.uint64(1)]) << np.uint64(8)
            | np.uint64(data[j + np.uint64(2)]) << np.uint64(16)
            | np.uint64(data[j + np.uint64(3)]) << np.uint64(24)
            | np.uint64(data[j + np.uint64(4)]) << np.uint64(32)
            | np.uint64(data[j + np.uint64(5)]) << np.uint64(40)
            | np.uint64(data[j + np.uint64(6)]) << np.uint64(48)
            | np.uint64(data[j + np.uint64(7)]) << np.uint64(56)
        )
        if count < 8:
            word &= (np.uint64(1) << np.uint64(8 * count)) - np.uint64(1)
        return word
    for k in range(min(count, 8)):
        word |= np.uint64(data[i + k]) << np.uint64(8 * k)
    return word
