"""How text is cut into pieces before BPE: a merge never crosses a piece's edge.

The three patterns in use are given in their published form, which `regex`, tiktoken and Hugging Face's
tokenizers read alike; other spellings of the same rule are recognised and replaced by it.

Bytes that are not UTF-8 pass through as symbols: each counts as one character that is neither letter, digit
nor space (in Python's terms, the text is decoded with `surrogateescape`). Nothing is lost or replaced.

Left out here: speed. This file cuts with the `regex` package, which is the definition.
"""

from __future__ import annotations

from collections.abc import Iterator

import regex

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

PATTERNS = {"gpt2": GPT2, "gpt4": GPT4, "gpt4-tiktoken": GPT4_TIKTOKEN, "gpt4o": GPT4O}
_SAME = {
    "cl100k": GPT4, "cl100k_base": GPT4, "o200k": GPT4O, "o200k_base": GPT4O, "r50k_base": GPT2,
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""": GPT2,
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""": GPT2,
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""": GPT2,
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+""": GPT4,
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""":
        GPT4_TIKTOKEN,
}


def resolve(pattern: str | None) -> str | None:
    """The pattern's published form: a name from `PATTERNS`, a known spelling, or a regular expression of your own.

    None means no cutting at all. Raises ValueError for what is neither a name nor a valid expression.
    """
    if pattern is None:
        return None
    pattern = PATTERNS.get(pattern) or _SAME.get(pattern) or pattern
    if pattern.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"unknown pattern {pattern!r}: expected one of {', '.join(PATTERNS)} or a regular expression")
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"pattern is not a regular expression: {error} in {pattern!r}") from None
    return pattern


def split(data: bytes, pattern: str | None) -> Iterator[bytes]:
    """Cut bytes into pieces whose concatenation is `data`.

    What the pattern leaves unmatched between two matches is a piece as well, so nothing is ever dropped.
    """
    if pattern is None:
        if data:
            yield data
        return
    text = data.decode("utf-8", "surrogateescape")
    end = 0
    for match in regex.finditer(pattern, text):
        if match.start() > end:
            yield text[end:match.start()].encode("utf-8", "surrogateescape")
        if match.end() > match.start():
            yield match.group().encode("utf-8", "surrogateescape")
        end = match.end()
    if end < len(text):
        yield text[end:].encode("utf-8", "surrogateescape")


def to_bytes(text: str | bytes) -> bytes:
    """UTF-8 of a text. Lone surrogates, which have no UTF-8, become U+FFFD, and pairs become their character."""
    if isinstance(text, str):
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")
    return bytes(text)
