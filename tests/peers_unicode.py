"""Characters of which the peers' tables of Unicode say something else than those of `regex`: it is often newer.

tiktoken 0.14 and tokenizers 0.23 have Unicode 16, as regex 2025.9.1 has; regex 2026.11 has Unicode 18. What a split
pattern makes of the 17,560 characters between is not to be compared; of all others it is.
"""

import functools

import pytest
import regex

# What the split patterns tell apart.
CLASSES = [r"\s", r"\p{N}", r"\p{M}", r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]"]


@functools.cache
def disputed() -> frozenset[str]:
    """The characters on which `regex` and one of the peers disagree."""
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is in the bench extra")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the bench extra")
    every = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    out: set[str] = set()
    for expression in CLASSES:
        ours = set(regex.findall(expression, every))
        encoding = tiktoken.Encoding(
            "class", pat_str=expression, mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
        )  # drops what the pattern does not match
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "removed", invert=True)
        out |= ours ^ set(encoding.decode(encoding.encode_ordinary(every)))
        out |= ours ^ {char for char, _ in split.pre_tokenize_str(every)}
    return frozenset(out)


def comparable(text: str) -> str:
    """The text without disputed characters."""
    return "".join(char for char in text if char not in disputed())
