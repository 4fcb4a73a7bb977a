"""tokenizer.json as public models have it, each layout with a small vocabulary: we encode as tokenizers does."""

import copy
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import PATTERNS, FormatError, Tokenizer, prepare

TEXT = """The quick brown fox jumps over the lazy dog; the dog's been sleeping, 'twas 12345 o'clock.\n\n    def f(x):
        return x  # <mask> ....  Größe, naïve, façade. 中文文本没有空格，標點不同。
Съешь ещё ２０ ½ ²\r\n\t 1999-2024!\n""" * 3


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def byte_level(prefix: bool = False, regex: bool = False) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(*steps: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(content: str, **switches: bool) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True} | switches
    return {"content": content, **flags}


DIGITS = {"type": "Digits", "individual_digits": True}
QWEN2 = PATTERNS["gpt4"].replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = PATTERNS["gpt4o"].replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPACES = [added(" " * n, special=False, normalized=True) for n in range(8, 1, -1)]

# name: (normalizer, pre_tokenizer, added tokens, changes to the model)
LAYOUTS = {
    "gpt2": (None, byte_level(regex=True), [added("<|endoftext|>", normalized=True)], {}),
    "roberta": (None, byte_level(prefix=False, regex=True), [
        *(added(name, normalized=True) for name in ("<s>", "<pad>", "</s>", "<unk>")), added("<mask>", lstrip=True),
    ], {"continuing_subword_prefix": "", "end_of_word_suffix": ""}),
    "roberta, spaces in front": (None, byte_level(prefix=True, regex=True), [added("<mask>", lstrip=True)], {}),
    "gpt-neox": ({"type": "NFC"}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
                 [added("<|endoftext|>"), *SPACES], {}),
    "modernbert": ({"type": "NFC"}, byte_level(regex=True), [added("[MASK]", lstrip=True), *SPACES], {}),
    "llama 3": (None, sequence(split(PATTERNS["gpt4"]), byte_level()), [added("<|begin_of_text|>")],
                {"ignore_merges": True}),
    "qwen2": ({"type": "NFC"}, sequence(split(QWEN2), byte_level()),
              [added("<|im_start|>"), added("<tool_call>", special=False)], {"byte_fallback": False}),
    "gpt-4o": (None, sequence(split(PATTERNS["gpt4o"], "Removed", invert=True), byte_level()),
               [added("<|endoftext|>")], {}),
    "mistral nemo": (None, sequence(split(TEKKEN), byte_level()), [added("[INST]"), added("</s>")],
                     {"ignore_merges": True}),
    "smollm, starcoder, command-r": (None, sequence(DIGITS, byte_level(regex=True)), [added("<|im_start|>")], {}),
    "deepseek v3": ({"type": "Sequence", "normalizers": []},
                    sequence(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), byte_level()),
                    [added("<｜begin▁of▁sentence｜>"), added("<think>", special=False, normalized=True)], {}),
    "deepseek coder": ({"type": "Sequence", "normalizers": []}, sequence(
        split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS, byte_level(),
    ), [added("<|EOT|>")], {}),
    "bloom": (None, sequence(split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), byte_level()), [added("<pad>")], {}),
    "every normal form": ({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "NFC"}]},
                          sequence({"type": "Punctuation", "behavior": "Contiguous"}, DIGITS, byte_level()),
                          [added("a½", normalized=True), added("éa", normalized=True, special=False)], {}),
    "every switch": (None, byte_level(regex=True), [
        added("one", single_word=True), added("<r>", rstrip=True), added("<b>", lstrip=True, rstrip=True),
        added("  ", normalized=True, special=False), added("the", special=False), added("éé", single_word=True),
    ], {}),
}


def layout(name: str) -> dict:
    normalizer, pre_tokenizer, tokens, model = copy.deepcopy(LAYOUTS[name])
    content = Tokenizer.train(TEXT, 420, special_tokens=()).to_huggingface()
    content |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    content["model"] |= model
    vocab = content["model"]["vocab"]
    for token in tokens:
        token["id"] = vocab.setdefault(token["content"], len(vocab))
    content["added_tokens"] = tokens
    return content


@pytest.fixture(params=LAYOUTS, scope="module")
def pair(request):
    """(our tokenizer, theirs, what to look for in texts)."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    content = layout(request.param)
    ours = Tokenizer.from_huggingface(content)
    again = json.dumps(ours.to_huggingface())
    assert Tokenizer.from_huggingface(json.loads(again)) == ours
    names = [token["content"] for token in content["added_tokens"]]
    return ours, tokenizers.Tokenizer.from_str(json.dumps(content)), tokenizers.Tokenizer.from_str(again), names


def is_settled(char: str) -> bool:
    """Whether every version of Unicode in use agrees on the character: theirs may be older than ours."""
    category = unicodedata.ucd_3_2_0.category(char)
    return category == unicodedata.category(char) and category not in ("Cn", "Cs")


words = st.sampled_from([*TEXT.split(), " ", "  ", "     ", "\n", "\t\u00a0", "\u3000", "_", "e\u0301", "a\u0323\u0307",
                         "ﬁ", "²", "ones", "One", "Å", "한국어", "\x1c", "(", "[.,", "中a", "12", "é"])  # fmt: skip


@given(data=st.data())
def test_layouts_of_public_models(pair, data):
    ours, theirs, written, names = pair
    items = data.draw(st.lists(st.one_of(words, st.sampled_from(names), st.text(max_size=3)), max_size=12))
    text = "".join(filter(is_settled, "".join(items)))
    ids = ours.encode(text, allowed_special="all").tolist()
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ids == written.encode(text, add_special_tokens=False).ids


def test_books_in_the_layouts_of_public_models(pair):
    ours, theirs, _, names = pair
    text = TEXT + "".join(f"a{name} {name}{name}\n" for name in names)
    ids = ours.encode(text, allowed_special="all").tolist()
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text.encode(), allowed_special="all").tolist() == ids


@given(data=st.binary(max_size=60), form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_normal_forms_leave_alone_what_is_no_text(data, form):
    content = Tokenizer.bytes().to_huggingface() | {"normalizer": {"type": form}}
    tokenizer = Tokenizer.from_huggingface(content)
    text = unicodedata.normalize(form, data.decode("utf-8", "surrogateescape"))
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == text.encode("utf-8", "surrogateescape")


@given(data=st.data(), form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_normal_forms_of_many_marks(data, form):
    marks = st.lists(st.sampled_from("\u0301\u0323\u0344\u0334\u3099\u0345\u0f73\u0f71"), max_size=9).map("".join)
    runs = st.tuples(st.sampled_from("aéǟ\u0301"), marks, st.integers(1, 9)).map(lambda run: run[0] + run[1] * run[2])
    text = "".join(data.draw(st.lists(runs, max_size=3)))
    assert prepare.normalize(text.encode(), (form,)).decode() == unicodedata.normalize(form, text)


def test_a_megabyte_of_marks_out_of_order():
    """Quadratic work would take hours."""
    text = "a" + "\u0301\u0323" * 250_000
    assert prepare.normalize(text.encode(), ("NFD",)).decode() == "a" + "\u0323" * 250_000 + "\u0301" * 250_000


def test_bytes_that_text_never_holds_may_lack_a_token():
    """GPT-NeoX's vocabulary has no 0xC0, 0xC1, 0xF5 to 0xFF."""
    content = Tokenizer.bytes().to_huggingface()
    vocab = content["model"]["vocab"]
    for char in "ÀÁõö÷øùúûüýþÿ":
        del vocab[char]
    content["model"]["vocab"] = {name: i for i, name in enumerate(vocab)}
    for token in content["added_tokens"]:
        token["id"] = content["model"]["vocab"][token["content"]]
    tokenizer = Tokenizer.from_huggingface(content)
    assert tokenizer.decode(tokenizer.encode("é中😀\U0010ffff")) == "é中😀\U0010ffff"
    with pytest.raises(ValueError, match="byte 0xff has no token"):
        tokenizer.encode(b"a\xff")
    with pytest.raises(FormatError, match="byte 0xc0 has no token"):
        tokenizer.to_tiktoken()


@pytest.mark.parametrize("name", ["qwen2", "gpt-neox", "roberta", "roberta, spaces in front"])
def test_other_formats_refuse_what_they_cannot_say(name, tmp_path):
    tokenizer = Tokenizer.from_huggingface(layout(name))
    with pytest.raises(FormatError, match=r"write tokenizer\.json"):
        tokenizer.to_tiktoken()
    with pytest.raises(FormatError, match=r"write tokenizer\.json"):
        tokenizer.to_gpt2(tmp_path / "vocab.bpe", tmp_path / "encoder.json")


def test_special_text_is_refused_in_either_form():
    """NFKC makes ordinary text of <|im_start|> in full-width characters: that must not slip through."""
    content = layout("qwen2") | {"normalizer": {"type": "NFKC"}}
    content["added_tokens"][0]["normalized"] = True
    tokenizer = Tokenizer.from_huggingface(content)
    wide = "".join(chr(ord(char) + 0xFEE0) for char in "<|im") + "_start|>"
    with pytest.raises(ValueError, match="holds the special token"):
        tokenizer.encode(wide)
    assert tokenizer.encode(wide, allowed_special="all").tolist() == [tokenizer.special_tokens["<|im_start|>"]]
    assert tokenizer.decode(tokenizer.encode("<tool_call>")) == "<tool_call>"
    assert len(tokenizer.encode("<tool_call>")) == 1


@pytest.mark.parametrize("shift", [0, 1])
def test_ids_of_added_tokens_are_those_that_tokenizers_gives(shift):
    """It counts on from the vocabulary for tokens that stand outside it, whatever id the file says."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    content = Tokenizer.bytes(special_tokens=()).to_huggingface()
    content["added_tokens"] = [{**added(name), "id": 256 + shift + i} for i, name in enumerate(["<a>", "<b>"])]
    assert tokenizers.Tokenizer.from_str(json.dumps(content)).encode("<a><b>").ids == [256, 257]
    if shift:
        with pytest.raises(FormatError, match=r"added_tokens\[0\]: '<a>' has id 257, where tokenizers would count 256"):
            Tokenizer.from_huggingface(content)
    else:
        assert Tokenizer.from_huggingface(content).special_tokens == {"<a>": 256, "<b>": 257}
