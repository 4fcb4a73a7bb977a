"""metrics.jsonl: what a run measured, one JSON object a line.

    {"step": 1, "split": "train", "loss": …, "lr": …, "grad_norm": …, "tokens_per_second": …}
    {"step": 20, "split": "layers", "layers": {"blocks.0.mlp.up": [|g|/|w|, |Δw|/|w|], …}}
    {"step": 250, "split": "val", "loss": …, "bits_per_byte": …, "tokens": …}

A training line's loss belongs to the update that made `step`; it is measured before it. Losses are nats per
token. Numbers are written with as many digits as tell them apart, so reading gives back the same bits; what is
not finite is written as JavaScript spells it (NaN), which Python reads. What "layers" tells is in layers.py.

Samples go to samples.jsonl beside it: {"step": …, "text": …}.

A run that is resumed at step s goes on as if it had never stopped: `rewind` drops the lines that belong to what
will be done again, and a last line that was cut off. A run whose disk is full goes on as well: lines that can't be
written wait in memory for the next attempt.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to a file of JSON lines; each line is with the operating system as soon as it can be written."""

    def __init__(self, path: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        """`warn` is told when writing fails, and when it goes well again."""
        self.path = path
        self._warn = warn
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open for as long as the run)
        self._waiting = bytearray()
        self._failing = False

    def write(self, **entry: Any) -> None:
        """Append one line, and those that are still waiting."""
        self._waiting += json.dumps(entry).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._drain()

    def flush_to_disk(self) -> None:
        """Have every line on the disk; before a checkpoint that counts on them. Raises OSError."""
        self._drain()
        os.fsync(self._file.fileno())

    def rewind(self, step: int) -> None:
        """Drop what follows the checkpoint of `step`, as the function of that name does; the file stays open."""
        self._waiting.clear()  # later, too: what precedes a checkpoint was flushed before it
        rewind(self.path, step)

    def close(self) -> None:
        """Close the file. Doing it twice is harmless. Raises OSError if lines are left that can't be written."""
        if not self._file.closed:
            try:
                self._drain()
            finally:
                self._file.close()

    def _drain(self) -> None:
        try:
            while self._waiting:
                written = self._file.write(self._waiting)  # part of a line, where the disk fills up
                del self._waiting[:written]
        except OSError as error:
            error.filename = error.filename or os.fspath(self.path)
            if not self._failing:
                self._warn(f"can't write to {self.path}: {error.strerror}; its lines wait in memory")
            self._failing = True
            raise
        if self._failing:
            self._warn(f"{self.path} can be written again; nothing is missing from it")
        self._failing = False


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file of JSON lines; broken lines are left out, a missing file is empty."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            if entry := read_line(line):
                yield entry


def read_line(line: bytes) -> dict[str, Any] | None:
    """The entry on a line of JSON; None where it holds something else."""
    try:
        entry = json.loads(line.decode("utf-8", "replace"))
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def rewind(path: Path, step: int) -> None:
    """Drop what follows the checkpoint of `step`: later updates, and evaluations and samples of `step` itself.

    (A checkpoint is written before its step is evaluated.) The file is cut off where that begins, in place, which
    takes no room on the disk.
    """
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = 0
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if entry["step"] > step or (entry["step"] == step and entry.get("split") not in ("train", "layers")):
                    break
            if not line.endswith(b"\n"):  # cut off by a crash
                break
            end += len(line)
        if end < os.fstat(file.fileno()).st_size:
            file.truncate(end)
