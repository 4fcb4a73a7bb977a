"""Files that mean harm, or were harmed: refused in a line, quickly, and before memory is taken for what they claim.

Every attack runs with little memory: what Python's allocators hand out is watched, and a claim of terabytes that was
believed would show. Nothing is ever unpickled: no module of the project imports anything that could.
"""

import ast
import json
import os
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import TEXT, run_in_process

from data import Corpus, CorpusError, tokenize
from model import GPT, GPTConfig
from model.stored import MAX_HEADER_BYTES, read_header
from tokenizer import Tokenizer
from training.checkpoint import Checkpoints, _size_and_hash
from training.errors import UserError
from training.run import layout, load_for_generation
from training.settings import parse_settings

ROOT = Path(__file__).parent.parent
ROOMS = ["autograd", "nn", "tokenizer", "model", "data", "training", "benchmarks"]
TERABYTE = 1 << 40
MAX_BYTES = 64 << 20
MAX_SECONDS = 1.0  # of our own time: others on this machine do not count
REFUSALS = UserError, CorpusError, ValueError, OSError


def refused(action):
    """The message with which an action is refused: one line, in under a second, within MAX_BYTES."""
    began = time.process_time()
    with pytest.raises(REFUSALS):
        action()
    seconds = time.process_time() - began
    tracemalloc.start()  # which takes several times as long
    try:
        with pytest.raises(REFUSALS) as caught:
            action()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_BYTES, f"{peak:,} bytes"
    assert seconds < MAX_SECONDS
    assert str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# safetensors


def array(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def file(header, data=b"", length=None):
    """The bytes of a safetensors file, whatever its header says."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


ONE = b"\0" * 4
HOSTILE = {
    "empty": b"",
    "shorter than a length": b"\x01\0\0",
    "a header of 2^60 bytes": file({"a": array([1], 0, 4)}, ONE, length=1 << 60),
    "a header beyond the end by one": file({}, length=3),
    "a header that is no JSON": file(b"\xff" * 20),
    "a header that is no object": file([]),
    "nested deeply": file(b"[" * 100_000),
    "nested deeply in an entry": file(b'{"a":' + b"[" * 100_000 + b"}"),
    "an entry that is no object": file({"a": 1}, ONE),
    "an entry without offsets": file({"a": {"dtype": "F32", "shape": [1]}}, ONE),
    "offsets that are no pair": file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, ONE),
    "a name twice": file(b'{"a":' + json.dumps(array([1], 0, 4)).encode() + b',"a":'
                         + json.dumps(array([1], 0, 4)).encode() + b"}", ONE),
    "offsets beyond the end": file({"a": array([2], 0, 8)}, ONE),
    "offsets before the start": file({"a": array([1], -4, 0)}, ONE),
    "offsets backwards": file({"a": array([1], 4, 0)}, ONE),
    "arrays that overlap": file({"a": array([1], 0, 4), "b": array([1], 0, 4)}, ONE),
    "a gap": file({"a": array([1], 4, 8)}, ONE * 2),
    "bytes behind the last array": file({"a": array([1], 0, 4)}, ONE * 2),
    "a shape larger than its bytes": file({"a": array([1 << 20, 1 << 20], 0, 4)}, ONE),
    "a shape whose size overflows": file({"a": array([1 << 62, 1 << 62], 0, 4)}, ONE),
    "an empty shape with a huge side": file({"a": array([0, 1 << 62], 0, 0)}),
    "a negative shape": file({"a": array([-1], 0, 4)}, ONE),
    "a fractional shape": file({"a": array([1.5], 0, 4)}, ONE),
    "a shape of truths": file({"a": array([True], 0, 4)}, ONE),
    "a shape of 200,000 sides": file({"a": array([1 << 62] * 200_000, 0, 4)}, ONE),
    "a number of 100,000 digits": file(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,4]}}'),
    "an unknown type": file({"a": array([1], 0, 4, "F31")}, ONE),
    "a type that is a list": file({"a": array([1], 0, 4, [])}, ONE),
    "infinity": file(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', ONE),
    "100,000 empty arrays": file({f"array{i}": array([0], 0, 0) for i in range(100_000)}),
    "a hole behind 5,000 empty arrays": file({f"array{i}": array([0], 0, 0) for i in range(5_000)}, ONE),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert str(path) in refused(lambda: read_header(path))


def test_a_bomb_is_refused_by_its_size(tmp_path):
    """A sparse file takes no room on the disk and claims terabytes."""
    path = tmp_path / "model.safetensors"
    for header in ({"a": array([1], 0, 4)}, {}):
        path.write_bytes(file(header))
        os.truncate(path, TERABYTE)
        refused(lambda: read_header(path))
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    os.truncate(path, TERABYTE)
    assert "header of" in refused(lambda: read_header(path))


@given(st.data())
def test_whatever_happens_to_a_header_it_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    content = bytearray(file({"a": array([2], 0, 8), "b": array([1], 8, 12)}, ONE * 3))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_header(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert sum(stored.n_bytes for stored in found.values()) < path.stat().st_size


# A run folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has ended, to be harmed in copies."""
    place = tmp_path_factory.mktemp("finished")
    (place / "text.txt").write_text(TEXT)
    flags = ["--data", str(place / "text.txt"), "--train.steps=2", "--train.keep_checkpoints=1"]
    assert run_in_process(place / "run", *flags) == 0
    return place


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


CHECKPOINT = "checkpoints/step-00000002"


def vouch(folder):
    """As an attacker would: make the checksums fit what is there. (Of a huge file only the size: nobody should ask.)"""
    path = folder / CHECKPOINT / "complete.json"
    marker = json.loads(path.read_text())
    for name in marker["files"]:
        size = (path.parent / name).stat().st_size
        is_huge = size > MAX_BYTES
        marker["files"][name] = {"bytes": size, "sha256": ""} if is_huge else _size_and_hash(path.parent / name)
    path.write_text(json.dumps(marker))


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def edit_model(folder, **changes):
    path = folder / CHECKPOINT / "state.json"
    content = json.loads(path.read_text())
    content["model"].update(changes)
    path.write_text(json.dumps(content))


def grow(path):
    os.truncate(path, TERABYTE)


def bomb(folder):
    """A model of a terabyte, right in every word, with the file that belongs to it: all zeros that take no room."""
    vocab_size = TERABYTE // (16 * 4)
    edit_model(folder, vocab_size=vocab_size)
    config = GPTConfig.from_dict(json.loads((folder / CHECKPOINT / "state.json").read_text())["model"])
    header, end = {}, 0
    for name, shape in config.parameter_shapes():
        start, end = end, end + 4 * int(np.prod(shape, dtype=object))
        header[name] = array(list(shape), start, end)
    content = file(header)
    path = folder / CHECKPOINT / "model.safetensors"
    path.write_bytes(content)
    os.truncate(path, len(content) + end)


IN_CHECKPOINT = {
    **{f"weights: {name}": (lambda content: lambda d: (d / CHECKPOINT / "model.safetensors").write_bytes(content))(c)
       for name, c in HOSTILE.items()},
    "weights: a terabyte": lambda d: grow(d / CHECKPOINT / "model.safetensors"),
    "weights: a terabyte that is claimed rightly": bomb,
    "moments: a terabyte": lambda d: grow(d / CHECKPOINT / "optimizer.safetensors"),
    "moments: of another shape": lambda d: (d / CHECKPOINT / "optimizer.safetensors").write_bytes(
        file({"token_embedding.weight:step": array([1], 0, 8, "I64")}, ONE * 2)),
    "state: a terabyte": lambda d: grow(d / CHECKPOINT / "state.json"),
    "state: nested": lambda d: (d / CHECKPOINT / "state.json").write_text("[" * 900_000),
    "state: a list": lambda d: (d / CHECKPOINT / "state.json").write_text("[]"),
    "state: empty": lambda d: (d / CHECKPOINT / "state.json").write_text("{}"),
    "state: another step": lambda d: edit(d / CHECKPOINT / "state.json", step=7),
    "state: a billion layers": lambda d: edit_model(d, n_layer=10**9),
    "state: a billion wide": lambda d: edit_model(d, n_embd=10**9),
    "state: an endless context": lambda d: edit_model(d, block_size=10**12),
    "state: a vocabulary of 10^15": lambda d: edit_model(d, vocab_size=10**15),
    "state: a model that is a word": lambda d: edit(d / CHECKPOINT / "state.json", model="gpt"),
    "state: no model": lambda d: edit(d / CHECKPOINT / "state.json", model={}),
}  # fmt: skip


@pytest.mark.parametrize("harm", IN_CHECKPOINT.values(), ids=IN_CHECKPOINT.keys())
def test_a_hostile_checkpoint_is_refused_though_its_checksums_fit(folder, harm):
    harm(folder)
    vouch(folder)
    refused(lambda: load_for_generation(folder))
    refused(lambda: Checkpoints(folder / "checkpoints", layout=layout).newest(lambda warning: None))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: grow(path),
        lambda path: path.write_text("[" * 900_000),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("?"),
        lambda path: path.write_bytes(b"\xff\xfe" * 50),
        lambda path: path.write_text("a" * 60_000 + "\n"),
    ],
    ids=["a terabyte", "nested", "cut off", "nothing", "no UTF-8", "nonsense"],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "config.toml", f"{CHECKPOINT}/complete.json"])
def test_a_file_of_a_run_that_was_harmed_is_refused(folder, name, harm):
    harm(folder / name)
    if name == "config.toml":
        refused(lambda: parse_settings(["--resume", "--out", str(folder), "--model.n_layer=1"]))
    else:
        refused(lambda: load_for_generation(folder))


def test_an_empty_configuration_is_another_runs(folder):
    (folder / "config.toml").write_bytes(b"")
    with pytest.raises(UserError, match=r"where data\.source is"):
        run_in_process(folder, "--resume", "--data=other.txt")


@pytest.mark.parametrize(
    "text",
    [
        "[model]\nn_layer = " + "9" * 5000,
        "a = " + "[" * 60_000,
        '[model]\nx = "' + "\\" * 60_000,
        "a." * 30_000 + "b = 1",
        "[" + "a." * 30_000 + "b]",
        "x = {" + "'!' . \"\"." * 8_000 + "b = 1}",
    ],
    ids=["a huge number", "nested", "cut off", "dotted", "dotted section", "dotted and quoted"],
)
def test_a_hostile_configuration_is_refused(tmp_path, text):
    path = tmp_path / "hostile.toml"
    path.write_text(text)
    refused(lambda: parse_settings(["--config", str(path)]))


@pytest.mark.parametrize(
    "harm",
    [
        lambda tokens: grow(tokens / "manifest.json"),
        lambda tokens: (tokens / "manifest.json").write_text("[" * 900_000),
        lambda tokens: (tokens / "manifest.json").write_text("[]"),
        lambda tokens: edit(tokens / "manifest.json", tokens=10**18),
        lambda tokens: edit(tokens / "manifest.json", tokens=-1),
        lambda tokens: edit(tokens / "manifest.json", tokens="many"),
        lambda tokens: edit(tokens / "manifest.json", documents=True),
        lambda tokens: grow(tokens / "tokens.bin"),
        lambda tokens: (grow(tokens / "tokens.bin"), edit(tokens / "manifest.json", tokens=TERABYTE // 2)),
        lambda tokens: (grow(tokens / "tokens.bin"),
                        edit(tokens / "manifest.json", tokens=TERABYTE // 2, documents=TERABYTE)),
        lambda tokens: (tokens / "tokens.bin").write_bytes(b"\xff\xff" + (tokens / "tokens.bin").read_bytes()[2:]),
        lambda tokens: (tokens / "tokens.bin").unlink(),
    ],
)  # fmt: skip
def test_tokens_that_were_harmed_are_made_again(folder, finished, harm):
    harm(folder / "tokens")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    tracemalloc.start()
    try:
        made = tokenize(
            Corpus(str(finished / "text.txt")), tokenizer.encode, vocab_size=tokenizer.vocab_size,
            separator=tokenizer.eot_id, tokenizer_hash=tokenizer.hash(), folder=folder / "tokens",
        )  # fmt: skip
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    assert not made.reused
    assert (folder / "tokens/tokens.bin").read_bytes() == (finished / "run/tokens/tokens.bin").read_bytes()


# Models from elsewhere


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_weights_from_elsewhere_are_refused(tmp_path, content):
    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=11, block_size=4)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(lambda: GPT.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layer": 10**9}, {"n_embd": 10**15}, {"vocab_size": 2**63}, {"n_positions": 10**12}, {"n_head": 10**30},
        {"n_inner": -1}, {"n_layer": 1.5}, {"n_layer": None}, {"layer_norm_epsilon": "tiny"}, {"n_embd": [8]},
        {"groundup": {"n_layer": 10**9}}, {"groundup": {"n_layer": 1, "position": "rope", "block_size": 10**15}},
        {"activation_function": []}, {"model_type": "gpt2" * 1000},
    ],
)  # fmt: skip
def test_absurd_claims_of_a_model_from_elsewhere_are_refused(tmp_path, changes):
    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=11, block_size=4, bias=True)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content.pop("groundup")
    path.write_text(json.dumps({**content, **changes}))
    refused(lambda: GPT.from_pretrained(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_terabyte_from_elsewhere_is_refused(tmp_path, name):
    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=11, block_size=4)).save_pretrained(tmp_path)
    (tmp_path / name).touch()
    grow(tmp_path / name)
    refused(lambda: GPT.from_pretrained(tmp_path))


# No pickle

RUN_CODE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "yaml",
            "torch", "imp", "runpy"}  # fmt: skip


def sources():
    return [*ROOT.glob("*.py"), *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]


@pytest.mark.parametrize("path", [p for p in sources() if p.parts[-2] != "benchmarks"], ids=lambda p: p.stem)
def test_nothing_is_imported_that_runs_code_from_a_file(path):
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    assert not RUN_CODE & {name.partition(".")[0] for name in imported}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert not any(keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True)
                           for keyword in node.keywords), path  # fmt: skip
