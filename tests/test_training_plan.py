"""Plans and proposals: what they count is counted again here; what they measure, on a machine that is known."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import Corpus, split, tokenize
from model.cost import flops_per_token, memory
from tokenizer import Tokenizer
from train import is_due
from training import fit, machine, plan
from training.errors import SettingsError
from training.plan import Speed, Text
from training.settings import parse_settings

TRAIN = Path(__file__).parent.parent / "train.py"
TINY = [
    "--model.n_layer", "1", "--model.n_head", "2", "--model.n_embd", "16", "--model.block_size", "8",
    "--tokenizer.kind", "bytes", "--train.batch_size", "2", "--train.eval_tokens", "64", "--train.sample_tokens", "5",
]  # fmt: skip
STORY = "It was the best of times, it was the worst of times,\nit was the age of wisdom. "


def run(*words, cwd):
    return subprocess.run([sys.executable, str(TRAIN), *words], capture_output=True, text=True, cwd=cwd)


# The machine


def test_rates_are_positive_and_measured_once():
    assert machine.peak_flops("float32") == machine.peak_flops("float32") > 1e8
    assert machine.read_bandwidth() == machine.read_bandwidth() > 1e8
    with pytest.raises(ValueError, match=r"float32.*bfloat16.*float16"):
        machine.peak_flops("float16")


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def test_no_control_groups_leave_all_of_the_free_memory(tmp_path):
    assert 0 < machine.available_memory(tmp_path) <= machine.psutil.virtual_memory().total


def test_limits_of_control_groups_count_on_every_level(tmp_path):
    """Version 2: the tightest limit is the parent's; caches that can be dropped are free."""
    top = "sys/fs/cgroup"
    write(tmp_path, {
        "proc/self/cgroup": "0::/pod/job",
        f"{top}/pod/memory.max": 5000, f"{top}/pod/memory.current": 4000, f"{top}/pod/memory.stat": "inactive_file 250",
        f"{top}/pod/job/memory.max": "max", f"{top}/pod/job/memory.current": 10, f"{top}/pod/job/memory.stat": "anon 1",
    })  # fmt: skip
    assert machine.available_memory(tmp_path) == 1250


def test_a_container_sees_its_own_limit_at_the_top(tmp_path):
    """Version 1: the group's path is that of the host, and not there."""
    top = "sys/fs/cgroup/memory"
    write(tmp_path, {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/0123",
        f"{top}/memory.limit_in_bytes": 1000, f"{top}/memory.usage_in_bytes": 1200,
        f"{top}/memory.stat": "total_inactive_file 50",
    })  # fmt: skip
    assert machine.available_memory(tmp_path) == 0


# What a plan counts


@given(st.integers(1, 200), st.integers(0, 60))
def test_evaluations_are_those_that_train_makes(steps, interval):
    due = sum(step == steps or is_due(step, interval) for step in range(steps + 1))
    assert plan.times_due(steps, interval) == due


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_tokens_are_those_of_the_run(tmp_path, kind):
    for i in range(3):
        write(tmp_path, {f"books/{i}.txt": STORY * (20 + i)})
    asked = parse_settings(
        ["--data", str(tmp_path / "books"), "--tokenizer.kind", kind, "--tokenizer.vocab_size", "300"]
    )
    text = plan.look_at(asked)
    corpus = Corpus(asked.data.source)
    tokenizer = Tokenizer.bytes()
    if kind == "bpe":
        tokenizer = Tokenizer.train((piece.text for piece in corpus.pieces()), 300, asked.tokenizer.pattern)
    tokens = tokenize(
        corpus, lambda text: tokenizer.encode(text, disallowed_special=()), vocab_size=tokenizer.vocab_size,
        separator=tokenizer.eot_id, tokenizer_hash=tokenizer.hash(), folder=tmp_path / "tokens",
    )  # fmt: skip
    train, val = split(tokens.ids, asked.data.val_fraction)
    assert (text.train_tokens, text.val_tokens, text.vocab_size) == (len(train), len(val), tokenizer.vocab_size)
    assert text.exact


def test_a_large_corpus_is_judged_by_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SAMPLE_BYTES", 10_000)
    for i in range(9):
        write(tmp_path, {f"{i}.txt": STORY * 100})
    asked = parse_settings(["--data", str(tmp_path), "--tokenizer.vocab_size", "300"])
    estimate = plan.look_at(asked)
    monkeypatch.setattr(plan, "SAMPLE_BYTES", 1 << 30)
    exact = plan.look_at(asked)
    assert not estimate.exact
    assert estimate.train_tokens == pytest.approx(exact.train_tokens, rel=0.05)


# What a plan measures


def known_machine(config, settings, layers, batch_size, budget_seconds):
    """Every block takes 2 ms a sequence, all else 3 ms; the optimizer 0.5 ms a block; and so on."""
    return Speed((3 + 2 * layers) * batch_size * 1e-3, layers * 5e-4, layers * 1e-6, layers * 1e-4, "some steps")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.integers(1, 60), batch_size=st.integers(1, 40), room=st.integers(20, 36))
def test_a_model_that_is_cut_down_is_timed_as_if_whole(monkeypatch, layers, batch_size, room):
    """Time grows evenly with blocks and sequences on this machine, so any part of the model tells the whole."""
    monkeypatch.setattr(plan, "measure_part", known_machine)
    monkeypatch.setattr(plan, "peak_flops", lambda precision: 1e11)
    asked = parse_settings([f"--model.n_layer={layers}", f"--train.batch_size={batch_size}"])
    speed = plan.measure(asked.gpt_config(1024), asked, free=2**room)
    if speed.how.startswith("at best"):
        assert speed.micro == pytest.approx(flops_per_token(asked.gpt_config(1024)) * batch_size * 128 / 1e11)
    else:
        expected = known_machine(None, None, layers, batch_size, 0)
        for name in ("micro", "move", "evaluation", "sample"):
            assert getattr(speed, name) == pytest.approx(getattr(expected, name), rel=1e-9)
    assert speed.step(8) == pytest.approx(8 * speed.micro + speed.move)


def test_one_interruption_does_not_decide_the_rate(monkeypatch):
    """Nineteen tries of a second and one of a hundred: about a second each."""
    durations = iter([1.0] * 10 + [100.0] + [1.0] * 1000)
    now = [0.0]
    monkeypatch.setattr(plan.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += next(durations)

    typical, count = plan.typical_seconds(work, 119.0)
    assert (typical, count) == (1.0, 20)


def a_plan(*words, vocab_size=1024, free=2**34):
    asked = parse_settings(words)
    config = asked.gpt_config(vocab_size)
    train = asked.train
    text = Text(vocab_size, 900_000, 100_000, 3_000_000, True, 2.0)
    speed = known_machine(config, asked, config.n_layer, train.batch_size, 0)
    needed = memory(config, train.batch_size, train.accumulation)
    return plan.Plan(asked, config, text, needed, free, 2**28, speed, 1e11)


def test_the_time_to_finish_is_the_sum_of_its_parts():
    made = a_plan("--train.steps", "1000", "--train.eval_interval", "300", "--train.sample_interval", "0",
                  "--train.accumulation", "2")  # fmt: skip
    assert made.step_seconds == pytest.approx(2 * 11 * 16 * 1e-3 + 4 * 5e-4)
    assert made.evaluations == (4, pytest.approx(4 * 100_000 * 4e-6))
    assert made.samples == (1, pytest.approx(120 * 4e-4))
    parts = 1000 * made.step_seconds + made.evaluations[1] + made.samples[1]
    assert made.seconds == pytest.approx(plan.START_SECONDS + 2 + parts)
    assert made.tokens == 1000 * 2 * 16 * 128
    assert made.utilisation == pytest.approx(flops_per_token(made.config) * 4096 / made.step_seconds / 1e11)


def shown(made):
    with (console := plan.Console(width=200)).capture() as capture:
        console.print(plan.table(made), *plan.remarks(made))
    return capture.get()


def test_what_does_not_fit_is_said():
    assert "DOES NOT FIT" in shown(a_plan(free=2**24)) and "Lower --train.batch_size" in shown(a_plan(free=2**24))
    assert "fits" in shown(a_plan()) and "DOES NOT FIT" not in shown(a_plan())


def test_repeated_text_is_remarked_on():
    assert "The text is read 22 times" in shown(a_plan("--train.steps", "9800"))
    assert "The text is read" not in shown(a_plan("--train.steps", "1000"))


@given(st.floats(1e-3, 1e20))
def test_amounts_have_about_three_digits(n):
    text = plan.amount(n)
    number, _, unit = text.partition(" ")
    assert float(number.replace(",", "")) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit] == pytest.approx(
        n, rel=0.06
    )
    assert len(text) <= 14


def test_a_plan_trains_nothing_and_writes_nothing(tmp_path):
    write(tmp_path, {"story.txt": STORY * 60})
    done = run("--plan", "--data", "story.txt", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["story.txt"]
    assert "\x1b" not in done.stdout
    for line in ("  parameters", "  activations", "  training", "  to finish", "  Chinchilla"):
        assert f"\n{line} " in done.stdout
    assert f"{parse_settings(TINY).gpt_config(Tokenizer.bytes().vocab_size).num_parameters():,}" in done.stdout


# What is proposed


def test_the_scaling_law_has_its_minimum_where_chinchilla_has_it():
    """Hoffmann et al. 2022 trained 70 G parameters on 1.4 T tokens with the operations of their Gopher."""
    operations = 6 * 70e9 * 1.4e12
    sizes = np.geomspace(1e9, 1e12, 400)
    best = min(sizes, key=lambda n: fit.expected_loss(n, operations / 6 / n, 1e15))
    assert 10 < operations / 6 / best**2 < 40


@given(st.floats(1e5, 1e9), st.floats(1e5, 1e9), st.floats(1e4, 1e9))
def test_more_never_hurts_and_repeats_are_worth_less_than_new_text(n, tokens, different):
    loss = fit.expected_loss(n, tokens, different)
    assert fit.expected_loss(2 * n, tokens, different) < loss
    assert fit.expected_loss(n, 2 * tokens, different) <= loss
    assert fit.expected_loss(n, tokens, 1e12) <= loss * (1 + 1e-9)


def proposals(monkeypatch, *words, gigaflops=100, free=2**34, tokens=100_000_000):
    """Plans of `--fit` on a machine that does as many operations a second at any size."""

    def known(config, asked, free, budget_seconds=4.0):
        token = flops_per_token(config) / (gigaflops * 1e9)
        return Speed(token * asked.train.batch_size * config.block_size, 0.0, token / 3, token, "some steps")

    monkeypatch.setattr(fit, "measure", known)
    monkeypatch.setattr(fit, "peak_flops", lambda precision: gigaflops / plan.USUAL_UTILISATION * 1e9)
    monkeypatch.setattr(fit, "available_memory", lambda: free)
    asked = parse_settings(words)
    text = Text(asked.tokenizer.vocab_size, tokens, tokens // 9, 4 * tokens, True, 2.0)
    plans = fit.downhill(asked, text, fit.seconds(asked.fit), lambda text: None)
    return min(plans, key=fit.loss), plans


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(minutes=st.integers(2, 3000), gigaflops=st.sampled_from([20, 300, 3000]), tokens=st.integers(10**4, 10**9))
def test_a_proposal_fills_the_time(monkeypatch, minutes, gigaflops, tokens):
    best, plans = proposals(monkeypatch, "--fit", f"{minutes}min", gigaflops=gigaflops, tokens=tokens)
    assert best.fits
    assert all(0.9 * minutes * 60 < made.seconds <= 1.001 * minutes * 60 for made in plans)
    widths = [made.config.n_embd for made in plans]
    assert widths == sorted(set(widths))
    if 0 < plans.index(best) < len(plans) - 1:  # inside: both neighbours were tried and are no better
        assert max(made.config.n_embd for made in plans) > best.config.n_embd > min(widths)
    assert best.config.block_size <= max(8, best.text.val_tokens // 2)
    assert best.config.head_size in (32, 64)


def test_more_time_and_more_text_make_larger_models(monkeypatch):
    sizes = [proposals(monkeypatch, "--fit", t)[0].config.num_parameters() for t in ("5min", "1h", "1d", "30d")]
    assert sizes == sorted(set(sizes))
    growth = np.log(sizes[-1] / sizes[0]) / np.log(30 * 24 * 12)
    assert 0.35 < growth < 0.65  # N goes as the square root of C
    little, much = (proposals(monkeypatch, "--fit", "1d", tokens=n)[0] for n in (10**6, 10**9))
    assert little.config.dropout > much.config.dropout == 0


def test_memory_bounds_what_is_proposed(monkeypatch):
    free = 2**30
    roomy, _ = proposals(monkeypatch, "--fit", "30d", gigaflops=3000)
    tight, _ = proposals(monkeypatch, "--fit", "30d", gigaflops=3000, free=free)
    assert roomy.memory.peak > free >= tight.memory.peak


def test_what_was_given_stays_as_it_is(monkeypatch):
    words = [
        "--fit",
        "1h",
        "--model.n_embd",
        "160",
        "--model.n_head",
        "5",
        "--train.batch-size=7",
        "--optim.lr",
        "0.01",
    ]
    best, plans = proposals(monkeypatch, *words)
    assert len(plans) == 1
    assert (best.config.n_embd, best.config.n_head, best.settings.train.batch_size) == (160, 5, 7)
    assert (best.settings.optim.lr, best.settings.optim.min_lr) == (0.01, 0.001)
    for name, value in (("n_kv_head", 4), ("n_head", 3), ("n_embd", 40), ("n_layer", 2), ("block_size", 96)):
        best, _ = proposals(monkeypatch, "--fit", "1h", f"--model.{name}", str(value))
        assert getattr(best.config, name) == value


def test_too_short_a_time_is_refused(monkeypatch):
    with pytest.raises(SettingsError, match="--fit 6s is too short"):
        proposals(monkeypatch, "--fit", "6s", gigaflops=1)


def test_the_proposal_is_a_settings_file(monkeypatch, tmp_path):
    words = ["--fit", "1h", "--data", 'a "b".txt', "--train.precision", "bfloat16", "--optim.weight_decay", "0.2"]
    best, plans = proposals(monkeypatch, *words)
    lines = [*(f"# {line}" for line in fit.reasons(best, plans)), *fit.toml(best.settings)]
    write(tmp_path, {"fit.toml": "\n".join(lines)})
    again = parse_settings(["--config", str(tmp_path / "fit.toml")])
    assert again.sections() == best.settings.sections()
    assert dataclasses.replace(again.data, source="") == dataclasses.replace(best.settings.data, source="")


def test_fit_prints_a_file_and_nothing_else_on_stdout(tmp_path):
    write(tmp_path, {"story.txt": STORY * 60})
    refused = run("--fit", "soon", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1 and "expected a duration" in refused.stderr
    done = run("--fit", "1h", "--data", "story.txt", "--tokenizer.kind", "bytes", "--model.n_embd", "16",
               "--model.n_head", "2", "--model.n_layer", "1", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["story.txt"]
    write(tmp_path, {"fit.toml": done.stdout})
    proposed = parse_settings(["--config", str(tmp_path / "fit.toml")])
    assert (proposed.model.n_embd, proposed.tokenizer.kind, proposed.data.source) == (16, "bytes", "story.txt")
