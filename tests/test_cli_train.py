"""The command lines as a user meets them: real processes, real signals, what is on the screen, exit codes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.metrics import read_lines

ROOT = Path(__file__).parent.parent
TINY = [
    "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.block_size=16", "--tokenizer.kind=bytes",
    "--train.batch_size=2", "--train.steps=60", "--train.eval_interval=20", "--train.sample_interval=40",
    "--train.sample_tokens=8",
]  # fmt: skip


def heed_interrupts():
    """In a new process: SIGINT is ignored where the tests run in the background, and train.py would respect that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(program, *flags, cwd):
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(ROOT / program), *map(str, flags)], cwd=cwd, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_interrupts,
    )  # fmt: skip


def execute(program, *flags, cwd):
    """(exit code, stdout, stderr)"""
    process = start(program, *flags, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def losses(folder):
    return [
        (entry["step"], entry["split"], entry.get("loss"), entry.get("grad_norm"), entry.get("bits_per_byte"),
         entry.get("layers"))
        for entry in read_lines(folder / "metrics.jsonl")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with texts, good and bad, and a finished run in it."""
    place = tmp_path_factory.mktemp("place")
    text = "All happy families are alike; each unhappy family is unhappy in its own way.\n"
    (place / "text.txt").write_text(text * 80)
    (place / "empty.txt").write_bytes(b"")
    (place / "one.txt").write_bytes(b"a")
    (place / "short.txt").write_bytes(b"too short a text")
    (place / "bad.txt").write_bytes(b"caf\xe9 " * 100)
    (place / "typo.toml").write_text("[train]\nstep = 5\n")
    code, out, err = execute("train.py", *TINY, "--data", "text.txt", "--out", "whole", cwd=place)
    assert (code, err) == (0, ""), out + err
    (place / "whole.out").write_text(out)
    return place


def test_a_run_leaves_its_folder_and_says_what_it_does(place):
    run = place / "whole"
    assert {"config.toml", "tokenizer.json", "metrics.jsonl", "samples.jsonl", "loss.png", "report.html", "report.json",
            "checkpoints", "tokens"} == {path.name for path in run.iterdir()}  # fmt: skip
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")

    entries = list(read_lines(run / "metrics.jsonl"))
    train = [entry for entry in entries if entry["split"] == "train"]
    val = [entry for entry in entries if entry["split"] == "val"]
    assert [entry["step"] for entry in train] == list(range(1, 61))
    assert all({"loss", "lr", "grad_norm", "tokens_per_second"} <= entry.keys() for entry in train)
    assert [entry["step"] for entry in val] == [20, 40, 60]
    # Bytes are their own tokens: nats per token and bits per byte differ by ln 2 alone.
    assert all(entry["bits_per_byte"] == pytest.approx(entry["loss"] / 0.6931471805599453) for entry in val)
    assert val[-1]["loss"] < val[0]["loss"] < 5.6

    out = (place / "whole.out").read_text()
    assert "step  1/60" in out and "step 60/60" in out and out.count("sample at step") == 2
    assert "\x1b" not in out  # plain lines where there is no terminal


def test_at_a_terminal_a_live_line_shows_what_is_going_on(place):
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *TINY, "--data", "text.txt", "--out", "terminal"], cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end has been closed
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"\d/60 loss \d\.\d+  [\d,]+ tokens/s  \d+:\d\d left", text)
    assert "step 60: validation loss" in text and "sample at step 60" in text
    assert losses(place / "terminal") == losses(place / "whole")


def test_a_run_killed_again_and_again_is_the_run_that_never_was(place):
    out = place / "killed"
    flags = [*TINY, "--data", "text.txt", "--out", "killed"]
    for number, at_line in enumerate((5, 30, 50)):
        process = start("train.py", *flags, *(["--resume"] if number else []), cwd=place)
        wait_for_lines(out / "metrics.jsonl", at_line, process)
        process.kill()
        process.communicate()
    code, text, err = execute("train.py", "--out", "killed", "--resume", cwd=place)
    assert (code, err) == (0, ""), text + err
    assert losses(out) == losses(place / "whole")
    for name in ("model", "optimizer"):
        file = f"checkpoints/step-00000060/{name}.safetensors"
        assert (out / file).read_bytes() == (place / "whole" / file).read_bytes()


def wait_for_lines(path, count, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(place, number, code):
    out = place / f"signal{code}"
    flags = [*TINY, "--train.steps=100000", "--optim.schedule=constant", "--train.eval_interval=0"]
    process = start("train.py", *flags, "--train.sample_interval=0", "--data", "text.txt", "--out", out, cwd=place)
    wait_for_lines(out / "metrics.jsonl", 10, process)
    process.send_signal(number)
    text, err = process.communicate(timeout=60)
    name = signal.Signals(number).name
    assert (process.returncode, err) == (code, f"{name}: saving after this step; once more ends the run at once\n")
    step = int(re.search(r"stopped and saved at step (\d+)", text)[1])
    assert losses(out)[-1][0] == step  # nothing done is lost
    assert (out / f"checkpoints/step-{step:08d}/complete.json").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--data empty.txt", r"the corpus empty.txt is empty; "),
        ("--data one.txt", r"the corpus has 0 tokens for training and 1 for validation.*lower --model.block_size"),
        ("--data short.txt", r"the corpus has 14 tokens for training"),
        ("--data nowhere.txt", r"there is no file or folder nowhere.txt"),
        ("--data bad.txt", r"bad.txt is not UTF-8: byte 3 is 0xe9; .*--data.errors"),
        ("--tokenizer.kind=bpe --tokenizer.vocab_size=258", r"vocab_size 258 is too small: .* need at least 259"),
        ("--tokenizer.kind=bpe --tokenizer.pattern=(", r"not a regular expression"),
        ("--tokenizer.file=bad.txt", r"bad.txt"),
        ("--tokenizer.file=nowhere.json", r"nowhere.json"),
        ("--model.n_embd=17", r"n_embd must be divisible by n_head"),
        ("--out=text.txt", r"can't write to the run folder text.txt"),
        ("--out=text.txt/run", r"can't write to the run folder text.txt/run"),
        ("--out=whole", r"whole holds a run already; go on with it by --resume"),
        ("--out=whole --resume --model.n_layer=2", r"where model.n_layer is 2, was 1"),
        ("--out=whole --resume --tokenizer.kind=bpe", r"where tokenizer.kind is bpe, was bytes"),
        ("--out=nowhere --resume", r"nothing to resume: nowhere holds no run"),
        ("--config=typo.toml", r"typo.toml: there is no setting train.step; did you mean train.steps\?"),
        ("--trian.steps=5", r"there is no flag --trian.steps; did you mean --train.steps\?"),
        ("--optim.lr=1e30 --optim.clip=0", r"is (nan|inf) at step \d+ .*lower --optim.lr"),
    ],
)
def test_what_the_user_must_mend_is_told_in_one_line(place, tmp_path, flags, complaint):
    flags = ["--data", "text.txt", "--out", tmp_path / "run", *flags.split()]
    code, _, err = execute("train.py", *TINY, *flags, cwd=place)
    assert code == 2, err
    assert re.fullmatch(rf"train.py: .*{complaint}.*\n", err), err


def test_help_lists_every_setting_and_exits_with_0(place):
    for program, flag in (("train.py", "--optim.warmup_steps"), ("generate.py", "--top_p")):
        code, out, err = execute(program, "--help", cwd=place)
        assert (code, err) == (0, "") and flag in out


# generate.py


def test_text_goes_on_from_the_prompt_and_the_seed_decides_how(place):
    flags = ["--run", "whole", "--prompt", "All ", "--tokens", "30", "--seed"]
    code, first, err = execute("generate.py", *flags, "1", cwd=place)
    assert (code, err) == (0, "")
    assert first.startswith("All ") and first.endswith("\n") and len(first) > 10
    assert execute("generate.py", *flags, "1", cwd=place)[1] == first
    assert execute("generate.py", *flags, "2", cwd=place)[1] != first


def test_text_streams_as_it_is_made(place):
    process = start("generate.py", "--run", "whole", "--prompt", "", "--tokens", "1000000", "--seed", "1", cwd=place)
    try:
        assert len(process.stdout.read(40)) == 40  # long before the end
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
    finally:
        process.kill()


def test_of_a_prompt_longer_than_the_context_the_end_counts(place):
    prompt = "All happy families are alike"
    flags = ["--run", "whole", "--tokens", "5", "--seed", "1", "--prompt"]
    code, out, err = execute("generate.py", *flags, prompt, cwd=place)
    assert code == 0 and out.startswith(prompt)
    assert err == f"the prompt has {len(prompt)} tokens; the model sees the last 16\n"
    assert execute("generate.py", *flags, prompt[-16:], cwd=place)[1] == out[len(prompt) - 16 :]


def test_a_reader_that_leaves_early_is_no_error(place):
    command = f"{sys.executable} {ROOT / 'generate.py'} --run whole --tokens 300 | head -c 3"
    done = subprocess.run(command, shell=True, cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)  # fmt: skip
    assert (done.stdout, done.stderr) == ("The", "")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--run nowhere", r"there is no run folder nowhere"),
        ("--run .", r"\. holds no checkpoint"),
        ("--checkpoint 7", r"--checkpoint must be best, last or one of 40, 60, got 7"),
        ("--temperature -1", r"temperature must be at least 0"),
        ("--top-k 0", r"top_k must be at least 1"),
        ("--top-p 2", r"top_p must be above 0 and at most 1"),
        ("--tokens=-1", r"--tokens and --seed must be at least 0"),
        ("--tokens many", r"--tokens: .*'many'"),
        ("--promt x", r"there is no flag --promt; did you mean --prompt\?"),
    ],
)
def test_generate_tells_what_to_mend_in_one_line(place, flags, complaint):
    code, out, err = execute("generate.py", "--run", "whole", *flags.split(), cwd=place)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"generate.py: .*{complaint}.*\n", err), err


def test_a_run_whose_tokenizer_was_exchanged_is_refused(place, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", place / "whole", copy], check=True)
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace("<|pad|>", "<|dap|>"))
    code, _, err = execute("generate.py", "--run", copy, cwd=place)
    assert code == 2 and "is not the tokenizer that this model was trained with" in err
