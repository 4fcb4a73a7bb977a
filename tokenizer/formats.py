"""Vocabularies on disk: Hugging Face's tokenizer.json, GPT-2's pair of files, tiktoken's rank files.

    tokenizer.json               vocabulary, merges, split pattern and special tokens, all in one JSON object
    vocab.bpe + encoder.json     merges, one a line, and {token: id}; also called merges.txt and vocab.json
    *.tiktoken                   one line a token: base64 of its bytes, and its rank, which is its id

All but the last write bytes as visible characters, GPT-2's way: " the" is "Ġthe".

A file is not trusted. Whatever contradicts itself raises `FormatError`, which names the file and the line, token
or merge at fault; what we would encode differently from the tool the file was written for is refused, not
approximated.

**Merges or ranks.** Hugging Face keeps a list of pairs and joins the pair that stands first in it. tiktoken keeps
only ranks of tokens and joins the two neighbours whose concatenation has the lowest rank, whether or not training ever
joined just these two; and a piece that is a token it never takes apart. One can stand for the other, since of all pairs
whose concatenation is a token t just one is ever joined: the last two that remain when t's bytes are encoded alone.
Proof: say that a and b are joined to t somewhere in a text. No merge so far crossed the edges of a + b, so within them
the same merges happened, in the same order, as when t's bytes are alone; and there, two tokens remain only once. So for
each token, shortest first, `_find_merges` encodes its bytes with the pairs known so far. Tokens that more than two
remain of are reached only as whole pieces (`whole_pieces`; in tokenizer.json, `ignore_merges`): Llama 3 has some.

**Of tokenizer.json** this reads what byte-level vocabularies use: added tokens with all their switches; normalizers
NFC, NFD, NFKC, NFKD and sequences of them; pre-tokenizers Split, Digits, Punctuation and sequences of them, with
ByteLevel at the end. Other steps are refused. What is done to finished ids (templates that add tokens around a text,
truncation, padding) is not read: our ids are those of `encode(text, add_special_tokens=False)`.

Left out here: formats that are not byte-level BPE (SentencePiece, WordPiece).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import regex

from . import naive, pretokenize
from .vocabulary import FORMS, AddedToken, FormatError, Vocabulary

# GPT-2's visible bytes: the first 188 of the alphabet stand for themselves, the others follow from U+0100 on.
CHAR_OF_BYTE = {byte: chr(byte if place < 188 else place + 68) for place, byte in enumerate(naive.BYTES_IN_ORDER)}
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}

# A class within a class is a union to Oniguruma, which tokenizers uses; BLOOM's files hold one.
UNIONS = {" ?[^(\\s|[.,!?…。，、।۔،])]+": " ?[^(\\s|.,!?…。，、।۔،)]+"}

ASCII_SYMBOLS = r"$+<=>\^`|~"  # punctuation to tokenizers, though Unicode calls them symbols


# ---- Hugging Face ----


def read_huggingface(source: str | os.PathLike | Mapping[str, Any]) -> Vocabulary:
    """What a tokenizer.json holds, given as a path or parsed."""
    where = "tokenizer.json" if isinstance(source, Mapping) else os.fspath(source)
    content = source if isinstance(source, Mapping) else _read_json(source)
    model = _get(content, "model", dict, where)
    if model.get("type", "BPE") != "BPE":
        raise FormatError(f"{where}: model.type is {model['type']!r}, expected 'BPE'")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(key):
            raise FormatError(f"{where}: model.{key} is {model[key]!r}, which byte-level BPE does not have")
    normalizer = tuple(_read_normalizer(content.get("normalizer"), f"{where}: normalizer"))
    vocab = _get(model, "vocab", dict, where)
    added = _read_added(_get(content, "added_tokens", list, where), vocab, f"{where}: added_tokens")
    if not normalizer and all(token.normalized for token in added.values()):  # then it makes no difference
        added = {name: token._replace(normalized=False) for name, token in added.items()}
    pattern, prefix_space = _read_pre_tokenizer(content.get("pre_tokenizer"), f"{where}: pre_tokenizer")

    pairs = []
    for i, merge in enumerate(_get(model, "merges", list, f"{where}: model")):
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)]:
                pairs.append((f"{where}: model.merges[{i}]", left, right))
            case _:
                raise FormatError(f"{where}: model.merges[{i}] is {merge!r}, expected a pair of tokens")
    tokens, ids = _read_vocab(vocab, added, f"{where}: model.vocab")
    merges = _read_merges(pairs, ids)
    return _made(where, tokens, merges, added, pattern, _flag(model, "ignore_merges", where), normalizer, prefix_space)


def write_huggingface(vocabulary: Vocabulary, path: str | os.PathLike | None = None) -> dict[str, Any]:
    """tokenizer.json as an object, written to `path` where one is given."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": vocabulary.prefix_space, "trim_offsets": True}
    patterns = (vocabulary.pattern,) if isinstance(vocabulary.pattern, str) else vocabulary.pattern or ()
    if vocabulary.prefix_space and patterns not in ((), (pretokenize.GPT2,)):
        raise FormatError("tokenizer.json has prefix spaces only with GPT-2's pattern or none; pass prefix_space=False")
    own = patterns[-1:] == (pretokenize.GPT2,)  # ByteLevel's own
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (patterns[:-1] if own else patterns)
    ]
    steps.append(byte_level | {"use_regex": own})
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token.id, "content": name, "single_word": token.single_word, "lstrip": token.lstrip,
             "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special}
            for name, token in vocabulary.added.items()
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": form} for form in vocabulary.normalizer]}
        if vocabulary.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.whole_pieces,
            "vocab": _write_vocab(vocabulary),
            "merges": [list(pair) for pair in _write_merges(vocabulary)],
        },
    }
    if path is not None:
        _write(path, json.dumps(content, ensure_ascii=False, indent=1))
    return content


def _read_added(items: list[Any], vocab: Mapping[str, Any], where: str) -> dict[str, AddedToken]:
    """Added tokens by name. Those outside the vocabulary count on from it to tokenizers, so they have to here."""
    added: dict[str, AddedToken] = {}
    following = len(vocab)
    for i, item in enumerate(items):
        place = f"{where}[{i}]"
        name, number = _get(item, "content", str, place), _get(item, "id", int, place)
        if name in added:
            raise FormatError(f"{place}: {name!r} is there twice")
        if name not in vocab and number != following:
            raise FormatError(f"{place}: {name!r} has id {number}, where tokenizers would count {following}")
        following = max(following, number + 1)
        special = _flag(item, "special", place)
        added[name] = AddedToken(
            number, special, _flag(item, "normalized", place, not special),
            **{switch: _flag(item, switch, place) for switch in ("lstrip", "rstrip", "single_word")},
        )  # fmt: skip
    return added


def _steps(step: Any, parts: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """(place, step) of a step, or of all steps in a sequence of steps, which stand under the key `parts`."""
    steps, waiting = [], [(where, step)]
    while waiting:
        place, step = waiting.pop()
        if not isinstance(step, Mapping) or not isinstance(step.get("type"), str):
            raise FormatError(f"{place} is {step!r}, expected an object with a type")
        if step["type"] == "Sequence":
            inner = list(enumerate(_get(step, parts, list, place)))
            waiting += [(f"{place}.{parts}[{i}]", part) for i, part in reversed(inner)]
        else:
            steps.append((place, dict(step)))
    return steps


def _read_normalizer(normalizer: Any, where: str) -> Iterator[str]:
    """The normal forms that a normalizer amounts to."""
    for place, step in _steps(normalizer, "normalizers", where) if normalizer is not None else ():
        if step["type"] not in FORMS:
            raise FormatError(f"{place}: {step['type']!r} is not supported, expected one of {', '.join(FORMS)}")
        yield step["type"]


def _read_pre_tokenizer(pre_tokenizer: Any, where: str) -> tuple[pretokenize.Pattern, bool]:
    """(the split pattern that a pre_tokenizer amounts to, whether it puts spaces in front)."""
    steps = _steps(pre_tokenizer, "pretokenizers", where)
    if not steps or steps[-1][1]["type"] != "ByteLevel":
        found = ", ".join(step["type"] for _, step in steps)
        raise FormatError(f"{where} is made of {found!r}, expected ByteLevel at the end")
    *splits, (place, last) = steps
    patterns = [_read_split(step, place) for place, step in splits]
    prefix_space = _flag(last, "add_prefix_space", place, True)
    if prefix_space and patterns:
        raise FormatError(f"{place}: add_prefix_space after a split is not supported")
    if _flag(last, "use_regex", place, True):
        patterns.append(pretokenize.GPT2)
    return pretokenize.resolve(patterns), prefix_space


def _read_split(step: dict[str, Any], where: str) -> str:
    """The expression whose matches, and what lies between them, are the pieces that a pre-tokenizer cuts."""
    behavior, inverted = step.get("behavior", "Isolated"), False
    match step["type"]:
        case "Digits":
            return r"\p{N}" if _flag(step, "individual_digits", where) else r"\p{N}+"
        case "Punctuation" if behavior in ("Isolated", "Contiguous"):
            return rf"[\p{{P}}{ASCII_SYMBOLS}]" + ("+" if behavior == "Contiguous" else "")
        case "Split":
            expression, inverted = _read_expression(step.get("pattern"), where), _flag(step, "invert", where)
            complete = expression in pretokenize.PATTERNS.values()  # matches everything, so nothing is there to remove
            if (behavior, inverted) == ("Isolated", False) or (complete and (behavior, inverted) == ("Removed", True)):
                return expression
    how = f"{step['type']!r} with behavior {behavior!r}" + (", invert" if inverted else "")
    raise FormatError(f"{where}: {how} is not supported, expected Split, Digits, Punctuation, isolated")


def _read_expression(pattern: Any, where: str) -> str:
    if not isinstance(pattern, Mapping) or not isinstance(text := pattern.get("Regex", pattern.get("String")), str):
        raise FormatError(f"{where}: pattern is {pattern!r}, expected a Regex or a String")
    if "Regex" not in pattern:
        text = f"(?:{regex.escape(text)})"
    elif len(text) > 1 << 14:
        raise FormatError(f"{where}: a Regex of {len(text)} characters is not supported")
    text = UNIONS.get(str(text), str(text))
    try:
        pretokenize.check_portable(text)
        resolved = pretokenize.resolve(text)
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from None
    return str(resolved)


# ---- GPT-2 ----


def read_gpt2(vocab_bpe: str | os.PathLike, encoder_json: str | os.PathLike) -> Vocabulary:
    """What vocab.bpe (merges.txt) and encoder.json (vocab.json) hold."""
    where = os.fspath(vocab_bpe)
    lines = _read_text(vocab_bpe).split("\n")
    pairs: list[tuple[str, str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not (left and right) or " " in right:
            raise FormatError(f"{where}, line {number}: {line!r}, expected two tokens")
        pairs.append((f"{where}, line {number}", left, right))
    vocab, where = _read_json(encoder_json), os.fspath(encoder_json)
    made = {left + right for _, left, right in pairs}
    added = {name: AddedToken(token) for name, token in vocab.items()
             if len(name) > 1 and name not in made and isinstance(token, int)}
    tokens, ids = _read_vocab(vocab, added, where)
    return _made(where, tokens, _read_merges(pairs, ids), added, pretokenize.GPT2)


def write_gpt2(vocabulary: Vocabulary, vocab_bpe: str | os.PathLike, encoder_json: str | os.PathLike) -> None:
    """Write vocab.bpe and encoder.json, which have no place for a pattern: it must be GPT-2's."""
    _only_special(vocabulary, "vocab.bpe and encoder.json")
    if vocabulary.pattern != pretokenize.GPT2 or vocabulary.whole_pieces:
        raise FormatError("vocab.bpe and encoder.json imply GPT-2's pattern; write tokenizer.json for any other")
    if len({new for _, _, new in vocabulary.merges.tolist()}) != len(vocabulary.tokens) - 256:
        raise FormatError("vocab.bpe and encoder.json cannot tell tokens without a merge from special tokens")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in _write_merges(vocabulary))]
    vocab = _write_vocab(vocabulary)
    _write(vocab_bpe, "\n".join(lines) + "\n")
    _write(encoder_json, json.dumps(vocab))


# ---- tiktoken ----


def read_tiktoken(source: Any, pattern: str | None, special_tokens: Mapping[str, int] | None) -> Vocabulary:
    """What a rank file holds, or a tiktoken.Encoding."""
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(source)
        if pattern is None:
            raise FormatError(f"{where}: a rank file does not say how text is split; pass pattern=, such as 'gpt4'")
        ranks = _read_ranks(source)
    else:
        where = f"tiktoken encoding {source.name!r}"
        ranks, pattern = source._mergeable_ranks, pattern or source._pat_str
        special_tokens = source._special_tokens if special_tokens is None else special_tokens
    tokens = {rank: data for data, rank in ranks.items()}
    added = {name: AddedToken(token) for name, token in (special_tokens or {}).items()}
    vocabulary = _made(where, tokens, np.empty((0, 3)), added, pattern, True)
    if missing := vocabulary.missing_bytes():
        raise FormatError(f"{where}: byte {missing[0]:#04x} has no token")
    merges = _find_merges(tokens)
    reached = merges[merges[:, 0] >= 0]
    return _made(where, tokens, reached, added, pattern, len(reached) < len(merges))


def write_tiktoken(vocabulary: Vocabulary, path: str | os.PathLike | None = None) -> dict[str, Any]:
    """The arguments of `tiktoken.Encoding`; FormatError where ranks cannot say what the merges say."""
    _only_special(vocabulary, "a rank file")
    tokens, pattern = vocabulary.tokens, vocabulary.pattern
    if missing := vocabulary.missing_bytes():
        raise FormatError(f"byte {missing[0]:#04x} has no token, which a rank file must have")
    if isinstance(pattern, tuple):
        raise FormatError("tiktoken splits by one pattern; write tokenizer.json for several")
    places = {(left, right): i for i, (left, right, _) in enumerate(vocabulary.merges.tolist())}
    last = -1
    for left, right, token in _find_merges(tokens).tolist():
        what = f"token {token}, {tokens[token]!r}"
        if left < 0 and not vocabulary.whole_pieces:
            raise FormatError(f"{what}, is not what its bytes merge to; tiktoken would differ")
        if left >= 0 and (left, right) not in places:
            raise FormatError(f"{what}, is not made of {left} and {right}; tiktoken would differ")
        if left >= 0 and places[left, right] < last:
            raise FormatError(f"{what}, is made by merge {places[left, right]} after merge {last}; "
                              "in a rank file ids are ranks")
        last = places.get((left, right), last)
    if path is not None:
        _write(path, "".join(f"{base64.b64encode(tokens[token]).decode()} {token}\n" for token in sorted(tokens)))
    return {
        "name": f"groundup-{vocabulary.hash()[:8]}",
        "pat_str": pattern if pattern is not None else r"[\s\S]+",
        "mergeable_ranks": {data: token for token, data in tokens.items()},
        "special_tokens": vocabulary.special_tokens(),
    }


def _find_merges(tokens: Mapping[int, bytes]) -> np.ndarray:
    """The merge of each ranked token, (M, 3) in order of rank; left and right are -1 where there is none."""
    from . import merge

    order = sorted((token for token, data in tokens.items() if len(data) > 1), key=lambda token: len(tokens[token]))
    merges = np.empty((len(order), 3), dtype=np.int64)
    tables = merge.make_tables(tokens, merges[:0])
    scratch = merge.Scratch.make(max(map(len, tokens.values())))
    merge.find_merges(np.array(order, dtype=np.int64), tables, scratch, merges)
    return merges[np.argsort(merges[:, 2])]


def _read_ranks(path: str | os.PathLike) -> dict[bytes, int]:
    where = os.fspath(path)
    ranks: dict[bytes, int] = {}
    lines_of: dict[int, int] = {}
    for number, line in enumerate(_read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit() or len(fields[1]) > 18:
            raise FormatError(f"{where}, line {number}: {line[:60]!r}, expected base64 and a rank")
        try:
            data = base64.b64decode(fields[0], validate=True)
        except binascii.Error as error:
            raise FormatError(f"{where}, line {number}: bad base64 {fields[0][:60]!r}: {error}") from None
        rank = int(fields[1])
        if data in ranks:
            raise FormatError(f"{where}, line {number}: {data!r} is there twice, ranks {ranks[data]} and {rank}")
        if rank in lines_of:
            raise FormatError(f"{where}, line {number}: rank {rank} is taken by line {lines_of[rank]}")
        ranks[data] = rank
        lines_of[rank] = number
    if not ranks:
        raise FormatError(f"{where}: no tokens in it")
    return ranks


# ---- what the formats share ----


def _made(where: str, *parts: Any) -> Vocabulary:
    """`Vocabulary`, whose complaints name the file."""
    try:
        return Vocabulary(*parts)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None
    except OverflowError:
        raise FormatError(f"{where}: an id does not fit into 64 bits") from None


def _only_special(vocabulary: Vocabulary, what: str) -> None:
    """Refuse what only tokenizer.json has a place for."""
    if vocabulary.normalizer or vocabulary.prefix_space:
        raise FormatError(f"{what} cannot say that text is normalized or gets a space in front; write tokenizer.json")
    for name, token in vocabulary.added.items():
        if token != AddedToken(token.id):
            raise FormatError(f"{what} cannot say how added token {name!r} is read; write tokenizer.json")


def _write(path: str | os.PathLike, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = Path(f"{os.fspath(path)}.unfinished")
    unfinished.write_bytes(text.encode("utf-8"))
    unfinished.replace(path)


def _read_bytes(path: str | os.PathLike) -> bytes:
    return Path(path).read_bytes()


def _read_text(path: str | os.PathLike) -> str:
    data = _read_bytes(path)
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{os.fspath(path)}: not UTF-8 at byte {error.start}") from None


def _read_json(path: str | os.PathLike) -> dict[str, Any]:
    where = os.fspath(path)

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) < len(items):
            keys: set[str] = set()
            twice = next(key for key, _ in items if key in keys or keys.add(key))  # type: ignore[func-returns-value]
            raise FormatError(f"{where}: {twice!r} is there twice")
        return out

    try:
        content = json.loads(_read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise FormatError(f"{where}, line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise FormatError(f"{where}: nested too deeply") from None
    except FormatError:
        raise
    except ValueError as error:  # Python refuses to read integers of thousands of digits
        raise FormatError(f"{where}: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content


def _get(content: Any, key: str, kind: type, where: str) -> Any:
    value = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FormatError(f"{where}: {key} is {value!r}, expected {kind.__name__}")
    return value


def _flag(content: Mapping[str, Any], key: str, where: str, default: bool = False) -> bool:
    value = content.get(key)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{where}: {key} is {value!r}, expected true or false")
    return default if value is None else value


def _read_vocab(
    vocab: Mapping[str, Any], added: Mapping[str, AddedToken], where: str
) -> tuple[dict[int, bytes], dict[str, int]]:
    """({id: bytes}, {visible text: id}) of the ordinary tokens."""
    tokens: dict[int, bytes] = {}
    ids: dict[str, int] = {}
    for name, token in vocab.items():
        if not isinstance(token, int) or isinstance(token, bool):
            raise FormatError(f"{where}: {name!r} has id {token!r}, expected an integer")
        if name in added:
            if added[name].id != token:
                raise FormatError(f"{where}: special token {name!r} has ids {added[name].id} and {token}")
            if added[name].special or not (name.isascii() and BYTE_OF_CHAR.keys() >= set(name)):
                continue  # else it is an ordinary token, too, which merges may make
        if token in tokens:
            raise FormatError(f"{where}: id {token} is both {to_visible(tokens[token])!r} and {name!r}")
        try:
            tokens[token] = bytes([BYTE_OF_CHAR[char] for char in name])
        except KeyError as error:
            raise FormatError(f"{where}: {name!r} holds {error.args[0]!r}, which stands for no byte") from None
        ids[name] = token
    if not tokens:
        raise FormatError(f"{where}: no tokens in it")
    return tokens, ids


def _read_merges(pairs: list[tuple[str, str, str]], ids: Mapping[str, int]) -> np.ndarray:
    merges = np.empty((len(pairs), 3), dtype=np.int64)
    for i, (place, left, right) in enumerate(pairs):
        for name in (left, right, left + right):
            if name not in ids:
                raise FormatError(f"{place}: {left!r} and {right!r}: {name!r} is not in the vocabulary")
        merges[i] = ids[left], ids[right], ids[left + right]
    return merges


def to_visible(data: bytes) -> str:
    """Bytes as GPT-2's visible characters."""
    return "".join(CHAR_OF_BYTE[byte] for byte in data)


def _write_vocab(vocabulary: Vocabulary) -> dict[str, int]:
    vocab = {to_visible(data): token for token, data in sorted(vocabulary.tokens.items())}
    for name, token in vocabulary.added.items():
        if vocab.get(name, token.id) != token.id:
            raise FormatError(f"special token {name!r} looks like token {vocab[name]} in visible form; rename it")
        vocab[name] = token.id
    return dict(sorted(vocab.items(), key=lambda item: item[1]))


def _write_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    visible = {token: to_visible(data) for token, data in vocabulary.tokens.items()}
    return [(visible[left], visible[right]) for left, right, _ in vocabulary.merges.tolist()]
