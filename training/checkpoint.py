"""Checkpoints: complete or absent, checked when read, in formats that can't run code.

    DIR/checkpoints/step-00000250/model.safetensors      weights
                                  optimizer.safetensors  moments
                                  state.json             the step, and all else a run needs to go on
                                  complete.json          size and SHA-256 of each of these, written last
    DIR/checkpoints/best.json                            the step with the lowest validation loss

A folder is written aside under a dotted name, every file is flushed to the disk, and only then does the folder
get its name; the folder above is flushed after that. A crash at any moment, power included, leaves either the
whole checkpoint or none, and never harms an older one. What is no longer kept gets a dotted name before it is removed.

Reading believes nothing. Sizes come first, then what the state says, then whether the headers of the arrays ask for
just what such a model has, then checksums; only then is anything of size allocated. A damaged checkpoint is named,
and the one before it used.

No random state is saved because there is none: batches, dropout and samples are functions of (seed, step).
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data.files import flush_folder, read_json, remove_leftovers, write_whole
from model.stored import expect_arrays
from training.errors import CheckpointError

ARRAYS = ("model.safetensors", "optimizer.safetensors")
FILES = (*ARRAYS, "state.json")
MARKER = "complete.json"
Arrays = dict[str, np.ndarray]
# What a state calls for: (name, dtype, shape) of the arrays in each file.
Layout = Callable[[Mapping[str, Any]], Mapping[str, Iterable[tuple[str, str, tuple[int, ...]]]]]


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

    def __init__(self, folder: Path, keep: int = 2, layout: Layout | None = None) -> None:
        """`keep`: how many of the last stay when another is saved; the best stays always. `layout`: see `Layout`."""
        self.folder = folder
        self.keep = keep
        self.layout = layout

    def steps(self) -> list[int]:
        """The steps with a checkpoint, rising. Unfinished ones are not among them."""
        names = (path.name for path in self.folder.glob("step-*") if (path / MARKER).is_file())
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d{8,18})", name)))

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(
        self, step: int, model: Mapping, optimizer: Mapping, state: Mapping[str, Any], spare: Collection[int] = ()
    ) -> Path:
        """Write a checkpoint, then remove those no longer kept, but for the steps in `spare`.

        Raises CheckpointError and leaves no litter.
        """
        target = self.path(step)
        aside = self.folder / f".{target.name}.part"
        try:
            if not self.folder.parent.is_dir():
                raise CheckpointError(
                    f"can't write the checkpoint of step {step}: the run folder {self.folder.parent} is gone"
                )
            self.folder.mkdir(exist_ok=True)
            remove_leftovers(self.folder)
            aside.mkdir()
            save_file(_contiguous(model), aside / ARRAYS[0])
            save_file(_contiguous(optimizer), aside / ARRAYS[1])
            (aside / "state.json").write_text(json.dumps({"step": step, **state}, indent=1), encoding="utf-8")
            vouched = {"format": 1, "files": {name: _size_and_hash(aside / name) for name in FILES}}
            write_whole(aside / MARKER, json.dumps(vouched, indent=1))
            self.remove(step)  # a damaged one
            os.rename(aside, target)
            flush_folder(self.folder)
            for old in self.steps()[: -self.keep]:
                if old != self.best_step() and old not in spare:
                    self.remove(old)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                remove_leftovers(self.folder)
            kept = self.steps()
            raise CheckpointError(
                f"can't write the checkpoint of step {step} in {self.folder}: {_reason(error)}; "
                f"{f'that of step {kept[-1]} is intact' if kept else 'there is none yet'}"
            ) from error
        return target

    def remove(self, step: int) -> None:
        """Remove the checkpoint of a step, if there is one: at once for every reader."""
        if self.path(step).exists():
            gone = self.folder / f".gone-{self.path(step).name}.part"
            os.rename(self.path(step), gone)
            shutil.rmtree(gone)

    def load(self, step: int) -> Checkpoint:
        """A checkpoint, all of it checked. Raises CheckpointError that names what is missing or damaged."""
        folder = self.path(step)
        try:
            marker = read_json(folder / MARKER)
            if marker["format"] != 1:
                raise ValueError(f"its format is {marker['format']!r:.20}, expected 1")
            sizes = {name: (folder / name).stat().st_size for name in FILES}
            for name, size in sizes.items():
                if size != marker["files"][name]["bytes"]:
                    raise CheckpointError(f"{folder / name} is damaged: its size is not what was written")
            if sum(sizes.values()) > _memory_bytes():  # before it is read for its checksums
                raise CheckpointError(
                    f"{folder} takes {sum(sizes.values()):,} bytes, this machine has {_memory_bytes():,} of memory"
                )
            state = read_json(folder / "state.json")
            _vouch(folder / "state.json", marker)
            if state["step"] != step:
                raise ValueError(f"it holds step {state['step']!r:.20}")
            for name, arrays in (self.layout(state) if self.layout else {}).items():
                expect_arrays(folder / name, arrays)
            for name in ARRAYS:
                _vouch(folder / name, marker)
            return Checkpoint(step, state, folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder} is damaged: {_reason(error)}") from error

    def newest(
        self, warn: Callable[[str], None], among: Callable[[int], bool] = lambda step: True
    ) -> Checkpoint | None:
        """The last checkpoint that is sound, None if there never was one; damaged ones are told to `warn`.

        among   which steps count

        Raises CheckpointError if there are only damaged ones.
        """
        error: CheckpointError | None = None
        for step in filter(among, reversed(self.steps())):
            try:
                return self.load(step)
            except CheckpointError as damaged:
                error = damaged
                warn(f"{damaged}; trying the one before it")
        if error:
            raise CheckpointError(f"no checkpoint in {self.folder} is sound: {error}")
        return None

    def mark_best(self, step: int, loss: float) -> None:
        """Note that `step` has the lowest validation loss so far. Raises OSError."""
        write_whole(self.folder / "best.json", json.dumps({"step": step, "loss": loss}, indent=1))

    def unmark_best(self) -> None:
        """Forget which is the best."""
        (self.folder / "best.json").unlink(missing_ok=True)

    def best_step(self) -> int | None:
        """The step that was marked best, None if none was (or it is gone)."""
        try:
            step = read_json(self.folder / "best.json")["step"]
        except (OSError, ValueError, KeyError):
            return None
        return step if step in self.steps() else None


def first_not_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The name of the first array that holds a NaN or an infinity."""
    for name, array in arrays.items():
        # A sum is finite only if all its terms are; only where it is not must each be looked at.
        with np.errstate(all="ignore"):
            total = float(np.sum(array))
        if not (math.isfinite(total) or np.isfinite(array).all()):
            return name
    return None


def _contiguous(arrays: Mapping) -> Arrays:
    # safetensors 0.8 writes the memory of a strided array as it lies, in the wrong order and without a word.
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _size_and_hash(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is flushed to the disk on the way."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _memory_bytes() -> float:
    """The memory of this machine; no limit where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _vouch(path: Path, marker: Mapping[str, Any]) -> None:
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != marker["files"][path.name]["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum is not what was written")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, SafetensorError) and (match := re.search(r"I/O error: (.+) \(os error", f"{error}")):
        return match[1]
    return getattr(error, "strerror", None) or f"{error}" or type(error).__name__


def changes(before: Mapping, after: Mapping, prefix: str = "") -> Iterator[str]:
    """What differs between two nested mappings: `model.n_layer is 6, was 4`."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} is {new}, was {old}"
