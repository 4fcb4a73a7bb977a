"""Checkpoints: what is read is what was written; what is damaged or unfinished is never read."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoint import Checkpoints, changes
from training.errors import CheckpointError
from training.metrics import MetricsLog, read_lines, rewind

MODEL = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # strided: a trap of safetensors 0.8
    "bias": np.array([np.nan, -0.0, np.inf], np.float32),
}
OPTIMIZER = {"weight:exp_avg": np.ones((4, 3), np.float32), "weight:step": np.asarray(7)}
STATE = {"best_loss": 0.1 + 0.2, "tokenizer": "abc"}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def assert_sound(checkpoint, step):
    assert checkpoint.step == step
    assert checkpoint.state == {"step": step, **STATE}
    for expected, got in ((MODEL, checkpoint.model()), (OPTIMIZER, checkpoint.optimizer())):
        assert expected.keys() == got.keys()
        for name in expected:
            assert expected[name].dtype == got[name].dtype
            np.testing.assert_array_equal(expected[name], got[name], strict=True)


def test_what_is_read_is_what_was_written(checkpoints):
    assert checkpoints.newest(pytest.fail) is None
    checkpoints.save(5, MODEL, OPTIMIZER, STATE)
    assert_sound(checkpoints.newest(pytest.fail), 5)
    assert np.signbit(checkpoints.load(5).model()["bias"][1])


def test_the_last_ones_are_kept_and_the_best(checkpoints):
    for step in range(1, 7):
        checkpoints.save(step, MODEL, OPTIMIZER, STATE)
        if step == 2:
            checkpoints.mark_best(2, 1.5)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best_step() == 2
    assert sorted(p.name for p in checkpoints.folder.iterdir() if p.name.startswith(".")) == []


@given(
    file=st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json", "complete.json"]),
    where=st.floats(0, 1, exclude_max=True),
    damage=st.sampled_from(["flip", "truncate", "empty", "remove"]),
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path_factory, file, where, damage):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("damage"))
    checkpoints.save(1, MODEL, OPTIMIZER, STATE)
    path = checkpoints.save(2, MODEL, OPTIMIZER, STATE) / file
    content = bytearray(path.read_bytes())
    position = int(where * len(content))
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        content[position] ^= 0x10
        path.write_bytes(content)
    else:
        path.write_bytes(content[: position if damage == "truncate" else 0])
    warnings = []
    found = checkpoints.newest(warnings.append)
    if found.step == 2:  # a flipped bit in the marker's white space, or in the name of its format
        assert file == "complete.json" and damage == "flip"
        assert_sound(found, 2)
    else:
        assert_sound(found, 1)
        # A folder without a marker was never finished, so nobody needs to be told.
        assert len(warnings) == 1 or (file == "complete.json" and damage == "remove")
        assert all(str(path.parent) in warning for warning in warnings)


def test_only_damaged_checkpoints_are_an_error(checkpoints):
    path = checkpoints.save(3, MODEL, OPTIMIZER, STATE)
    os.truncate(path / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is sound: .*model.safetensors is damaged"):
        checkpoints.newest(lambda warning: None)


@pytest.mark.parametrize("files", [["model.safetensors"], {}, {"model.safetensors": 1}, None])
def test_a_marker_that_does_not_vouch_for_every_file_is_refused(checkpoints, files):
    path = checkpoints.save(3, MODEL, OPTIMIZER, STATE)
    (path / "complete.json").write_text(json.dumps({"format": 1, "files": files}))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(3)


@pytest.mark.parametrize("failing", ["rename", "fsync"])
def test_a_failed_write_leaves_the_old_checkpoint_and_no_litter(checkpoints, monkeypatch, failing):
    checkpoints.save(1, MODEL, OPTIMIZER, STATE)
    before = sorted(checkpoints.folder.rglob("*"))
    with monkeypatch.context() as patch:
        def no_space(*args):
            raise OSError(28, "No space left on device")

        patch.setattr(os, failing, no_space)
        with pytest.raises(CheckpointError, match=r"step 2 .*No space left.*step 1 is intact"):
            checkpoints.save(2, MODEL, OPTIMIZER, STATE)
    assert sorted(checkpoints.folder.rglob("*")) == before
    checkpoints.save(2, MODEL, OPTIMIZER, STATE)
    assert_sound(checkpoints.newest(pytest.fail), 2)


def test_what_a_crash_left_is_ignored_and_cleared(checkpoints):
    leftover = checkpoints.folder / ".step-00000009.part"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    assert checkpoints.newest(pytest.fail) is None
    checkpoints.save(1, MODEL, OPTIMIZER, STATE)
    assert not leftover.exists()


def test_changes_name_what_differs():
    before = {"model": {"n_layer": 4, "bias": True}, "seed": 1}
    after = {"model": {"n_layer": 6, "bias": True}, "seed": 2}
    assert list(changes(before, after)) == ["model.n_layer is 6, was 4", "seed is 2, was 1"]
    assert list(changes(before, before)) == []


# Metrics


def test_rewinding_drops_what_will_be_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 5):
        log.write(step=step, split="train", loss=1 / 3 / step)
        if step % 2 == 0:
            log.write(step=step, split="val", loss=0.1)
    log.close()
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"step": 5, "split": "tr')  # cut off by a crash
    rewind(path, 4)
    assert path.read_bytes() == whole[: whole.rindex(b'{"step": 4, "split": "val"')]
    rewind(path, 3)
    assert [entry["step"] for entry in read_lines(path)] == [1, 2, 2, 3]
    rewind(path, 0)
    assert path.read_bytes() == b""


@given(loss=st.floats())
def test_numbers_come_back_to_the_last_bit(tmp_path_factory, loss):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(step=1, loss=loss)
    log.close()
    (entry,) = read_lines(path)
    assert np.float64(entry["loss"]).tobytes() == np.float64(loss).tobytes() or np.isnan(loss)
