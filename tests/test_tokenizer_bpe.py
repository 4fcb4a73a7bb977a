"""Encoding is the definition's, decoding its inverse, special tokens follow tiktoken's rules."""

import pickle
import random
import re
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers_unicode import comparable

from tokenizer import DEFAULT_SPECIAL_TOKENS, PATTERNS, AddedToken, Tokenizer, Vocabulary, bpe, naive, pretokenize

SHARED = Path(__file__).parents[2] / "shared" / "data"
TEXT = """The quick brown fox jumps over the lazy dog; the dog's been sleeping — 'twas 12345 o'clock, they'll say.
    def encode(self, text): return [token for token in text]\n\n  aaaaaaaa aaaa aaab ===== ----- 1000000 1999
Größe, naïve, façade. Съешь же ещё этих мягких французских булок. 中文文本没有空格，標點不同。 こんにちは世界 👩‍👩‍👧 🇨🇭
""" * 3
PAD, EOT, UNK = DEFAULT_SPECIAL_TOKENS


@pytest.fixture(scope="module", params=[*PATTERNS, "no pattern", "own pattern"])
def tokenizer(request) -> Tokenizer:
    patterns = PATTERNS | {"no pattern": None, "own pattern": r"\p{L}+|[^\p{L}\s]+"}
    return Tokenizer.train(TEXT, 420, patterns[request.param])


def defined(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Encoding by the definition: split by `regex`, merge by `naive`."""
    byte_ids = {token[0]: i for i, token in tokenizer.tokens.items() if len(token) == 1}
    merges = {(left, right): (i, new) for i, (left, right, new) in enumerate(tokenizer.merges.tolist())}
    pieces = pretokenize.split(data, tokenizer.pattern)
    return [token for piece in pieces for token in naive.encode([byte_ids[byte] for byte in piece], merges)]


words = st.sampled_from([*TEXT.split(), *TEXT.split(" "), "a", "aa", "aaa", " ", "\n", "!", "é", "中", "𐀀"])
likely_text = st.lists(words, max_size=30).map("".join)
long_repeats = st.tuples(st.text(max_size=4), st.integers(1, 200)).map(lambda pair: pair[0] * pair[1])


@given(text=st.one_of(likely_text, long_repeats, st.text()))
def test_encode_is_the_definition(tokenizer, text):
    ids = tokenizer.encode(text, disallowed_special=())
    assert ids.tolist() == defined(tokenizer, text.encode())
    assert tokenizer.encode(text, disallowed_special=()).tolist() == ids.tolist()  # now from the cache
    assert tokenizer.decode(ids) == text


@given(data=st.binary(max_size=200))
def test_any_bytes_come_back(tokenizer, data):
    ids = tokenizer.encode(data, disallowed_special=())
    assert ids.tolist() == defined(tokenizer, data)
    assert tokenizer.decode_bytes(ids) == data


@given(text=st.text(), seed=st.integers(0, 2**32 - 1))
def test_stream_decoder_emits_whole_characters(tokenizer, text, seed):
    ids = tokenizer.encode(text, disallowed_special=())
    decoder = tokenizer.decoder(errors="strict")
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(ids) + 1, 5))
    emitted = [decoder.feed(part) for part in np.split(ids, cuts)]
    assert "".join(emitted) + decoder.finish() == text
    for whole in emitted:
        whole.encode()  # half a character could not


@given(ids=st.lists(st.integers(0, 419)))
def test_stream_decoder_is_decode_for_any_ids(tokenizer, ids):
    decoder = tokenizer.decoder()
    assert "".join([decoder.feed(token) for token in ids]) + decoder.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("unit", ["^", "a", "ab", "xyzw", "é", " ", "\n", "1", "'", "\u0301", "中", "aA", "\r\n ", "/"])
def test_a_megabyte_without_a_seam(tokenizer, unit):
    """Quadratic work on 10^6 characters would take hours; that the ids are right is seen on a shorter text."""
    text = unit * 300
    assert tokenizer.encode(text).tolist() == defined(tokenizer, text.encode())
    if tokenizer.pattern is None or tokenizer.pattern in PATTERNS.values():
        text = unit * (10**6 // len(unit.encode()))
        assert tokenizer.decode(tokenizer.encode(text)) == text


units = st.sampled_from(["a", "b", "abc", "ca"])


@settings(max_examples=15)  # the definition is quadratic
@given(pieces=st.lists(st.tuples(units, st.integers(41, 400)), min_size=1, max_size=3))
def test_long_pieces_merge_as_short_ones_do(pieces):
    """Through the heap, and from `merge.WINDOW` bytes on in windows whose seams are mended."""
    tokenizer = Tokenizer.train("abcabcab aaaa bbbbbbbb cacacaca abab" * 3, 300, None)
    text = "".join(unit * count for unit, count in pieces)
    assert tokenizer.encode(text).tolist() == defined(tokenizer, text.encode())


@pytest.mark.parametrize("count", [2**16 - 1, 2**16, 100_001, 3 * 2**16 + 12_345])
def test_tokens_longer_than_a_window(count):
    """A run of one letter merges to tokens of 1, 2, 4, … letters: of the longest what fits, then binary digits."""
    tokenizer = Tokenizer.train("a" * 2**17, 256 + 16, None, special_tokens=())
    longest = 2**16
    assert tokenizer.token_bytes(271) == b"a" * longest
    rest = [255 + bit if bit else 97 for bit in range(15, -1, -1) if count % longest >> bit & 1]
    assert tokenizer.encode("a" * count).tolist() == [271] * (count // longest) + rest


def test_more_pieces_than_the_cache_holds():
    tokenizer = Tokenizer.train(TEXT, 400)
    text = " ".join(f"w{i}x{i * 7}" for i in range(150_000))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[:2000].tolist() == defined(tokenizer, text[:9000].encode())[:2000]


# ---- the ids ----


@pytest.mark.parametrize(("last", "dtype"), [(256, np.uint16), (65535, np.uint16), (65536, np.uint32)])
def test_ids_take_the_smallest_type_that_fits(last, dtype):
    tokenizer = Tokenizer(Vocabulary(Tokenizer.bytes().tokens, np.empty((0, 3)), {"<|last|>": AddedToken(last)}))
    ids = tokenizer.encode("a<|last|>", allowed_special="all")
    assert ids.dtype == dtype
    assert ids.tolist() == [97, last]


def test_wide_vocabularies_encode_alike():
    narrow = Tokenizer.train(TEXT, 400, special_tokens=())
    wide = Tokenizer(Vocabulary(narrow.tokens, narrow.merges, {"<|far|>": AddedToken(70_000)}, narrow.pattern))
    assert wide.encode(TEXT).dtype == np.uint32
    assert wide.encode(TEXT).tolist() == narrow.encode(TEXT).tolist()
    assert wide.decode(wide.encode(TEXT)) == TEXT


def test_layout_of_ids():
    tokenizer = Tokenizer.train(TEXT, 300)
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert tokenizer.vocab_size == len(tokenizer) == 300
    assert tokenizer.special_tokens == {PAD: 297, EOT: 298, UNK: 299}
    assert (tokenizer.pad_id, tokenizer.eot_id, tokenizer.unk_id) == (297, 298, 299)
    assert tokenizer.kind == "bpe"


def test_byte_tokenizer():
    tokenizer = Tokenizer.bytes()
    assert tokenizer.kind == "bytes"
    assert tokenizer.vocab_size == 259
    assert tokenizer.encode("hé").tolist() == list("hé".encode())
    assert tokenizer.encode(f"h{EOT}", allowed_special="all").tolist() == [104, tokenizer.eot_id]
    bare = Tokenizer.bytes(special_tokens=())
    assert (bare.pad_id, bare.eot_id, bare.unk_id, bare.vocab_size) == (None, None, None, 256)


@pytest.mark.parametrize("ids", [[], (), np.array([], dtype=np.int64), np.array([])])
def test_no_ids_decode_to_nothing(ids):
    assert Tokenizer.bytes().decode(ids) == ""


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_ids_of_any_integer_type_decode(dtype):
    assert Tokenizer.bytes().decode(np.array([105, 7, 104, 7], dtype=dtype)[::-2][::-1]) == "\x07\x07"


@pytest.mark.parametrize(("ids", "message"), [
    ([104, 259], "id 259 at position 1"),
    ([104, 105, -1], r"id -1 at position 2"),
    (np.array([2**63], dtype=np.uint64), "position 0"),
    ([2**70], "integers"),
    ([1.5], "integers"),
    ([[1, 2], [3, 4]], "one row"),
    (["a"], "integers"),
])
def test_ids_that_name_no_token_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.bytes().decode(ids)


def test_ids_in_a_gap_are_refused():
    tokenizer = Tokenizer(Vocabulary(Tokenizer.bytes().tokens, np.empty((0, 3)), {"<|far|>": AddedToken(300)}))
    assert tokenizer.vocab_size == 301
    with pytest.raises(ValueError, match=r"id 299 at position 0 names no token.*gaps"):
        tokenizer.decode([299])


@pytest.mark.parametrize(
    ("errors", "expected"), [("replace", "h\ufffd"), ("ignore", "h"), ("backslashreplace", r"h\xc3")]
)
def test_errors_policy_for_half_a_character(errors, expected):
    tokenizer = Tokenizer.bytes()
    assert tokenizer.decode([104, 0xC3], errors=errors) == expected
    decoder = tokenizer.decoder(errors)
    assert decoder.feed([104, 0xC3]) == "h"
    assert decoder.finish() == expected[1:]
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode([104, 0xC3], errors="strict")


def test_lone_surrogates_become_the_replacement_character():
    tokenizer = Tokenizer.bytes()
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_a_decoder_starts_afresh_after_an_error():
    decoder = Tokenizer.bytes().decoder("strict")
    assert decoder.feed([104, 0xC3]) == "h"
    with pytest.raises(UnicodeDecodeError):
        decoder.finish()
    assert decoder.feed([104]) + decoder.finish() == "h"


@pytest.mark.parametrize("text", [3, None, ["a"], np.array([1])])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match="str or bytes"):
        Tokenizer.bytes().encode(text)


# ---- special tokens ----


@pytest.fixture(scope="module")
def special() -> Tokenizer:
    return Tokenizer.train(TEXT, 300, special_tokens=("<|a|>", "<|a|><|b|>", "é中", "<|b|>"))


def test_special_text_raises_and_says_what_to_pass(special):
    message = r"'<\|b\|>' at byte 3.*allowed_special=\{'<\|b\|>'\}.*disallowed_special=\(\)"
    with pytest.raises(ValueError, match=message):
        special.encode("é <|b|>")
    with pytest.raises(ValueError, match="pass"):
        special.encode("<|a|> <|b|>", allowed_special={"<|a|>"})


@given(items=st.lists(st.sampled_from(["<|a|>", "<|b|>", "é", "中", "<|", "a", " "]), max_size=12), data=st.data())
def test_special_tokens_as_tiktoken_reads_them(special, items, data):
    """Leftmost, then longest; what is waved through is ordinary text."""
    names = special.special_tokens
    allowed = data.draw(st.sets(st.sampled_from(sorted(names))))
    text = "".join(items)
    expected: list[int] = []
    rest = ordinary = text
    ordinary = ""
    while rest:
        name = max((name for name in allowed if rest.startswith(name)), key=len, default=None)
        if name is None:
            ordinary, rest = ordinary + rest[0], rest[1:]
        else:
            expected += [*defined(special, ordinary.encode()), names[name]]
            ordinary, rest = "", rest[len(name):]
    expected += defined(special, ordinary.encode())
    assert special.encode(text, allowed_special=allowed, disallowed_special=()).tolist() == expected
    assert special.encode(text.encode(), allowed_special=allowed, disallowed_special=()).tolist() == expected
    assert special.decode(expected) == text


@given(items=st.lists(st.sampled_from(["<|a|>", "<|b|>", "é中", "é", "<|", "a", " "]), max_size=8), data=st.data())
def test_what_is_refused_is_what_tiktoken_refuses(special, items, data):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
    names = ["<|a|>", "é中", "<|b|>"]  # none the beginning of another: of those tiktoken takes any
    ours = Tokenizer(replace(special.vocabulary, added={name: special.vocabulary.added[name] for name in names}))
    theirs = tiktoken.Encoding(**ours.to_tiktoken())
    some = st.just("all") | st.sets(st.sampled_from([*names, "a", "nowhere"]))
    policy = {"allowed_special": data.draw(some), "disallowed_special": data.draw(some)}
    text = "".join(items)
    try:
        expected = theirs.encode(text, **policy)
    except ValueError:
        with pytest.raises(ValueError, match="pass allowed_special="):
            ours.encode(text, **policy)
        return
    assert ours.encode(text, **policy).tolist() == expected


def test_special_names_are_a_set_not_a_string(special):
    with pytest.raises(ValueError, match="set"):
        special.encode("a", allowed_special="<|a|>")


@pytest.mark.parametrize("names", ["<|a|>", ["<|a|>", "<|a|>"], [""], [3]])
def test_special_tokens_that_make_no_sense_are_refused(names):
    with pytest.raises(ValueError, match="special_tokens"):
        Tokenizer.bytes(special_tokens=names)
    with pytest.raises(ValueError, match="special_tokens"):
        Tokenizer.train("a", 300, special_tokens=names)


# ---- many texts, many threads, many processes ----


# Texts that would be cut otherwise, or hold a special token, if they were one.
halves = st.sampled_from(["a", "'", "ll", "12", " ", "  ", "\n", "a\n ", "é", "!", b"\xc3", b"\xa9", PAD[:4], PAD[4:]])


@given(texts=st.lists(st.one_of(halves, likely_text, st.text(max_size=9)), max_size=20))
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_batch_is_each_text_by_itself(tokenizer, threads, texts):
    with mock.patch.multiple(bpe, LEAST_GROUP=5, MOST_GROUP=30):
        batch = tokenizer.encode_batch(texts, threads=threads, disallowed_special=())
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text, disallowed_special=()).tolist() for text in texts]
    assert all(ids.dtype == tokenizer.dtype and ids.base is None for ids in batch)


@given(texts=st.lists(st.one_of(st.sampled_from([PAD, EOT, PAD[:4], PAD[4:], "a "]), st.text(max_size=5)), max_size=9))
def test_batch_reads_special_tokens_as_encode_does(tokenizer, texts):
    for policy in ({"allowed_special": {PAD}}, {"allowed_special": "all"}, {"disallowed_special": ()}):
        try:
            expected = [tokenizer.encode(text, **policy).tolist() for text in texts]
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                tokenizer.encode_batch(texts, **policy)
        else:
            assert [ids.tolist() for ids in tokenizer.encode_batch(texts, **policy)] == expected


def test_a_batch_of_many_short_texts_is_encoded_in_few_calls(monkeypatch):
    """Calls from Python are what short texts cost; with threads, they queue for the interpreter."""
    tokenizer = Tokenizer.train(TEXT, 400)
    texts = [f"{word} {i}" for i in range(200) for word in TEXT.split()]
    calls = []
    encode_pieces = Tokenizer._encode_pieces
    monkeypatch.setattr(Tokenizer, "_encode_pieces", lambda *args: calls.append(1) or encode_pieces(*args))
    batch = tokenizer.encode_batch(texts, threads=2)
    assert len(calls) <= 17
    assert tokenizer.decode(np.concatenate(batch)) == "".join(texts)


@pytest.mark.parametrize("text", ["abc", b"abc"])
def test_one_text_is_no_batch(text):
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        Tokenizer.bytes().encode_batch(text)


def test_batch_passes_special_tokens_on():
    tokenizer = Tokenizer.bytes()
    with pytest.raises(ValueError, match="special"):
        tokenizer.encode_batch(["a", EOT])
    batch = tokenizer.encode_batch(["a", EOT], allowed_special="all")
    assert [ids.tolist() for ids in batch] == [[97], [tokenizer.eot_id]]


def test_threads_do_not_disturb_each_other():
    tokenizer = Tokenizer.train(TEXT, 400)
    texts = [" ".join(f"{word}{i}" for word in TEXT.split()) for i in range(8)]
    expected = [tokenizer.encode(text).tolist() for text in texts]
    results: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        results[number] = [tokenizer.encode(text).tolist() for _ in range(20) for text in texts]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[i] == expected * 20 for i in range(4))


def test_tokenizers_travel_between_processes():
    tokenizer = Tokenizer.train(TEXT, 400)
    tokenizer.encode(TEXT)
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other == tokenizer
    assert other.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_hash_names_behaviour(tmp_path):
    tokenizer = Tokenizer.train(TEXT, 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).hash() == tokenizer.hash() == Tokenizer.train(TEXT, 300).hash()
    others = [Tokenizer.train(TEXT, 301), Tokenizer.train(TEXT, 300, "gpt2"), Tokenizer.bytes(),
              Tokenizer.train(TEXT, 300, special_tokens=("<|pad|>",)),
              *(Tokenizer(replace(tokenizer.vocabulary, **change)) for change in (
                  {"merges": tokenizer.merges[::-1]}, {"whole_pieces": True}, {"normalizer": ("NFC",)},
                  {"prefix_space": True}, {"pattern": (r"\p{N}", PATTERNS["gpt4"])},
                  {"added": {"<|pad|>": AddedToken(297, lstrip=True)}}))]
    assert len({tokenizer.hash(), *(other.hash() for other in others)}) == 1 + len(others)
    assert tokenizer not in others


def test_hash_never_changes():
    """Manifests of tokens on disk hold it."""
    assert Tokenizer.bytes().hash() == "9ce76f7e3dc4f6fe422c489e2df0d2c25d3eecbbb60c8451e85c3121dfab0381"


def test_tokenizer_cannot_be_changed_from_outside():
    tokenizer = Tokenizer.train(TEXT, 300)
    before = tokenizer.hash()
    tokenizer.tokens.clear()
    tokenizer.special_tokens.clear()
    with pytest.raises(ValueError, match="read-only"):
        tokenizer.merges[0] = 0
    assert tokenizer.hash() == before


# ---- against tiktoken and tokenizers ----


@pytest.fixture(scope="module")
def peers(tokenizer, tmp_path_factory):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    path = tmp_path_factory.mktemp("peers") / "tokenizer.json"
    tokenizer.save(path)
    return tiktoken.Encoding(**tokenizer.to_tiktoken()), tokenizers.Tokenizer.from_file(str(path))


latin = st.text(st.characters(max_codepoint=0x24F))
drawn_text = st.one_of(st.text(), likely_text, long_repeats, latin).map(comparable)


@given(text=drawn_text)
def test_ids_are_those_of_tiktoken_and_tokenizers(tokenizer, peers, text):
    if tokenizer.pattern is not None and tokenizer.pattern not in PATTERNS.values():
        pytest.skip("tiktoken drops what a pattern leaves unmatched")
    tiktoken, hugging_face = peers
    if any(name in text for name in tokenizer.special_tokens):
        return
    ids = tokenizer.encode(text).tolist()
    assert tiktoken.encode_ordinary(text) == ids
    assert hugging_face.encode(text).ids == ids
    assert hugging_face.decode(ids, skip_special_tokens=False) == text
    assert tiktoken.decode(ids) == text


@given(items=st.lists(st.sampled_from([PAD, EOT, UNK, "a", " ", "<|", "the"]), max_size=8))
def test_special_ids_are_those_of_tiktoken_and_tokenizers(tokenizer, peers, items):
    text = "".join(items)
    tiktoken, hugging_face = peers
    ids = tokenizer.encode(text, allowed_special="all").tolist()
    assert hugging_face.encode(text).ids == ids
    if tokenizer.pattern is None or tokenizer.pattern in PATTERNS.values():
        assert tiktoken.encode(text, allowed_special="all") == ids


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    folder = SHARED / "gpt2"
    if not folder.exists():
        pytest.skip("GPT-2's vocabulary is not in ../shared/data/gpt2")
    return Tokenizer.from_gpt2(folder / "vocab.bpe", folder / "encoder.json")


def test_gpt2_says_hello(gpt2):
    assert gpt2.encode("hello world").tolist() == [31373, 995]
    assert gpt2.eot_id == 50256
    assert gpt2.vocab_size == 50257


@pytest.fixture(scope="module")
def tiktoken_gpt2(gpt2):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    files = str(SHARED / "gpt2" / "vocab.bpe"), str(SHARED / "gpt2" / "encoder.json")
    ranks = data_gym_to_mergeable_bpe_ranks(*files)  # tiktoken's own reader of these files
    return tiktoken.Encoding("gpt2", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={EOT: 50256})


@given(text=drawn_text)
def test_gpt2_is_tiktokens_on_any_text(gpt2, tiktoken_gpt2, text):
    ids = gpt2.encode(text, disallowed_special=()).tolist()
    assert tiktoken_gpt2.encode_ordinary(text) == ids
    assert gpt2.decode(ids) == text


def test_gpt2_is_tiktokens_on_books(gpt2, tiktoken_gpt2):
    if not (SHARED / "tinyshakespeare.txt").exists():
        pytest.skip("tinyshakespeare is not in ../shared/data")
    text = (SHARED / "tinyshakespeare.txt").read_text()
    assert gpt2.encode(text).tolist() == tiktoken_gpt2.encode_ordinary(text)
    seamless = "".join(filter(str.isalpha, text))
    assert gpt2.encode(seamless).tolist() == tiktoken_gpt2.encode_ordinary(seamless)


@given(seed=st.integers(0, 2**32 - 1), alphabet=st.text(st.characters(max_codepoint=0x7F), min_size=1, max_size=6))
def test_gpt2_is_tiktokens_where_no_seam_is_near(gpt2, tiktoken_gpt2, seed, alphabet):
    text = "".join(random.Random(seed).choices(alphabet + "aeiou", k=5000))
    assert gpt2.encode(text).tolist() == tiktoken_gpt2.encode_ordinary(text)
