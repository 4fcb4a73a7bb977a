"""A run that was stopped anywhere and resumed is the run that was never stopped: same losses, same weights, to the bit.

In process: the run is cut off inside each of the things a run does, at each step, by an exception that nothing
catches. (Processes that are killed are in test_cli_train.py.)
"""

import os

import pytest
from small_runs import TEXT, Crash, at_call, crash, record, resume_flags, run_in_process, terminate

import train
from training.checkpoint import Checkpoints
from training.errors import CheckpointError, DivergenceError, SettingsError
from training.metrics import read_lines
from training.trainer import Trainer


@pytest.fixture(scope="module")
def run(corpus):
    """Run train.py in this process: run(folder, more flags) → exit code."""
    return lambda folder, *flags: run_in_process(folder, "--data", str(corpus), *flags)


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(folder) == 0
    return record(folder)


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
        at_call(patch, owner, name, call, crash, after)
        run(folder)
    assert run(folder, *resume_flags(folder)) == 0
    assert record(folder) == uninterrupted
    assert not list(folder.rglob(".*"))  # no litter


def test_a_damaged_last_checkpoint_costs_time_but_no_bit(run, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        at_call(patch, Trainer, "update", 6, crash)
        run(folder)
    os.truncate(folder / "checkpoints/step-00000004/model.safetensors", 100)
    assert run(folder, "--resume") == 0
    assert "step-00000004/model.safetensors is damaged" in capsys.readouterr().out
    assert record(folder) == uninterrupted


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["update", "save", "evaluate", "sample"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_signal_anywhere_saves_and_changes_nothing(run, uninterrupted, tmp_path, name, call, after):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Trainer, name, call, terminate, after)
        code = run(folder)
    if code:  # it may come too late: with the last sample written, nothing is left to be saved
        assert code == 143
        done = [entry["step"] for entry in read_lines(folder / "metrics.jsonl") if entry["split"] == "train"]
        assert Checkpoints(folder / "checkpoints").steps()[-1] == len(done)  # nothing that was done is lost
        assert run(folder, "--resume") == 0
    assert record(folder) == uninterrupted


PRECISIONS = ["float32", "bfloat16"]
WAYS = {
    "evaluated never, sampled at every step": ["--train.eval_interval=0", "--train.sample_interval=1"],
    "evaluated at every step, sampled never": ["--train.eval_interval=1", "--train.sample_interval=0"],
    "on one thread": ["--train.threads=1"],
}


@pytest.fixture(scope="module", params=PRECISIONS)
def either(request, run, tmp_path_factory):
    """(flags, record) of an uninterrupted run in either precision."""
    folder, flags = tmp_path_factory.mktemp("runs") / "run", [f"--train.precision={request.param}"]
    assert run(folder, *flags) == 0
    return flags, record(folder)


@pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS.keys())
def test_how_a_run_is_watched_changes_no_bit_of_it(run, either, tmp_path, flags):
    same, (expected_logs, (expected_model, expected_optimizer, _), _) = either
    assert run(tmp_path / "run", *same, *flags) == 0
    logs, (model, optimizer, _), _ = record(tmp_path / "run")
    assert (model, optimizer) == (expected_model, expected_optimizer)

    def losses(log):
        return [(entry["loss"], entry["grad_norm"]) for entry in log if entry.get("split") == "'train'"]

    assert losses(logs) == losses(expected_logs) != []


def test_in_bfloat16_too_a_crash_changes_nothing(run, tmp_path):
    flags = ["--train.precision=bfloat16"]
    assert run(tmp_path / "whole", *flags) == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        at_call(patch, Trainer, "update", 4, crash)
        run(tmp_path / "killed", *flags)
    assert run(tmp_path / "killed", "--resume") == 0
    assert record(tmp_path / "killed") == record(tmp_path / "whole")


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
