"""The page of a run while it trains: drawn again when there is news, at a bounded cost.

A page is drawn when an evaluation or a sample is new, or a minute has passed; but never so often that drawing takes
more than a hundredth of the time. What is measured once (baselines, the machine's peak) is measured for the first page,
not before the first step. A page that can't be drawn or written is told of and left: none is worth a run.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.files import write_whole
from model import GPT
from model.cost import flops_per_token
from tokenizer import Tokenizer
from training.machine import peak_flops
from training.report.baselines import measure_baselines
from training.report.facts import attention_facts
from training.report.record import Log, read_facts, read_record
from training.settings import Settings

SHARE_OF_TIME = 0.01
SECONDS_BETWEEN_PAGES = 60.0


class Report:
    """The page of a run that is going on."""

    def __init__(
        self, folder: Path, settings: Settings, resumed: bool, model: GPT, tokenizer: Tokenizer, lengths: np.ndarray,
        train_ids: np.ndarray, val_ids: np.ndarray, summary: dict[str, str], note: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`lengths`: bytes of text behind each id; `summary`: figures to show, by name; `note`: tells the user."""
        self.folder, self.settings, self.model, self.tokenizer, self.note = folder, settings, model, tokenizer, note
        self._text = lengths, train_ids, val_ids
        self._facts = read_facts(folder) if resumed else {}
        self._facts |= {"model": model.config.to_dict(), "summary": summary}
        self._log = Log(folder / "metrics.jsonl")
        self._news = self._failed = False
        self._drawn_at = time.monotonic()
        self._allowed_at = 0.0

    def evaluated(self) -> None:
        """There is a new evaluation in the log."""
        self._news = True

    def sampled(self, step: int, text: str) -> None:
        """The model has written `text` after `step` updates: keep how it attends to it now."""
        self._news = True
        with self._guarded():
            if attention := attention_facts(self.model, self.tokenizer, step, text):
                self._facts["attention"] = attention

    def refresh(self) -> None:
        """Draw the page if there is news and time for it; between two updates."""
        now = time.monotonic()
        is_due = self._news or now - self._drawn_at > SECONDS_BETWEEN_PAGES
        if is_due and now >= self._allowed_at:
            with self._guarded():
                self._draw(live=True)

    def finish(self) -> Path | None:
        """Draw the last page, and loss.png; returns the page, None where that went wrong."""
        self._failed = False  # this one is worth a word of its own
        with self._guarded():
            return self._draw(live=False)
        return None

    def _draw(self, live: bool) -> Path:
        from training.report.page import write_report  # Bokeh takes a second to import: not before the first step

        self._measure()
        began = time.monotonic()
        write_whole(self.folder / "report.json", json.dumps(self._facts))
        page = write_report(read_record(self.folder, self._log), live)
        self._news = self._failed = False
        self._drawn_at = time.monotonic()
        self._allowed_at = self._drawn_at + (self._drawn_at - began) / SHARE_OF_TIME
        return page

    def _measure(self) -> None:
        """What is measured once: the baselines in a run, the machine in a process."""
        train = self.settings.train
        if "baselines" not in self._facts:
            self._facts["baselines"] = measure_baselines(
                self.tokenizer, *self._text, self.model.config.block_size, train.eval_tokens
            )
        self._facts["flops_per_token"] = flops_per_token(self.model.config)
        self._facts["peak_flops"] = peak_flops(train.precision)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever goes wrong in here is told once, and tried again after a while: the run is worth more."""
        try:
            yield
        except Exception as error:
            if not self._failed:
                self.note(
                    f"the report could not be written ({str(error) or type(error).__name__}); the run goes on without"
                )
            self._failed = True
            self._allowed_at = time.monotonic() + SECONDS_BETWEEN_PAGES
