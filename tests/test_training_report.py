"""The report: what is measured for it, that a page holds it, and that a page needs and asks for nothing else."""

import base64
import json
import lzma
import math
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
import train
from model import GPT, GPTConfig
from model.inspection import attention_weights
from tokenizer import Tokenizer
from training import report
from training.errors import SettingsError
from training.layers import MOST_NUMBERS, layer_ratios, weights_before
from training.loop import evaluate, make_optimizer, update
from training.report.baselines import MOST_VALIDATION_BYTES, measure_baselines, ngram_bits, xz_bits
from training.report.charts import Steps, limits, loss_chart, ratio_map, short_name, throughput_chart, value_at
from training.report.comparison import comparison_page, run_names
from training.report.facts import attention_facts, decode_maps
from training.report.page import duration, run_page, short_number, write_report
from training.report.record import Log, read_record
from training.report.thinning import smooth, thin, thin_list
from training.run import Run, token_lengths
from training.screen import Screen
from training.settings import OptimSettings, Settings, TrainSettings, parse_settings

ROOT = Path(__file__).parent.parent
HOSTILE = """</script><script>alert(1)</script><img src=//evil onerror='x("y")'>\ud800 & "quoted" <!-- chart loss -->"""
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom.\n" * 60
TINY = [
    "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.block_size=8", "--train.batch_size=2",
    "--train.steps=6", "--train.eval_interval=2", "--train.sample_interval=3", "--train.sample_tokens=5",
    "--train.layer_interval=2", "--tokenizer.kind=bytes", "--optim.warmup_steps=2",
]  # fmt: skip


# -- a page, read back ------------------------------------------------------------------------------------

VOID = {"meta", "link", "wbr", "br", "img"}


class Page(HTMLParser):
    """Checks nesting while it reads; collects text, attributes and the contents of scripts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.attributes, self.scripts, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [] and not self.rawdata

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


def checked(html):
    """A page that is well formed and asks the network for nothing."""
    assert html.startswith("<!doctype html>")
    page = Page(html)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name, value)
        if name in ("src", "href", "action", "srcset", "data"):
            assert value.startswith("data:"), (tag, name, value)
    policy = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "-src" in value]
    assert policy and "default-src 'none'" in policy[0] and "http" not in policy[0] and "*" not in policy[0]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    assert page.tags.count("script") == len(page.scripts) == 2  # Bokeh and ours
    return page


def write_run(folder, train=(), val=(), layers=(), samples=(), facts=None, flags=()):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(parse_settings([*TINY, *flags]).to_toml())
    lines = [*({"split": "train", **e} for e in train), *({"split": "val", **e} for e in val),
             *({"split": "layers", **e} for e in layers)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    if facts is not None:
        (folder / "report.json").write_text(json.dumps(facts))
    return folder


def train_lines(n, **changes):
    return [
        {"step": i, "loss": 5 - 3 * i / n, "lr": 1e-3, "grad_norm": 0.5 + i % 3, "tokens_per_second": 1e3 + i} | changes
        for i in range(1, n + 1)
    ]


VAL = [{"step": 2, "loss": 4.0, "bits_per_byte": 2.5, "tokens": 99}, {"step": 4, "loss": 3.0, "bits_per_byte": 1.875}]
T = 3
MAPS = np.tril(np.full((2, 2, T, T), 100, np.uint8))
FACTS = {
    "model": GPTConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=300).to_dict(),
    "summary": {"Corpus": "many bytes"},
    "flops_per_token": 1e6,
    "peak_flops": 1e10,
    "baselines": {"xz": 2.2, "order 0": 4.5, "order 3": 2.1, "train_bytes": 9000, "val_bytes": 500,
                  "all_val_bytes": 999},
    "attention": {"step": 4, "tokens": ["a", " b", "\n"], "shape": [2, 2, T, T],
                  "maps": base64.b64encode(zlib.compress(MAPS.tobytes())).decode()},
}  # fmt: skip
LAYERS = [{"step": s, "layers": {"blocks.0.mlp.up": [0.1 * s, 1e-3], "norm": [None, 1e-4]}} for s in (2, 4)]


def test_a_page_holds_what_a_run_left(tmp_path):
    samples = [{"step": 3, "text": "first"}, {"step": 6, "text": "second words"}]
    folder = write_run(tmp_path / "my run", train_lines(6), VAL, LAYERS, samples, FACTS)
    page = checked(run_page(read_record(folder)))
    for expected in ("my run", "done, 6 steps", "3.0000", "1.8750", "best validation loss", "second words", "Step 3",
                     "token_embedding.weight", "300 × 16", "4,800", "train.batch_size", "many bytes",
                     "500 bytes of 999", "9,000 bytes of the training text"):  # fmt: skip
        assert expected in page.text, expected
    config = GPTConfig.from_dict(FACTS["model"])
    assert f"{config.num_parameters():,}" in page.text
    assert page.attributes.count(("details", "open", "")) == 1
    drawn = page.scripts[1]
    for label in ("nats per token", "bits per byte", "learning rate", "gradient norm", "tokens / s", "MFU, %",
                  "update / weight", "gradient / weight", "0 mlp.up", "xz -9", "bytes, order 3",
                  "looks at"):  # fmt: skip
        assert label in drawn, label
    assert "reload-seconds" not in run_page(read_record(folder))
    live = checked(run_page(read_record(folder), live=True))
    assert ("html", "data-reload-seconds", "20") in live.attributes


@pytest.mark.parametrize(
    "logs",
    [
        {},
        {"train": train_lines(1)},
        {"val": VAL[:1]},
        {"train": train_lines(1), "val": VAL[:1], "facts": FACTS},
        {"train": train_lines(5, loss=math.nan)},
        {"train": train_lines(5, grad_norm=math.inf, lr=0, tokens_per_second=0)},
        {"train": train_lines(5), "val": [{"step": 2, "loss": math.nan, "bits_per_byte": math.nan}], "facts": FACTS},
        {"train": train_lines(2, loss="much", lr=None, grad_norm=[], tokens_per_second={}), "val": [{"step": 1}]},
        {"train": [{"step": 10**400, "loss": 10**400}, {"step": 1, "loss": True}]},
        {"layers": [{"step": 1}, {"step": 2, "layers": 5}, {"step": 3, "layers": {"a": 1, "b": [1]}},
                    {"step": 4, "layers": {"a": [None, None]}}, {"step": 5, "layers": {"b": [1, 2]}}]},
        {"samples": [{"step": 1}, {"step": 2, "text": None}, {"step": 3, "text": ""}]},
        {"facts": {"model": 3, "summary": [], "baselines": {"xz": "x"}, "flops_per_token": "y"}},
    ],
    ids=lambda logs: "+".join(logs) or "nothing",
)  # fmt: skip
def test_whatever_a_run_holds_there_is_a_page(tmp_path, logs):
    folder = write_run(tmp_path / "run", **logs)
    write_report(read_record(folder))
    checked(comparison_page([read_record(folder)] * 2))
    page = checked((tmp_path / "run/report.html").read_text())
    assert "Settings" in page.text
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")
    if not logs:
        assert "Nothing has been logged yet." in page.text and "None were taken yet." in page.text


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from([*train_lines(5), *VAL, *LAYERS])), max_size=12))
def test_a_log_read_piece_by_piece_is_the_log(tmp_path_factory, changes):
    """The file is cut off somewhere near its end, and something is appended, again and again."""
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    followed, text = Log(path), b""
    for cut, entry in changes:
        split = "layers" if "layers" in entry else "train" if "lr" in entry else "val"
        text = text[: max(0, len(text) - cut)] + json.dumps({"split": split, "skipped": str(cut), **entry}).encode()
        text += b"\n" * (cut % 3 > 0)
        path.write_bytes(text)
        followed.read()
        anew = Log(path)
        anew.read()
        for of in (lambda log: log.columns("train"), lambda log: log.columns("val"), Log.ratios):
            assert of(followed).keys() == of(anew).keys()
            assert all(np.array_equal(of(followed)[key], of(anew)[key], equal_nan=True) for key in of(anew))
        assert followed.left_out == anew.left_out


def test_bad_steps_are_named(tmp_path):
    lines = train_lines(9)
    lines[3]["loss"] = math.nan
    lines[6]["skipped"] = "the loss is spiking"
    text = checked(run_page(read_record(write_run(tmp_path / "run", lines)))).text
    assert "The loss is not finite4" in text and "Steps left out7 (the loss is spiking)" in text


def test_nothing_from_a_run_becomes_markup_or_script(tmp_path):
    name = HOSTILE.replace("/", "∕").replace("\ud800", "")
    facts = {**FACTS, "summary": {HOSTILE: HOSTILE}, "attention": {**FACTS["attention"], "tokens": [HOSTILE] * T}}
    folder = write_run(
        tmp_path / name, [*train_lines(5), {"step": 6, "loss": 1.0, "skipped": HOSTILE}], VAL,
        [{"step": 2, "layers": {HOSTILE: [1, 1]}}], [{"step": 3, "text": HOSTILE}], facts,
        flags=["--train.sample_prompt=" + HOSTILE.replace("\ud800", "")],
    )  # fmt: skip
    record = read_record(folder)
    for html in (run_page(record), comparison_page([record, record])):
        page = checked(html)
        assert "img" not in page.tags and html.count("<script") == 2 and html.count("</script") == 2
        assert "alert(1)</script>" in page.text  # shown, not run
        assert html.count("<!-- chart") == 0


# -- long runs --------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=400),
    st.integers(4, 60),
)
@settings(max_examples=200, deadline=None)
def test_thinning_keeps_ends_and_extremes(values, most):
    values = np.array(values, float)
    kept = thin(values, most)
    assert len(kept) <= most or len(kept) == len(values) <= most
    assert (np.diff(kept) > 0).all()
    if len(values):
        assert kept[0] == 0 and kept[-1] == len(values) - 1
    if np.isfinite(values).any():
        assert np.nanmin(values[kept]) == np.nanmin(values) and np.nanmax(values[kept]) == np.nanmax(values)


@given(st.lists(st.integers(), max_size=50), st.integers(2, 20))
def test_thinned_lists_keep_their_ends_and_order(items, most):
    pairs = list(enumerate(items))
    kept = thin_list(pairs, most)
    assert kept == sorted(set(kept)) and len(kept) == min(most, len(items))
    assert kept[:1] == pairs[:1] and kept[-1:] == pairs[-1:]


def test_smoothing_starts_unbiased_and_passes_over_what_is_not_finite():
    constant = np.full(1000, 3.0)
    np.testing.assert_allclose(smooth(constant), constant)
    holes = np.array([math.nan, 2.0, math.inf, math.nan, 4.0])
    assert np.isnan(smooth(holes)[0])
    np.testing.assert_allclose(smooth(holes)[1:], [2, 2, 2, 4])  # a hundredth of five steps: no memory
    values = np.random.default_rng(0).normal(size=500)
    keep = 1 - 1 / 50
    weights = keep ** np.arange(500)[::-1]
    assert smooth(values, 0.1)[-1] == pytest.approx((weights * values).sum() / weights.sum())


def test_a_long_run_makes_a_page_of_bounded_size(tmp_path):
    n = 20_000
    lines = train_lines(n)
    lines[7777]["loss"] = 77.125
    layers = [{"step": s, "layers": {f"blocks.{i}.mlp.up": [0.5, 1e-3] for i in range(12)}} for s in range(20, n, 20)]
    layers[333]["layers"]["blocks.5.mlp.up"][1] = 0.75
    samples = [{"step": s, "text": "x" * 5000} for s in range(1, 1001)]
    folder = write_run(tmp_path / "run", lines, VAL, layers, samples, FACTS, flags=["--train.steps", str(n)])
    record = read_record(folder)
    html = run_page(record)
    assert len(html) < 1.9e6
    text = checked(html).text
    assert "20,000 steps are drawn with at most 2,000 points" in text and "24 of 1000, at even distances" in text
    source = loss_chart(record, Steps.up_to(n)).renderers[0].data_source.data
    assert source["loss"].max() == 77.125 and len(source["x"]) <= 2000
    image = ratio_map(record, 2, "", 1e-5, 1).renderers[0].data_source.data["image"][0]
    assert image.shape == (12, 300) and image[6].max() == 0.75  # the first layer on top, its row the last


# -- what is measured -------------------------------------------------------------------------------------


def brute_force_bits(train, test, order):
    """Witten–Bell as its docstring tells it, byte by byte."""

    def p(byte, context):
        k = len(context)
        after = [train[i + k] for i in range(len(train) - k) if train[i : i + k] == context]
        lower = p(byte, context[1:]) if context else 1 / 256
        if not after:
            return lower
        kinds = len(set(after))
        return (after.count(byte) + kinds * lower) / (len(after) + kinds)

    bits = [-math.log2(p(byte, test[max(0, i - order) : i])) for i, byte in enumerate(test)]
    return sum(bits) / len(bits)


few_bytes = st.lists(st.sampled_from([0, 97, 98, 255]), min_size=1, max_size=30).map(bytes)


@given(few_bytes, few_bytes, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_the_n_gram_model_is_the_one_that_is_documented(train, test, order):
    arrays = (np.frombuffer(data, np.uint8) for data in (train, test))
    assert ngram_bits(*arrays, order) == pytest.approx(brute_force_bits(train, test, order), rel=1e-12)


@given(few_bytes, st.integers(0, 3))
@settings(deadline=None)
def test_the_n_gram_model_is_a_distribution(train, order):
    context = b"ab\xff"[:order]
    arrays = np.frombuffer(train, np.uint8), [np.frombuffer(context + bytes([b]), np.uint8) for b in range(256)]
    before = ngram_bits(arrays[0], np.frombuffer(context, np.uint8), order) * order if order else 0.0
    total = sum(2 ** -(ngram_bits(arrays[0], test, order) * (order + 1) - before) for test in arrays[1])
    assert total == pytest.approx(1)


def test_baselines_are_scored_on_the_bytes_that_an_evaluation_scores():
    tokenizer = Tokenizer.train(TEXT, 270)
    lengths = token_lengths(tokenizer)
    ids = np.concatenate([tokenizer.encode(TEXT), [tokenizer.eot_id], tokenizer.encode(TEXT[:300])]).astype(np.uint16)
    train_ids, val_ids = ids[:-300], ids[-300:]
    assert tokenizer.eot_id in val_ids  # and stands for no bytes
    found = measure_baselines(tokenizer, lengths, train_ids, val_ids, block_size=8, max_tokens=0)
    val = b"".join(tokenizer.token_bytes(t) for t in val_ids[1:].tolist() if t != tokenizer.eot_id)
    train = tokenizer.decode_bytes(train_ids)
    assert found["xz"] == 8 * len(lzma.compress(val, preset=9)) / len(val)
    as_arrays = [np.frombuffer(data, np.uint8) for data in (train, val)]
    assert found["order 3"] == ngram_bits(*as_arrays, 3) < found["order 0"] == ngram_bits(*as_arrays, 0) < 8
    assert (found["train_bytes"], found["val_bytes"], found["all_val_bytes"]) == (len(train), len(val), len(val))

    ag.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=270))
    for most in (0, 64):
        scored = evaluate(model, val_ids, lengths, most)
        found = measure_baselines(tokenizer, lengths, train_ids, val_ids, 8, most)
        assert found["val_tokens"] == scored.tokens
        nats = scored.loss * scored.tokens
        assert found["all_val_bytes"] == pytest.approx(nats / math.log(2) / scored.bits_per_byte)


def test_baselines_use_a_bounded_number_of_bytes(monkeypatch):
    monkeypatch.setattr("training.report.baselines.MOST_TRAINING_BYTES", 1000)
    monkeypatch.setattr("training.report.baselines.MOST_VALIDATION_BYTES", 100)
    assert MOST_VALIDATION_BYTES > 100
    tokenizer = Tokenizer.bytes()
    ids = tokenizer.encode(TEXT).astype(np.uint16)
    found = measure_baselines(tokenizer, token_lengths(tokenizer), ids[:3000], ids[3000:4001], 8, 0)
    assert (found["train_bytes"], found["val_bytes"], found["all_val_bytes"]) == (1000, 100, 1000)
    end, start = (np.frombuffer(TEXT.encode(), np.uint8)[place] for place in (slice(2000, 3000), slice(3001, 3101)))
    assert found["order 3"] == ngram_bits(end, start, 3)


def test_no_bytes_take_eight_bits():
    assert xz_bits(b"") == ngram_bits(np.empty(0, np.uint8), np.empty(0, np.uint8), 3) == 8
    assert ngram_bits(np.empty(0, np.uint8), np.zeros(5, np.uint8), 3) == 8


CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=270, bias=True)


def test_layer_ratios_are_those_of_the_definition():
    ag.manual_seed(1)
    model = GPT(CONFIG)
    optimizer = make_optimizer(model, OptimSettings())
    ids = np.random.default_rng(0).integers(0, 270, 500).astype(np.uint16)
    for step in range(2):
        old = {name: p.array.astype(np.float64) for name, p in model.named_parameters()}
        before = weights_before(model)
        update(model, optimizer, ids, step, 1e-2, 0.01, TrainSettings(batch_size=2))
        found = layer_ratios(model, before)

    def norm(arrays):
        return math.sqrt(sum((np.asarray(a, np.float64) ** 2).sum() for a in arrays))

    parameters = dict(model.named_parameters())
    layers = {name.rsplit(".", 1)[0] for name in parameters}
    assert found.keys() == layers and "blocks.1.attention.qkv" in layers
    for layer in layers:
        names = [f"{layer}.{part}" for part in ("weight", "bias") if f"{layer}.{part}" in parameters]
        weight = norm(old[name] for name in names)
        gradient = norm(parameters[name].grad.array for name in names)  # before clipping, which was at 0.01
        moved = norm(parameters[name].array - old[name] for name in names)
        assert found[layer] == pytest.approx([gradient / weight, moved / weight], rel=1e-3)


def test_of_large_parameters_some_numbers_stand_for_all(monkeypatch):
    import nn

    ag.manual_seed(1)
    layer = nn.Linear(64, 64, bias=False)
    assert MOST_NUMBERS >= 64 * 64
    monkeypatch.setattr("training.layers.MOST_NUMBERS", 500)
    before = weights_before(layer)
    assert all(len(some) <= 500 for _, some in before.values())
    layer.weight.mutate()[...] *= 1.01
    (ratios,) = layer_ratios(layer, before).values()
    assert ratios == pytest.approx([0, 0.01], rel=0.1)
    layer.weight.mutate()[...] = 0
    assert layer_ratios(layer, weights_before(layer)) == {"weight": [None, None]}


@pytest.mark.parametrize(
    "shape",
    [{}, {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 1, "n_head": 4}, {"dropout": 0.5}],
    ids=["gpt2", "llama", "dropout"],
)
def test_attention_weights_are_what_the_kernel_attends_with(shape):
    ag.manual_seed(2)
    model = GPT(GPTConfig.from_dict({**CONFIG.to_dict(), **shape}))
    ids = np.random.default_rng(0).integers(0, 270, 7)
    weights = attention_weights(model, ids)
    config = model.config
    assert weights.shape == (2, config.n_head, 7, 7) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert (weights[:, :, ~np.tri(7, dtype=bool)] == 0).all()
    assert model.training  # left as it was

    seen = []
    for block in model.blocks:
        block.attention.qkv.register_forward_hook(lambda module, args, out: seen.append(out.array))
        block.attention.out.register_forward_pre_hook(lambda module, args: seen.append(args[0].array))
    model.eval()
    with ag.no_grad():
        model(ids)
    H, K, D = config.n_head, config.kv_heads, config.head_size
    for layer, (qkv, attended) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        v = qkv.reshape(7, H + 2 * K, D)[:, H + K :].swapaxes(0, 1).repeat(H // K, axis=0)  # (H, T, D)
        expected = (weights[layer] @ v).swapaxes(0, 1).reshape(7, H * D)
        np.testing.assert_allclose(attended[0], expected, rtol=1e-4, atol=1e-6)


def test_attention_refuses_what_the_model_cannot_read():
    model = GPT(CONFIG)
    for ids, complaint in (([[1, 2]], "one sequence"), (np.zeros(9, int), "block_size"), ([300], "ids from 0 to 269")):
        with pytest.raises((ValueError, IndexError), match=complaint):
            attention_weights(model, ids)
    assert not any(block.attention._forward_pre_hooks for block in model.blocks)


def test_attention_is_kept_in_few_bytes():
    tokenizer = Tokenizer.train(TEXT, 270)
    model = GPT(CONFIG)
    text = "times, it was 的"
    kept = json.loads(json.dumps(attention_facts(model, tokenizer, 7, text)))
    ids = tokenizer.encode(text)[:8]
    assert kept["step"] == 7 and len(kept["tokens"]) == len(ids) == 8 and "".join(kept["tokens"]) in text
    np.testing.assert_allclose((decode_maps(kept) / 255) ** 2, attention_weights(model, ids), atol=0.005)
    assert attention_facts(model, tokenizer, 7, "") is None


def test_utilisation_is_work_done_over_work_possible(tmp_path):
    record = read_record(write_run(tmp_path / "run", train_lines(5, tokens_per_second=2000.0), facts=FACTS))
    assert record.mfu_per_token_rate * 2000 == pytest.approx(2000 * 1e6 / 1e10)  # 20 %
    source = throughput_chart(record, Steps.up_to(5)).renderers[0].data_source.data
    np.testing.assert_allclose(source["mfu"], 20)
    assert "20.0\u202f%" in run_page(record)
    np.testing.assert_allclose(record.seconds, np.arange(1, 6) * 16 / 2000)
    unknown = read_record(write_run(tmp_path / "other", train_lines(5)))
    assert "MFU" not in checked(run_page(unknown)).text


def test_small_helpers():
    assert [short_number(n) for n in (0, 9999, 12_345, 1_967_808, 124e6, 2e12, math.nan)] == [
        "0", "9,999", "12.3k", "1.97M", "124M", "2T", "–",
    ]  # fmt: skip
    assert [duration(s) for s in (3.21, 65, 5025)] == ["3.2\u202fs", "1\u202fmin 5\u202fs", "1\u202fh 23\u202fmin"]
    assert [short_name(n) for n in ("blocks.3.attention.qkv", "norm", "head")] == ["3 attention.qkv", "norm", "head"]
    assert run_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert run_names([Path("/a/x"), Path("/b/x"), Path("/b/y")]) == ["a/x", "b/x", "b/y"]
    steps = np.array([1.0, 2.0, 3.0, 5.0])
    np.testing.assert_array_equal(value_at(steps, np.array([2.0, 4.0]), np.array([7.0, 8.0])), [np.nan, 7, 7, 8])
    assert limits(np.array([np.nan])) == (0, 1) and limits([3.0])[0] < 3 < limits([3.0])[1]


# -- while training, and from the command line ------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what its page was before each update."""
    place = tmp_path_factory.mktemp("place")
    (place / "text.txt").write_text(TEXT)
    return (place, *trained_in(place, "run"))


def trained_in(place, name, *flags):
    pages, notes = [], []
    folder = place / name
    given = parse_settings([*TINY, "--data", str(place / "text.txt"), "--out", str(folder), *flags])
    with pytest.MonkeyPatch.context() as patch, Screen(given) as screen, Run.open(given, notes.append) as run:
        patch.setattr("training.report.live.SHARE_OF_TIME", math.inf)  # as often as there is news
        refresh = report.Report.refresh

        def spied(self):
            refresh(self)
            pages.append((folder / "report.html").read_text() if (folder / "report.html").exists() else "")

        patch.setattr(report.Report, "refresh", spied)
        assert train.train(given, screen, run) == 0
    return pages, (folder / "report.html").read_text()


def test_the_page_is_drawn_while_training(trained):
    _, pages, last = trained
    steps = [re.search(r"(?:training, step|done,) (\d+)", page)[1] if page else None for page in pages]
    assert steps == [None, None, "2", "3", "4", "4"]  # evaluations at 2 and 4, a sample at 3
    assert all("data-reload-seconds" in page for page in pages if page) and "data-reload-seconds" not in last
    text = checked(last).text
    assert "done, 6 steps" in text and "MFU" in text and "order k" in text.lower() and "The first 8 tokens" in text
    assert "Step 3" in text and "Step 6" in text
    assert "update / weight" in last and "1 × " not in text


def test_ratios_by_layer_are_in_the_log(trained):
    record = read_record(trained[0] / "run")
    assert "blocks.0.mlp.up" in record.ratios
    for values in record.ratios.values():
        assert values[:, 0].tolist() == [2, 4, 6] and (values[:, 1:] > 0).all()


def test_measuring_layers_and_drawing_pages_change_no_bit_of_the_training(trained, tmp_path):
    place = trained[0]
    trained_in(place, "unwatched", "--train.layer_interval=0")
    weights = [
        (place / name / "checkpoints/step-00000006/model.safetensors").read_bytes() for name in ("run", "unwatched")
    ]
    assert weights[0] == weights[1]
    assert not read_record(place / "unwatched").ratios


def test_a_page_that_cannot_be_drawn_costs_no_run(trained, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.report.page.write_whole", fail)
    place = trained[0]
    with pytest.raises(FileNotFoundError):
        trained_in(place, "full")
    assert (place / "full/checkpoints/step-00000006").is_dir()
    assert capsys.readouterr().out.count("the report could not be written") == 2  # meanwhile, and at the end


def report_command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "training.report", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(cwd)},
    )  # fmt: skip


def test_pages_are_drawn_anew_from_the_command_line(trained):
    place = trained[0]
    run = place / "run"
    before = json.loads((run / "report.json").read_text())
    for name in ("report.html", "report.json", "loss.png"):
        (run / name).unlink()
    done = report_command("run", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "report      run/report.html\n", "")
    assert (run / "loss.png").exists() and "What it is worth" in checked((run / "report.html").read_text()).text
    again = json.loads((run / "report.json").read_text())
    assert {key: again[key] for key in ("model", "summary", "baselines", "flops_per_token", "attention")} == {
        key: before[key] for key in ("model", "summary", "baselines", "flops_per_token", "attention")
    }


def test_runs_are_compared_on_one_page(trained, tmp_path):
    place = trained[0]
    write_run(tmp_path / "runs/better", train_lines(6), VAL, flags=["--optim.lr=0.005"])
    write_run(tmp_path / "runs/empty")
    (tmp_path / "runs/run").symlink_to(place / "run")
    runs = sorted((tmp_path / "runs").iterdir())
    done = report_command(*runs, runs[0], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "report      comparison.html\n", "")
    page = checked((tmp_path / "comparison.html").read_text())
    rows = [page.text.index(word) for word in ("better1.8750", "run", "empty–")]
    assert rows[0] < rows[2] and "3 runs" in page.text and "Not all were scored on the same text" in page.text
    assert "optim.lr" in page.text and "0.005" in page.text and "model.n_embd" not in page.text
    assert "bits per byte" in page.scripts[1] and "minutes" in page.scripts[1]
    done = report_command("runs/empty", "--out", "empty.html", cwd=tmp_path)
    assert done.returncode == 0 and "Nothing has been logged yet" in (tmp_path / "empty.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", r"expected run folders, got none; .*runs/default"),
        ("nowhere", r"there is no run folder nowhere; "),
        ("run nowhere", r"there is no run folder nowhere; "),
        ("text.txt", r"there is no run folder text.txt; "),
        ("run .", r"\. holds no run \(no config.toml\); "),
        ("bad", r"bad/config.toml: there is no setting train.step; did you mean train.steps\?"),
        ("run --ot x", r"there is no flag --ot; did you mean --out\?"),
        ("run --out .", r"--out must be a file, got the folder \.; "),
        ("run --out nowhere/x.html", r"nowhere.*No such file or directory"),
    ],
)
def test_what_the_user_must_mend_is_told_in_one_line(trained, arguments, complaint):
    place = trained[0]
    (place / "bad").mkdir(exist_ok=True)
    (place / "bad/config.toml").write_text("[train]\nstep = 5\n")
    done = report_command(*arguments.split(), cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"training.report: .*{complaint}.*\n", done.stderr), done.stderr


def test_settings_have_a_place_for_the_report():
    assert Settings().train.layer_interval == 20
    with pytest.raises(SettingsError, match=r"--train.layer_interval must be at least 0"):
        parse_settings(["--train.layer_interval=-1"])
