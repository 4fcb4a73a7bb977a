"""Train a GPT on text.

    python train.py                                          the built-in corpus, about three minutes
    python train.py --data story.txt --out runs/story
    python train.py --config configs/shakespeare_cpu.toml --data tinyshakespeare.txt --train.steps 500
    python train.py --resume --out runs/story                go on after a stop, a crash or a power cut
    python train.py --help                                   every setting

Leaves a run folder (see training/run.py) that generate.py writes from.

Exit codes: 0 done; 2 something to mend, told in one line; 130 (Ctrl-C) and 143 (SIGTERM) stopped, after saving.
"""

import sys
import time

import autograd as ag
from data import Corpus, split, tokenize
from model import GPT
from training.errors import SettingsError, checked, one_line_errors
from training.loop import evaluate, learning_rate, make_optimizer, matmul_precision, update, write_sample
from training.metrics import MetricsLog, rewind
from training.report import write_report
from training.run import Run, describe, optimizer_arrays, restore, token_lengths
from training.screen import Screen
from training.settings import Settings, parse_settings
from training.signals import stop_on_signals


def main() -> int:
    with one_line_errors("train.py"):
        settings = parse_settings(sys.argv[1:])
        block_size = settings.model.block_size
        tokens_per_step = settings.train.batch_size * settings.train.accumulation * block_size
        with Screen(settings.train.steps, tokens_per_step) as screen, matmul_precision(settings.train.precision):
            return train(settings, screen)
    return 0


def train(settings: Settings, screen: Screen) -> int:
    """A whole run, or the rest of one; returns the exit code."""
    run = Run.open(settings, screen.note)
    if settings.train.threads:
        with checked():
            ag.set_num_threads(settings.train.threads)

    # Text becomes tokens.
    corpus = Corpus(settings.data.source, settings.data.errors, settings.data.text_field)
    screen.stage("reading the corpus and making the tokenizer")
    tokenizer = run.tokenizer(settings.tokenizer, corpus)
    screen.stage("turning text into tokens")
    tokens = tokenize(
        corpus,
        lambda text: tokenizer.encode(text, disallowed_special=()),
        vocab_size=tokenizer.vocab_size,
        separator=tokenizer.eot_id,
        tokenizer_hash=tokenizer.hash(),
        folder=run.token_folder(settings.data.cache),
    )
    train_ids, val_ids = split(tokens.ids, settings.data.val_fraction)
    if len(train_ids) <= settings.model.block_size or len(val_ids) < 2:
        raise SettingsError(
            f"the corpus has {len(train_ids):,} tokens for training and {len(val_ids):,} for validation, fewer than a "
            f"context takes; give more text, or lower --model.block_size (now {settings.model.block_size})"
        )

    # A model, new or as it was left.
    ag.manual_seed(settings.train.seed)
    with checked():
        model = GPT(settings.gpt_config(tokenizer.vocab_size))
    optimizer = make_optimizer(model, settings.optim)
    belongs_to = {
        "corpus": tokens.manifest["corpus"],
        "tokenizer": tokenizer.hash(),
        "model": model.config.to_dict(),
    }
    first_step = 0
    best_loss: float | None = None
    saved_step: int | None = None
    if checkpoint := run.checkpoints.newest(screen.note) if run.resumed else None:
        restore(checkpoint, model, optimizer, belongs_to)
        first_step = saved_step = checkpoint.step
        best_loss = checkpoint.state["best_loss"]
    for log in (run.metrics_file, run.samples_file):
        rewind(log, first_step)
    metrics, samples = MetricsLog(run.metrics_file), MetricsLog(run.samples_file)

    summary = describe(model, tokenizer, tokens.manifest, len(train_ids), len(val_ids))
    for name, value in summary.items():
        screen.note(f"{name.lower():<12}{value}")
    screen.note(f"{'run folder':<12}{run.folder}" + (f", going on from step {first_step}" if first_step else ""))

    # The loop. `step` updates have been made.
    lengths = token_lengths(tokenizer)
    steps, every = settings.train.steps, settings.train
    with stop_on_signals() as stop:
        for step in range(first_step, max(first_step, steps) + 1):
            is_last = step >= steps
            is_due = is_last or is_multiple(step, every.eval_interval)
            if (is_due or stop) and saved_step != step:
                metrics.flush_to_disk()
                samples.flush_to_disk()
                state = {**belongs_to, "best_loss": best_loss}
                run.checkpoints.save(step, model.state_dict(), optimizer_arrays(model, optimizer), state)
                saved_step = step
            if is_due and not stop:
                screen.stage("evaluating")
                if evaluation := evaluate(model, val_ids, lengths, every.eval_tokens, stop):
                    is_best = best_loss is None or evaluation.loss < best_loss
                    metrics.write(
                        step=step, split="val", loss=evaluation.loss, bits_per_byte=evaluation.bits_per_byte,
                        tokens=evaluation.tokens,
                    )  # fmt: skip
                    screen.evaluation(step, evaluation.loss, evaluation.bits_per_byte, is_best)
                    if is_best:
                        best_loss = evaluation.loss
                        run.checkpoints.mark_best(step, best_loss)
            if (is_last or is_multiple(step, every.sample_interval)) and not stop:
                text = write_sample(model, tokenizer, step, settings.train)
                samples.write(step=step, text=text)
                screen.sample(step, text)
            if is_last or stop:
                break

            began = time.perf_counter()
            lr = learning_rate(step, settings.optim, steps)
            made = update(model, optimizer, train_ids, step, lr, settings.optim.clip, settings.train)
            seconds = time.perf_counter() - began
            metrics.write(
                step=step + 1, split="train", loss=made.loss, lr=lr, grad_norm=made.grad_norm,
                tokens_per_second=screen.tokens_per_step / seconds,
            )  # fmt: skip
            screen.step(step + 1, made.loss, lr, seconds)

    if best_loss is not None:
        summary["Best validation loss"] = f"{best_loss:.4f} nats per token"
    page = write_report(run.folder, summary)
    if stop:
        screen.note(f"stopped and saved at step {step}; go on with: python train.py --resume --out {run.folder}")
        return stop.exit_code
    screen.note(f"done; the report is {page}; more text comes from: python generate.py --run {run.folder}")
    return 0


def is_multiple(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens after `step` of them."""
    return interval > 0 and step > 0 and step % interval == 0


if __name__ == "__main__":
    sys.exit(main())
