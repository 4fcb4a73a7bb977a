"""Small runs in this process, for tests of what a run promises: what it must repeat, and ways to disturb it."""

import contextlib
import multiprocessing
import os
import signal
import sys

import pytest

import train
from training.checkpoint import Checkpoints
from training.metrics import read_lines
from training.report import Report
from training.run import Run
from training.screen import Screen
from training.settings import parse_settings

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom.\n" * 60
TINY = [
    "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.block_size=8", "--model.dropout=0.1",
    "--tokenizer.vocab_size=270", "--train.batch_size=2", "--train.accumulation=2", "--train.steps=6",
    "--train.eval_interval=2", "--train.sample_interval=3", "--train.sample_tokens=5", "--optim.warmup_steps=2",
    "--train.layer_interval=1",
]  # fmt: skip


_fsync = os.fsync


def run_in_process(folder, *flags):
    """Run train.py here; returns its exit code. The report is left out: it takes longer than the run."""
    settings = parse_settings([*TINY, "--out", str(folder), *flags])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "_draw", lambda report, live: report.folder / "report.html")
        if os.fsync is _fsync:  # a power cut can't be tested, a kill loses nothing unflushed, and disks are slow
            patch.setattr(os, "fsync", lambda descriptor: None)
        with Screen(settings) as screen, Run.open(settings, screen.note) as run:
            return train.train(settings, screen, run)


# A server that has imported everything, but run no kernel yet, forks processes in milliseconds.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["small_runs"])


def start_process(folder, *flags, die_at=0):
    """The same in a process of its own, which `die_at` has killed before it touches a file of the run so many times."""
    process = _server.Process(target=_run_and_exit, args=(str(folder), list(map(str, flags)), die_at))
    process.start()
    return process


def _run_and_exit(folder, flags, die_at):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    if die_at:
        _die_at(die_at, folder)
    sys.exit(run_in_process(folder, *flags))


def _die_at(operation, folder):
    count = 0

    def watch(event, arguments):
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate") and any(
            isinstance(argument, (str, os.PathLike)) and str(argument).startswith(folder) for argument in arguments
        ):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def resume_flags(folder):
    """--resume, where there is something to go on with."""
    return ["--resume"] if (folder / "config.toml").exists() else []


def record(folder):
    """All that a run promises to repeat: its logs but for the clock, and the weights and moments at its end."""
    logs = [
        {key: repr(value) for key, value in entry.items() if key != "tokens_per_second"}  # nan is not nan
        for name in ("metrics.jsonl", "samples.jsonl")
        for entry in read_lines(folder / name)
    ]
    checkpoints = Checkpoints(folder / "checkpoints")
    last = checkpoints.path(checkpoints.steps()[-1])
    files = [(last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors", "state.json")]
    return logs, files, checkpoints.best_step()


class Crash(BaseException):
    """Nothing catches this."""


def at_call(patch, owner, name, call, action, after=False):
    """Have `action` happen before or after the `call`-th call of a function."""
    original, calls = getattr(owner, name), 0

    def disturbed(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            action()
        result = original(*args, **kwargs)
        if calls == call and after:
            action()
        return result

    patch.setattr(owner, name, disturbed)


def crash():
    """As if the process were killed."""
    raise Crash


def terminate():
    """SIGTERM, to ourselves."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def full_disk(disk, spare_bytes=0):
    """A disk, mounted at `disk`, has no more than `spare_bytes` left meanwhile."""
    ballast = disk / ".ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        file.write(b"x" * max(0, free - spare_bytes))
    try:
        yield
    finally:
        ballast.unlink()
