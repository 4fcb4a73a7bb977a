"""Checkpoints: complete or absent, checked when read, in formats that can't run code.

    DIR/checkpoints/step-00000250/model.safetensors      weights
                                  optimizer.safetensors  moments
                                  state.json             the step, and all else a run needs to go on
                                  complete.json          size and SHA-256 of each of these, written last
    DIR/checkpoints/best.json                            the step with the lowest validation loss

A folder is written aside under a dotted name, every file is flushed to the disk, and only then does the folder
get its name; the folder above is flushed after that. A crash at any moment, power included, leaves either the
whole checkpoint or none, and never harms an older one. Reading checks sizes and checksums first; a damaged
checkpoint is named, and the one before it used.

No random state is saved because there is none: batches, dropout and samples are functions of (seed, step).
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from training.errors import CheckpointError

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MARKER = "complete.json"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at a step, its checksums found right: `state` of plain values; arrays are read when asked for."""

    step: int
    state: dict[str, Any]
    folder: Path

    def model(self) -> Arrays:
        """The weights by name."""
        return load_file(self.folder / "model.safetensors")

    def optimizer(self) -> Arrays:
        """The optimizer's memory by name."""
        return load_file(self.folder / "optimizer.safetensors")


class Checkpoints:
    """The checkpoints of a run, in one folder."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """`keep`: how many of the last stay when another is saved; the best stays always."""
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps with a checkpoint, rising. Unfinished ones are not among them."""
        names = (path.name for path in self.folder.glob("step-*") if (path / MARKER).is_file())
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, model: Mapping, optimizer: Mapping, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those no longer kept. Raises CheckpointError and leaves no litter."""
        target = self.path(step)
        aside = self.folder / f".{target.name}.part"
        try:
            self._remove_leftovers()
            aside.mkdir(parents=True)
            save_file(_contiguous(model), aside / "model.safetensors")
            save_file(_contiguous(optimizer), aside / "optimizer.safetensors")
            _write_json(aside / "state.json", {"step": step, **state})
            _write_json(aside / MARKER, {"format": 1, "files": {name: _size_and_hash(aside / name) for name in FILES}})
            _flush(aside)
            if target.exists():  # a damaged one, or the same step come to again
                shutil.rmtree(target)
            os.rename(aside, target)
            _flush(self.folder)
            for old in self.steps()[: -self.keep]:
                if old != self.best_step():
                    shutil.rmtree(self.path(old))
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                self._remove_leftovers()
            kept = self.steps()
            raise CheckpointError(
                f"can't write the checkpoint of step {step} in {self.folder}: {_reason(error)}; "
                f"{f'that of step {kept[-1]} is intact' if kept else 'there is none yet'}; "
                f"make room or mend the folder, then go on with --resume"
            ) from error
        return target

    def load(self, step: int) -> Checkpoint:
        """A checkpoint, all of it checked. Raises CheckpointError that names what is missing or damaged."""
        folder = self.path(step)
        try:
            files = json.loads((folder / MARKER).read_text())["files"]
            for name in FILES:
                expected = files[name]
                if (folder / name).stat().st_size != expected["bytes"]:
                    raise CheckpointError(f"{folder / name} is damaged: its size is not what was written")
                if _size_and_hash(folder / name) != expected:
                    raise CheckpointError(f"{folder / name} is damaged: its checksum is not what was written")
            state = json.loads((folder / "state.json").read_text())
            return Checkpoint(state["step"], state, folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder} is damaged: {_reason(error)}") from error

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The last checkpoint that is sound, None if there never was one; damaged ones are told to `warn`.

        Raises CheckpointError if there are only damaged ones.
        """
        error: CheckpointError | None = None
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except CheckpointError as damaged:
                error = damaged
                warn(f"{damaged}; trying the one before it")
        if error:
            raise CheckpointError(f"no checkpoint in {self.folder} is sound: {error}")
        return None

    def mark_best(self, step: int, loss: float) -> None:
        """Note that `step` has the lowest validation loss so far."""
        part = self.folder / ".best.json.part"
        _write_json(part, {"step": step, "loss": loss})
        os.replace(part, self.folder / "best.json")
        _flush(self.folder)

    def best_step(self) -> int | None:
        """The step that was marked best, None if none was (or it is gone)."""
        try:
            step = json.loads((self.folder / "best.json").read_text())["step"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return step if step in self.steps() else None

    def _remove_leftovers(self) -> None:
        for leftover in self.folder.glob(".step-*.part"):
            shutil.rmtree(leftover)


def _contiguous(arrays: Mapping) -> Arrays:
    # safetensors 0.8 writes the memory of a strided array as it lies, in the wrong order and without a word.
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with open(path, "w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _size_and_hash(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is flushed to the disk on the way."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(folder: Path) -> None:
    """Have a folder's own entries on the disk; some systems can't open folders, and need no asking."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{error}" or type(error).__name__


def changes(before: Mapping, after: Mapping, prefix: str = "") -> Iterator[str]:
    """What differs between two nested mappings: `model.n_layer is 6, was 4`."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} is {new}, was {old}"
