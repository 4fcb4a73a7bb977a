"""Vocabularies on disk: Hugging Face's tokenizer.json, GPT-2's pair of files, tiktoken's rank files.

    tokenizer.json               vocabulary, merges, split pattern and special tokens, all in one JSON object
    vocab.bpe + encoder.json     merges, one a line, and {token: id}; also called merges.txt and vocab.json
    *.tiktoken                   one line a token: base64 of its bytes, and its rank, which is its id

All but the last write bytes as visible characters, GPT-2's way: " the" is "Ġthe".

A file is not trusted. Whatever contradicts itself raises `FormatError`, which names the file and the line, token
or merge at fault; what we would encode differently from the tool the file was written for is refused, not
approximated.

**Merges or ranks.** Hugging Face keeps a list of pairs and joins the pair that stands first in it. tiktoken keeps
only ranks of tokens and joins the two neighbours whose concatenation has the lowest rank, whether or not training
ever joined just these two. Both give the same ids when (1) every token has one merge, (2) ids rise in order of
merges and (3) every token's own bytes encode to that token. Proof: say two neighbours a, b whose concatenation is a
token t stand side by side, though t's merge is of another pair. No merge so far crossed the edges of a + b, so the
same merges happen when t's bytes are encoded alone. There a and b would stay apart for good, but (3) says that they
end as t. Vocabularies learned by BPE have these properties; `write_tiktoken` checks them.

Left out here: formats that are not byte-level BPE (SentencePiece, WordPiece). Of tokenizer.json, what changes the text
(normalizers, prefix spaces) is refused; what is done to finished ids (templates that add tokens around a text,
truncation, padding) is not read: our ids are those of `encode(text, add_special_tokens=False)`. Of rank files, those
with tokens that no two lower tokens make are refused, since no list of merges could stand for them.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from . import naive, pretokenize

if TYPE_CHECKING:
    from .bpe import Tokenizer

# GPT-2's visible bytes: the first 188 of the alphabet stand for themselves, the others follow from U+0100 on.
CHAR_OF_BYTE = {byte: chr(byte if place < 188 else place + 68) for place, byte in enumerate(naive.BYTES_IN_ORDER)}
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}


class FormatError(ValueError):
    """A vocabulary that contradicts itself, or a file that cannot be read as one. One line, names the place."""


def check(tokens: Mapping[int, bytes], merges: np.ndarray, special_tokens: Mapping[str, int]) -> None:
    """Raise `FormatError` unless tokens, merges and special tokens fit together (see `Tokenizer.__init__`)."""
    ids: dict[bytes, int] = {}
    for token, data in tokens.items():
        if not data:
            raise FormatError(f"token {token} is empty")
        if data in ids:
            raise FormatError(f"ids {ids[data]} and {token} are both {data!r}")
        ids[data] = token
    for byte in range(256):
        if bytes([byte]) not in ids:
            raise FormatError(f"byte {byte:#04x} has no token: byte-level BPE needs all 256")

    names: dict[int, str] = {}
    for name, token in special_tokens.items():
        if token in tokens:
            raise FormatError(f"special token {name!r} has id {token}, which is {tokens[token]!r}")
        if token in names:
            raise FormatError(f"special tokens {names[token]!r} and {name!r} both have id {token}")
        if name.encode("utf-8", "surrogatepass") in ids:
            raise FormatError(f"special token {name!r} is also the ordinary token {ids[name.encode()]}")
        if not name:
            raise FormatError(f"special token {token} is empty")
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise FormatError(f"special token {name!r} holds a lone surrogate")
        names[token] = name

    last = max(tokens)
    if len(tokens) + sum(token < last for token in names) <= last or min([*tokens, *names]) < 0:
        lowest = min([*tokens, *names])
        if lowest < 0:
            raise FormatError(f"id {lowest} is negative")
        gap = next(i for i in range(last) if i not in tokens and i not in names)
        raise FormatError(f"id {gap} is missing: ids below {last} must be complete")
    if names and max(names) > last + (1 << 20):
        raise FormatError(f"special token {names[max(names)]!r} has id {max(names)}, far beyond the last token, {last}")

    seen: dict[tuple[int, int], int] = {}
    for i, (left, right, new) in enumerate(merges.tolist()):
        for token in (left, right, new):
            if token not in tokens:
                raise FormatError(f"merge {i} names id {token}, which is no ordinary token")
        if tokens[left] + tokens[right] != tokens[new]:
            raise FormatError(f"merge {i} makes {tokens[new]!r} of {tokens[left]!r} and {tokens[right]!r}")
        if (left, right) in seen:
            raise FormatError(f"merges {seen[left, right]} and {i} both join {tokens[left]!r} and {tokens[right]!r}")
        seen[left, right] = i


# ---- Hugging Face ----


def read_huggingface(source: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Tokenizer` from a tokenizer.json, given as a path or parsed."""
    where = "tokenizer.json" if isinstance(source, Mapping) else os.fspath(source)
    content = source if isinstance(source, Mapping) else _read_json(source)
    model = _get(content, "model", dict, where)
    if model.get("type", "BPE") != "BPE":
        raise FormatError(f"{where}: model.type is {model['type']!r}, expected 'BPE'")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(key):
            raise FormatError(f"{where}: model.{key} is {model[key]!r}, which byte-level BPE does not have")
    if content.get("normalizer"):
        raise FormatError(f"{where}: normalizer {content['normalizer']!r:.60} would change the text; not supported")

    special_tokens: dict[str, int] = {}
    for i, token in enumerate(_get(content, "added_tokens", list, where)):
        place = f"{where}: added_tokens[{i}]"
        name, number = _get(token, "content", str, place), _get(token, "id", int, place)
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise FormatError(f"{place}: {name!r} has {flag} set, which is not supported")
        if not token.get("special", False):
            raise FormatError(f"{place}: {name!r} is an added token that is not special, which is not supported")
        if name in special_tokens:
            raise FormatError(f"{place}: {name!r} is there twice")
        special_tokens[name] = number

    pairs = []
    for i, merge in enumerate(_get(model, "merges", list, f"{where}: model")):
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)]:
                pairs.append((f"{where}: model.merges[{i}]", left, right))
            case _:
                raise FormatError(f"{where}: model.merges[{i}] is {merge!r}, expected a pair of tokens")
    tokens, ids = _read_vocab(_get(model, "vocab", dict, where), special_tokens, f"{where}: model.vocab")
    return {
        "tokens": tokens,
        "merges": _read_merges(pairs, ids),
        "special_tokens": special_tokens,
        "pattern": _read_pattern(content.get("pre_tokenizer"), where),
        "whole_pieces": bool(model.get("ignore_merges")),
    }


def write_huggingface(tokenizer: Tokenizer, path: str | os.PathLike | None = None) -> dict[str, Any]:
    """tokenizer.json as an object, written to `path` where one is given."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if tokenizer.pattern == pretokenize.GPT2:
        pre_tokenizer = byte_level | {"use_regex": True}
    elif tokenizer.pattern is None:
        pre_tokenizer = byte_level | {"use_regex": False}
    else:
        split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, byte_level | {"use_regex": False}]}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for name, token in tokenizer.special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
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
            "ignore_merges": tokenizer.whole_pieces,
            "vocab": _write_vocab(tokenizer),
            "merges": [list(pair) for pair in _write_merges(tokenizer)],
        },
    }
    if path is not None:
        _write(path, json.dumps(content, ensure_ascii=False, indent=1))
    return content


def _read_pattern(pre_tokenizer: Any, where: str) -> str | None:
    """The split pattern that a pre_tokenizer amounts to; FormatError for those we would not split alike."""
    where = f"{where}: pre_tokenizer"
    if not isinstance(pre_tokenizer, dict):
        raise FormatError(f"{where} is {pre_tokenizer!r}, expected ByteLevel")
    parts = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise FormatError(f"{where} is not a list of objects")
    *splits, byte_level = parts
    if byte_level.get("type") != "ByteLevel":
        raise FormatError(f"{where} ends with {byte_level.get('type')!r}, expected ByteLevel")
    if byte_level.get("add_prefix_space", True):
        raise FormatError(f"{where}: add_prefix_space would change the text; not supported")
    if byte_level.get("use_regex", True):
        splits.append({"type": "Split", "pattern": {"Regex": pretokenize.GPT2}, "behavior": "Isolated"})
    if not splits:
        return None
    if len(splits) > 1 or splits[0].get("type") != "Split":
        kinds = ", ".join(str(part.get("type")) for part in splits)
        raise FormatError(f"{where} splits by {kinds}; one Split is supported")
    pattern = splits[0].get("pattern")
    if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        expression = pattern["Regex"]
    elif isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
        expression = regex.escape(pattern["String"])
    else:
        raise FormatError(f"{where}: Split has no pattern")
    try:
        resolved = pretokenize.resolve(expression)
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from None
    behavior = (splits[0].get("behavior"), bool(splits[0].get("invert", False)))
    complete = resolved in pretokenize.PATTERNS.values()  # matches every character, so nothing is there to remove
    if behavior != ("Isolated", False) and not (behavior == ("Removed", True) and complete):
        raise FormatError(f"{where}: Split with behavior {behavior[0]!r}, invert {behavior[1]} is not supported")
    return resolved


# ---- GPT-2 ----


def read_gpt2(vocab_bpe: str | os.PathLike, encoder_json: str | os.PathLike) -> dict[str, Any]:
    """The arguments of `Tokenizer` from vocab.bpe (merges.txt) and encoder.json (vocab.json)."""
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
    vocab = _read_json(encoder_json)
    made = {left + right for _, left, right in pairs}
    special = {name: token for name, token in vocab.items()
               if len(name) > 1 and name not in made and isinstance(token, int)}
    tokens, ids = _read_vocab(vocab, special, os.fspath(encoder_json))
    return {"tokens": tokens, "merges": _read_merges(pairs, ids), "special_tokens": special, "pattern": "gpt2"}


def write_gpt2(tokenizer: Tokenizer, vocab_bpe: str | os.PathLike, encoder_json: str | os.PathLike) -> None:
    """Write vocab.bpe and encoder.json, which have no place for a pattern: it must be GPT-2's."""
    if tokenizer.pattern != pretokenize.GPT2 or tokenizer.whole_pieces:
        raise FormatError("vocab.bpe and encoder.json imply GPT-2's pattern; write tokenizer.json for any other")
    if len({new for _, _, new in tokenizer.merges.tolist()}) != len(tokenizer._tokens) - 256:
        raise FormatError("vocab.bpe and encoder.json cannot tell tokens without a merge from special tokens")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in _write_merges(tokenizer))]
    vocab = _write_vocab(tokenizer)
    _write(vocab_bpe, "\n".join(lines) + "\n")
    _write(encoder_json, json.dumps(vocab))


# ---- tiktoken ----


def read_tiktoken(source: Any, pattern: str | None, special_tokens: Mapping[str, int] | None) -> dict[str, Any]:
    """The arguments of `Tokenizer` from a rank file, or from a tiktoken.Encoding.

    Ranks name no merges; a token's merge is the pair that is left when its bytes are encoded with the lower ranks.
    """
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
    check(tokens, np.empty((0, 3), dtype=np.int64), special_tokens or {})
    return {
        "tokens": tokens,
        "merges": _find_merges(tokens, where),
        "special_tokens": special_tokens or {},
        "pattern": pattern,
    }


def write_tiktoken(tokenizer: Tokenizer, path: str | os.PathLike | None = None) -> dict[str, Any]:
    """The arguments of `tiktoken.Encoding`; FormatError where ranks cannot say what the merges say."""
    tokens = tokenizer._tokens
    made = tokenizer.merges[:, 2]
    if np.any(np.diff(made) <= 0):
        i = int(np.argmax(np.diff(made) <= 0)) + 1
        raise FormatError(f"merge {i} makes token {made[i]} after token {made[i - 1]}; in a rank file ids are ranks")
    token = tokenizer.first_unreachable_token()
    if token is not None:
        raise FormatError(f"token {token}, {tokens[token]!r}, is not what its bytes merge to; tiktoken would differ")
    if path is not None:
        _write(path, "".join(f"{base64.b64encode(tokens[token]).decode()} {token}\n" for token in sorted(tokens)))
    return {
        "name": f"groundup-{tokenizer.hash()[:8]}",
        "pat_str": tokenizer.pattern if tokenizer.pattern is not None else r"[\s\S]+",
        "mergeable_ranks": {data: token for token, data in tokens.items()},
        "special_tokens": tokenizer.special_tokens,
    }


def _find_merges(tokens: Mapping[int, bytes], where: str) -> np.ndarray:
    """Merges (M, 3) of ranked tokens, in order of rank."""
    from . import merge

    order = np.array(sorted(token for token, data in tokens.items() if len(data) > 1), dtype=np.int64)
    merges = np.empty((len(order), 3), dtype=np.int64)
    tables = merge.make_tables(tokens, merges[:0])
    scratch = merge.Scratch.make(max(map(len, tokens.values())))
    found = merge.find_merges(order, tables, scratch, merges)
    if found < len(order):
        token = int(order[found])
        raise FormatError(f"{where}: token {token}, {tokens[token]!r}, is not made of two tokens of lower rank")
    return merges


def _read_ranks(path: str | os.PathLike) -> dict[bytes, int]:
    where = os.fspath(path)
    ranks: dict[bytes, int] = {}
    lines_of: dict[int, int] = {}
    for number, line in enumerate(_read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit():
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
    if not isinstance(content, dict):
        raise FormatError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content


def _get(content: Any, key: str, kind: type, where: str) -> Any:
    value = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FormatError(f"{where}: {key} is {value!r:.60}, expected {kind.__name__}")
    return value


def _read_vocab(
    vocab: Mapping[str, Any], special_tokens: Mapping[str, int], where: str
) -> tuple[dict[int, bytes], dict[str, int]]:
    """({id: bytes}, {visible text: id}) of the ordinary tokens."""
    tokens: dict[int, bytes] = {}
    ids: dict[str, int] = {}
    for name, token in vocab.items():
        if not isinstance(token, int) or isinstance(token, bool):
            raise FormatError(f"{where}: {name!r} has id {token!r:.60}, expected an integer")
        if name in special_tokens:
            if special_tokens[name] != token:
                raise FormatError(f"{where}: special token {name!r} has ids {special_tokens[name]} and {token}")
            continue
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


def _write_vocab(tokenizer: Tokenizer) -> dict[str, int]:
    vocab = {to_visible(data): token for token, data in sorted(tokenizer._tokens.items())}
    for name, token in tokenizer.special_tokens.items():
        if name in vocab:
            raise FormatError(f"special token {name!r} looks like token {vocab[name]} in visible form; rename it")
        vocab[name] = token
    return dict(sorted(vocab.items(), key=lambda item: item[1]))


def _write_merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    visible = {token: to_visible(data) for token, data in tokenizer._tokens.items()}
    return [(visible[left], visible[right]) for left, right, _ in tokenizer.merges.tolist()]
