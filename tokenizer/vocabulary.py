"""What a tokenizer is made of: one record, which proves its parts consistent when it is made.

`Tokenizer` (bpe.py) works with it, formats.py reads and writes it. The fields are those that the vocabularies of public
models need: GPT-2 and GPT-4 do with tokens, merges, special tokens and a pattern. Llama 3 keeps pieces whole that are
tokens, Qwen and GPT-NeoX put text into a Unicode normal form first, GPT-NeoX has tokens for runs of spaces that are cut
out of text before anything else, and RoBERTa's `<mask>` takes the white space before it along.

Left out here: what these do to a text (prepare.py, pretokenize.py, merge.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from . import pretokenize

FORMS = ("NFC", "NFD", "NFKC", "NFKD")

# Bytes that no UTF-8 text holds. A vocabulary may lack them, as GPT-NeoX's does; every other byte must have a token.
NEVER_IN_UTF8 = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])


class FormatError(ValueError):
    """A vocabulary that contradicts itself, or a file that cannot be read as one. One line, names the place."""

    def __init__(self, message: str) -> None:
        long = len(message) > 350  # a hostile file's own words may fill pages
        super().__init__(f"{message[:200]} … {message[-140:]}" if long else message)


class AddedToken(NamedTuple):
    """A token that is read as a whole, before text is cut into pieces. The switches are those of tokenizer.json.

    `special`: read only where the caller of `encode` allows it; otherwise wherever it stands. `normalized`: looked for
    in the normalized text, after those that are not. `lstrip`, `rstrip`: takes the white space before or after it
    along, so decoding does not bring that back. `single_word`: not read beside a letter or digit.
    """

    id: int
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens, merges, added tokens, and how text is prepared and cut. Raises `FormatError` when these contradict
    each other, naming the token or merge.

    tokens          id to bytes, with a token for each byte that UTF-8 text can hold
    merges          (M, 3) int64: left id, right id, new id, in order of priority
    added           text to `AddedToken`
    pattern         how text is split: see `pretokenize.resolve`
    whole_pieces    a piece that is a token stays whole, whatever the merges say (ignore_merges)
    normalizer      Unicode normal forms that text is put into, one after another
    prefix_space    a stretch of text between added tokens gets a space in front unless it begins with one
    """

    tokens: Mapping[int, bytes]
    merges: np.ndarray
    added: Mapping[str, AddedToken]
    pattern: pretokenize.Pattern = None
    whole_pieces: bool = False
    normalizer: tuple[str, ...] = ()
    prefix_space: bool = False

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "tokens": dict(self.tokens),
            "merges": np.array(self.merges, dtype=np.int64).reshape(-1, 3),
            "added": dict(sorted(self.added.items(), key=lambda item: item[1].id)),
            "pattern": pretokenize.resolve(self.pattern),
            "normalizer": tuple(self.normalizer),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.merges.flags.writeable = False
        if not set(self.normalizer) <= set(FORMS):
            raise FormatError(f"normalizer is {self.normalizer!r}, expected some of {', '.join(FORMS)}")
        _check_tokens(self.tokens)
        _check_added(self.tokens, self.added)
        _check_ids(self.tokens, self.added)
        _check_merges(self.tokens, self.merges)

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, tuple(getattr(self, field.name) for field in fields(self))

    def special_tokens(self) -> dict[str, int]:
        """Text to id of the special ones, in order of their ids."""
        return {name: token.id for name, token in self.added.items() if token.special}

    def missing_bytes(self) -> bytes:
        """The bytes that have no token."""
        return bytes(sorted(set(range(256)) - {data[0] for data in self.tokens.values() if len(data) == 1}))

    def hash(self) -> str:
        """64 hex digits of everything that ids depend on, the same on every machine and in every version."""
        special = self.special_tokens()
        digest = hashlib.sha256(json.dumps([self.pattern, self.whole_pieces, special]).encode())
        for token, data in sorted(self.tokens.items()):
            digest.update(b"%d %d " % (token, len(data)) + data)
        digest.update(self.merges.astype("<i8").tobytes())
        further = {name: token for name, token in self.added.items() if token != AddedToken(token.id)}
        if further or self.normalizer or self.prefix_space:  # what few vocabularies have changes the hash of only those
            digest.update(json.dumps([further, self.normalizer, self.prefix_space]).encode())
        return digest.hexdigest()


def _check_tokens(tokens: Mapping[int, bytes]) -> None:
    ids: dict[bytes, int] = {}
    for token, data in tokens.items():
        if not data:
            raise FormatError(f"token {token} is empty")
        if data in ids:
            raise FormatError(f"ids {ids[data]} and {token} are both {data!r}")
        ids[data] = token
    for byte in range(256):
        if bytes([byte]) not in ids and byte not in NEVER_IN_UTF8:
            raise FormatError(f"byte {byte:#04x} has no token: byte-level BPE needs all that text can hold")


def _check_added(tokens: Mapping[int, bytes], added: Mapping[str, AddedToken]) -> None:
    """Added tokens must be told apart from ordinary ones; only those that are not special may spell an ordinary one."""
    ids = {data: token for token, data in tokens.items()}
    names: dict[int, str] = {}
    for name, token in added.items():
        if not name:
            raise FormatError(f"special token {token.id} is empty")
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise FormatError(f"special token {name!r} holds a lone surrogate")
        spelled = name.encode()
        if token.id in tokens and (token.special or tokens[token.id] != spelled):
            raise FormatError(f"special token {name!r} has id {token.id}, which is {tokens[token.id]!r}")
        if token.id in names:
            raise FormatError(f"special tokens {names[token.id]!r} and {name!r} both have id {token.id}")
        if spelled in ids and token.special:
            raise FormatError(f"special token {name!r} is also the ordinary token {ids[spelled]}")
        names[token.id] = name


def _check_ids(tokens: Mapping[int, bytes], added: Mapping[str, AddedToken]) -> None:
    """Ids begin with 0 and have no gaps, up to the last ordinary token; above it, added tokens may leave some."""
    names = {token.id: name for name, token in added.items()}
    lowest, last = min([*tokens, *names]), max(tokens)
    if lowest < 0:
        raise FormatError(f"id {lowest} is negative")
    gap = next((i for i in range(last) if i not in tokens and i not in names), None)
    if gap is not None:
        raise FormatError(f"id {gap} is missing: ids below {last} must be complete")
    if names and max(names) > last + (1 << 20):
        raise FormatError(f"special token {names[max(names)]!r} has id {max(names)}, far beyond the last, {last}")


def _check_merges(tokens: Mapping[int, bytes], merges: np.ndarray) -> None:
    seen: dict[tuple[int, int], int] = {}
    for i, (left, right, new) in enumerate(merges.tolist()):
        for token in (left, right, new):
            if token not in tokens:
                raise FormatError(f"merge {i} names id {token}, which is no ordinary token")
        a, b, whole = tokens[left], tokens[right], tokens[new]
        if a + b != whole:
            raise FormatError(f"merge {i} makes {whole!r} of {a!r} and {b!r}")
        if (left, right) in seen:
            raise FormatError(f"merges {seen[left, right]} and {i} both join {a!r} and {b!r}")
        seen[left, right] = i
