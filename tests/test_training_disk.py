"""Disks that are full, gone or read-only, and folders that two processes want: nothing is lost, a line says why."""

import os
import resource
import shutil
import subprocess

import pytest
from small_runs import Crash, at_call, crash, full_disk, record, run_in_process

from training import checkpoint
from training.checkpoint import Checkpoints
from training.errors import CheckpointError, UserError
from training.metrics import MetricsLog, read_lines
from training.run import Run
from training.settings import parse_settings
from training.trainer import Trainer

FLAGS = ["--train.steps=8", "--train.eval_interval=2"]


@pytest.fixture(scope="module")
def run(corpus):
    return lambda folder, *flags: run_in_process(folder, *FLAGS, "--data", str(corpus), *flags)


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(folder) == 0
    return record(folder)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of one megabyte; the checkpoints of a run take half of it."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def litter(folder):
    return [path for path in folder.rglob(".*") if path.name != ".ballast"]


def all_sound(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    return [checkpoints.load(step).step for step in checkpoints.steps()]


def test_a_disk_that_is_full_for_a_while_costs_nothing(run, uninterrupted, small_disk, monkeypatch, capsys):
    """Full from the third step to the sixth: lines wait, the checkpoint of step 4 fails, that of step 6 does not."""
    folder = small_disk / "run"
    full = full_disk(small_disk)
    at_call(monkeypatch, Trainer, "update", 3, full.__enter__)
    at_call(monkeypatch, Trainer, "update", 6, lambda: full.__exit__(None, None, None))
    assert run(folder) == 0
    said = capsys.readouterr().out
    assert "can't write the checkpoint of step 4" in said and "training goes on and tries again" in said
    assert record(folder) == uninterrupted
    assert litter(folder) == []


def test_a_disk_that_stays_full_ends_the_run_with_the_old_checkpoint_intact(run, uninterrupted, small_disk):
    folder = small_disk / "run"
    full = full_disk(small_disk)
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Trainer, "update", 5, full.__enter__)
        with pytest.raises(CheckpointError, match=r"of step 8 .*No space left on device.*of step 4 is intact"):
            run(folder)
    assert all_sound(folder) == [2, 4] and litter(folder) == []
    with pytest.raises((UserError, OSError), match=r"No space left on device"):  # nor does it start again like this
        run(folder, "--resume")
    assert all_sound(folder) == [2, 4]
    full.__exit__(None, None, None)
    assert run(folder, "--resume") == 0
    assert record(folder) == uninterrupted


def test_a_read_only_folder_is_told_of(run, small_disk):
    folder = small_disk / "run"
    assert run(folder) == 0
    before = record(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for out, flags in ((folder, ["--resume"]), (small_disk / "new", [])):
        with pytest.raises(UserError, match=f"can't write to the run folder {out}: Read-only file system"):
            run(out, *flags)
    assert record(folder) == before


@pytest.mark.parametrize("limit", [100, 20_000, 50_000, 100_000])
def test_a_limit_on_the_size_of_files_is_a_full_disk(run, uninterrupted, tmp_path, limit, capsys):
    """RLIMIT_FSIZE stops a file after so many bytes: of a log, of the weights, of the moments, of nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Trainer, "update", 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1])))
        try:
            code = run(tmp_path)
        except CheckpointError as error:
            code = 2
            assert "File too large" in str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert litter(tmp_path) == []
    assert code == (0 if limit == 100_000 else 2)
    waiting = "metrics.jsonl: File too large; its lines wait in memory" in capsys.readouterr().out
    assert waiting == (limit == 100)
    assert all_sound(tmp_path) == ([6, 8] if code == 0 else [2])
    assert run(tmp_path, "--resume") == 0
    assert record(tmp_path) == uninterrupted


@pytest.mark.torture
def test_a_disk_that_fills_up_anywhere(run, uninterrupted, small_disk):
    """Room for so many more kilobytes from step 5 on, for every number: whatever write fails, nothing is lost."""
    for kilobytes in range(0, 260, 4):
        folder = small_disk / "run"
        full = full_disk(small_disk, spare_bytes=1024 * kilobytes)
        with pytest.MonkeyPatch.context() as patch:
            at_call(patch, Trainer, "update", 5, full.__enter__)
            try:
                run(folder)
            except (CheckpointError, OSError) as error:
                assert "No space left on device" in str(error)
        assert all_sound(folder)[0] >= 2 and litter(folder) == []
        full.__exit__(None, None, None)
        assert run(folder, "--resume") == 0
        assert record(folder) == uninterrupted
        shutil.rmtree(folder)


def test_lines_that_were_half_written_are_finished(tmp_path):
    """A disk that takes seven bytes at a time, and now and then none."""
    said = []
    log = MetricsLog(tmp_path / "log.jsonl", said.append)
    raw, calls = log._file, 0

    class Reluctant:
        closed = False

        def write(self, data):
            nonlocal calls
            calls += 1
            if calls % 3 == 0:
                raise OSError(28, "No space left on device")
            return raw.write(bytes(data[:7]))

        fileno, close = raw.fileno, raw.close

    log._file = Reluctant()
    entries = [{"step": step, "loss": step / 3} for step in range(30)]
    for entry in entries:
        log.write(**entry)
    log._file = raw
    log.close()
    assert list(read_lines(tmp_path / "log.jsonl")) == entries
    assert any("wait in memory" in text for text in said) and "nothing is missing" in said[-1]


def test_a_checkpoint_that_fails_once_is_made_up_for_by_the_next(run, uninterrupted, tmp_path, monkeypatch):
    def no_space():
        raise OSError(28, "No space left on device")

    at_call(monkeypatch, checkpoint, "save_file", 4, no_space)  # the moments of step 4
    assert run(tmp_path) == 0
    assert record(tmp_path) == uninterrupted


def test_a_step_without_a_checkpoint_is_never_the_best(run, tmp_path, monkeypatch):
    def no_space():
        raise OSError(28, "No space left on device")

    at_call(monkeypatch, checkpoint, "save_file", 5, no_space)
    assert run(tmp_path, "--optim.lr=1e-9", "--optim.min_lr=0") == 0
    assert Checkpoints(tmp_path / "checkpoints").best_step() in (2, 4, 8)


def test_a_folder_that_is_removed_is_told_of_and_not_made_again(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    at_call(monkeypatch, Trainer, "update", 3, lambda: shutil.rmtree(folder))
    with pytest.raises(CheckpointError, match=f"the run folder {folder} is gone"):
        run(folder)
    assert "training goes on and tries again" in capsys.readouterr().out
    assert not folder.exists()


def test_a_folder_that_is_moved_away_and_back_loses_nothing(run, uninterrupted, tmp_path, monkeypatch):
    folder, away = tmp_path / "run", tmp_path / "away"
    at_call(monkeypatch, Trainer, "update", 3, lambda: os.rename(folder, away))
    at_call(monkeypatch, Trainer, "update", 6, lambda: os.rename(away, folder))
    assert run(folder) == 0
    assert record(folder) == uninterrupted


def test_what_a_crash_left_is_cleared_at_the_next_start(run, uninterrupted, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        at_call(patch, Trainer, "update", 5, crash)
        run(tmp_path)
    for name in (".config.toml.part", "checkpoints/.best.json.part", "tokens/.tokens.bin.part"):
        (tmp_path / name).write_text("half a fi")
    for name in ("checkpoints/.step-00000006.part", "checkpoints/.gone-step-00000001.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half a fi")
    assert run(tmp_path, "--resume") == 0
    assert record(tmp_path) == uninterrupted
    assert litter(tmp_path) == []


def test_two_processes_cannot_train_in_one_folder(run, corpus, tmp_path):
    settings = parse_settings(["--data", str(corpus), "--out", str(tmp_path)])
    with Run.open(settings), pytest.raises(UserError, match=f"another process is training in {tmp_path}"):
        run(tmp_path)
    assert run(tmp_path) == 0


def test_two_runs_without_a_name_take_two_folders(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse_settings(["--data", str(corpus)])
    with Run.open(settings) as first, Run.open(settings) as second:
        assert (first.folder.name, second.folder.name) == ("default", "default-2")
