"""Training learns what the definition learns, from anything it can read, and what Hugging Face's trainer learns."""

import io
import json
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers_unicode import comparable

from tokenizer import DEFAULT_SPECIAL_TOKENS, PATTERNS, Tokenizer, naive, pretokenize, train

SHARED = Path(__file__).parents[2] / "shared" / "data"
PATTERN = st.sampled_from([*PATTERNS.values(), None, r"\p{L}+"])  # no \w: engines differ on what it is

# Few letters make many ties and many overlaps ("aaaa"), which is where trainers differ.
text = st.one_of(
    st.text(st.sampled_from("ab"), max_size=80),
    st.lists(st.sampled_from(["aa", "ab", "ba", " ", "é", "中", "\n", "a" * 40, "abc" * 15]), max_size=40).map("".join),
    st.text(max_size=40),
)


def defined(data: bytes, n_merges: int, pattern: str | None, min_count: int = 1) -> list[list[int]]:
    counts = Counter(pretokenize.split(data, pattern))
    return [list(merge) for merge in naive.train(counts, n_merges, min_count)]


@given(text=text, pattern=PATTERN, n_merges=st.integers(0, 60), min_count=st.integers(1, 3))
def test_learns_what_the_definition_learns(text, pattern, n_merges, min_count):
    merges = train.learn(text, n_merges, pattern, min_count=min_count)
    assert merges.tolist() == defined(text.encode(), n_merges, pattern, min_count)


@given(data=st.binary(max_size=200), pattern=PATTERN)
def test_learns_from_any_bytes(data, pattern):
    assert train.learn(data, 30, pattern).tolist() == defined(data, 30, pattern)


@given(texts=st.lists(text, max_size=6), data=st.data())
def test_order_and_cutting_of_texts_do_not_matter(tmp_path_factory, texts, data):
    expected = train.learn(texts, 40, PATTERNS["gpt4"]).tolist()
    shuffled = data.draw(st.permutations(texts))
    assert train.learn(iter([text.encode() for text in shuffled]), 40, PATTERNS["gpt4"]).tolist() == expected
    paths = []
    for number, text in enumerate(shuffled):
        paths.append(tmp_path_factory.mktemp("texts") / str(number))
        paths[-1].write_bytes(text.encode())
    with mock.patch.object(pretokenize, "BLOCK_BYTES", data.draw(st.integers(1, 50))):
        assert train.learn(paths, 40, PATTERNS["gpt4"]).tolist() == expected


@given(text=text, block=st.integers(1, 50), pattern=st.sampled_from([PATTERNS["gpt4"], r"\p{L}+"]))
def test_open_files_are_texts_and_are_read_in_blocks(text, block, pattern):
    asked = []

    class Pipe(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    expected = train.learn(text, 40, pattern).tolist()
    with mock.patch.object(pretokenize, "BLOCK_BYTES", block):
        assert train.learn(Pipe(text.encode()), 40, pattern).tolist() == expected
        assert train.learn([Pipe(text.encode()), io.StringIO(text, newline="")], 40, pattern).tolist() == (
            train.learn([text, text], 40, pattern).tolist()
        )
    assert set(asked) == {block}


def test_tables_grow():
    """More different pieces and pairs than the first tables hold, counted as a dict counts them."""
    words = [f"{i:x} {i * 2654435761 % 2**32:x}" for i in range(100_000)]
    data = " ".join(words).encode()
    counts = train.count(data, PATTERNS["gpt2"])
    expected = Counter(pretokenize.split(data, PATTERNS["gpt2"]))
    spelled, ends, weights = counts.words()
    begins = [0, *ends.tolist()]
    found = {spelled[begin:end].tobytes(): weight for begin, end, weight in zip(begins, ends, weights, strict=False)}
    assert found == expected
    with mock.patch.object(train, "FIRST_PAIRS", 8):
        small = train.merge(counts, 500)
    assert small.tolist() == train.merge(counts, 500).tolist()


def test_long_runs_take_no_time():
    merges = train.learn("a" * 1_000_000, 25, None)
    assert [left == right for left, right, _ in merges.tolist()][:19] == [True] * 19


def test_stops_when_nothing_is_left_to_join():
    assert Tokenizer.train("abc", 1000).vocab_size == 256 + 2 + 3
    assert Tokenizer.train("", 1000).vocab_size == 259
    assert Tokenizer.train([], 259).merges.shape == (0, 3)
    assert Tokenizer.train("abc abc xyz", 1000, min_count=2).vocab_size == 259 + 2


@pytest.mark.parametrize("vocab_size", [258, 0, -1])
def test_a_vocabulary_too_small_is_refused(vocab_size):
    with pytest.raises(ValueError, match=rf"vocab_size {vocab_size} is too small: .* need at least 259$"):
        Tokenizer.train("abc", vocab_size)


def test_a_vocabulary_too_large_ends_where_text_does():
    assert Tokenizer.train("ab" * 50, 10**12, None, special_tokens=()).vocab_size == 256 + 8
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        Tokenizer.train("ab", 300, min_count=0)


def test_special_tokens_are_not_learned():
    tokenizer = Tokenizer.train("<|endoftext|>" * 100 + "ab", 300)
    assert [tokenizer.token_bytes(left) for left, _, _ in tokenizer.merges.tolist()] == [b"a"]
    own = Tokenizer.train("xyxy<xy>xy" * 9, 300, None, special_tokens=["<xy>"])
    assert not any(b"<" in token or b">" in token for token in own.tokens.values() if len(token) > 1)


@given(parts=st.lists(st.sampled_from(["ab", " a", "<|pad|>", "<|end", "oftext|>", "\n"]), max_size=30))
def test_special_tokens_cut_text_in_training(parts):
    joined = "".join(parts)
    stretches = pretokenize.special_expression(DEFAULT_SPECIAL_TOKENS).split(joined.encode())
    expected = Counter(piece for stretch in stretches for piece in pretokenize.split(stretch, PATTERNS["gpt4"]))
    merges = Tokenizer.train(joined, 300).merges.tolist()
    assert merges == [list(merge) for merge in naive.train(expected, 41)]


def test_progress_is_shown():
    seen: list[tuple[str, int, int]] = []
    Tokenizer.train(["the cat sat on the mat", "and the dog"], 270, progress=lambda *event: seen.append(event))
    assert seen == [("bytes counted", 22, 0), ("bytes counted", 33, 0), ("merges learned", 11, 11)]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.train(tmp_path / "nowhere", 300)


@pytest.mark.parametrize("texts", [3, [3], [None]])
def test_what_is_no_text_is_refused(texts):
    with pytest.raises(TypeError):
        Tokenizer.train(texts, 300)


# ---- against Hugging Face's trainer ----


def hugging_face(text: str, n_merges: int, pattern: str | None) -> list[tuple[str, str]]:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    parts = [byte_level(add_prefix_space=False, use_regex=False)]
    if pattern is not None:
        parts.insert(0, tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + n_merges, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def ours(text: str, n_merges: int, pattern: str | None) -> list[tuple[str, str]]:
    content = Tokenizer.train(text, 256 + n_merges, pattern, special_tokens=()).to_huggingface()
    return [tuple(pair) for pair in content["model"]["merges"]]


@given(text=text.map(comparable), pattern=PATTERN)
def test_merges_are_those_of_hugging_face(text, pattern):
    assert ours(text, 60, pattern) == hugging_face(text, 60, pattern)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_merges_of_a_book_are_those_of_hugging_face(pattern):
    if not (SHARED / "tinyshakespeare.txt").exists():
        pytest.skip("tinyshakespeare is not in ../shared/data")
    book = (SHARED / "tinyshakespeare.txt").read_text()[:300_000]
    assert ours(book, 4000, pattern) == hugging_face(book, 4000, pattern)
