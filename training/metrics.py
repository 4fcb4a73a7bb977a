"""metrics.jsonl: what a run measured, one JSON object a line.

    {"step": 1, "split": "train", "loss": …, "lr": …, "grad_norm": …, "tokens_per_second": …}
    {"step": 20, "split": "layers", "layers": {"blocks.0.mlp.up": [|g|/|w|, |Δw|/|w|], …}}
    {"step": 250, "split": "val", "loss": …, "bits_per_byte": …, "tokens": …}

A training line's loss belongs to the update that made `step`; it is measured before it. Losses are nats per
token. Numbers are written with as many digits as tell them apart, so reading gives back the same bits; what is
not finite is written as JavaScript spells it (NaN), which Python reads. What "layers" tells is in layers.py.

Samples go to samples.jsonl beside it: {"step": …, "text": …}.

A run that is resumed at step s goes on as if it had never stopped: `rewind` drops the lines that belong to what
will be done again, and a last line that was cut off.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to a file of JSON lines; each line is with the operating system as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open for as long as the run)

    def write(self, **entry: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def flush_to_disk(self) -> None:
        """Have every line on the disk; before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. Doing it twice is harmless."""
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file of JSON lines; broken lines are left out, a missing file is empty."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "step" in entry:
                yield entry


def rewind(path: Path, step: int) -> None:
    """Drop what follows the checkpoint of `step`: later updates, and evaluations and samples of `step` itself.

    (A checkpoint is written before its step is evaluated.)
    """
    if not path.exists():
        return
    aside = path.with_suffix(".part")
    with open(aside, "w", encoding="utf-8") as file:
        for entry in read_lines(path):
            if entry["step"] < step or (entry["step"] == step and entry.get("split") in ("train", "layers")):
                file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
