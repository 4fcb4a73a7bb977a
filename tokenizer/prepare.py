"""What happens to a text before it is cut: added tokens are taken out of it, the rest is put into a normal form.

In the order of Hugging Face's tokenizers: first those added tokens that are looked for in the text as it is, then the
normal form of each stretch between them, in it the other added tokens. At each place the longest counts. All of
this is on bytes; those that are not UTF-8 stay as they are.

Left out here: which tokens are allowed (bpe.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import groupby

import regex

from .pretokenize import special_expression
from .vocabulary import AddedToken

# Unicode's White_Space. Python's own idea of it, str.isspace, has four control characters more.
_POINTS = [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
SPACES = "".join(map(chr, _POINTS))
_SPACES_AFTER = re.compile(b"(?:%b)*" % b"|".join(re.escape(space.encode()) for space in SPACES))
_WORD = regex.compile(r"\w")
_MARKS = regex.compile(r"\P{ccc=0}{30,}")


def stretches(data: bytes, added: Mapping[str, AddedToken], forms: tuple[str, ...]) -> Iterator[bytes | int]:
    """A text as ids of the tokens `added` and, between them, stretches of ordinary text, normalized, none empty."""
    later = {normalize(name.encode(), forms).decode(): token for name, token in added.items() if token.normalized}
    for stretch in _extract(data, {name: token for name, token in added.items() if not token.normalized}):
        if isinstance(stretch, int):
            yield stretch
        else:
            yield from _extract(normalize(stretch, forms), later)


def normalize(data: bytes, forms: tuple[str, ...]) -> bytes:
    """Text in Unicode normal forms, one after another."""
    if not forms or data.isascii():
        return data
    text = _MARKS.sub(_in_order, data.decode("utf-8", "surrogateescape"))
    for form in forms:
        text = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    return text.encode("utf-8", "surrogateescape")


def _in_order(marks: regex.Match[str]) -> str:
    """A long run of combining marks in the order that every normal form has it.

    `unicodedata` sorts by insertion, which on a hostile megabyte takes hours; what is in order takes it no time.
    """
    decomposed = (part for mark in marks.group() for part in unicodedata.normalize("NFD", mark))
    runs = groupby(decomposed, key=lambda mark: unicodedata.combining(mark) > 0)
    return "".join(char for _, run in runs for char in sorted(run, key=unicodedata.combining))


def _extract(data: bytes, added: Mapping[str, AddedToken]) -> Iterator[bytes | int]:
    end = 0
    for match in special_expression(frozenset(added)).finditer(data) if added else ():
        token = added[match.group().decode()]
        start, stop = match.span()
        if token.single_word and (_is_word(data[max(0, start - 4):start], -1) or _is_word(data[stop:stop + 4], 0)):
            continue
        if token.lstrip:
            start = end + len(_without_spaces_behind(data[end:start]))
        if token.rstrip:
            stop = _SPACES_AFTER.match(data, stop).end()  # type: ignore[union-attr]
        if end < start:
            yield data[end:start]
        yield token.id
        end = stop
    if end < len(data):
        yield data[end:]


def _is_word(data: bytes, place: int) -> bool:
    """Whether the first or last character (place 0, -1) of up to four bytes is part of a word."""
    text = data.decode("utf-8", "ignore")
    return bool(text) and _WORD.match(text[place]) is not None


def _without_spaces_behind(data: bytes) -> bytes:
    return data.decode("utf-8", "surrogateescape").rstrip(SPACES).encode("utf-8", "surrogateescape")
