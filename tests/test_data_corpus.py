"""Corpora: what is read is what was written, wherever the stream is cut; what can't be read is named."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Corpus, CorpusError, corpus, tokenize
from tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent


def text_of(source, **settings):
    """Documents of a corpus, joined from their pieces."""
    documents, current = [], ""
    for piece in Corpus(str(source), **settings).pieces():
        current += piece.text
        if piece.ends_document:
            documents.append(current)
            current = ""
    assert not current
    return documents


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus") / "text.txt"


@given(data=st.binary(max_size=200), policy=st.sampled_from(["replace", "ignore"]), block=st.integers(1, 50))
def test_pieces_add_up_to_the_file(scratch, data, policy, block):
    scratch.write_bytes(data)
    expected = data.decode("utf-8", policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK_BYTES", block)
        patch.setattr(corpus, "LONGEST_PIECE", 20)
        assert text_of(scratch, errors=policy) == ([expected] if expected else [])


@given(before=st.text(max_size=60), after=st.binary(max_size=20), block=st.integers(1, 30))
def test_invalid_utf8_is_refused_with_its_place(scratch, before, after, block):
    scratch.write_bytes(before.encode() + b"\xff" + after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BLOCK_BYTES", block)
        with pytest.raises(CorpusError) as caught:
            text_of(scratch)
    assert f"{scratch} is not UTF-8: byte {len(before.encode())} is 0xff" in str(caught.value)
    assert "--data.errors" in str(caught.value)


def test_a_character_cut_off_at_the_end_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xc3")
    with pytest.raises(CorpusError, match="byte 3 is 0xc3"):
        text_of(tmp_path / "a.txt")


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_tokens_do_not_depend_on_where_pieces_are_cut(scratch, monkeypatch, pattern):
    generator = np.random.default_rng(0)
    words = ["one", " two", "  ", "\n", "\n\n", "\r\n", " 12345", "!?", "don't", "é", " \n", "\t"]
    text = "".join(generator.choice(words, 2000))
    tokenizer = Tokenizer.train(text, 300, pattern)
    scratch.write_text(text, newline="")
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 37)
    pieces = [piece.text for piece in Corpus(str(scratch)).pieces()]
    assert len(pieces) > 50
    np.testing.assert_array_equal(np.concatenate([tokenizer.encode(p) for p in pieces]), tokenizer.encode(text))


def test_a_large_file_is_never_held_whole(tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(b"The quick brown fox jumps over the lazy dog.\nAnd so on\n" * 400_000)  # 22 MB
    tracemalloc.start()
    try:
        total = sum(len(piece.text) for piece in Corpus(str(path)).pieces())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == path.stat().st_size
    assert peak_bytes < 10 * corpus.BLOCK_BYTES


def test_a_folder_is_read_by_name_and_hidden_files_are_left_out(tmp_path):
    for name, text in {"b.txt": "bee", "a.md": "ay", "sub/c.txt": "sea", ".hidden": "no", ".git/x": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert text_of(tmp_path) == ["ay", "bee", "sea"]
    assert text_of(tmp_path / "*.txt") == ["bee"]
    assert text_of(tmp_path / "**/*.txt") == ["bee", "sea"]


def test_json_lines(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "body": t[::-1]}) for t in ["one\ntwo", "é😀", ""]) + "\n\n")
    assert text_of(path) == ["one\ntwo", "é😀"]
    assert text_of(path, text_field="body") == ["owt\neno", "😀é"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "open', "line 2 is not JSON"),
        (b'{"txt": "x"}', 'line 2 has no text in the field "text"'),
        (b'{"text": 5}', 'line 2 has no text in the field "text"'),
        (b'["text"]', 'line 2 has no text in the field "text"'),
        (b'{"text": "\xff"}', "line 2 is not UTF-8: byte 25 is 0xff"),
        (b'{"text": "\\ud800"}', "line 2 is not UTF-8"),
    ],
)
def test_bad_json_lines_are_named(tmp_path, line, complaint):
    path = tmp_path / "pages.jsonl"
    path.write_bytes(b'{"text": "ok"}\n' + line + b"\n")
    with pytest.raises(CorpusError, match=complaint):
        text_of(path)


@pytest.mark.parametrize("source", ["nowhere.txt", "nothing/*.txt", "folder"])
def test_what_is_not_there_is_named(tmp_path, source):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CorpusError, match=source.replace("*", r"\*")):
        text_of(tmp_path / source)


def test_the_builtin_corpus_is_english_prose_and_the_same_in_every_process():
    builtin = Corpus("builtin")
    text = "\n".join(piece.text for piece in builtin.pieces())
    assert len(text) > 1_000_000
    assert text.count(" the ") > 10_000
    code = "from data import Corpus; print(Corpus('builtin').fingerprint())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert other.stdout.strip() == builtin.fingerprint(), other.stderr


# Tokens on disk


def encode(text):
    return np.frombuffer(text.encode(), np.uint8)


def write_tokens(source, folder, encode=encode, tokenizer_hash="bytes", vocab_size=257, separator=256):
    return tokenize(
        Corpus(str(source)), encode, vocab_size=vocab_size, separator=separator,
        tokenizer_hash=tokenizer_hash, folder=folder,
    )  # fmt: skip


@pytest.fixture
def two_documents(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("héllo")
    (folder / "b.txt").write_text("world")
    return folder


def test_documents_are_separated_and_counted(two_documents, tmp_path):
    tokens = write_tokens(two_documents, tmp_path / "tokens")
    assert tokens.ids.tolist() == [*"héllo".encode(), 256, *b"world"]
    assert tokens.ids.dtype == np.uint16
    assert (tokens.manifest["documents"], tokens.manifest["bytes"], tokens.manifest["tokens"]) == (2, 11, 12)
    assert not tokens.ids.flags.writeable
    assert write_tokens(two_documents, tmp_path / "wide", vocab_size=70_000).ids.dtype == np.uint32


def refuse_to_encode(text):
    raise AssertionError("the tokens should have been reused")


def test_tokens_are_reused_while_corpus_and_tokenizer_stay(two_documents, tmp_path):
    folder = tmp_path / "tokens"
    first = write_tokens(two_documents, folder)
    again = write_tokens(two_documents, folder, encode=refuse_to_encode)
    assert again.reused and not first.reused
    np.testing.assert_array_equal(first.ids, again.ids)

    assert not write_tokens(two_documents, folder, tokenizer_hash="another").reused
    (two_documents / "b.txt").write_text("World")
    changed = write_tokens(two_documents, folder, tokenizer_hash="another")
    assert not changed.reused and bytes(changed.ids[-5:].astype(np.uint8)) == b"World"
    # The same characters, but one document now.
    (two_documents / "a.txt").write_text("hélloWorld")
    (two_documents / "b.txt").unlink()
    assert not write_tokens(two_documents, folder, tokenizer_hash="another").reused


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_damaged_tokens_are_made_again(two_documents, tmp_path, damage):
    folder = tmp_path / "tokens"
    whole = write_tokens(two_documents, folder).ids.copy()
    if damage == "truncate":
        os.truncate(folder / "tokens.bin", 10)
    elif damage == "remove":
        (folder / "tokens.bin").unlink()
    else:
        (folder / "manifest.json").write_text("{broken")
    again = write_tokens(two_documents, folder)
    assert not again.reused
    np.testing.assert_array_equal(again.ids, whole)


def test_nothing_is_left_where_tokenising_fails(two_documents, tmp_path):
    folder = tmp_path / "tokens"
    (two_documents / "b.txt").write_bytes(b"\xff")
    with pytest.raises(CorpusError):
        write_tokens(two_documents, folder)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("content", [b"", None])
def test_an_empty_corpus_is_refused(tmp_path, content):
    (tmp_path / "empty.txt").write_bytes(content or b"")
    with pytest.raises(CorpusError, match="is empty"):
        write_tokens(tmp_path / "empty.txt" if content is not None else tmp_path, tmp_path / "tokens")
