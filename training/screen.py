"""What a person sees while training: a live line at a terminal, plain lines elsewhere.

At a terminal the last line shows what is going on: first the kernels that are being compiled, then step, loss,
tokens per second and the time left; everything else scrolls past above it. In a pipe or a log file a line is
printed every few seconds. Where nobody can be told any more (the terminal has closed, the reader of a pipe has gone,
the disk of a log file is full), the run goes on in silence.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from autograd.kernels import jit
from training.settings import Settings

SECONDS_BETWEEN_LINES = 5.0


class Screen:
    """The display of a run; a context manager, in which kernels that are compiled are counted on the screen."""

    def __init__(self, settings: Settings) -> None:
        self.steps = settings.train.steps
        self.tokens_per_step = settings.train.batch_size * settings.train.accumulation * settings.model.block_size
        self.live = sys.stdout.isatty()
        self._console = Console(highlight=False, markup=False)
        self._progress = Progress(
            TimeElapsedColumn(), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console, transient=True, disable=not self.live,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=self.steps, start=True)
        self._compilations = jit.compilations(self._compiled)
        self._last_line_at = self._last_compile_line_at = -SECONDS_BETWEEN_LINES
        self._began: tuple[int, float] | None = None  # step and time at the end of the first update
        self._rate = 0.0  # tokens per second, smoothed

    def __enter__(self) -> Self:
        self._log = self._compilations.__enter__()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._if_possible():
            self._progress.stop()
        self._compilations.__exit__(kind, error, traceback)

    def note(self, text: str) -> None:
        """A line that stays."""
        with self._if_possible():
            if self.live:
                self._console.print(Text(text))
            else:
                print(text, flush=True)

    def stage(self, text: str) -> None:
        """What is going on now, where the work has no steps to count: a line, or the live line."""
        if self.live:
            self._describe(text)
        else:
            self.note(text)

    def busy(self, text: str) -> None:
        """What is going on for a moment; only the live line says so."""
        if self.live:
            self._describe(text)

    def step(self, step: int, loss: float, lr: float, seconds: float) -> None:
        """An update is done: it made `step`, and took `seconds`."""
        now = time.perf_counter()
        if self._began is None:
            self._began = (step, now)
            if self._log.count:
                self.note(f"compiled {self._log.count} kernels in {self._log.seconds:.1f} s, kept for next time")
        else:
            rate = self.tokens_per_step / seconds
            self._rate = 0.95 * self._rate + 0.05 * rate if self._rate else rate
        text = f"loss {loss:.4f}"
        if self._rate:
            text += f"  {self._rate:,.0f} tokens/s  {self._time_left(step, now)} left"
        if self.live:
            # The line is drawn ten times a second: a short run could be over without having been seen.
            self._progress.update(self._task, completed=step, description=text, refresh=step == self.steps)
        elif now - self._last_line_at >= SECONDS_BETWEEN_LINES or step == self.steps:
            self._last_line_at = now
            self.note(f"step {step:>{len(str(self.steps))}}/{self.steps}  {text}  lr {lr:.2e}")

    def evaluation(self, step: int, loss: float, bits_per_byte: float, is_best: bool) -> None:
        """The validation split has been scored."""
        best = ", the best so far" if is_best else ""
        self.note(f"step {step}: validation loss {loss:.4f} nats per token, {bits_per_byte:.4f} bits per byte{best}")

    def sample(self, step: int, text: str) -> None:
        """Text that the model wrote after `step` updates."""
        heading = f"── sample at step {step} "
        self.note(f"{heading:─<64}\n{text}\n{'─' * 64}")

    def _describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    @contextlib.contextmanager
    def _if_possible(self) -> Iterator[None]:
        """Whatever is shown in here is shown, or nothing is from now on."""
        try:
            yield
        except OSError:
            self.live = False
            # What Python still holds for the old stream goes nowhere, too: it would fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _compiled(self, name: str, count: int, seconds: float) -> None:
        text = f"compiling kernels ({count} so far, {seconds:.1f} s)"
        now = time.perf_counter()
        if self.live:
            self._describe(text)
        elif now - self._last_compile_line_at >= SECONDS_BETWEEN_LINES:
            self._last_compile_line_at = now
            self.note(text)

    def _time_left(self, step: int, now: float) -> str:
        first_step, began = self._began or (step, now)
        per_step = (now - began) / max(1, step - first_step)
        minutes, seconds = divmod(round(per_step * (self.steps - step)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
