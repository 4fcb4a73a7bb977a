"""`python -m tokenizer`: train, encode, decode, inspect; one line and exit code 2 for what the user must mend."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenizer import Tokenizer
from tokenizer.__main__ import main, visible

TEXT = "The cat sat on the mat.\n\tThat's a fact: 12345 cats; naïve 中文 😀!\n" * 5


@pytest.fixture
def run(tmp_path, monkeypatch, capfdbinary):
    """Run a command on standard input; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(list(arguments))
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return code, captured.out, captured.err.decode()

    return command


@pytest.fixture
def trained(run, tmp_path):
    (tmp_path / "text").write_bytes(TEXT.encode())
    code, out, _ = run("train", "text", "--vocab-size", "300", "--out", "tokenizer.json")
    assert code == 0
    assert out.startswith(b"tokenizer.json: 300 tokens, hash ")
    return Tokenizer.load(tmp_path)


def test_train_is_the_library_s(trained):
    assert trained == Tokenizer.train(TEXT, 300)


def test_train_takes_options(run, tmp_path):
    (tmp_path / "a").write_text("ab ab")
    (tmp_path / "b").write_text("ab ab")
    options = ["--vocab-size", "300", "--pattern", "gpt2", "--special-tokens", "<s>", "<t>", "--min-count", "3"]
    code, _, err = run("train", "a", "b", *options, "--out", "x.json")
    assert code == 0
    assert "no pair occurs 3 times any more: 259 tokens" in err
    assert Tokenizer.load(tmp_path / "x.json") == Tokenizer.train("ab ab ab", 259, "gpt2", ["<s>", "<t>"])


def test_encode_and_decode_are_inverse(run, trained, tmp_path):
    data = TEXT.encode() + b"\xff\r\n"
    code, ids, _ = run("encode", stdin=data)
    assert code == 0
    assert [int(word) for word in ids.split()] == trained.encode(data).tolist()
    assert run("decode", stdin=ids)[1] == data
    (tmp_path / "data").write_bytes(data)
    assert run("encode", "data", "--out", "ids.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), trained.encode(data))
    assert run("decode", "ids.npy")[1] == data


def test_an_array_of_ids_has_the_name_that_was_asked_for(run, trained, tmp_path):
    assert run("encode", "text", "--out", "ids")[0] == 0
    assert not (tmp_path / "ids.npy").exists()
    assert run("decode", "ids")[1] == run("decode", stdin=(tmp_path / "ids").read_bytes())[1] == TEXT.encode()


def test_train_reads_standard_input_as_it_comes(run, tmp_path):
    """In blocks, with no end in sight until it is there: what comes from zcat may be larger than memory."""
    code, _, _ = run("train", "-", "--vocab-size", "300", "--out", "piped.json", stdin=TEXT.encode())
    assert code == 0
    assert Tokenizer.load(tmp_path / "piped.json") == Tokenizer.train(TEXT, 300)


def test_the_byte_tokenizer_needs_no_file(run):
    assert run("encode", "--tokenizer", "bytes", stdin=b"hi")[1].split() == [b"104", b"105"]


def test_special_tokens_are_refused_unless_asked_for(run, trained):
    code, _, err = run("encode", stdin=b"a<|pad|>")
    assert code == 2
    assert "'<|pad|>' at byte 1: pass --special allow" in err
    assert run("encode", "--special", "allow", stdin=b"<|pad|>")[1].split() == [b"297"]
    ordinary = trained.encode("<|pad|>", disallowed_special=())
    assert run("encode", "--special", "text", stdin=b"<|pad|>")[1].split() == [b"%d" % token for token in ordinary]


def test_inspect_shows_vocabulary_and_text(run, trained):
    code, out, _ = run("inspect", "text")
    shown = out.decode()
    assert code == 0
    ids = trained.encode(TEXT)
    assert f"{len(ids):,} tokens, {len(TEXT.encode()) / len(ids):.3f} bytes per token" in shown
    assert "300 tokens, 41 merges" in shown
    for expected in ("<|pad|> 297", "Vocabulary by length", "Longest tokens", "The", "⏎", "⇥"):
        assert expected in shown
    assert "x│<|pad|>│y│" in run("inspect", "--text", "x<|pad|>y")[1].decode()
    assert "pattern         gpt4 " in shown
    assert "more" in run("inspect", "text", "--show", "3")[1].decode()
    assert run("inspect", "--tokenizer", "bytes", "--text", "")[0] == 0


@pytest.mark.parametrize(("token", "shown"), [
    (b" the", " the"), (b"\n", "⏎"), (b"\t\r", "⇥␍"), (b"\xe4\xb8", r"\xe4\xb8"), (b"\x00", r"\u0000"),
    ("é".encode(), "é"),
])
def test_tokens_are_shown_in_visible_characters(token, shown):
    assert visible(token) == shown


@pytest.mark.parametrize(("arguments", "stdin", "message"), [
    (["train"], b"", "at least one file"),
    (["train", "nowhere"], b"", "nowhere: No such file or directory"),
    (["train", "text", "--vocab-size", "9"], b"", "vocab_size 9 is too small"),
    (["train", "text", "--out", "nowhere/x.json"], b"", "there is no folder nowhere"),
    (["train", "text", "--pattern", "gpt9"], b"", "unknown pattern 'gpt9'"),
    (["encode", "--tokenizer", "nowhere.json"], b"a", "nowhere.json: No such file or directory"),
    (["encode", "--tokenizer", "text"], b"a", "text, line 1, column 1"),
    (["decode"], b"1 two 3", "'two' is not an id"),
    (["decode"], b"1 99999999999999999999999", "is not an id"),
    (["decode"], b"1 --5", "-: b'--5' is not an id"),
    (["decode"], b"1 999", "id 999 at position 1"),
    (["decode"], b"\x93NUMPY\x01\x00", "-: not a whole NumPy array of numbers"),
    (["inspect", "text", "--text", "a"], b"", "not both"),
    (["inspect", "--show", "-1"], b"", "count tokens, got -1"),
    (["decode", "text.npy"], b"", "text.npy: No such file"),
])
def test_mistakes_are_one_line_and_code_2(run, trained, arguments, stdin, message):
    code, _, err = run(*arguments, stdin=stdin)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_it_is_a_module_and_survives_a_closed_pipe(tmp_path):
    command = f"{sys.executable} -m tokenizer encode --tokenizer bytes | head -c 10"
    root = Path(__file__).parents[1]
    done = subprocess.run(["sh", "-c", command], input=b"a" * 10**6, capture_output=True, cwd=root)
    assert done.stdout == b"97 97 97 9"
    assert b"Traceback" not in done.stderr


def test_an_interrupt_is_a_line_and_leaves_no_file(run, tmp_path, monkeypatch):
    (tmp_path / "text").write_text(TEXT)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenizer.train.merge", interrupted)
    code, out, err = run("train", "text", "--vocab-size", "300", "--out", "x.json")
    assert (code, out, err) == (130, b"", "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_importing_the_package_is_light():
    """No Numba, no rich, no tyro: a prompt should not wait for them."""
    code = "import sys, tokenizer; print([name for name in ('numba', 'rich', 'tyro', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"
