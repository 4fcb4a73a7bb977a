"""The compiled scanners cut exactly where the `regex` package does, and files cut in blocks give the same pieces."""

import os
import unicodedata
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import PATTERNS, pretokenize

every_pattern = pytest.mark.parametrize("pattern", pretokenize.SCANNERS, ids=[*PATTERNS, "digits, gpt2"])

# One or more of each class of character that any of the patterns tells apart, and everything that is no UTF-8.
TELLING = [
    *"'stmdrevlSTMDREVLſaAéÉßıİǅ中ʰª", "\u0301", "\u0903", "\u20dd", *"19²½٣Ⅷ", *" \t\v\x0b\u00a0\u3000\x85\u2028\n\r",
    "\r\n", *"/.!_-€😀", "\u200d", "\x00", "\x1c", "𝐀", "𐐨", "\U000e0101", "\U0010ffff", "\ufffe",
    b"\x80", b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"\xe0\x9f\xbf",
]
parts = st.one_of(st.sampled_from(TELLING), st.text(max_size=3), st.binary(max_size=3))
telling_bytes = st.lists(parts, max_size=20).map(
    lambda items: b"".join(item if isinstance(item, bytes) else item.encode() for item in items)
)


def cut(data: bytes, pattern: str | None) -> list[bytes]:
    ends = [end for _, ends in pretokenize.piece_ends(data, pattern) for end in ends.tolist()]
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@every_pattern
@given(data=telling_bytes)
def test_scanner_cuts_where_regex_cuts(pattern, data):
    assert cut(data, pattern) == list(pretokenize.split(data, pattern))


@every_pattern
@given(words=st.lists(st.sampled_from(TELLING[:60]), min_size=1, max_size=6), times=st.integers(1, 50))
def test_scanner_cuts_repetitions_where_regex_cuts(pattern, words, times):
    data = "".join(word for word in words if isinstance(word, str)).encode() * times
    assert cut(data, pattern) == list(pretokenize.split(data, pattern))


@every_pattern
@given(texts=st.lists(telling_bytes, min_size=1, max_size=9), block=st.integers(1, 9))
def test_joined_texts_are_cut_each_by_itself(pattern, texts, block):
    stops = np.cumsum([len(text) for text in texts])
    with mock.patch.object(pretokenize, "BLOCK_PIECES", block):
        cuts = [end for _, ends in pretokenize.piece_ends(b"".join(texts), pattern, stops) for end in ends.tolist()]
    expected = [piece for text in texts for piece in pretokenize.split(text, pattern)]
    assert cuts == np.cumsum([len(piece) for piece in expected], dtype=int).tolist()


def code_points() -> list[str]:
    """Every code point but surrogates under the profile "thorough", else all that are assigned."""
    points = (chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    if os.environ.get("HYPOTHESIS_PROFILE") == "thorough":
        return list(points)
    return [char for char in points if unicodedata.category(char) not in ("Cn", "Co")]


@every_pattern
def test_every_code_point_in_every_position(pattern):
    """After and before letters of both cases, digits, spaces, newlines, apostrophes, symbols, and itself."""
    text = "".join([f"a{c}A{c} {c}{c}1{c}'{c}\n{c}/{c}" for c in code_points()])
    data = text.encode()
    expected = np.cumsum([len(piece) for piece in pretokenize.split(data, pattern)])
    ends = np.concatenate([ends.copy() for _, ends in pretokenize.piece_ends(data, pattern)])
    np.testing.assert_array_equal(ends, expected)


def test_every_code_point_is_read_as_regex_reads_it():
    """All 1,112,064 of them, by the pattern that tells most classes apart."""
    text = "".join([f"A{chr(i)}a" for i in range(0x110000) if not 0xD800 <= i < 0xE000])
    pieces = cut(text.encode(), PATTERNS["gpt4o"])
    assert pieces == [piece.encode() for piece in regex.findall(PATTERNS["gpt4o"], text)]


@every_pattern
@pytest.mark.parametrize(
    "text", ["", "'", "''", "a'", "'l", "'ll", " '", "  ", "\n", " \n ", "\n  ", "a\n  ", "12 ", "中AB", "\u0301AB"]
)
def test_texts_that_end_early(pattern, text):
    assert cut(text.encode(), pattern) == list(pretokenize.split(text.encode(), pattern))


@given(
    data=telling_bytes,
    pattern=st.sampled_from(
        [r"\p{L}+", r"[a-z]", "a|", r"\d{1,3}(?=(\d{3})*(?!\d))", None, "(?=a)", (r"\d", PATTERNS["gpt2"])]
    ),
)
def test_any_pattern_keeps_every_byte(data, pattern):
    pieces = cut(data, pattern)
    assert b"".join(pieces) == data
    assert all(pieces)


@every_pattern
@given(data=st.data())
def test_blocks_of_a_file_give_the_pieces_of_the_whole(tmp_path_factory, pattern, data):
    names = ("<|end|>", "<|a b|>", "a.b")
    pieces = st.one_of(st.sampled_from([*TELLING, *names, "word ", "Wort, ", "don't "]), st.text(max_size=3))
    items = data.draw(st.lists(pieces, max_size=200))
    content = b"".join(item if isinstance(item, bytes) else item.encode() for item in items)
    path = tmp_path_factory.mktemp("blocks") / "text"
    path.write_bytes(content)
    for special in ((), names):
        whole = [piece for block in pretokenize.blocks(content, pattern, special) for piece in cut(block, pattern)]
        for text in (path, content, content.decode("utf-8", "replace")):
            expected = whole if isinstance(text, (bytes, Path)) else [
                piece for block in pretokenize.blocks(text, pattern, special) for piece in cut(block, pattern)
            ]
            with mock.patch.object(pretokenize, "BLOCK_BYTES", data.draw(st.integers(1, 200))):
                blocks = list(pretokenize.blocks(text, pattern, special))
            assert [piece for block in blocks for piece in cut(block, pattern)] == expected


def test_a_long_file_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(pretokenize, "BLOCK_BYTES", 1000)
    (tmp_path / "text").write_text("It was the best of times. " * 1000)
    blocks = list(pretokenize.blocks(tmp_path / "text", PATTERNS["gpt4"]))
    assert max(map(len, blocks)) < 2000


@pytest.mark.parametrize(("name", "pattern"), [
    *((name, name) for name in PATTERNS), ("r50k_base", "gpt2"), ("cl100k_base", "gpt4-tiktoken"),
    ("o200k_base", "gpt4o"),
])  # fmt: skip
def test_names_stand_for_patterns(name, pattern):
    assert pretokenize.resolve(name) == PATTERNS[pattern]


@pytest.mark.parametrize("spelling", [spelling for spelling in pretokenize.SAME if "|" in spelling])
@given(data=telling_bytes)
def test_other_spellings_are_the_same_rule(spelling, data):
    text = data.decode("utf-8", "surrogateescape")
    assert [match.group() for match in regex.finditer(spelling, text)] == [
        match.group() for match in regex.finditer(pretokenize.resolve(spelling), text)
    ]


def test_tiktokens_spellings_are_recognised():
    public = pytest.importorskip("tiktoken_ext.openai_public", reason="tiktoken is in the bench extra")
    assert pretokenize.resolve(public.r50k_pat_str) == PATTERNS["gpt2"]


def test_tiktokens_names_mean_what_they_mean_there(monkeypatch):
    """White space at the end of a text is what cl100k_base cuts otherwise than GPT-4's pattern first did."""
    public = pytest.importorskip("tiktoken_ext.openai_public", reason="tiktoken is in the bench extra")
    for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(public, loader, lambda *_, **__: {})
    for name, constructor in public.ENCODING_CONSTRUCTORS.items():
        assert pretokenize.resolve(name) == pretokenize.resolve(constructor()["pat_str"]), name


@pytest.mark.parametrize("pattern", ["gpt5", "", "(", "[a", "(" * 5000 + ")" * 5000, "a{99999}", r"\p{Nonsense}"])
def test_a_pattern_that_is_none_is_refused(pattern):
    with pytest.raises(ValueError, match="pattern"):
        pretokenize.resolve(pattern)


@pytest.mark.parametrize(
    ("pattern", "at"),
    [("a$", 1), ("^a", 0), (r"\w+", 0), (r"a\b", 1), (r"[^(\s|[.,])]", 0), ("[a&&b]", 0), (r"\p{N}{1,3}+", 5),
     (r"\h", 0), ("(?m:a)", 0), ("(?<n>a)", 0), ("(?R)", 0), ("a{e}", 1), ("a{,3}", 1), (r"\K", 0), ("a{2}?", 1)],
)  # fmt: skip
def test_what_engines_read_differently_is_refused(pattern, at):
    with pytest.raises(ValueError, match=rf"all engines read alike: .* at character {at}$"):
        pretokenize.resolve(pattern)


@given(data=st.data())
def test_what_is_left_tokenizers_reads_alike(data):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    atoms = ["a", "[ab]", r"[^a\s]", r"\p{N}", r"\P{L}", r"\s", ".", "(?:ab|b)", "(?i:S|b)", r"\S", "-", r"\.", r"\x41"]
    marks = ["", "", "+", "*?", "?", "{1,2}", "{2}", "++", r"(?!\S)", "(?<=a)", "|"]
    pairs = st.tuples(st.sampled_from(atoms), st.sampled_from(marks))
    pattern = "(?:)" + "".join(atom + mark for atom, mark in data.draw(st.lists(pairs, min_size=1, max_size=4)))
    if regex.match(pattern, ""):
        return  # engines go on differently after an empty match
    if r"[^a\s]|(?i:" in pattern:
        return  # a fault of regex: beside letters of either case it takes this set for one without A
    text = "".join(data.draw(st.lists(st.sampled_from([*"aAbBsS1²é.- \n", "ab"]), max_size=15)))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pretokenize.resolve(pattern)), "isolated")
    assert [piece for piece, _ in split.pre_tokenize_str(text)] == [
        piece.decode() for piece in pretokenize.split(text.encode(), pattern)
    ]
