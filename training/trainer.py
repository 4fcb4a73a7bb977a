"""Everything of a run that changes while it trains, and the four things that are done to it.

A `Trainer` holds model, optimizer, logs and the best loss so far. `train.py` says when `update`, `save`, `evaluate`
and `sample` happen; here is what each does to the run folder and to the screen. How they compute is in loop.py.

The order matters for resuming: a checkpoint is saved before its step is evaluated and sampled, so that whatever
is interrupted afterwards is done again, and metrics.rewind drops what it had logged.
"""

import time
from collections.abc import Iterator

import autograd as ag
from data import Tokens, split
from model import GPT
from tokenizer import Tokenizer
from training.errors import SettingsError, checked
from training.layers import layer_ratios, weights_before
from training.loop import evaluate, learning_rate, make_optimizer, update, write_sample
from training.metrics import MetricsLog, rewind
from training.report import Report
from training.run import Run, describe, optimizer_arrays, restore, token_lengths
from training.screen import Screen
from training.settings import Settings
from training.signals import StopRequest


class Trainer:
    """A run in memory: a new one, or one put back to its last checkpoint where `run.resumed`."""

    def __init__(self, settings: Settings, run: Run, tokenizer: Tokenizer, tokens: Tokens, screen: Screen) -> None:
        """Raises UserError for too little text, a shape that makes no model, or a checkpoint that does not belong."""
        self.settings, self.run, self.tokenizer, self.screen = settings, run, tokenizer, screen
        self.train_ids, self.val_ids = split(tokens.ids, settings.data.val_fraction)
        if len(self.train_ids) <= settings.model.block_size or len(self.val_ids) < 2:
            raise SettingsError(
                f"the corpus has {len(self.train_ids):,} tokens for training and {len(self.val_ids):,} for validation, "
                f"fewer than a context takes; give more text, or lower --model.block_size "
                f"(now {settings.model.block_size})"
            )
        ag.manual_seed(settings.train.seed)
        with checked():
            self.model = GPT(settings.gpt_config(tokenizer.vocab_size))
        self.optimizer = make_optimizer(self.model, settings.optim)
        self.lengths = token_lengths(tokenizer)
        self.belongs_to = {
            "corpus": tokens.manifest["corpus"],
            "tokenizer": tokenizer.hash(),
            "model": self.model.config.to_dict(),
        }
        self.first_step = 0
        self.saved_step: int | None = None
        self.best_loss: float | None = None
        if checkpoint := run.checkpoints.newest(screen.note) if run.resumed else None:
            restore(checkpoint, self.model, self.optimizer, self.belongs_to)
            self.first_step = self.saved_step = checkpoint.step
            self.best_loss = checkpoint.state["best_loss"]
        for log in (run.metrics_file, run.samples_file):
            rewind(log, self.first_step)
        self.metrics, self.samples = MetricsLog(run.metrics_file), MetricsLog(run.samples_file)

        self.summary = describe(self.model, tokenizer, tokens.manifest, len(self.train_ids), len(self.val_ids))
        for name, value in self.summary.items():
            screen.note(f"{name.lower():<12}{value}")
        screen.note(f"{'run folder':<12}{run.folder}" + (f", from step {self.first_step}" if self.first_step else ""))
        self.report = Report(
            run.folder, settings, run.resumed, self.model, tokenizer, self.lengths, self.train_ids, self.val_ids,
            self.summary, screen.note,
        )  # fmt: skip

    def steps(self) -> Iterator[tuple[int, bool]]:
        """(step, is it the last) for each step that is left, a step being the number of updates made before it."""
        last = max(self.first_step, self.settings.train.steps)
        for step in range(self.first_step, last + 1):
            yield step, step == last

    def update(self, step: int) -> None:
        """Improve the weights once. Raises DivergenceError if loss or gradient is not finite."""
        settings = self.settings
        self.report.refresh()
        every = settings.train.layer_interval
        before = weights_before(self.model) if every and (step + 1) % every == 0 else None
        began = time.perf_counter()
        lr = learning_rate(step, settings.optim, settings.train.steps)
        made = update(self.model, self.optimizer, self.train_ids, step, lr, settings.optim.clip, settings.train)
        seconds = time.perf_counter() - began
        self.metrics.write(
            step=step + 1, split="train", loss=made.loss, lr=lr, grad_norm=made.grad_norm,
            tokens_per_second=self.screen.tokens_per_step / seconds,
        )  # fmt: skip
        if before:
            self.metrics.write(step=step + 1, split="layers", layers=layer_ratios(self.model, before))
        self.screen.step(step + 1, made.loss, lr, seconds)

    def save(self, step: int) -> None:
        """Write a checkpoint, once a step. Raises CheckpointError if it can't be written."""
        if step != self.saved_step:
            self.metrics.flush_to_disk()
            self.samples.flush_to_disk()
            arrays = self.model.state_dict(), optimizer_arrays(self.model, self.optimizer)
            self.run.checkpoints.save(step, *arrays, {**self.belongs_to, "best_loss": self.best_loss})
            self.saved_step = step

    def evaluate(self, step: int, stop: StopRequest) -> None:
        """Score the validation split, log it, and mark the checkpoint if it is the best; break off on `stop`."""
        self.screen.busy("evaluating")
        scored = evaluate(self.model, self.val_ids, self.lengths, self.settings.train.eval_tokens, stop)
        if scored is None:
            return
        is_best = self.best_loss is None or scored.loss < self.best_loss
        self.metrics.write(
            step=step, split="val", loss=scored.loss, bits_per_byte=scored.bits_per_byte, tokens=scored.tokens
        )
        self.screen.evaluation(step, scored.loss, scored.bits_per_byte, is_best)
        self.report.evaluated()
        if is_best:
            self.best_loss = scored.loss
            self.run.checkpoints.mark_best(step, scored.loss)

    def sample(self, step: int) -> None:
        """Have the model write, and show and log it."""
        self.screen.busy("writing a sample")
        text = write_sample(self.model, self.tokenizer, step, self.settings.train)
        self.samples.write(step=step, text=text)
        self.screen.sample(step, text)
        self.report.sampled(step, text)

    def finish(self) -> None:
        """Close the logs and draw the report."""
        self.metrics.close()
        self.samples.close()
        if page := self.report.finish():
            self.screen.note(f"{'report':<12}{page}")
