"""What a safetensors file holds, found out before any of it is believed.

    8 bytes      length N of the header, little-endian
    N bytes      JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}, "__metadata__" aside
    the rest     the numbers, as the offsets say

The library that reads the numbers checks that they fill the file without gaps or overlaps. It takes the last of two
arrays with one name, believes any length of header that the file has room for, and allocates what a header asks for;
so the header is read here first, with a limit, and compared with the shapes that a model calls for.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Stored", "expect_arrays", "read_header"]

MAX_HEADER_BYTES = 1 << 20  # the moments of a hundred layers take half of it
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


class Stored(NamedTuple):
    """An array in a file: its type as safetensors spells it, its shape, and where its bytes start in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def n_bytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def read_header(path: Path) -> dict[str, Stored]:
    """The arrays of a safetensors file by name. Raises ValueError, in one line, for a header that can't be right."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is damaged or no safetensors file: its header goes beyond its end")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path} has a header of {length:,} bytes, expected at most {MAX_HEADER_BYTES:,}")
        header = file.read(length)
    try:
        content = json.loads(header, object_pairs_hook=_unique)
        if not isinstance(content, dict):
            raise ValueError("its header is no object")
        content.pop("__metadata__", None)
        found = {name: _entry(entry, 8 + length) for name, entry in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "its header is not of that format"
        raise ValueError(f"{path} is damaged or no safetensors file: {reason}") from None
    end = 8 + length
    for name, stored in sorted(found.items(), key=lambda item: (item[1].start, item[1].n_bytes)):
        if stored.start != end:
            raise ValueError(f"{path} is damaged or no safetensors file: {name} overlaps another array or leaves a gap")
        end += stored.n_bytes
    if end != size:
        raise ValueError(f"{path} is damaged or no safetensors file: it has {size:,} bytes, its header says {end:,}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("its header has a name twice")
    return content


def _entry(entry: dict[str, Any], data_start: int) -> Stored:
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if len(shape) > 8 or not all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, start, end)):
        raise ValueError("a shape or its offsets are none")
    if entry["dtype"] not in BITS:
        raise ValueError(f"{entry['dtype']!r:.20} is no type of numbers")
    stored = Stored(entry["dtype"], shape, data_start + start)
    if stored.n_bytes != end - start or max(shape, default=0) > max(1, end - start):
        raise ValueError("a shape is not of the size that its offsets give it")
    return stored


def expect_arrays(path: Path, expected: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
    """Check, by its header alone, that a file holds exactly the arrays (name, dtype, shape) of `expected`, or none.

    Stops at the first that is missing, so `expected` may be endless. Raises ValueError that names it.
    """
    found = read_header(path)
    if not found:
        return
    left = set(found)
    for name, dtype, shape in expected:
        if name not in left:
            raise ValueError(f"{path} lacks {name} {shape}")
        left.remove(name)
        stored = found[name]
        if (stored.dtype, stored.shape) != (dtype, shape):
            raise ValueError(f"{path}: {name} is {stored.dtype} {stored.shape}, expected {dtype} {shape}")
    if left:
        raise ValueError(f"{path} holds {min(left)}, for which the model has no place")
