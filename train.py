"""Train a GPT on text.

    python train.py                                          the built-in corpus, about three minutes
    python train.py --data story.txt --out runs/story
    python train.py --config configs/shakespeare_cpu.toml --data tinyshakespeare.txt --train.steps 500
    python train.py --resume --out runs/story                go on after a stop, a crash or a power cut
    python train.py --plan                                   what would it take? memory, time, data
    python train.py --fit 30min > fit.toml                   what can be trained in that time? then: --config fit.toml
    python train.py --time-limit 30min                       stop after a time, and save
    python train.py --help                                   every setting

Leaves a run folder (see training/run.py) that generate.py writes from.

Exit codes: 0 done (a plan, whatever it says, is done); 2 something to mend, told in one line; stopped, after saving:
3 by --time-limit, 130 by Ctrl-C, 143 by SIGTERM, 129 by a terminal that closed. A second signal ends the run at once,
back to its last checkpoint.
"""

import math
import sys
import time

from autograd import matmul_precision
from autograd.kernels.memory import keep_freed_memory
from data import Corpus, tokenize
from training.duration import seconds
from training.errors import one_line_errors
from training.fit import print_proposal
from training.loop import threads
from training.plan import print_plan
from training.run import Run
from training.screen import Screen
from training.settings import Settings, parse_settings
from training.signals import stop_on_signals
from training.trainer import Trainer


def main() -> int:
    began = time.monotonic()
    keep_freed_memory()  # every step asks for the same arrays again
    with one_line_errors("train.py"):
        settings = parse_settings(sys.argv[1:])
        if settings.plan or settings.fit:
            print_proposal(settings) if settings.fit else print_plan(settings)
            return 0
        deadline = began + seconds(settings.time_limit) if settings.time_limit else math.inf
        with Screen(settings) as screen, Run.open(settings, screen.note) as run:
            return train(settings, screen, run, deadline)
    return 0


def train(settings: Settings, screen: Screen, run: Run, deadline: float = math.inf) -> int:
    """A whole run, or the rest of one, or as much as there is time for; returns the exit code."""
    # Text becomes tokens, and the tokens a file.
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

    # A model learns to tell the next one. After `step` updates:
    trainer = Trainer(settings, run, tokenizer, tokens, screen)
    schedule = settings.train
    with matmul_precision(schedule.precision), threads(schedule.threads), stop_on_signals(deadline) as stop:
        for step, is_last in trainer.steps():
            if is_last or is_due(step, schedule.eval_interval):
                trainer.save(step, must=is_last)
                trainer.evaluate(step, stop)
            if (is_last or is_due(step, schedule.sample_interval)) and not stop:
                trainer.sample(step)
            if stop:  # what was broken off or left out for it is done again by --resume
                trainer.save(step, must=True)
                break
            if not is_last:
                trainer.update(step)

    trainer.finish()
    if stop:
        resume = f"python train.py --resume --out {run.folder}"
        screen.note(f"stopped and saved at step {trainer.saved_step} ({stop.reason}); go on with: {resume}")
        return stop.exit_code
    screen.note(f"done; for more text: python generate.py --run {run.folder}")
    return 0


def is_due(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens after `step` of them."""
    return interval > 0 and step > 0 and step % interval == 0


if __name__ == "__main__":
    sys.exit(main())
