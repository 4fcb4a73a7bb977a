"""Everything of a run that changes while it trains, and the four things that are done to it.

A `Trainer` holds model, optimizer, logs and the best loss so far. `train.py` says when `update`, `save`, `evaluate`
and `sample` happen; here is what each does to the run folder and to the screen. How they compute is in loop.py.

The order matters for resuming: a checkpoint is saved before its step is evaluated and sampled, so that whatever
is interrupted afterwards is done again, and metrics.rewind drops what it had logged. Going back after a bad step is
resuming without having stopped, but for the batches, which go on behind the bad one. Which checkpoint it goes back to
does not depend on where the run was stopped meanwhile: only those count that were due.

A disk that is full for a while costs nothing but messages: lines wait in memory, a checkpoint that can't be written is
tried again when the next is due. Only the last one must succeed.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

from safetensors import SafetensorError

import autograd as ag
from data import Tokens, split
from model import GPT
from tokenizer import Tokenizer
from training.checkpoint import Checkpoint, first_not_finite
from training.errors import CheckpointError, DivergenceError, SettingsError, UserError, checked
from training.layers import layer_ratios, weights_before
from training.loop import BadStep, evaluate, learning_rate, make_optimizer, update, write_sample
from training.recovery import Watch, examine, explain, record
from training.report import Report
from training.run import Run, describe, optimizer_arrays, restore, token_lengths
from training.screen import Screen
from training.settings import Settings
from training.signals import StopRequest
from training.tensorboard import log_opener


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
        self.watch = Watch(settings.train.spike_sigma)
        self.step = 0
        self.saved_step: int | None = None
        self.best: dict[str, Any] | None = None  # step and loss of the best evaluation
        self.shift = 0  # how many draws were left out by going back: step s uses draw s + shift
        self.bad = {"count": 0, "step": -1}  # bad steps since a step beyond the last of them succeeded; that step
        open_log = log_opener(run.folder, settings.tensorboard, screen.note)
        self.metrics, self.samples = open_log(run.metrics_file), open_log(run.samples_file)
        if checkpoint := run.checkpoints.newest(screen.note) if run.resumed else None:
            try:
                self._go_to(checkpoint)
                self.shift = int(checkpoint.state.get("shift", 0))
                self.bad = {name: int(checkpoint.state.get("bad", self.bad)[name]) for name in self.bad}
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{checkpoint.folder / 'state.json'} holds something else: {error}") from error
        else:
            for log in (self.metrics, self.samples):
                log.rewind(0)
        self.first_step = self.step

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
        if self.step == 0 and self.settings.train.on_bad_step == "rollback":
            self.save(0)  # something to go back to
        while True:
            step = self.step
            yield step, step == last
            if step == last:
                return

    def update(self, step: int) -> None:
        """Improve the weights once, or, after a bad step, do what the settings say.

        Raises DivergenceError where they say to stop, or too many steps are bad.
        """
        settings = self.settings
        self.report.refresh()
        every = settings.train.layer_interval
        before = weights_before(self.model) if every and (step + 1) % every == 0 else None
        began = time.perf_counter()
        lr = learning_rate(step, settings.optim, settings.train.steps)
        try:
            made = update(
                self.model, self.optimizer, self.train_ids, step + self.shift, lr, settings.optim.clip, settings.train,
                self.watch.complaint,
            )  # fmt: skip
        except BadStep as bad:
            self._recover(step, lr, bad)
            return
        seconds = time.perf_counter() - began
        self.watch.accept(made.loss, made.grad_norm)
        if step > self.bad["step"]:
            self.bad["count"] = 0
        self.step = step + 1
        self.metrics.write(
            step=step + 1, split="train", loss=made.loss, lr=lr, grad_norm=made.grad_norm,
            tokens_per_second=self.screen.tokens_per_step / seconds,
        )  # fmt: skip
        if before:
            self.metrics.write(step=step + 1, split="layers", layers=layer_ratios(self.model, before))
        self.screen.step(step + 1, made.loss, lr, seconds)

    def _recover(self, step: int, lr: float, bad: BadStep) -> None:
        """Record a bad step, and stop, leave it out or go back."""
        settings, draw = self.settings.train, step + self.shift
        found = examine(self.model, self.train_ids, draw, settings)
        what = f"{bad.reason} at step {step + 1} ({explain(found)})"
        try:
            block_size = self.settings.model.block_size
            folder = self.run.folder / "bad-steps"
            place = record(
                folder, step + 1, draw, bad, found, lr, self.train_ids, block_size, self.tokenizer, settings
            )
            what += f"; recorded in {place}"
        except (OSError, SafetensorError) as error:
            what += f"; it can't be recorded: {getattr(error, 'strerror', None) or error}"
        if settings.on_bad_step == "stop" or self.bad["count"] >= settings.max_bad_steps:
            row = f" after {self.bad['count']} bad steps that were passed over" if self.bad["count"] else ""
            if not found["weight"]:
                self.save(step, must=True)
            self.report.finish()
            raise DivergenceError(
                f"{what}{row}; nothing was updated with it, step {self.saved_step} is saved: "
                f"go on with --resume --train.on_bad_step skip (or rollback), or start again with a lower --optim.lr, "
                f"or a longer --optim.warmup_steps"
            )
        self.bad = {"count": self.bad["count"] + 1, "step": max(step, self.bad["step"])}
        if settings.on_bad_step == "skip":
            self.screen.note(f"{what}; it is left out")
            self.metrics.write(
                step=step + 1, split="train", loss=bad.loss, lr=lr, grad_norm=bad.grad_norm, skipped=bad.reason
            )
            self.step = step + 1
        else:
            checkpoint = self.run.checkpoints.newest(self.screen.note, among=self._is_due)
            if checkpoint is None:
                raise DivergenceError(f"{what}; there is no checkpoint to go back to")
            self.screen.note(f"{what}; back to step {checkpoint.step}, and on with the batches behind it")
            self._go_to(checkpoint)
            self.shift = draw + 1 - checkpoint.step

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint of this step is written wherever the run is stopped or resumed."""
        interval = self.settings.train.eval_interval
        return step <= self.step and step % interval == 0 if interval else step == 0

    def _go_to(self, checkpoint: Checkpoint) -> None:
        """Put everything back to where it was when a checkpoint was written, but for what is left out."""
        restore(checkpoint, self.model, self.optimizer, self.belongs_to)
        self.step = self.saved_step = checkpoint.step
        self.watch.load(checkpoint.state.get("recent", {}))
        self.best = checkpoint.state.get("best")
        checkpoints = self.run.checkpoints
        for step in checkpoints.steps():
            if step > checkpoint.step:  # damaged, or of a way that was left
                checkpoints.remove(step)
        if self.best is None:
            checkpoints.unmark_best()
        elif self.best["step"] != checkpoints.best_step():
            checkpoints.mark_best(**self.best)
        for log in (self.metrics, self.samples):
            log.rewind(checkpoint.step)

    def save(self, step: int, must: bool = False) -> None:
        """Write a checkpoint, once a step.

        If that fails, the screen says so and training can go on; but where it `must` be, CheckpointError is raised.
        Raises DivergenceError, and writes nothing, if the weights are not finite.
        """
        if step == self.saved_step:
            return
        arrays = self.model.state_dict(), optimizer_arrays(self.model, self.optimizer)
        for each in arrays:
            if name := first_not_finite(each):
                raise DivergenceError(
                    f"{name} is not finite after step {step}, which is not saved; checkpoints before it are sound: go "
                    f"on from there with --resume and a lower --optim.lr"
                )
        state = {**self.belongs_to, "best": self.best, "shift": self.shift, "bad": self.bad,
                 "recent": self.watch.state()}  # fmt: skip
        rolls_back = self.settings.train.on_bad_step == "rollback"
        targets = [max(filter(self._is_due, self.run.checkpoints.steps()), default=0)] if rolls_back else []
        try:
            for log in (self.metrics, self.samples):
                log.flush_to_disk()
            self.run.checkpoints.save(step, *arrays, state, spare=targets)
        except (OSError, CheckpointError) as error:
            what = f"{error}" if isinstance(error, UserError) else (
                f"can't write the checkpoint of step {step} before {error.filename}: {error.strerror}"
                + (f"; that of step {self.saved_step} is intact" if self.saved_step is not None else "")
            )  # fmt: skip
            if must:
                raise CheckpointError(f"{what}; make room or mend the folder, then go on with --resume") from error
            self.screen.note(f"{what}; training goes on and tries again")
        else:
            self.saved_step = step

    def evaluate(self, step: int, stop: StopRequest) -> None:
        """Score the validation split, log it, and mark the checkpoint if it is the best; break off on `stop`."""
        self.screen.busy("evaluating")
        scored = evaluate(self.model, self.val_ids, self.lengths, self.settings.train.eval_tokens, stop)
        if scored is None:
            return
        is_best = (
            self.saved_step == step and math.isfinite(scored.loss)
            and (self.best is None or scored.loss < self.best["loss"])
        )  # fmt: skip
        self.metrics.write(
            step=step, split="val", loss=scored.loss, bits_per_byte=scored.bits_per_byte, tokens=scored.tokens
        )
        self.screen.evaluation(step, scored.loss, scored.bits_per_byte, is_best)
        self.report.evaluated()
        if is_best:
            try:
                self.run.checkpoints.mark_best(step, scored.loss)
                self.best = {"step": step, "loss": scored.loss}
            except OSError as error:
                self.screen.note(f"can't mark step {step} as the best: {error.strerror}")

    def sample(self, step: int) -> None:
        """Have the model write, and show and log it."""
        self.screen.busy("writing a sample")
        text = write_sample(self.model, self.tokenizer, step, self.settings.train)
        self.samples.write(step=step, text=text)
        self.screen.sample(step, text)
        self.report.sampled(step, text)

    def finish(self) -> None:
        """Close the logs and draw the report. Raises OSError if lines of a log can't be written."""
        self.metrics.close()
        self.samples.close()
        if page := self.report.finish():
            self.screen.note(f"{'report':<12}{page}")
