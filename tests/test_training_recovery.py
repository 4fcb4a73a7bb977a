"""Numbers that go wrong: noticed in the step, recorded, and stopped at, left out or gone back from.

Poison is a function of the draw, as a bad batch is: whoever meets it again, after a kill too, meets it alike.
"""

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from small_runs import TEXT, Crash, at_call, crash, record, resume_flags, run_in_process, terminate

from data import training_batch
from model import GPT
from training import loop
from training.checkpoint import Checkpoints
from training.errors import DivergenceError
from training.metrics import read_lines
from training.recovery import WINDOW, Watch
from training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, about the poison
STEPS = 10
FLAGS = [f"--train.steps={STEPS}", "--train.eval_interval=3", "--train.sample_interval=4", "--optim.schedule=constant"]


@pytest.fixture
def run(corpus):
    return lambda folder, *flags: run_in_process(folder, *FLAGS, "--data", str(corpus), *flags)


def nan_forward(model, loss):
    return loss * float("nan")


def nan_backward(model, loss):
    """Nothing to see in the loss, but √ at 0 has an infinite slope, and ∞ · 0 is NaN."""
    return loss + (model.norm.weight * 0).sum().sqrt()


def huge(model, loss):
    return loss + 100 * (model.norm.weight**2).sum()


def poison(patch, draws, how):
    """Spoil the loss of these draws; returns the list of all draws as they are used."""
    used = []
    batch, forward = loop.batch, GPT.forward

    def watched(ids, block_size, draw, micro_step, settings):
        used.append((draw, micro_step))
        return batch(ids, block_size, draw, micro_step, settings)

    def spoiled(self, idx, targets=None, *args, **kwargs):
        logits, loss = forward(self, idx, targets, *args, **kwargs)
        if self.training and used[-1][1] == 1 and used[-1][0] in draws:  # the second of two batches
            loss = how(self, loss)
        return logits, loss

    patch.setattr(loop, "batch", watched)
    patch.setattr(GPT, "forward", spoiled)
    return used


def train_lines(folder):
    return [entry for entry in read_lines(folder / "metrics.jsonl") if entry["split"] == "train"]


def report_of(folder):
    (path,) = (folder / "bad-steps").iterdir()
    return path, json.loads((path / "bad-step.json").read_text())


@pytest.mark.parametrize(
    ("how", "reason", "operator", "parameter"),
    [
        (nan_forward, "the loss is nan", "`mul` was given the first NaN in its forward pass", "norm.weight"),
        (nan_backward, "the norm of the gradient is nan", "`sqrt` made the first Inf in its backward", "norm.weight"),
    ],
)
def test_a_bad_step_stops_the_run_is_traced_and_recorded(run, monkeypatch, tmp_path, how, reason, operator, parameter):
    poison(monkeypatch, {5}, how)
    with pytest.raises(DivergenceError, match=f"{reason} at step 6 .*{operator}.*{parameter}.*step 5 is saved") as told:
        run(tmp_path)
    path, report = report_of(tmp_path)
    assert str(path) in str(told.value)
    assert 'File "' not in str(told.value) and any('File "' in line for line in report["called_at"])
    assert report["operator"].startswith(operator) and report["parameter"] == parameter and report["weight"] is None
    assert (report["step"], report["draw"], report["seed"]) == (6, 5, 1)
    assert report["reason"] == reason
    assert math.isfinite(report["losses"][0]) and not math.isfinite(report["grad_norm"])
    assert math.isnan(report["gradient_norms"]["norm.weight"])
    assert report["gradient_norms"].keys() == load_file(tmp_path / "checkpoints/step-00000005/model.safetensors").keys()

    tokens = np.fromfile(tmp_path / "tokens/tokens.bin", np.uint16)
    batch = load_file(path / "batch.safetensors")
    for micro_step in range(2):
        inputs, targets = training_batch(
            tokens[: int(len(tokens) * 0.9)], block_size=8, batch_size=2, seed=1, step=5, micro_step=micro_step
        )
        np.testing.assert_array_equal(batch["inputs"][micro_step], inputs)
        np.testing.assert_array_equal(batch["targets"][micro_step], targets)
    assert all(text in TEXT for texts in report["text"] for text in texts)
    assert len(train_lines(tmp_path)) == 5  # nothing of the bad step but its record


def test_a_weight_that_is_bad_itself_is_named_and_never_saved(run, tmp_path):
    flags = ["--optim.lr=1e38", "--optim.warmup_steps=0", "--optim.clip=0", "--train.eval_interval=1"]
    with pytest.raises(DivergenceError):
        run(tmp_path, *flags)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in checkpoints.steps():
        assert all(np.isfinite(array).all() for array in checkpoints.load(step).model().values())


def test_after_stopping_one_can_choose_to_leave_it_out(run, monkeypatch, tmp_path):
    poison(monkeypatch, {5}, nan_forward)
    with pytest.raises(DivergenceError):
        run(tmp_path / "stopped")
    assert run(tmp_path / "stopped", "--resume", "--train.on_bad_step=skip") == 0
    assert run(tmp_path / "skipping", "--train.on_bad_step=skip") == 0
    assert record(tmp_path / "stopped") == record(tmp_path / "skipping")


def test_left_out_a_step_changes_no_weight(run, monkeypatch, tmp_path):
    poison(monkeypatch, {4}, nan_backward)
    assert run(tmp_path, "--train.on_bad_step=skip", "--train.eval_interval=1", "--train.keep_checkpoints=99") == 0
    before, after = (
        (tmp_path / f"checkpoints/step-{step:08d}" / name).read_bytes()
        for name in ("model.safetensors",) for step in (4, 5)
    )  # fmt: skip
    assert before == after
    lines = train_lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "skipped" in line] == [5]


def test_going_back_leaves_out_the_batches_up_to_the_bad_one(run, monkeypatch, tmp_path):
    used = poison(monkeypatch, {7}, nan_forward)
    assert run(tmp_path, "--train.on_bad_step=rollback") == 0
    draws = [draw for draw, micro_step in used if micro_step == 0]
    # Steps 0 to 7; the bad one looked at again; back to the checkpoint of step 6, and on with draw 8.
    assert list(dict.fromkeys(draws)) == [*range(8), *range(8, 8 + STEPS - 6)]
    assert draws.count(8) == 1
    lines = train_lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(math.isfinite(line["loss"]) and "skipped" not in line for line in lines)


def test_a_damaged_checkpoint_is_not_gone_back_to(run, monkeypatch, tmp_path, capsys):
    poison(monkeypatch, {7}, nan_forward)
    file = tmp_path / "checkpoints/step-00000006/model.safetensors"
    at_call(monkeypatch, Trainer, "update", 8, lambda: file.write_bytes(file.read_bytes()[:-1]))
    assert run(tmp_path, "--train.on_bad_step=rollback") == 0
    out = capsys.readouterr().out
    assert "step-00000006/model.safetensors is damaged" in out and "back to step 3" in out
    assert [line["step"] for line in train_lines(tmp_path)] == list(range(1, STEPS + 1))


POISON = {"one": {7}, "two": {4, 8}, "row": {1, 4, 5, 7, 9, 10}}


def cut_off_and_resumed(run, folder, flags, draws, actions):
    """The record of a poisoned run that is disturbed at the calls of `update` in `actions`, and resumed each time."""
    for call, action in [*actions, (0, crash)]:
        with pytest.MonkeyPatch.context() as patch:
            poison(patch, draws, nan_backward)
            at_call(patch, Trainer, "update", call, action, after=call % 2 == 1)
            try:
                code = run(folder, *flags, *resume_flags(folder))
            except Crash:
                continue
        assert code in (0, 143)
    assert code == 0
    return record(folder)


@pytest.mark.parametrize(
    ("policy", "draws", "calls"),
    [
        ("skip", "two", [5]),
        ("rollback", "one", [9]),
        ("rollback", "row", [5]),
        *(
            pytest.param(policy, draws, range(1, 13), marks=pytest.mark.torture)
            for policy in ("skip", "rollback") for draws in POISON
        ),
    ],
)  # fmt: skip
def test_cut_off_anywhere_and_resumed_it_is_the_same_run(run, tmp_path, policy, draws, calls):
    flags = [f"--train.on_bad_step={policy}", "--train.keep_checkpoints=1", "--train.max_bad_steps=9"]
    expected = cut_off_and_resumed(run, tmp_path / "whole", flags, POISON[draws], [])
    for call in calls:
        for name, first, second in (("killed", crash, terminate), ("stopped", terminate, crash)):
            actions = [(call, first), (3, second), (4, first)]
            folder = tmp_path / f"{name}-{call}"
            assert cut_off_and_resumed(run, folder, flags, POISON[draws], actions) == expected


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_too_many_in_a_row_stop_the_run(run, monkeypatch, tmp_path, policy):
    poison(monkeypatch, range(4, 1000), nan_forward)
    with pytest.raises(DivergenceError, match=r"after 3 bad steps that were passed over"):
        run(tmp_path, f"--train.on_bad_step={policy}", "--train.max_bad_steps=3")
    assert len(list((tmp_path / "bad-steps").iterdir())) == 4
    with pytest.raises(DivergenceError):  # and a resumed run does not begin to count anew
        run(tmp_path, "--resume", f"--train.on_bad_step={policy}", "--train.max_bad_steps=3")
    assert len(list((tmp_path / "bad-steps").iterdir())) <= 4 + (policy == "rollback")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_spike_counts_where_the_settings_say_so(run, tmp_path, policy):
    flags = ["--train.steps=90", "--train.eval_interval=40", "--train.sample_interval=0"]
    runs = {"off": [], "on": ["--train.spike_sigma=6", f"--train.on_bad_step={policy}"]}
    for name, more in runs.items():
        with pytest.MonkeyPatch.context() as patch:
            poison(patch, {80}, huge)
            assert run(tmp_path / name, *flags, *more) == 0
    assert not (tmp_path / "off/bad-steps").exists()
    _, report = report_of(tmp_path / "on")
    assert "deviations above" in report["reason"] and (report["step"], report["operator"]) == (81, None)
    assert report["parameter"] == "norm.weight"  # the longest gradient
    assert [line["step"] for line in train_lines(tmp_path / "on")] == list(range(1, 91))


def test_a_record_that_cannot_be_written_does_not_end_the_run(run, monkeypatch, tmp_path, capsys):
    poison(monkeypatch, {5}, nan_forward)
    tmp_path.joinpath("bad-steps").write_text("in the way")
    assert run(tmp_path, "--train.on_bad_step=skip") == 0
    assert "it can't be recorded" in capsys.readouterr().out


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.lists(finite, min_size=WINDOW // 2, max_size=2 * WINDOW), finite, st.floats(0.5, 10))
def test_a_spike_is_what_lies_that_many_deviations_above_the_window(values, value, sigma):
    watch = Watch(sigma)
    for each in values:
        watch.accept(each, 1.0)
    window = values[-WINDOW:]
    is_spike = value > statistics.fmean(window) + sigma * statistics.stdev(window)
    assert bool(watch.complaint(value, 1.0)) == is_spike
    again = Watch(sigma)
    again.load(json.loads(json.dumps(watch.state())))
    assert again.state() == watch.state()


def test_a_window_that_says_too_little_complains_of_nothing_finite():
    watch = Watch(6)
    for _ in range(WINDOW // 2 - 1):
        watch.accept(1.0, 1.0)
    assert watch.complaint(1e9, 1e9) is None
    assert "nan" in watch.complaint(float("nan"), 1.0)
    assert "inf" in watch.complaint(1.0, float("inf"))
    assert "1e+19" in watch.complaint(1.0, 1e19)
