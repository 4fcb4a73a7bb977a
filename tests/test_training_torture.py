"""Fault injection with real processes and real bytes: killed at any moment, torn anywhere, nothing is lost.

make test       a share of it
make torture    all of it; docs/reliability.md has the figures
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_runs import TEXT, record, resume_flags, run_in_process, start_process

from training.checkpoint import Checkpoints
from training.errors import CheckpointError
from training.metrics import read_lines

ROOT = Path(__file__).parent.parent
SMALL = [
    "--model.n_layer=1", "--model.n_head=1", "--model.n_embd=4", "--model.block_size=8", "--model.dropout=0.1",
    "--tokenizer.kind=bytes", "--train.batch_size=2", "--train.sample_tokens=4", "--train.sample_interval=20",
]  # fmt: skip
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "complete.json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("torture")
    (place / "text.txt").write_text(TEXT)
    return place


def start(place, *flags):
    """`python train.py` as a user calls it."""
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--data", "text.txt", *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def finish_run(folder, *flags):
    """The rest of a run, in a process of its own; its record."""
    process = start_process(folder, *flags, *resume_flags(folder))
    process.join()
    assert process.exitcode == 0
    return record(folder)


def sound_steps(folder):
    """The steps of all checkpoints, each read and checked in full."""
    checkpoints = Checkpoints(folder / "checkpoints")
    return [checkpoints.load(step).step for step in checkpoints.steps()]


def in_a_checkpoint(folder):
    """Whether one is being written right now."""
    return any(folder.glob("checkpoints/.*.part"))


# Killed


def killed_again_and_again(place, name, kills, steps, seed):
    """A run that is killed so often, three times of four while a checkpoint is written; then finished.

    Returns how many kills left a checkpoint half written, and the step of the last checkpoint before the end.
    """
    chance, folder = random.Random(seed), place / name
    flags = [*SMALL, "--data", str(place / "text.txt"), f"--train.steps={steps}", "--train.eval_interval=2",
             "--train.eval_tokens=64", "--optim.schedule=constant"]  # fmt: skip
    half_written = newest = 0
    for kill in range(kills):
        process = start_process(folder, *flags, *resume_flags(folder))
        goal = newest + chance.randint(1, steps // kills)
        in_checkpoint = chance.random() < 0.75
        while process.is_alive() and steps_done(folder) < goal:
            time.sleep(0.001)
        while process.is_alive() and in_checkpoint and not is_saving(folder):
            pass
        time.sleep(chance.random() * (0.002 if in_checkpoint else 0.05))
        process.kill()
        process.join()
        half_written += is_saving(folder)
        steps_now = sound_steps(folder) or [0]  # raises if one is listed and not whole
        assert steps_now[-1] >= newest, f"kill {kill}: a checkpoint is gone"
        newest = steps_now[-1]
    killed = finish_run(folder, *flags)
    assert not list(folder.rglob(".*"))
    assert killed == finish_run(place / f"{name}-whole", *flags)
    return half_written, newest


def is_saving(folder):
    """Whether a checkpoint is half written."""
    return any(folder.glob("checkpoints/.*.part"))


def steps_done(folder):
    """By the log, as far as it goes."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0
    except (OSError, ValueError):
        return 0


def test_killed_in_its_checkpoints_it_is_the_run_that_never_was(place):
    killed_again_and_again(place, "few", kills=4, steps=60, seed=1)


@pytest.mark.torture
def test_sixty_kills(place):
    half_written, newest = killed_again_and_again(place, "many", kills=60, steps=1200, seed=2)
    print(f"\n60 SIGKILLs, {half_written} with a checkpoint half written; the last after step {newest} of 1200")
    assert half_written > 10 and newest < 1200  # it was alive at every kill


@pytest.mark.torture
def test_killed_at_every_single_operation_on_a_file(place):
    """A run of three steps is killed before the first, the second, … opening, renaming, removing of a file of it."""
    flags = [*SMALL, "--data", str(place / "text.txt"), "--train.steps=3", "--train.eval_interval=1"]
    expected = finish_run(place / "whole", *flags)
    operation = 0
    while True:
        operation += 1
        folder = place / f"operation-{operation}"
        process = start_process(folder, *flags, die_at=operation)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        sound_steps(folder)
        assert finish_run(folder, *flags) == expected
        assert not list(folder.rglob(".*"))
        if process.exitcode == 0:
            break
    print(f"\nkilled before each of {operation - 1} operations on files")
    assert operation > 50


# Torn


@pytest.fixture(scope="module")
def two_checkpoints(place):
    """A run with checkpoints of steps 1 and 2, small enough to be torn at every byte."""
    flags = ["--train.steps=2", "--train.eval_interval=1", "--train.sample_interval=0"]
    assert run_in_process(place / "torn", *SMALL, "--data", str(place / "text.txt"), *flags) == 0
    return Checkpoints(place / "torn/checkpoints")


def tears(content, position):
    """What a file may hold of `content` when all from `position` on never reached the disk."""
    yield content[:position]
    zeros = content[:position] + bytes(len(content) - position)
    if zeros != content:
        yield zeros
    garbage = content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]
    yield garbage


def torn(checkpoints, name, positions):
    path = checkpoints.path(2) / name
    content = path.read_bytes()
    count = 0
    try:
        for position in positions(len(content)):
            for torn_content in tears(content, position):
                path.write_bytes(torn_content)
                told = []
                found = checkpoints.newest(told.append)
                assert found.step == 1, f"{name} was torn at byte {position}, and believed"
                assert len(told) == 1 and str(checkpoints.path(2)) in told[0]
                count += 1
    finally:
        path.write_bytes(content)
    assert checkpoints.newest(pytest.fail).step == 2
    return count


@pytest.mark.parametrize("name", FILES)
def test_torn_somewhere_a_file_is_not_believed(two_checkpoints, name):
    torn(two_checkpoints, name, lambda size: sorted({0, 1, 7, 8, 9, size // 3, size // 2, size - 2, size - 1}))


@pytest.mark.torture
@pytest.mark.parametrize("name", FILES)
def test_torn_at_every_byte_a_file_is_not_believed(two_checkpoints, name):
    count = torn(two_checkpoints, name, range)
    print(f"\n{name}: {count} ways of being torn")


def test_a_torn_checkpoint_costs_the_steps_since_the_one_before_and_no_bit(place, two_checkpoints):
    folder, whole = place / "torn", record(place / "torn")
    path = two_checkpoints.path(2) / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert run_in_process(folder, *SMALL, "--data", str(place / "text.txt"), "--resume", "--train.steps=2",
                          "--train.eval_interval=1", "--train.sample_interval=0") == 0  # fmt: skip
    assert record(folder) == whole


def test_no_sound_checkpoint_is_said_in_a_line(place):
    folder = place / "all-torn"
    assert run_in_process(folder, *SMALL, "--data", str(place / "text.txt"), "--train.steps=1") == 0
    os.truncate(folder / "checkpoints/step-00000001/state.json", 5)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is sound: .*state.json is damaged"):
        run_in_process(folder, *SMALL, "--data", str(place / "text.txt"), "--resume")


# Stopped


LONG = ["--train.steps=100000", "--optim.schedule=constant", "--train.eval_interval=7", "--train.eval_tokens=64"]


@pytest.mark.torture
def test_twenty_signals(place):
    """At random moments: each saves what was done, and the whole is the run that was never stopped."""
    chance, folder, slowest = random.Random(3), place / "signals", 0.0
    flags = [*SMALL, "--data", str(place / "text.txt"), *LONG]
    for number in range(20):
        before = steps_done(folder)
        process = start_process(folder, *flags, *resume_flags(folder))
        while process.is_alive() and steps_done(folder) < before + 3:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.1)
        sent = signal.SIGTERM if number % 2 else signal.SIGINT
        began = time.monotonic()
        os.kill(process.pid, sent)
        process.join()
        slowest = max(slowest, time.monotonic() - began)
        assert process.exitcode == 128 + sent
        done = [entry["step"] for entry in read_lines(folder / "metrics.jsonl") if entry["split"] == "train"]
        assert done == list(range(1, len(done) + 1))
        assert sound_steps(folder)[-1] == len(done)
    flags.append(f"--train.steps={len(done)}")
    assert finish_run(folder, *flags) == finish_run(place / "signals-whole", *flags)
    print(f"\n20 signals over {len(done)} steps; from each to the end of the process at most {slowest:.1f} s")


@pytest.mark.parametrize("first, second", [("SIGINT", "SIGINT"), ("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_the_second_signal_ends_the_run_at_once(place, first, second):
    """In a step that takes for ever: the first signal is answered, and nothing happens; the second does not wait."""
    folder = place / f"{first}-{second}"
    process = start(place, *LONG, "--train.accumulation=1000000", "--out", folder)
    while not folder.joinpath("metrics.jsonl").exists():
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    time.sleep(1.0)
    process.send_signal(getattr(signal, first))
    assert process.stderr.readline() == f"{first}: saving after this step; once more ends the run at once\n"
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(getattr(signal, second))
    assert process.wait(timeout=60) == -getattr(signal, second)


def test_a_time_limit_saves_and_has_an_exit_code_of_its_own(place):
    folder = place / "limited"
    code, out, err = finish(start(place, *LONG, "--out", folder, "--time-limit", "6s"))
    assert (code, err) == (3, ""), out
    step = int(re.search(r"stopped and saved at step (\d+) \(time limit\)", out)[1])
    assert sound_steps(folder)[-1] == step
    code, out, err = finish(start(place, "--out", folder, "--resume", f"--train.steps={max(1, step)}"))
    assert (code, err) == (0, ""), out


def test_the_folder_of_a_run_that_was_killed_is_free_again(place):
    folder = place / "held"
    process = start(place, *LONG, "--out", folder)
    while not folder.joinpath("metrics.jsonl").exists():
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    code, _, err = finish(start(place, *LONG, "--out", folder))
    assert code == 2 and re.fullmatch(r"train.py: another process is training in \S+; .*--out\n", err)
    process.kill()
    process.communicate()
    code, out, err = finish(start(place, "--resume", "--out", folder, "--train.steps=5"))
    assert (code, err) == (0, ""), out


def test_a_screen_that_is_gone_does_not_end_the_run(place):
    process = start(place, "--train.steps=20", "--out", place / "unseen")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert process.stderr.read() == ""
    assert sound_steps(place / "unseen")[-1] == 20


# Bits


@pytest.mark.torture
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits_for_any_number_of_threads(place, precision):
    """Two, three, five threads in processes of their own, whatever the machine has; weights, moments and losses."""
    seen = []
    for threads in (1, 2, 3, 5):
        folder = place / f"{precision}-{threads}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": str(threads)}
        flags = ["--data", "text.txt", "--out", folder, "--train.steps=30", f"--train.precision={precision}"]
        shape = ["--model.n_layer=2", "--model.n_embd=64", "--model.block_size=64", "--tokenizer.vocab_size=300"]
        command = [sys.executable, str(ROOT / "train.py"), *map(str, [*flags, *shape])]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seen.append(record(folder))
    assert all(each == seen[0] for each in seen)
    weights = Checkpoints(place / f"{precision}-1/checkpoints").load(30).model()
    assert all(np.isfinite(array).all() for array in weights.values())
