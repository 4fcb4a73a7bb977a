"""Files that are whole or absent, small files read within bounds, and folders that one process holds.

A file is written aside, under a dotted name that ends in `.part`, flushed to the disk, and only then given its name;
the folder is flushed after that. A crash at any moment leaves the old file or the new one, and at most a `.part`,
which `remove_leftovers` clears at the next start.

What is read may come from anyone. A file that says it is small is not believed: its size is looked at first.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MEGABYTE = 1 << 20


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when all has gone well. Raises OSError that names the path."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        flush_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # a full disk is reported without a name
        raise
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8"))


def flush_folder(folder: Path) -> None:
    """Have a folder's own entries on the disk; some systems can't open folders, and need no asking."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash left of files and folders that were being written to, or removed from, a folder."""
    for leftover in folder.glob(".*.part"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def read_bounded(path: Path, max_bytes: int = MEGABYTE) -> bytes:
    """The bytes of a file of at most `max_bytes`. Raises ValueError, before reading, for a larger one; and OSError."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > max_bytes else file.read(max_bytes + 1)
    if max(size, len(content)) > max_bytes:
        raise ValueError(f"it has {size:,} bytes, expected at most {max_bytes:,}")
    return content


def read_json(path: Path, max_bytes: int = MEGABYTE) -> dict[str, Any]:
    """The object in a JSON file of at most `max_bytes`. Raises ValueError for what is none, and OSError."""
    try:
        content = json.loads(read_bounded(path, max_bytes))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected an object {{...}}, got {type(content).__name__}")
    return content


@contextlib.contextmanager
def held(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder: no other process holds it meanwhile. However this one ends, the system lets go of it.

    Raises BlockingIOError where another holds it, or waits for that to end. A file system without locks has none.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
