"""How text is cut into pieces before BPE: a merge never crosses a piece's edge.

The patterns in use are given in their published form, which `regex`, tiktoken and Hugging Face's
tokenizers read alike; other spellings of the same rule are recognised and replaced by it.

Bytes that are not UTF-8 pass through as symbols: each counts as one character that is neither letter, digit
nor space (in Python's terms, the text is decoded with `surrogateescape`). Nothing is lost or replaced.

A pattern of your own is read by `regex`. Other engines mean something else by a good part of its syntax: to
Oniguruma, which tokenizers uses, $ is the end of a line and {1,3}+ a repetition repeated. So `resolve` admits only
what all of them read alike, and a tokenizer trained with it here encodes the same there.

Several patterns cut one after another, each the pieces that the one before has left.

What a letter is, the `regex` package says, and a new release of it can know a newer Unicode. Around the characters that
are new, pieces can then differ, and so can ids and merges: regex 2026.11 knows Unicode 18, while tiktoken 0.14 and
tokenizers 0.23 know Unicode 16 and read letters assigned since then as symbols (docs/decisions.md).

`split` cuts with the `regex` package and is the definition; `piece_ends` gives the same cuts as numbers and uses the
compiled scanners of scan.py where there is one.

Left out here: how those scanners work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import regex

Pattern = str | tuple[str, ...] | None  # None: text is not cut
OneText = str | bytes | os.PathLike | IO  # itself, the path of its file, or the file, open
Texts = OneText | Iterable[OneText]

# GPT-2's, https://github.com/openai/gpt-2/blob/master/src/encoder.py
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# GPT-4's (cl100k) and GPT-4o's (o200k), https://github.com/openai/tiktoken, tiktoken_ext/openai_public.py
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tiktoken rewrote cl100k for speed in 2024, and with `\s++$` in front of `\s*[\r\n]` the white space at the very end
# of a text became one piece even where it holds a newline. Everything else is GPT4.
GPT4_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+(?![\s\S])|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])

# Qwen's: GPT-4's, but each digit is a piece. SmolLM, StarCoder and Command-R cut digits out before GPT-2's pattern.
QWEN2 = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
DIGITS_GPT2 = (r"\p{N}", GPT2)

PATTERNS = {"gpt2": GPT2, "gpt4": GPT4, "gpt4-tiktoken": GPT4_TIKTOKEN, "gpt4o": GPT4O, "qwen2": QWEN2}

# Other names, and other spellings of the same rules.
_GPT4_HEAD = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}"
SAME = {
    **dict.fromkeys(("r50k_base", "p50k_base", "p50k_edit"), GPT2),  # tiktoken's, and they mean what they mean there
    "cl100k_base": GPT4_TIKTOKEN,
    **dict.fromkeys(("o200k_base", "o200k_harmony"), GPT4O),
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": GPT2,
    _GPT4_HEAD + r"+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+": GPT4,
    _GPT4_HEAD + r"++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s": GPT4_TIKTOKEN,
}

# Patterns with a compiled scanner, and the scanner's number in scan.py.
SCANNERS: dict[Pattern, int] = {GPT2: 0, GPT4: 1, GPT4_TIKTOKEN: 2, GPT4O: 3, QWEN2: 4, DIGITS_GPT2: 5}

# They all end a piece after a letter that is followed by neither letter, mark nor apostrophe, whatever else stands
# around: here a text can be cut before it is known how it goes on. (?r) searches from the end.
CUT = regex.compile(r"(?r)(?<=\p{L})(?=[^\p{L}\p{M}'])")

BLOCK_BYTES = 1 << 20
BLOCK_PIECES = 1 << 14


# What every engine reads alike: escapes, a class without set operations, groups, repetitions, other characters.
_ESCAPE = r"\\(?:[sSdDrntf]|[pP]\{\^?\w+\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^\w])"
_PORTABLE = re.compile(
    rf"{_ESCAPE}|\[\^?(?:{_ESCAPE}|(?!--|&&|\|\||~~)[^\[\]\\])+\]|\((?:\?(?:[:=!>]|<[=!]|i:)|(?!\?))|\)"
    r"|[*+?][+?]?|\{(\d{1,4})(?:,(\d{0,4}))?\}(?![+?])|[^\\\[\](){}^$]"
)
MOST_REPETITIONS = 1_000_000  # all {n} multiplied, as if nested: `regex` unrolls them


def resolve(pattern: str | Sequence[str] | None) -> Pattern:
    """The pattern's published form: a name from `PATTERNS`, a known spelling, or a regular expression of your own.

    Several patterns cut one after another. None, or no pattern, means no cutting at all. Raises ValueError for what is
    neither a name nor an expression that all engines read alike.
    """
    if pattern is None or isinstance(pattern, str):
        return None if pattern is None else _resolve_one(pattern)
    resolved = tuple(map(_resolve_one, pattern))
    return resolved if len(resolved) > 1 else next(iter(resolved), None)


def _resolve_one(pattern: str) -> str:
    if pattern in PATTERNS or pattern in SAME:
        return PATTERNS.get(pattern) or SAME[pattern]
    if pattern not in PATTERNS.values():
        if not pattern or pattern.replace("_", "").replace("-", "").isalnum():
            names = ", ".join(PATTERNS)
            raise ValueError(f"unknown pattern {pattern!r}: expected one of {names} or a regular expression")
        check_portable(pattern)
    return pattern


def check_portable(pattern: str) -> None:
    """Raise ValueError unless `pattern` is an expression that `regex`, Oniguruma and tiktoken's engine read alike."""
    at, repetitions = 0, 1
    while at < len(pattern):
        part = _PORTABLE.match(pattern, at)
        if part is None:
            where = f"{pattern[at:at + 10]!r} at character {at}"
            raise ValueError(f"pattern is not a regular expression that all engines read alike: {where}")
        repetitions *= max(1, *(int(count or 1) for count in part.groups()))
        at = part.end()
    try:
        if repetitions > MOST_REPETITIONS:
            raise ValueError(f"pattern repeats {repetitions} times, more than {MOST_REPETITIONS}: {pattern!r}")
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern is not a regular expression: {error} in {pattern!r}") from None


def split(data: bytes, pattern: Pattern) -> Iterator[bytes]:
    """Cut bytes into pieces whose concatenation is `data`.

    What the pattern leaves unmatched between two matches is a piece as well, so nothing is ever dropped.
    """
    pieces = iter([data] if data else [])
    for one in (pattern,) if isinstance(pattern, str) else pattern or ():
        pieces = _split_each(pieces, one)
    return pieces


def _split_each(pieces: Iterable[bytes], pattern: str) -> Iterator[bytes]:
    expression = regex.compile(pattern)
    for data in pieces:
        text = data.decode("utf-8", "surrogateescape")
        end = 0
        for match in expression.finditer(text):
            if match.start() > end:
                yield text[end:match.start()].encode("utf-8", "surrogateescape")
            if match.end() > match.start():
                yield match.group().encode("utf-8", "surrogateescape")
            end = match.end()
        if end < len(text):
            yield text[end:].encode("utf-8", "surrogateescape")


def piece_ends(data: bytes, pattern: Pattern, stops: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """The pieces of `split` in blocks: (where the block's first piece begins, (n,) int64 where its pieces end).

    Each array is valid until the next is asked for. With a pattern of `SCANNERS`, `data` may be several texts that end
    at `stops`, (texts,) int64.
    """
    if pattern is None:
        if data:
            yield 0, np.array([len(data)])
        return
    start = 0
    if pattern in SCANNERS:
        scan, classes = _compiled()
        view = np.frombuffer(data, dtype=np.uint8)
        ends = np.empty(min(BLOCK_PIECES, len(data)), dtype=np.int64)
        stops = np.array([len(data)]) if stops is None else stops
        while start < len(data):
            n = scan(view, start, stops, SCANNERS[pattern], classes, ends)
            yield start, ends[:n]
            start = int(ends[n - 1])
        return
    pieces = split(data, pattern)
    while lengths := [len(piece) for piece in islice(pieces, BLOCK_PIECES)]:
        ends = start + np.cumsum(lengths)
        yield start, ends
        start = int(ends[-1])


@cache
def _compiled() -> tuple[Callable[..., int], np.ndarray]:
    """The scanner and what it knows of characters. It brings Numba along, so it is imported at first use."""
    from . import scan

    return scan.scan, scan.classes()


def blocks(texts: Texts, pattern: Pattern, special_tokens: Collection[str] = ()) -> Iterator[bytes]:
    """The texts as stretches of bytes to be cut into pieces one by one; special tokens are left out.

    A text is a str, bytes, a path, or an open file. It is read in blocks of about a megabyte, and the pieces are those
    of the whole. (With a pattern of your own, of which nothing is known, a text is one block.)
    """
    names = frozenset(special_tokens)
    ordinary = special_expression(names).split if names else lambda data: [data]
    for text in [texts] if isinstance(texts, (str, bytes, os.PathLike)) or hasattr(texts, "read") else texts:
        parts = _parts(text, BLOCK_BYTES)
        stretches = _rejoin(parts, names) if pattern in SCANNERS else iter([b"".join(parts)])
        for stretch in stretches:
            yield from filter(None, ordinary(stretch))


def _parts(text: Any, size: int) -> Iterator[bytes]:
    """A text in parts of about `size`, cut anywhere."""
    if isinstance(text, os.PathLike):
        with Path(text).open("rb") as file:
            yield from _parts(file, size)
    elif hasattr(text, "read"):
        while part := text.read(size):
            yield to_bytes(part)
    elif isinstance(text, str) and text.isascii():
        for start in range(0, len(text), size):
            yield text[start:start + size].encode()
    else:
        data = to_bytes(text)
        for start in range(0, len(data), size):
            yield data[start:start + size]


def _rejoin(parts: Iterable[bytes], special_tokens: frozenset[str]) -> Iterator[bytes]:
    """The same text in parts that end where pieces end, whatever follows."""
    waiting: list[bytes] = []
    for part in parts:
        cut = _last_cut(part, special_tokens)
        if cut:
            yield b"".join([*waiting, part[:cut]])
            waiting = []
        waiting.append(part[cut:])
    yield b"".join(waiting)


def _last_cut(data: bytes, special_tokens: frozenset[str]) -> int:
    """The last place where `data` can be cut though more text may follow, 0 if there is none near the end."""
    margin = max([8, *(len(name.encode()) for name in special_tokens)])
    begin, last = max(margin, len(data) - (1 << 16)), len(data) - margin
    while begin < last and data[begin] & 0xC0 == 0x80:  # from the beginning of a character
        begin += 1
    while begin < last and data[last] & 0xC0 == 0x80:  # to the end of one
        last -= 1
    text = data[begin:last].decode("utf-8", "surrogateescape")
    end = len(text)
    while found := CUT.search(text, 0, end):
        end = found.start()
        cut = begin + len(text[:end].encode("utf-8", "surrogateescape"))
        if not any(name in data[cut - len(name) + 1:cut + len(name) - 1] for name in map(str.encode, special_tokens)):
            return cut  # within no special token
    return 0


@lru_cache(maxsize=256)
def special_expression(names: frozenset[str]) -> re.Pattern[bytes]:
    """Matches any of the special tokens, the longest where several begin at the same place.

    Those that begin with the same byte stand together, so that a byte that begins none, or few, is soon done with.
    """
    spelled = sorted((name.encode() for name in names), key=lambda name: (name[:1], -len(name)))
    groups = [[re.escape(name) for name in group] for _, group in groupby(spelled, key=lambda name: name[:1])]
    return re.compile(b"|".join(b"(?:%b)" % b"|".join(group) for group in groups))


def to_bytes(text: str | bytes) -> bytes:
    """UTF-8 of a text. Lone surrogates, which have no UTF-8, become U+FFFD, and pairs become their character.

    Raises TypeError for what is neither str nor bytes.
    """
    if isinstance(text, str):
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"expected a text as str or bytes, got {type(text).__name__}")
