"""A run that was stopped anywhere and resumed is the run that was never stopped: same losses, same weights, to the bit.

In process: the run is cut off inside each of the things a run does, at each step, by an exception that nothing
catches. (Processes that are killed are in test_cli_train.py.)
"""

import os

import pytest

import train
from training.checkpoint import Checkpoints
from training.errors import CheckpointError, DivergenceError, SettingsError
from training.metrics import read_lines
from training.run import Run
from training.screen import Screen
from training.settings import parse_settings
from training.trainer import Trainer

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom.\n" * 60
TINY = [
    "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.block_size=8", "--model.dropout=0.1",
    "--tokenizer.vocab_size=270", "--train.batch_size=2", "--train.accumulation=2", "--train.steps=6",
    "--train.eval_interval=2", "--train.sample_interval=3", "--train.sample_tokens=5", "--optim.warmup_steps=2",
    "--train.layer_interval=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run(corpus):
    """Run train.py in this process: run(folder, more flags) → exit code."""

    def run(folder, *flags):
        settings = parse_settings([*TINY, "--data", str(corpus), "--out", str(folder), *flags])
        with Screen(settings) as screen, Run.open(settings, screen.note) as run:
            return train.train(settings, screen, run)

    return run


def record(folder):
    """All that a run promises to repeat: its logs but for the clock, and the weights and moments at its end."""
    logs = [
        {key: value for key, value in entry.items() if key != "tokens_per_second"}
        for name in ("metrics.jsonl", "samples.jsonl")
        for entry in read_lines(folder / name)
    ]
    checkpoints = Checkpoints(folder / "checkpoints")
    last = checkpoints.path(checkpoints.steps()[-1])
    files = [(last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors", "state.json")]
    return logs, files, checkpoints.best_step()


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(folder) == 0
    return record(folder)


class Crash(BaseException):
    """Nothing catches this."""


def crash_at(patch, owner, name, call, after):
    """Make the `call`-th call of a function the last thing that happens, before or after its work."""
    original, calls = getattr(owner, name), 0

    def crashing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Crash
        result = original(*args, **kwargs)
        if calls == call:
            raise Crash
        return result

    patch.setattr(owner, name, crashing)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        *((Trainer, "update", call) for call in (1, 2, 3, 6)),
        *((Trainer, "evaluate", call) for call in (1, 3)),
        *((Trainer, "sample", call) for call in (1, 2)),
        *((Checkpoints, "save", call) for call in (1, 2, 3)),
        *((Checkpoints, "mark_best", call) for call in (1, 2)),
        *((os, "fsync", call) for call in (1, 4, 7, 10, 13)),
        *((os, "rename", call) for call in (1, 2)),
        (train, "tokenize", 1),
        (Trainer, "finish", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", str(value)),
)
def test_a_crash_anywhere_changes_nothing(run, uninterrupted, tmp_path, owner, name, call, after):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, owner, name, call, after)
        run(folder)
    assert run(folder, *(["--resume"] if (folder / "config.toml").exists() else [])) == 0
    assert record(folder) == uninterrupted
    assert not list(folder.rglob(".*"))  # no litter


def test_a_damaged_last_checkpoint_costs_time_but_no_bit(run, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, Trainer, "update", 6, False)
        run(folder)
    os.truncate(folder / "checkpoints/step-00000004/model.safetensors", 100)
    assert run(folder, "--resume") == 0
    assert "step-00000004/model.safetensors is damaged" in capsys.readouterr().out
    assert record(folder) == uninterrupted


@pytest.mark.parametrize("flags", [["--train.eval_interval=0", "--train.sample_interval=1"], ["--train.threads=1"]])
def test_how_a_run_is_watched_changes_no_bit_of_it(run, uninterrupted, tmp_path, flags):
    assert run(tmp_path / "run", *flags) == 0
    (logs, (model, optimizer, _), _), (expected_logs, (expected_model, expected_optimizer, _), _) = (
        record(tmp_path / "run"), uninterrupted,
    )  # fmt: skip
    assert (model, optimizer) == (expected_model, expected_optimizer)

    def losses(log):
        return [entry["loss"] for entry in log if entry.get("split") == "train"]

    assert losses(logs) == losses(expected_logs)


def test_a_finished_run_can_be_made_longer(run, tmp_path):
    folder = tmp_path / "run"
    assert run(folder, "--optim.schedule=constant") == 0
    assert run(folder, "--resume", "--optim.schedule=constant", "--train.steps=8") == 0
    assert [e["step"] for e in read_lines(folder / "metrics.jsonl") if e["split"] == "train"] == list(range(1, 9))
    assert run(folder, "--resume", "--train.steps=4") == 0  # nothing left to do, nothing lost
    assert Checkpoints(folder / "checkpoints").steps()[-1] == 8


@pytest.mark.parametrize(
    "flags", [["--model.n_embd=32"], ["--tokenizer.vocab_size=280"], ["--tokenizer.kind=bytes"], ["--data=other.txt"]]
)
def test_another_model_tokenizer_or_corpus_is_refused(run, tmp_path, flags):
    folder = tmp_path / "run"
    assert run(folder, "--train.steps=2") == 0
    before = record(folder)
    with pytest.raises(SettingsError, match=f"--resume goes on with the run in {folder}, where {flags[0][2:6]}"):
        run(folder, "--resume", *flags)
    assert record(folder) == before


@pytest.mark.parametrize(("file", "what"), [("tokenizer.json", "tokenizer"), ("text", "corpus")])
def test_a_tokenizer_or_corpus_that_was_exchanged_is_noticed(run, tmp_path, file, what):
    folder, text = tmp_path / "run", tmp_path / "text"
    text.write_text(TEXT)
    assert run(folder, "--data", str(text), "--train.steps=2") == 0
    if what == "corpus":
        text.write_text(TEXT.replace("wisdom", "foolishness"))
    else:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace("<|pad|>", "<|dap|>"))
    with pytest.raises(CheckpointError, match=f"belongs to another run: {what} is"):
        run(folder, "--data", str(text), "--resume", "--train.steps=2")


def test_a_new_run_never_writes_over_an_old_one(run, tmp_path):
    folder = tmp_path / "run"
    assert run(folder, "--train.steps=2") == 0
    with pytest.raises(SettingsError, match="holds a run already"):
        run(folder)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_traced(run, tmp_path):
    flags = ["--optim.lr=1e30", "--optim.warmup_steps=0", "--optim.clip=0", "--model.dropout=0"]
    with pytest.raises(DivergenceError, match=r"(loss|gradient) is (nan|inf) at step [2-6] .*made the first"):
        run(tmp_path / "run", *flags)
    losses = [entry["loss"] for entry in read_lines(tmp_path / "run/metrics.jsonl") if entry["split"] == "train"]
    assert losses and all(abs(loss) < float("inf") for loss in losses)
