"""A run as it is on disk, read for a page: settings, logs as arrays, samples, and facts that are in no log.

    config.toml    settings                 metrics.jsonl  losses and rates, ratios by layer
    samples.jsonl  texts                    report.json    the model's shape, baselines, attention maps …

Nothing here trusts a file: a value that is no number is read as NaN, a missing file as an empty one.
"""

import contextlib
import math
from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.files import read_json
from training.errors import UserError
from training.metrics import read_line, read_lines
from training.settings import Settings, parse_settings

TRAIN = ("step", "loss", "lr", "grad_norm", "tokens_per_second")
VAL = ("step", "loss", "bits_per_byte")
MOST_FACTS_BYTES = 1 << 22
LARGEST_STEP = 1 << 53  # that a float counts exactly
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Record:
    """What a run left behind.

    train, val   columns of numbers: what TRAIN and VAL name, each (N,) float64
    ratios       layer → (N, 3): step, |g|/|w|, |Δw|/|w|
    samples      {"step": …, "text": …}, in order
    left_out     (step, why) of the updates that were not made (see recovery.py)
    facts        of report.json (see facts.py)
    """

    folder: Path
    settings: Settings
    train: Columns
    val: Columns
    ratios: dict[str, np.ndarray]
    samples: list[dict[str, Any]]
    left_out: list[tuple[int, str]]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, for a heading."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def steps_done(self) -> int:
        """Updates made so far."""
        return int(self.train["step"][-1]) if len(self.train["step"]) else 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens that an update reads."""
        train = self.settings.train
        return train.batch_size * train.accumulation * self.settings.model.block_size

    @cached_property
    def seconds(self) -> np.ndarray:
        """Time spent in updates up to each training line, (N,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            each = self.tokens_per_step / self.train["tokens_per_second"]
        return np.cumsum(np.where(np.isfinite(each), each, 0.0))

    @property
    def best(self) -> int | None:
        """The evaluation with the lowest loss: its place in `val`; None where there is none."""
        loss = np.where(np.isfinite(self.val["loss"]), self.val["loss"], np.inf)
        return int(loss.argmin()) if np.isfinite(loss).any() else None

    @property
    def bytes_per_token(self) -> float:
        """Of the held-out text: what nats per token have to do with bits per byte. NaN before an evaluation."""
        with np.errstate(divide="ignore", invalid="ignore"):
            each = self.val["loss"] / math.log(2) / self.val["bits_per_byte"]
        each = each[np.isfinite(each)]
        return float(each[-1]) if len(each) else math.nan

    @property
    def mfu_per_token_rate(self) -> float:
        """What to multiply tokens per second by to get model FLOPs utilisation; NaN where that is not known."""
        return _number(self.facts.get("flops_per_token")) / _number(self.facts.get("peak_flops"))

    def changed_settings(self) -> set[str]:
        """The settings that are not the defaults: {"optim.lr", …}."""
        defaults = Settings().sections()
        return {
            f"{section}.{name}"
            for section, values in self.settings.sections().items()
            for name, value in values.items()
            if value != defaults[section][name]
        }


class Log:
    """A metrics.jsonl as columns of numbers; each `read` takes in what was written since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._end, self._last = 0, b""  # where the lines end that were read, and the last of them
        self._columns = {"train": {name: array("d") for name in TRAIN}, "val": {name: array("d") for name in VAL}}
        self._layers: dict[tuple[str, ...], tuple[array[float], array[float]]] = {}  # steps, ratios; by names on a line
        self.left_out: list[tuple[int, str]] = []

    def read(self) -> None:
        """Read on, or everything anew where the run went back and what was read is no longer there."""
        if not self._path.exists():
            self._forget()
            return
        with open(self._path, "rb") as file:
            file.seek(self._end - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._forget()
                file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):  # still being written, or cut off by a crash
                    break
                self._end, self._last = self._end + len(line), line
                if (entry := read_line(line)) and abs(entry["step"]) < LARGEST_STEP:
                    self._add(entry)

    def _add(self, entry: dict[str, Any]) -> None:
        split, layers = entry.get("split"), entry.get("layers")
        if split in ("train", "val"):
            for name, column in self._columns[split].items():
                column.append(_number(entry.get(name)))
            if split == "train" and "skipped" in entry:
                self.left_out.append((entry["step"], str(entry["skipped"])))
        elif split == "layers" and isinstance(layers, dict) and layers:
            with contextlib.suppress(ValueError, TypeError, OverflowError):  # lines of another form are left out
                values = np.array(list(layers.values()), np.float64).reshape(len(layers), 2)
                steps, ratios = self._layers.setdefault(tuple(layers), (array("d"), array("d")))
                steps.append(entry["step"])
                ratios.frombytes(values.tobytes())

    def columns(self, split: str) -> Columns:
        """The numbers on the lines of "train" or "val"."""
        return {name: np.array(column) for name, column in self._columns[split].items()}

    def ratios(self) -> dict[str, np.ndarray]:
        """Step, |g|/|w| and |Δw|/|w| by layer, (N, 3), from lines that need not name the same layers."""
        rows: dict[str, list[np.ndarray]] = {}
        for names, (steps, ratios) in self._layers.items():
            values = np.array(ratios).reshape(len(steps), len(names), 2)
            for i, name in enumerate(names):
                rows.setdefault(name, []).append(np.column_stack([steps, values[:, i]]))
        return {name: np.concatenate(parts) for name, parts in rows.items()}


def read_record(folder: Path, log: Log | None = None) -> Record:
    """Read a run folder, the metrics on from where `log` has come to if it was read before.

    Raises UserError, in one line, where it holds no run or one with settings of no sense.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}; give folders that train.py has written, as runs/default")
    config = folder / "config.toml"
    if not config.is_file():
        raise UserError(f"{folder} holds no run (no config.toml); give folders that train.py has written")
    log = log or Log(folder / "metrics.jsonl")
    log.read()
    samples = [
        {"step": sample["step"], "text": str(sample.get("text", ""))} for sample in read_lines(folder / "samples.jsonl")
    ]
    return Record(
        folder, parse_settings(["--config", str(config)]), log.columns("train"), log.columns("val"), log.ratios(),
        samples, list(log.left_out), read_facts(folder),
    )  # fmt: skip


def read_facts(folder: Path) -> dict[str, Any]:
    """What report.json holds; nothing where there is none or it can't be read."""
    try:
        return read_json(folder / "report.json", MOST_FACTS_BYTES)
    except (OSError, ValueError):
        return {}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # JSON's integers have no limit
        return math.inf
