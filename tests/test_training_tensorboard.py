"""Event files hold what metrics.jsonl and samples.jsonl hold: every step once, also after a resumed run."""

import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from training.errors import SettingsError
from training.metrics import MetricsLog, rewind
from training.settings import parse_settings
from training.tensorboard import EVENT_FILES, log_opener

pytest.importorskip("tensorboardX", reason="writes the event files: pip install tensorboardX")

TRAIN = Path(__file__).parent.parent / "train.py"
TINY = [
    "--model.n_layer", "1", "--model.n_head", "2", "--model.n_embd", "16", "--model.block_size", "8",
    "--tokenizer.kind", "bytes", "--train.batch_size", "2", "--train.eval_tokens", "64", "--train.sample_tokens", "5",
    "--train.eval_interval", "4", "--train.sample_interval", "4", "--optim.warmup_steps", "2",
]  # fmt: skip


def train(*words):
    done = subprocess.run([sys.executable, str(TRAIN), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def events(folder):
    """[(tag, step, value or text)] by TensorBoard's own reader."""
    accumulator_module = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="reads the event files: pip install tensorboard",
    )
    keep_all = {"scalars": 0, "tensors": 0}
    accumulator = accumulator_module.EventAccumulator(str(folder), size_guidance=keep_all, purge_orphaned_data=False)
    accumulator.Reload()
    tags = accumulator.Tags()
    found = [(tag, e.step, e.value) for tag in tags["scalars"] for e in accumulator.Scalars(tag)]
    for tag in tags["tensors"]:
        found += [(tag, e.step, e.tensor_proto.string_val[0].decode()) for e in accumulator.Tensors(tag)]
    return found


def logged(folder):
    """The same from the logs of the run."""
    found = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step, split = entry.pop("step"), entry.pop("split")
        found += [(f"{split}/{name}", step, value) for name, value in entry.items() if isinstance(value, int | float)]
    return found


@pytest.mark.oracle
def test_a_run_that_is_resumed_has_every_step_once(tmp_path):
    """Steps 5 to 6 are logged before the run is cut off, and done again after resuming from the checkpoint of 4."""
    out = tmp_path / "run"
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 40)
    train("--data", str(text), "--out", str(out), "--tensorboard", *TINY, "--train.steps", "4")
    before = list(out.glob(EVENT_FILES))
    with open(out / "metrics.jsonl", "a") as log:
        for step in (5, 6):
            log.write(json.dumps({"step": step, "split": "train", "loss": 9.0, "lr": 1.0}) + "\n")
    train("--resume", "--out", str(out), "--train.steps", "8")
    assert len(before) == len(list(out.glob(EVENT_FILES))) == 1

    found = events(out)
    scalars = sorted((tag, step, value) for tag, step, value in found if isinstance(value, float))
    assert [s[:2] for s in scalars] == sorted((tag, step) for tag, step, _ in logged(out))
    assert [s[2] for s in scalars] == pytest.approx([value for *_, value in sorted(logged(out))], rel=1e-6)
    assert {tag for tag, *_ in scalars} >= {
        "train/loss", "train/lr", "train/grad_norm", "train/tokens_per_second", "val/loss", "val/bits_per_byte",
    }  # fmt: skip
    assert [step for tag, step, _ in scalars if tag == "train/loss"] == list(range(1, 9))

    texts = {step: value for tag, step, value in found if isinstance(value, str)}
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert set(texts) == {entry["step"] for entry in samples} == {4, 8}
    for entry in samples:
        assert [line[4:] for line in texts[entry["step"]].split("\n")] == entry["text"].splitlines()


def test_records_are_whole_and_their_checksums_right(tmp_path):
    """The framing, read by hand: length, its checksum, data, its checksum (TensorFlow's record format)."""
    log = log_opener(tmp_path, True, print)(tmp_path / "metrics.jsonl")
    log.write(step=1, split="train", loss=2.5)
    log.close()
    (file,) = tmp_path.glob(EVENT_FILES)
    content, records = file.read_bytes(), []
    while content:
        (length,), (length_sum,) = struct.unpack("<Q", content[:8]), struct.unpack("<I", content[8:12])
        data, (data_sum,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
        assert (length_sum, data_sum) == (masked_crc32c(content[:8]), masked_crc32c(data))
        records.append(data)
        content = content[16 + length :]
    assert b"brain.Event:2" in records[0]
    assert b"train/loss" in records[-1]
    assert struct.pack("<f", 2.5) in records[-1]


def masked_crc32c(data):
    """Castagnoli's checksum, bit by bit, masked as in TensorFlow's record_writer."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_log_that_is_mirrored_is_the_log_it_would_be(tmp_path):
    plain, mirrored = MetricsLog(tmp_path / "plain"), log_opener(tmp_path, True, print)(tmp_path / "mirrored")
    for log in (plain, mirrored):
        log.write(step=1, split="train", loss=float("nan"), ratios={"a": 1.0})
        log.write(step=1, text="one\n\ntwo")
        log.flush_to_disk()
        log.close()
        log.close()
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "mirrored").read_bytes()
    rewind(tmp_path / "mirrored", 2)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "mirrored").read_bytes()


def test_nothing_is_written_that_was_not_asked_for(tmp_path):
    log_opener(tmp_path, False, print)(tmp_path / "log").write(step=1, split="train", loss=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_missing_package_is_told_in_one_line_with_the_command_that_helps(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "tensorboardX" else real(name, *rest)
    monkeypatch.setattr("training.tensorboard.find_spec", absent)
    with pytest.raises(SettingsError, match="pip install tensorboardX") as refused:
        parse_settings(["--tensorboard"])
    assert "\n" not in str(refused.value)

    (tmp_path / "events.out.tfevents.1.host").touch()
    notes = []
    assert type(log_opener(tmp_path, False, notes.append)(tmp_path / "log")) is MetricsLog
    assert len(notes) == 1 and "pip install tensorboardX" in notes[0]
