"""Files written here encode alike in tokenizers and tiktoken, and the reverse; hostile files are named and refused."""

import base64
import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import PATTERNS, FormatError, Tokenizer, Vocabulary, formats

SHARED = Path(__file__).parents[2] / "shared" / "data"
TEXT = "The cat sat on the mat; that's 12345 cats.\n\n  Größe 中文 \t😀 <|endoftext|> aaaa\r\n  " * 4
EOT = "<|endoftext|>"


@pytest.fixture(params=[*PATTERNS, "none", "own", "bytes"])
def tokenizer(request) -> Tokenizer:
    if request.param == "bytes":
        return Tokenizer.bytes()
    pattern = PATTERNS | {"none": None, "own": r"\p{L}+|\P{L}"}
    return Tokenizer.train(TEXT, 330, pattern[request.param])


def test_tokenizer_json_and_back(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json") == tokenizer
    assert Tokenizer.load(str(tmp_path)) == tokenizer
    assert Tokenizer.from_huggingface(tokenizer.to_huggingface()) == tokenizer


def test_merges_as_lines_are_read_as_pairs(tokenizer):
    content = tokenizer.to_huggingface()
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    assert Tokenizer.from_huggingface(content) == tokenizer


def test_rank_files_and_back(tokenizer, tmp_path):
    arguments = tokenizer.to_tiktoken(tmp_path / "x.tiktoken")
    if tokenizer.pattern is None:
        assert arguments["pat_str"] == r"[\s\S]+"
        return
    assert Tokenizer.from_tiktoken(tmp_path / "x.tiktoken", tokenizer.pattern, tokenizer.special_tokens) == tokenizer


def test_gpt2_files_and_back(tmp_path):
    tokenizer = Tokenizer.train(TEXT, 330, "gpt2")
    tokenizer.to_gpt2(tmp_path / "vocab.bpe", tmp_path / "encoder.json")
    assert Tokenizer.from_gpt2(tmp_path / "vocab.bpe", tmp_path / "encoder.json") == tokenizer


def test_tokenizers_reads_our_vocab_json_and_merges_txt(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    ours = Tokenizer.train(TEXT, 330, "gpt2", special_tokens=[EOT])
    ours.to_gpt2(tmp_path / "merges.txt", tmp_path / "vocab.json")
    theirs = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    theirs.add_special_tokens([EOT])
    assert theirs.encode(TEXT).ids == ours.encode(TEXT, allowed_special="all").tolist()


def test_gpt2_files_have_no_place_for_another_pattern(tmp_path):
    with pytest.raises(FormatError, match="imply GPT-2's pattern"):
        Tokenizer.train(TEXT, 330, "gpt4").to_gpt2(tmp_path / "vocab.bpe", tmp_path / "encoder.json")


# ---- against tiktoken, tokenizers and transformers ----


def test_tiktoken_reads_our_ranks_and_we_read_its_encodings(tokenizer, tmp_path):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
    from tiktoken.load import load_tiktoken_bpe

    if tokenizer.pattern is None:
        pytest.skip("tiktoken has no way to leave text whole but a pattern")
    arguments = tokenizer.to_tiktoken(tmp_path / "x.tiktoken")
    assert load_tiktoken_bpe(str(tmp_path / "x.tiktoken")) == arguments["mergeable_ranks"]
    encoding = tiktoken.Encoding(**arguments)
    ids = tokenizer.encode(TEXT, allowed_special="all").tolist()
    assert encoding.encode(TEXT, allowed_special="all") == ids
    assert encoding.n_vocab == tokenizer.vocab_size
    assert Tokenizer.from_tiktoken(encoding) == tokenizer


def test_tiktokens_own_spelling_of_the_patterns(monkeypatch):
    """What tiktoken's registry says today, with our ranks in place of its downloads."""
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
    from tiktoken_ext import openai_public

    for name, pattern in {"r50k_base": "gpt2", "cl100k_base": "gpt4-tiktoken", "o200k_base": "gpt4o"}.items():
        ranks = Tokenizer.train(TEXT, 400, pattern, special_tokens=()).to_tiktoken()["mergeable_ranks"]
        monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, ranks=ranks, **__: ranks)
        arguments = getattr(openai_public, name)()
        arguments.pop("explicit_n_vocab", None)
        encoding = tiktoken.Encoding(**arguments)
        tokenizer = Tokenizer.from_tiktoken(encoding)
        assert tokenizer.pattern == PATTERNS[pattern]
        assert tokenizer.vocab_size == encoding.n_vocab
        for text in (TEXT, "a\n  ", "'S'll've  \n\n x", "\n \n "):
            ids = tokenizer.encode(text, allowed_special="all").tolist()
            assert ids == encoding.encode(text, allowed_special="all")


def test_tokenizers_saves_what_we_load(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = byte_level(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=[EOT], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    theirs.train_from_iterator([TEXT], trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert ours.eot_id == 0
    assert ours.encode(TEXT, allowed_special="all").tolist() == theirs.encode(TEXT).ids
    theirs.model.save(str(tmp_path))
    again = Tokenizer.from_gpt2(tmp_path / "merges.txt", tmp_path / "vocab.json")
    assert again == ours


def test_tokenizers_and_transformers_load_what_we_save(tokenizer, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    transformers = pytest.importorskip("transformers", reason="transformers is in the bench extra")
    tokenizer.save(tmp_path / "tokenizer.json")
    ids = tokenizer.encode(TEXT, allowed_special="all").tolist()
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(TEXT).ids == ids
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert fast(TEXT)["input_ids"] == ids
    assert Tokenizer.from_huggingface(json.loads(theirs.to_str())) == tokenizer


def test_ignore_merges_is_read_as_tokenizers_reads_it():
    """Llama 3's files: a piece that is a token stays whole, merges or not; several merges make one token."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    content = Tokenizer.train("abc abd abc bcd", 262, "gpt4", special_tokens=()).to_huggingface()
    model = content["model"]
    for name in ("xyz", "Ġxyz", "zzz", "bc", "abc"):
        model["vocab"].setdefault(name, len(model["vocab"]))
    for pair in (["b", "c"], ["a", "bc"], ["ab", "c"]):
        if pair not in model["merges"]:
            model["merges"].append(pair)
    texts = ["xyz", " xyz", "xyz xyzz zzz zzzz", "abc bc abcabc", "xyzxyz"]
    for whole in (True, False):
        model["ignore_merges"] = whole
        ours, theirs = Tokenizer.from_huggingface(content), tokenizers.Tokenizer.from_str(json.dumps(content))
        for text in texts:
            assert ours.encode(text).tolist() == theirs.encode(text).ids, (whole, text)
        assert Tokenizer.from_huggingface(ours.to_huggingface()) == ours
        if not whole:
            with pytest.raises(FormatError, match=r"b'xyz', is not what its bytes merge to; tiktoken would differ"):
                ours.to_tiktoken()
            continue
        tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
        encoding = tiktoken.Encoding(**ours.to_tiktoken())
        assert [encoding.encode_ordinary(text) for text in texts] == [ours.encode(text).tolist() for text in texts]
        assert [ours.decode(ours.encode(text)) for text in texts] == texts


@given(data=st.data())
def test_merges_in_any_order_are_read_as_tokenizers_reads_them(data):
    """A list that no training could give: merges before those of their parts, several for one token."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    names = data.draw(st.lists(st.text("abc", min_size=2, max_size=5), min_size=1, max_size=12, unique=True))
    alphabet = list(formats.CHAR_OF_BYTE.values())
    vocab = {name: i for i, name in enumerate([*alphabet, *names])}
    splits = [[name[:i], name[i:]] for name in names for i in range(1, len(name))]
    pairs = [[left, right] for left, right in splits if left in vocab and right in vocab]
    content = Tokenizer.bytes(special_tokens=()).to_huggingface()
    content["model"]["vocab"] = vocab
    content["model"]["merges"] = data.draw(st.permutations(pairs))
    content["model"]["ignore_merges"] = data.draw(st.booleans())
    ours, theirs = Tokenizer.from_huggingface(content), tokenizers.Tokenizer.from_str(json.dumps(content))
    texts = [*data.draw(st.lists(st.text("abc", max_size=60), min_size=1, max_size=5)),
             "".join(random.Random(data.draw(st.integers(0, 99))).choices("abc", k=4000))]
    for text in texts:
        assert ours.encode(text).tolist() == theirs.encode(text).ids
    try:
        arguments = ours.to_tiktoken()
    except FormatError:
        return
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
    encoding = tiktoken.Encoding(**arguments)
    for text in texts:
        assert encoding.encode_ordinary(text) == ours.encode(text).tolist()


@given(data=st.data())
def test_any_ranks_are_read_as_tiktoken_reads_them(tmp_path_factory, data):
    """Tokens that no two others make, that are made of tokens of higher rank, or reached only as a whole piece."""
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    drawn = data.draw(st.lists(st.text("ab ", min_size=2, max_size=7), max_size=14, unique=True))
    ranks = {bytes([i]): i for i in range(256)} | {name.encode(): 256 + i for i, name in enumerate(drawn)}
    pattern = data.draw(st.sampled_from(["gpt2", "gpt4", r"[\s\S]+"]))
    encoding = tiktoken.Encoding("x", pat_str=PATTERNS.get(pattern, pattern), mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.from_tiktoken(encoding)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(ours.to_huggingface()))
    path = tmp_path_factory.mktemp("ranks") / "x.tiktoken"
    assert ours.to_tiktoken(path)["mergeable_ranks"] == ranks
    assert Tokenizer.from_tiktoken(path, pattern) == ours
    long = "".join(random.Random(data.draw(st.integers(0, 99))).choices("ab ", k=3000))
    for text in [*data.draw(st.lists(st.text("ab ", max_size=90), min_size=1, max_size=4)), *drawn, long]:
        ids = ours.encode(text).tolist()
        assert ids == encoding.encode_ordinary(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids) == text


def test_gpt2s_files_are_read_and_written_whole(tmp_path):
    folder = SHARED / "gpt2"
    if not folder.exists():
        pytest.skip("GPT-2's vocabulary is not in ../shared/data/gpt2")
    tokenizer = Tokenizer.from_gpt2(folder / "vocab.bpe", folder / "encoder.json")
    tokenizer.to_gpt2(tmp_path / "vocab.bpe", tmp_path / "encoder.json")
    assert (tmp_path / "vocab.bpe").read_text() == (folder / "vocab.bpe").read_text()
    assert json.loads((tmp_path / "encoder.json").read_text()) == json.loads((folder / "encoder.json").read_text())
    tokenizer.to_tiktoken(tmp_path / "gpt2.tiktoken")
    assert Tokenizer.from_tiktoken(tmp_path / "gpt2.tiktoken", "gpt2", {EOT: 50256}) == tokenizer
    with pytest.raises(FormatError, match=r"special token '<\|endoftext\|>' has id 50255, which is b"):
        Tokenizer.from_tiktoken(tmp_path / "gpt2.tiktoken", "gpt2", {EOT: 50255})


# ---- hostile files ----


def broken(change) -> dict:
    """A good tokenizer.json, spoilt."""
    content = Tokenizer.train("the cat sat on the mat", 270, "gpt2").to_huggingface()
    content = copy.deepcopy(content)
    change(content)
    return content


def set_at(*path_and_value):
    *path, last, value = path_and_value

    def change(content):
        for key in path:
            content = content[key]
        if value is DELETE:
            del content[last]
        else:
            content[last] = value

    return change


DELETE = object()
def split(pattern: str, behavior: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def sequence(step: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL]}


@pytest.mark.parametrize(("change", "message"), [
    (set_at("model", DELETE), "model is None"),
    (set_at("model", []), "model is"),
    (set_at("model", "type", "WordPiece"), "model.type is 'WordPiece'"),
    (set_at("model", "byte_fallback", True), "byte_fallback"),
    (set_at("model", "continuing_subword_prefix", "##"), "continuing_subword_prefix"),
    (set_at("model", "dropout", 0.1), "dropout"),
    (set_at("model", "vocab", None), "vocab is None"),
    (set_at("model", "vocab", {}), "has id 267, where tokenizers would count 0"),
    (set_at("model", "merges", DELETE), "merges is None"),
    (set_at("model", "vocab", "at", "x"), "'at' has id 'x'"),
    (set_at("model", "vocab", "at", True), "'at' has id True"),
    (set_at("model", "vocab", "at", 5), "id 5 is both '.' and 'at'"),
    (set_at("model", "vocab", "at", -1), "id -1 is negative"),
    (set_at("model", "vocab", "at", 10**12), "id .* is missing"),
    (set_at("model", "vocab", "A", DELETE), "byte 0x41 has no token"),
    (set_at("model", "vocab", "", 270), "token 270 is empty"),
    (set_at("model", "vocab", "at", DELETE), r"merges\[\d+\].*'at' is not in the vocabulary"),
    (set_at("model", "vocab", "日", 270), "'日' holds '日', which stands for no byte"),
    (set_at("model", "merges", 0, ["t"]), r"merges\[0\] is \['t'\], expected a pair"),
    (set_at("model", "merges", 0, "t h e"), r"merges\[0\] is 't h e'"),
    (set_at("model", "merges", 0, 7), r"merges\[0\] is 7"),
    (set_at("model", "merges", 0, ["t", 7]), r"merges\[0\]"),
    (set_at("model", "merges", 0, ["q", "q"]), r"merges\[0\].*'qq' is not in the vocabulary"),
    (set_at("model", "merges", 1, ["a", "t"]), "merges 0 and 1 both join b'a' and b't'"),
    (set_at("added_tokens", 0, "id", 3), "special token '<|pad|>' has ids 3 and 267"),
    (set_at("added_tokens", 0, "id", "3"), r"added_tokens\[0\]: id is '3'"),
    (set_at("added_tokens", 0, "content", "<|unk|>"), r"added_tokens\[2\]: '<\|unk\|>' is there twice"),
    (set_at("added_tokens", 0, "content", "new"), "'new' has id 267, where tokenizers would count 270"),
    (set_at("added_tokens", 0, "lstrip", 1), r"added_tokens\[0\]: lstrip is 1, expected true or false"),
    (set_at("added_tokens", 0, "special", "no"), "special is 'no', expected true or false"),
    (set_at("added_tokens", 0, 7), r"added_tokens\[0\]"),
    (set_at("added_tokens", 7), "added_tokens"),
    (set_at("normalizer", {"type": "Lowercase"}), "normalizer: 'Lowercase' is not supported, expected one of NFC"),
    (set_at("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, 3]}), r"normalizers\[1\] is 3"),
    (set_at("normalizer", []), r"normalizer is \[\], expected an object"),
    (set_at("model", "ignore_merges", "yes"), "ignore_merges is 'yes', expected true or false"),
    (set_at("pre_tokenizer", None), "pre_tokenizer is None"),
    (set_at("pre_tokenizer", {"type": "Whitespace"}), "Whitespace"),
    (set_at("pre_tokenizer", {"type": "Sequence", "pretokenizers": []}), "pre_tokenizer"),
    (set_at("pre_tokenizer", sequence({"type": "Metaspace"})), r"pretokenizers\[0\]: 'Metaspace'"),
    (set_at("pre_tokenizer", sequence({"type": "Punctuation", "behavior": "Removed"})), "'Removed' is not supported"),
    (set_at("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, {"type": "Digits"}]}), "at the end"),
    (set_at("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]}),
     "add_prefix_space after a split"),
    (set_at("pre_tokenizer", sequence({"type": "Split", "behavior": "Isolated"})), "pattern is None"),
    (set_at("pre_tokenizer", sequence(split(r"a$", "Isolated"))), "engines read alike: '\\$' at character 1"),
    (set_at("pre_tokenizer", sequence(split(r"(?:a{9999}){999}", "Isolated"))), "repeats"),
    (set_at("pre_tokenizer", sequence(split("(", "Isolated"))), "not a reg"),
    (set_at("pre_tokenizer", sequence(split(r"\d", "Removed"))), "Removed"),
])
def test_hostile_tokenizer_json(change, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(broken(change)))
    with pytest.raises(FormatError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("content", "message"), [
    (b"", "line 1, column 1"),
    (b"[1, 2]", "expected a JSON object, got list"),
    (b'{"model": {"vocab": {"a": 1, "a": 2}}}', "'a' is there twice"),
    (b'{"model": \xff}', "not UTF-8 at byte 10"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"model": ' + b"9" * 5000 + b"}", "digits"),
])
def test_hostile_json(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


@given(data=st.data())
def test_truncated_and_garbled_files_raise_format_errors_only(tmp_path_factory, data):
    tokenizer = Tokenizer.train("the cat sat on the mat", 270, "gpt2")
    folder = tmp_path_factory.mktemp("garbled")
    tokenizer.save(folder / "tokenizer.json")
    tokenizer.to_gpt2(folder / "vocab.bpe", folder / "encoder.json")
    tokenizer.to_tiktoken(folder / "x.tiktoken")
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        cut = data.draw(st.integers(0, len(good)))
        path.write_bytes(good[:cut] + data.draw(st.binary(max_size=5)) + good[cut + data.draw(st.integers(0, 9)):])
    special = tokenizer.special_tokens
    for read in (
        lambda: Tokenizer.load(folder),
        lambda: Tokenizer.from_gpt2(folder / "vocab.bpe", folder / "encoder.json"),
        lambda: Tokenizer.from_tiktoken(folder / "x.tiktoken", "gpt2", special),
    ):
        try:
            read()
        except FormatError as error:
            assert "\n" not in str(error)


BYTES = b"".join(b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256))

# What a hostile file may hold in any place.
anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.integers(-3, 600), st.integers(),
        st.sampled_from([10**30, -1, "Regex", "ByteLevel", "Sequence", "NFC", "Ġ", "(?R)", "(a{999}){999}", "\ud800"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "content", "a"]), inner),
    max_leaves=4,
)


def places(content, path=()):
    """The path of every value inside, but of a vocabulary and of merges only the first few."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items)[:12]:
        yield from places(value, (*path, key))


VALID = Tokenizer.train("the cat sat on the mat", 264, (r"\p{N}", "gpt2")).to_huggingface() | {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
}
VALID["model"]["vocab"] = dict(sorted(VALID["model"]["vocab"].items(), key=lambda item: -item[1]))  # long ones first


@given(data=st.data())
def test_any_value_in_any_place_raises_format_errors_only(data):
    """Whatever is read besides encodes and comes back."""
    content = copy.deepcopy(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([path for path in places(content) if path]))
        inner = content
        for key in path:
            inner = inner[key]
        if isinstance(inner, dict) and data.draw(st.booleans()):
            inner[data.draw(st.text("thecaĠ", max_size=3))] = inner.pop(last)  # under another name
        else:
            inner[last] = data.draw(anything)
    try:
        tokenizer = Tokenizer.from_huggingface(content)
    except FormatError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return
    assert tokenizer.decode(tokenizer.encode("the cat 12", disallowed_special=())) == "the cat 12"
    assert Tokenizer.from_huggingface(tokenizer.to_huggingface()) == tokenizer


@given(data=st.data())
def test_any_ranks_raise_format_errors_only(tmp_path_factory, data):
    lines = BYTES.split(b"\n")[:-1]
    tokens = st.one_of(st.binary(max_size=5), st.text("ab", max_size=300).map(str.encode), st.just(b"a" * 5000))
    fields = st.one_of(tokens.map(b64), st.binary(max_size=6))
    numbers = st.one_of(st.integers(250, 270).map(str), st.integers().map(str), st.sampled_from(["9" * 5000, "", "x"]))
    line = st.tuples(fields, numbers).map(lambda pair: pair[0] + b" " + pair[1].encode())
    for at, new in data.draw(st.lists(st.tuples(st.integers(0, 256), line), max_size=4)):
        lines.insert(at, new)
    for i, token in enumerate(data.draw(st.lists(st.text("ab", min_size=2, max_size=9), max_size=5, unique=True))):
        lines.append(b"%s %d" % (b64(token.encode()), 256 + i))
    path = tmp_path_factory.mktemp("ranks") / "x.tiktoken"
    path.write_bytes(b"\n".join(lines))
    try:
        tokenizer = Tokenizer.from_tiktoken(path, "gpt4", {"<s>": data.draw(st.integers(-1, 300))})
    except FormatError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return
    assert tokenizer.decode(tokenizer.encode("abba ab")) == "abba ab"


def b64(token: bytes) -> bytes:
    return base64.b64encode(token)


@pytest.mark.parametrize(("more", "special", "message"), [
    (b"!!!! 256\n", {}, "line 257: bad base64 b'!!!!'"),
    (b"YWI 256\n", {}, "line 257: bad base64"),
    (b"YWI=\n", {}, "line 257.*expected base64 and a rank"),
    (b"YWI= x\n", {}, "line 257.*expected base64 and a rank"),
    (b"YWI= -1\n", {}, "line 257.*expected base64 and a rank"),
    (b64(b"ab") + b" 256\n" + b64(b"ab") + b" 257\n", {}, "line 258: b'ab' is there twice, ranks 256 and 257"),
    (b64(b"ab") + b" 256\n" + b64(b"cd") + b" 256\n", {}, "line 258: rank 256 is taken by line 257"),
    (b64(b"ab") + b" 300\n", {}, "id 256 is missing: ids below 300 must be complete"),
    (b64(b"ab") + b" 256\n", {"<s>": 256}, "special token '<s>' has id 256, which is b'ab'"),
    (b64(b"ab") + b" 256\n", {"ab": 257}, "special token 'ab' is also the ordinary token 256"),
    (b64(b"ab") + b" 256\n", {"<s>": 257, "<t>": 257}, "special tokens '<s>' and '<t>' both have id 257"),
    (b64(b"ab") + b" 256\n", {"<s>": 10**9}, "far beyond"),
    (b64(b"ab") + b" 256\n", {"": 257}, "empty"),
    (b64(b"ab") + b" 256\n", {"\ud800": 257}, "surrogate"),
    (b" 256\n", {}, "line 257"),
    (b"%s %d\n" % (b64(b"ab"), 10**12), {}, "id 256 is missing"),
    (b"%s %d\n" % (b64(b"ab"), 10**30), {}, "expected base64 and a rank"),
])
def test_hostile_rank_files(more, special, message, tmp_path):
    (tmp_path / "x.tiktoken").write_bytes(BYTES + more)
    with pytest.raises(FormatError, match=message):
        Tokenizer.from_tiktoken(tmp_path / "x.tiktoken", "gpt4", special)


def test_rank_files_without_all_bytes_or_a_pattern(tmp_path):
    (tmp_path / "x.tiktoken").write_bytes(b"".join(BYTES.splitlines(keepends=True)[:-1]))
    with pytest.raises(FormatError, match="byte 0xff has no token"):
        Tokenizer.from_tiktoken(tmp_path / "x.tiktoken", "gpt4")
    with pytest.raises(FormatError, match="pass pattern="):
        Tokenizer.from_tiktoken(tmp_path / "x.tiktoken")
    (tmp_path / "x.tiktoken").write_bytes(b"")
    with pytest.raises(FormatError, match="no tokens"):
        Tokenizer.from_tiktoken(tmp_path / "x.tiktoken", "gpt4")


@pytest.mark.parametrize(("line", "message"), [
    ("t", "line 2: 't', expected two tokens"),
    ("t h e", "line 2: 't h e', expected two tokens"),
    ("t q", "line 2.*'tq' is not in the vocabulary"),
    ("Ġ", "line 2"),
])
def test_hostile_gpt2_files(line, message, tmp_path):
    Tokenizer.train("the cat sat on the mat", 270, "gpt2").to_gpt2(tmp_path / "vocab.bpe", tmp_path / "encoder.json")
    lines = (tmp_path / "vocab.bpe").read_text().split("\n")
    (tmp_path / "vocab.bpe").write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(FormatError, match=message):
        Tokenizer.from_gpt2(tmp_path / "vocab.bpe", tmp_path / "encoder.json")


@pytest.mark.parametrize(("tokens", "merges", "message"), [
    ({256: b"ab"}, [[97, 99, 256]], "merge 0 makes b'ab' of b'a' and b'c'"),
    ({256: b"ab"}, [[97, 98, 257]], "merge 0 names id 257"),
    ({256: b"ab"}, [[97, 256, 256]], "merge 0 makes"),
    ({256: b"ab", 257: b"ab"}, [], "ids 256 and 257 are both b'ab'"),
])
def test_contradictions_are_refused(tokens, merges, message):
    everything = {i: bytes([i]) for i in range(256)} | tokens
    with pytest.raises(FormatError, match=message):
        Vocabulary(everything, np.array(merges).reshape(-1, 3), {}, "gpt2")


def test_special_tokens_that_look_like_ordinary_ones_cannot_be_written(tmp_path):
    tokenizer = Tokenizer.train("a a a", 258, "gpt2", special_tokens=["Ġa"])
    with pytest.raises(FormatError, match="'Ġa' looks like token 256"):
        tokenizer.save(tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()
